"""Fold constants of the backbone before export: the same function with less work per call, on every backend.

* LayerScale is folded into the product before it, unless it scales up. A larger product might overflow fp16; the residual stream,
  where ViTs grow large activations, is float32.
* The bias of v is folded into the bias after attention, because the weights of a softmax sum to 1. The bias of k is dropped: it
adds
  the same to all scores of a query, and a softmax ignores that.
* Tokens of several layers are summed whole and sliced once.

The first two are exact up to rounding, the last is bit-exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from timm.models.vision_transformer import Attention, Block, LayerScale, Mlp  # type: ignore[attr-defined, unused-ignore]
from torch import Tensor, nn

Replace = Callable[[nn.Module, str, nn.Module], None]
"""Replace the child of a module: ``replace(parent, name, new)``."""


@contextmanager
def folded(net: nn.Module) -> Iterator[None]:
    """Fold LayerScales and biases of a network within the block.

    No tensor is changed: modules are replaced, and put back afterwards. Only timm's plain blocks with plain attention are folded.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def replace(parent: nn.Module, name: str, new: nn.Module) -> None:
        replaced.append((parent, name, getattr(parent, name)))
        setattr(parent, name, new)

    try:
        for block in [module for module in net.modules() if type(module) is Block]:
            if _plain(block.attn):
                _fold_attention(block, replace)
            if type(block.mlp) is Mlp:
                _fold_scale(block, "ls2", block.mlp, "fc2", replace)
        yield
    finally:
        for parent, name, module in reversed(replaced):
            setattr(parent, name, module)


def _plain(attention: Any) -> bool:
    """Return whether there is nothing between qkv, softmax and the last product. Old versions of timm lack some of the names."""
    between = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
    return type(attention) is Attention and all(module is None or type(module) is nn.Identity for module in between)


def _fold_attention(block: Any, replace: Replace) -> None:
    attention = block.attn
    if attention.qkv.bias is not None:
        q, k, v = attention.qkv.bias.detach().double().chunk(3)
        weight, bias = _exactly(attention.proj)
        replace(attention, "qkv", _linear(attention.qkv.weight, torch.cat([q, 0 * k, 0 * v])))
        replace(attention, "proj", _linear(weight, bias + weight @ v))
    _fold_scale(block, "ls1", attention, "proj", replace)


def _fold_scale(block: nn.Module, scale: str, parent: nn.Module, last: str, replace: Replace) -> None:
    """Fold the block's LayerScale ``scale`` into the linear layer ``last`` of ``parent``, if no factor exceeds 1."""
    layer_scale = getattr(block, scale)
    if type(layer_scale) is not LayerScale or layer_scale.gamma.abs().max() > 1:
        return
    gamma = layer_scale.gamma.detach().double()
    weight, bias = _exactly(getattr(parent, last))
    replace(parent, last, _linear(gamma[:, None] * weight, gamma * bias))
    replace(block, scale, nn.Identity())


def _exactly(layer: Any) -> tuple[Tensor, Tensor]:
    """Return weight (out, in) and bias (out,) in float64; the bias is zero if the layer has none."""
    weight = layer.weight.detach().double()
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a float32 layer with this weight and bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    return layer


def slice_after_sum(model: ir.Model) -> None:
    """Replace a sum of two equal slices by a slice of the sum, in place, also along a series of sums."""
    graph = model.graph
    sums: dict[tuple[ir.Value, ...], ir.Value] = {}
    for node in [node for node in graph if node.op_type == "Add"]:
        slices = [_slice(value) for value in node.inputs]
        if slices[0] is None or slices[1] is None or slices[0].bounds != slices[1].bounds:
            continue
        wholes = slices[0].whole, slices[1].whole
        if wholes[0].shape != wholes[1].shape:
            continue
        if wholes not in sums:  # patches and class token are slices of one sum
            sums[wholes] = _insert(graph, node, "Add", wholes, wholes[0])
        sliced = _insert(graph, node, "Slice", [sums[wholes], *slices[0].arguments], node.outputs[0])
        ir.convenience.replace_all_uses_with(node.outputs[0], sliced)
    RemoveUnusedNodesPass()(model)


class _Slice(NamedTuple):
    """A ``Slice`` node.

    Attributes:
        whole: Its input.
        arguments: Its other arguments.
        bounds: Their values.
    """

    whole: ir.Value
    arguments: tuple[ir.Value, ...]
    bounds: list[Any]


def _slice(value: ir.Value | None) -> _Slice | None:
    """Return the ``Slice`` that computes a value, if its bounds are constants."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Slice":
        return None
    whole, *arguments = node.inputs
    if whole is None or any(argument is None or argument.const_value is None for argument in arguments):
        return None
    bounds = [argument.const_value.numpy().tolist() for argument in arguments]  # type: ignore[union-attr]
    return _Slice(whole, tuple(arguments), bounds)  # type: ignore[arg-type]


def _insert(graph: ir.Graph, before: ir.Node, op: str, inputs: Sequence[ir.Value], like: ir.Value) -> ir.Value:
    """Insert a node and return its result, which gets the type and shape of ``like``."""
    node = ir.node(op, inputs, outputs=[ir.Value(type=like.type, shape=like.shape)])
    graph.insert_before(before, node)
    return node.outputs[0]
