"""Rewrite the backbone's graph with ONNX Runtime's own fused operators for GPUs.

``backbone.onnx`` is plain ONNX, which every backend reads and TensorRT fuses by itself. ONNX Runtime does not recognise timm's form
of attention: it would write the scores of all tokens and heads to memory, read them for the softmax, and read them again for the
product. So export also writes ``backbone.cuda.onnx``:

* Attention with one layer for q, k and v becomes ``Split`` and ``MultiHeadAttention`` (flash attention). A bias that is 0 for k and
  v, as the export folds it, is added to q only, after ``Split``.
* A residual sum before a LayerNorm becomes ``SkipLayerNormalization``, which includes the bias of the branch.
* A bias before a GELU becomes ``BiasGelu``.

Other patterns are not changed. The weights stay in ``backbone.onnx`` or its data file, and the fused file refers to them. The
runtime's self-test checks the graph at every start.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
MAX_COPIED_BYTES = 4096
"""Constants up to this size are copied. Larger ones stay in the source file."""


class Fused(NamedTuple):
    """Numbers of fused attentions and norms."""

    attentions: int
    norms: int


def write_fused(source: Path, target: Path) -> Fused | None:
    """Write a model with fused operators beside the one that it is made of.

    Args:
        source: The ONNX file.
        target: The file to write, in the same folder. It refers to ``source`` for its weights.

    Returns:
        What was fused; ``None`` if there is no attention to fuse. Then nothing is written.
    """
    model = ir.load(source)
    fused = fuse(model)
    if not fused.attentions:
        return None
    _refer_to_weights(model, source)
    ir.save(model, target)
    return fused


def fuse(model: ir.Model) -> Fused:
    """Replace patterns for which ONNX Runtime has operators, in place."""
    graph = model.graph
    attentions = sum(_fuse_attention(graph, n) for n in list(graph) if n.op_type == "Softmax")
    # only norms of tokens (B, N, D), which a graph with attention has; in other graphs they may be norms of images
    norms = sum(_fuse_norm(graph, n) for n in list(graph) if attentions and n.op_type == "LayerNormalization")
    for node in [n for n in graph if n.op_type == "Gelu"]:
        _fuse_gelu(graph, node)
    RemoveUnusedNodesPass()(model)
    graph.opset_imports[MICROSOFT] = 1
    return Fused(attentions, norms)


def _refer_to_weights(model: ir.Model, source: Path) -> None:
    """Make every large weight a reference to its bytes in the file that holds it."""
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = 0
        for value in model.graph.initializers.values():
            tensor = value.const_value
            # a tensor in a data file is a reference already
            if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.nbytes <= MAX_COPIED_BYTES:
                continue
            raw = tensor.tobytes()
            begin = data.find(raw, end)  # weights are mostly in the graph's order, so this is a short search
            if begin < 0:
                begin = data.find(raw)
            if begin < 0:
                continue  # the constant is new
            end = begin + len(raw)
            value.const_value = ir.ExternalTensor(
                source.name,
                begin,
                len(raw),
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=source.parent,
            )


# -- the graph around a node -------------------------------------------------------------------------------------------


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _used_by(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the only user of a value, if it is an operator of this kind."""
    users = [use.node for use in value.uses()]
    is_only = len(users) == 1 and users[0].op_type == op_type and not value.is_graph_output()
    return users[0] if is_only else None


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def _vector(value: ir.Value | None) -> NDArray[np.float32] | None:
    array = _constant(value)
    return array if array is not None and array.ndim == 1 and array.dtype == np.float32 else None


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value


def _add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, before: ir.Node, nodes: Sequence[ir.Node], values: dict[ir.Value, ir.Value]) -> None:
    """Insert nodes and let their values take the place of others, under the others' names."""
    graph.insert_before(before, nodes)
    for old, new in values.items():
        new.shape, new.type = old.shape, old.type
        name, old.name = old.name, f"{old.name}/replaced"
        new.name = name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


# -- attention ---------------------------------------------------------------------------------------------------------


def _fuse_attention(graph: ir.Graph, softmax: ir.Node) -> bool:
    """Fuse softmax(scale · q · kᵀ) · v, of q, k, v that are the thirds of one tensor (B, N, 3 · heads · width)."""
    scores = _made_by(softmax.inputs[0], "MatMul")
    product = _used_by(softmax.outputs[0], "MatMul")
    if scores is None or product is None or _attribute(softmax, "axis", -1) not in (-1, 3):
        return False
    scaled, turned = _made_by(scores.inputs[0], "Mul"), _made_by(scores.inputs[1], "Transpose")
    swapped = _used_by(product.outputs[0], "Transpose")
    merged = swapped and _used_by(swapped.outputs[0], "Reshape")
    if scaled is None or turned is None or swapped is None or merged is None:
        return False
    if product.inputs[0] is not softmax.outputs[0]:
        return False
    scale = _constant(scaled.inputs[1])
    parts = [_third(value) for value in (scaled.inputs[0], turned.inputs[0], product.inputs[1])]
    if scale is None or scale.size != 1 or [p and p[1] for p in parts] != [0, 1, 2]:
        return False
    if _attribute(turned, "perm", None) != [0, 1, 3, 2] or _attribute(swapped, "perm", None) != [0, 2, 1, 3]:
        return False
    whole = {p[0] for p in parts if p}
    split = _heads(whole.pop()) if len(whole) == 1 else None
    if split is None:
        return False
    linear, heads = split
    out = merged.outputs[0]
    biased = _bias_of_query(linear)
    thirds = ir.node(
        "Split", [linear if biased is None else biased.value], {"axis": -1, "num_outputs": 3}, num_outputs=3
    )
    nodes, query = [thirds], thirds.outputs[0]
    if biased is not None:
        nodes.append(ir.node("Add", [query, _add_constant(graph, f"{out.name}/bias", biased.bias)]))
        query = nodes[-1].outputs[0]
    attributes = {"num_heads": heads, "scale": float(scale.astype(np.float32).item())}
    nodes.append(ir.node("MultiHeadAttention", [query, *thirds.outputs[1:]], attributes, domain=MICROSOFT))
    _replace(graph, merged, nodes, {out: nodes[-1].outputs[0]})
    return True


def _third(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """Return of which tensor this is the n-th entry along its first axis, and n."""
    squeezed = _made_by(value, "Squeeze")
    sliced = squeezed and _made_by(squeezed.inputs[0], "Slice")
    if sliced is None or squeezed is None or len(sliced.inputs) < 4 or len(squeezed.inputs) < 2:
        return None
    numbers = [_constant(v) for v in (*sliced.inputs[1:4], squeezed.inputs[1])]
    if any(n is None or n.size != 1 for n in numbers):
        return None
    begin, end, axis, gone = (int(n.item()) for n in numbers if n is not None)
    whole = sliced.inputs[0]
    return (whole, begin) if whole is not None and (end - begin, axis, gone) == (1, 0, 0) else None


def _heads(value: ir.Value) -> tuple[ir.Value, int] | None:
    """Return the tensor (B, N, 3 · heads · width) of which this is (3, B, heads, N, width), and its number of heads."""
    turned = _made_by(value, "Transpose")
    split = turned and _made_by(turned.inputs[0], "Reshape")
    shape = None if split is None else _constant(split.inputs[1])
    if turned is None or split is None or shape is None or _attribute(turned, "perm", None) != [2, 0, 3, 1, 4]:
        return None
    sizes, linear = shape.tolist(), split.inputs[0]
    return (
        (linear, int(sizes[3])) if linear is not None and len(sizes) == 5 and sizes[2] == 3 and sizes[3] > 0 else None
    )


class _Biased(NamedTuple):
    """value + bias."""

    value: ir.Value
    bias: NDArray[Any]


def _bias_of_query(value: ir.Value) -> _Biased | None:
    """Return the summand and q's part of the bias, where this is the sum of q, k, v and a bias that is 0 for k and v."""
    added = _made_by(value, "Add")
    bias = None if added is None else _constant(added.inputs[1])
    if added is None or added.inputs[0] is None or bias is None or bias.ndim != 1:
        return None
    width = len(bias) // 3
    if len(bias) % 3 or bias[width:].any():
        return None
    return _Biased(added.inputs[0], bias[:width])


# -- residual and LayerNorm --------------------------------------------------------------------------------------------


def _fuse_norm(graph: ir.Graph, norm: ir.Node) -> bool:
    """Fuse LayerNorm(a + b), and the sum itself.

    Where b is (c + bias) · scale, it becomes LayerNorm(a + c · scale + bias · scale).
    """
    total = _made_by(norm.inputs[0], "Add")
    if total is None or len(norm.inputs) != 3 or _attribute(norm, "axis", -1) not in (-1, 2):
        return False
    if any(value is None or value.const_value is not None for value in total.inputs):
        return False
    inputs, nodes, shift = list(total.inputs), list[ir.Node](), list[ir.Value]()
    for side, value in enumerate(total.inputs):
        branch = _branch(value)
        if branch is not None and value is not None:
            shift = [_add_constant(graph, f"{value.name}/shift", branch.shift)]
            inputs[side] = branch.value
            if branch.scale is not None:
                nodes = [ir.node("Mul", [branch.value, branch.scale])]
                inputs[side] = nodes[0].outputs[0]
            break  # it takes one
    outputs = [ir.Value(), ir.Value(name=""), ir.Value(name=""), ir.Value()]
    attributes = {"epsilon": float(_attribute(norm, "epsilon", 1e-5))}
    skip = ir.node(
        "SkipLayerNormalization", [*inputs, *norm.inputs[1:], *shift], attributes, domain=MICROSOFT, outputs=outputs
    )
    _replace(graph, total, [*nodes, skip], {norm.outputs[0]: outputs[0], total.outputs[0]: outputs[3]})
    graph.remove([norm, total], safe=True)
    return True


class _Branch(NamedTuple):
    """value · scale + shift; ``shift`` float32 (D,)."""

    value: ir.Value
    shift: NDArray[np.float32]
    scale: ir.Value | None


def _branch(value: ir.Value | None) -> _Branch | None:
    """Return the parts of (value + bias) · scale in float32 that one sum uses."""
    scaled = _made_by(value, "Mul") if value is not None and len(value.uses()) == 1 else None
    factor, scale = None, None
    if scaled is not None:
        factor, scale = _vector(scaled.inputs[1]), scaled.inputs[1]
        value = scaled.inputs[0]
        if factor is None or value is None or len(value.uses()) != 1:
            return None
    added = _made_by(value, "Add")
    bias = None if added is None else _vector(added.inputs[1])
    if added is None or added.inputs[0] is None or bias is None:
        return None
    return _Branch(added.inputs[0], bias if factor is None else bias * factor, scale)


# -- GELU --------------------------------------------------------------------------------------------------------------


def _fuse_gelu(graph: ir.Graph, gelu: ir.Node) -> None:
    """Fuse GELU(a + bias), by the error function."""
    added = _made_by(gelu.inputs[0], "Add")
    bias = None if added is None else _constant(added.inputs[1])
    if added is None or bias is None or bias.ndim != 1 or _attribute(gelu, "approximate", "none") != "none":
        return
    if len(added.outputs[0].uses()) == 1 and not added.outputs[0].is_graph_output():
        node = ir.node("BiasGelu", added.inputs, domain=MICROSOFT)
        _replace(graph, gelu, [node], {gelu.outputs[0]: node.outputs[0]})
