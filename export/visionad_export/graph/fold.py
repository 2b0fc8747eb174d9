"""The backbone as it is exported: the same function with less to do at every call, whatever runs it.

* LayerScale becomes a part of the product before it, unless it scales up: fp16 that holds a product need not hold a larger one, and
  the residual stream, where ViTs grow activations beyond it, is float32.
* The bias of v becomes a part of the bias after attention: the weights of a softmax add up to 1. That of k goes: it adds the same
  to all scores of a query, which a softmax does not see.
* Where tokens of several layers are added, they are added whole, and cut once.

The first two are exact but for rounding, the last to the bit.
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
"""Put a module in the place that it has under a name in another one."""


@contextmanager
def folded(net: nn.Module) -> Iterator[None]:
    """``net`` with LayerScales and biases folded, until the block ends. No tensor of it is changed: other modules take the place of
    some. What is not timm's plain block with plain attention is left as it is."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def replace(parent: nn.Module, name: str, by: nn.Module) -> None:
        replaced.append((parent, name, getattr(parent, name)))
        setattr(parent, name, by)

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
    """Whether nothing lies between qkv, softmax and the product behind them. Not each version of timm knows all that may."""
    between = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
    return type(attention) is Attention and all(one is None or type(one) is nn.Identity for one in between)


def _fold_attention(block: Any, replace: Replace) -> None:
    attention = block.attn
    if attention.qkv.bias is not None:
        q, k, v = attention.qkv.bias.detach().double().chunk(3)
        weight, bias = _exactly(attention.proj)
        replace(attention, "qkv", _linear(attention.qkv.weight, torch.cat([q, 0 * k, 0 * v])))
        replace(attention, "proj", _linear(weight, bias + weight @ v))
    _fold_scale(block, "ls1", attention, "proj", replace)


def _fold_scale(block: nn.Module, scale: str, parent: nn.Module, last: str, replace: Replace) -> None:
    """Make the block's LayerScale of that name a part of the linear layer before it, if it is one and no factor exceeds 1."""
    found = getattr(block, scale)
    if type(found) is not LayerScale or found.gamma.abs().max() > 1:
        return
    gamma = found.gamma.detach().double()
    weight, bias = _exactly(getattr(parent, last))
    replace(parent, last, _linear(gamma[:, None] * weight, gamma * bias))
    replace(block, scale, nn.Identity())


def _exactly(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) in float64, zeros where there is none."""
    weight = layer.weight.detach().double()
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer of these, in float32."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    return layer


def slice_after_sum(model: ir.Model) -> None:
    """Where two results are cut alike (``Slice``) and added, add them and cut the sum, in place; so too along a chain of sums."""
    graph = model.graph
    sums: dict[tuple[ir.Value, ...], ir.Value] = {}
    for node in [node for node in graph if node.op_type == "Add"]:
        cuts = [_cut(value) for value in node.inputs]
        if cuts[0] is None or cuts[1] is None or cuts[0].bounds != cuts[1].bounds:
            continue
        wholes = cuts[0].whole, cuts[1].whole
        if wholes[0].shape != wholes[1].shape:
            continue
        if wholes not in sums:  # patches and class token are cut from one sum
            sums[wholes] = _insert(graph, node, "Add", wholes, wholes[0])
        found = _insert(graph, node, "Slice", [sums[wholes], *cuts[0].arguments], node.outputs[0])
        ir.convenience.replace_all_uses_with(node.outputs[0], found)
    RemoveUnusedNodesPass()(model)


class _Cut(NamedTuple):
    """A ``Slice``: of what, its other arguments, and their values."""

    whole: ir.Value
    arguments: tuple[ir.Value, ...]
    bounds: list[Any]


def _cut(value: ir.Value | None) -> _Cut | None:
    """The cut that this is the result of, if its bounds are constants."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Slice":
        return None
    whole, *arguments = node.inputs
    if whole is None or any(one is None or one.const_value is None for one in arguments):
        return None
    return _Cut(whole, tuple(arguments), [one.const_value.numpy().tolist() for one in arguments])  # type: ignore[union-attr, arg-type]


def _insert(graph: ir.Graph, before: ir.Node, op: str, inputs: Sequence[ir.Value], like: ir.Value) -> ir.Value:
    """The result of a new node, of the type and shape of another one."""
    node = ir.node(op, inputs, outputs=[ir.Value(type=like.type, shape=like.shape)])
    graph.insert_before(before, node)
    return node.outputs[0]
