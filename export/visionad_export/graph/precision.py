"""Precision written into the ONNX graph: TensorRT 11 has no precision switches and runs what the graph's types say.

Half (fp16, bf16) is what tensor cores are for: convolutions, matrix products and, between them, biases, GELU and the attention
softmax, so that query · keyᵀ → softmax → · value stays in one type, the pattern that TensorRT fuses. Float32 is what accuracy asks
for: LayerNorm, LayerScale, the residual stream (ViTs grow activations in it that fp16 cannot hold), the mean over layers, unit
lengths, and the convolution that reads the images: it is 1 % of the work, and rounding its factors to 11 bits moved DeiT-Tiny's
tokens four times as far as rounding all others. ``tf32`` is the fp32 graph; the manifest tells the backend to allow it.

What a precision costs is measured without a GPU by :func:`emulate`: the same graph in float32 with every result rounded as the
hardware rounds it. Running the typed graph in ONNX Runtime on a CPU would not show it: there half operators compute in float32 and
the casts between neighbours are dropped, overflow included, and bf16 has no operators at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from visionad_runtime.errors import ModelError
from visionad_runtime.formats.manifest import Accuracy, Precision

HALF = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Precisions that are types of ONNX."""

FLOAT = ir.DataType.FLOAT
_NAMES = {FLOAT: "fp32", **{kind: name for name, kind in HALF.items()}}

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_POINTWISE = frozenset({"Add", "Clip", "Div", "Erf", "Gelu", "HardSwish", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"})
_MOVES = frozenset({"Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})


MIN_COSINE = 0.999
"""Smallest cosine to the fp32 token that any token of any probe may have: a unit token then moves by at most √0.002 = 0.045."""


class Probes(NamedTuple):
    """Images and the reference's tokens of them: ``images`` float32 (N, 3, crop, crop), normalised; ``patch`` (N, P, D) and
    ``cls`` (N, Dc) float32, unit rows. The first is the golden image."""

    names: tuple[str, ...]
    images: NDArray[np.float32]
    patch: NDArray[np.float32]
    cls: NDArray[np.float32]


def lower_file(path: Path, precision: Precision, probes: Probes, external_data_limit: int) -> Accuracy | None:
    """Bring the float32 ONNX file ``path`` to a precision, in place, once its emulated tokens have passed the accuracy gate.

    Returns:
        What the precision costs; ``None`` for ``fp32``, which costs nothing.

    Raises:
        ModelError: the tokens are not finite or stray from the reference's; names a precision that passes. ``path`` is as it was.
    """
    if precision == "fp32":
        return None
    accuracy, where = _measure(path, precision, probes, external_data_limit)
    if accuracy.min_cosine < MIN_COSINE:
        fault = f"{where} has cosine {accuracy.min_cosine:.5f} to fp32, expected at least {MIN_COSINE}"
        if not np.isfinite(accuracy.min_cosine):
            fault = f"{where} is not finite" + (": fp16 ends at 65504" if precision == "fp16" else "")
        way_out = _way_out(path, precision, probes, external_data_limit)
        raise ModelError(f"{precision} costs this backbone too much ({fault}); {way_out}; nothing was written")
    if precision in HALF:
        model = ir.load(path)
        lower(model, precision)
        with tempfile.TemporaryDirectory(dir=path.parent) as fresh:  # the old file is read while the new one is written
            save_onnx(model, Path(fresh) / path.name, external_data_limit)
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)
            for file in Path(fresh).iterdir():
                file.replace(path.parent / file.name)
    return accuracy


def save_onnx(model: ir.Model, path: Path, external_data_limit: int) -> None:
    """Write an ONNX file, with its weights in ``NAME.data`` beside it where they exceed the limit (bytes)."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > external_data_limit else None)


def _measure(path: Path, precision: Precision, probes: Probes, external_data_limit: int) -> tuple[Accuracy, str]:
    """What a precision costs on the probes, and which token it costs most; a cosine of -∞ where one is not finite."""
    model = ir.load(path)
    lower(model, precision)
    emulate(model, precision)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        save_onnx(model, file, external_data_limit)
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        rows = [session.run(["patch_tokens", "class_token"], {"images": image[None]}) for image in probes.images]
    cosines: list[tuple[float, str]] = []
    differences: list[float] = []
    for name, row, wanted in zip(probes.names, rows, zip(probes.patch, probes.cls, strict=True), strict=True):
        for kind, ours, theirs in zip(("patch token", "class token"), row, wanted, strict=True):
            cosine = (ours[0].astype(np.float64) * theirs).sum(-1).min()  # unit rows
            cosines.append((float(cosine) if np.isfinite(cosine) else -np.inf, f"a {kind} of the {name} image"))
            differences.append(float(np.abs(ours[0] - theirs).max()))
    cosine, where = min(cosines)
    return Accuracy(min_cosine=min(cosine, 1.0), max_abs=max(differences), golden_max_abs=max(differences[:2])), where


def _way_out(path: Path, precision: Precision, probes: Probes, external_data_limit: int) -> str:
    """The first other precision that passes the gate, smallest and fastest first, in words."""
    others: tuple[Precision, ...] = ("fp16", "bf16", "tf32")
    for other in (p for p in others if p != precision):
        accuracy, _ = _measure(path, other, probes, external_data_limit)
        if accuracy.min_cosine >= MIN_COSINE:
            return f"--precision {other} passes, with {accuracy.min_cosine:.5f}"
    return "stay with --precision fp32"


def lower(model: ir.Model, precision: Precision) -> None:
    """Type a float32 graph, in place; its inputs and outputs stay float32. Nothing changes for ``fp32`` and ``tf32``.

    Every operator computes in the type its kind asks for (module docstring); what only moves numbers does so in the type they
    have. A cast stands only where the type changes, one for each value.
    """
    if precision not in HALF:
        return
    graph, half = model.graph, HALF[precision]
    lowered = _lowered(graph)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        wanted = half if node in lowered else FLOAT
        for i, value in enumerate(node.inputs):
            if value is None or value.dtype not in (FLOAT, half) or value.dtype == wanted:
                continue
            if (value, wanted) not in casts:
                casts[value, wanted] = _cast(graph, value, wanted)
            node.replace_input_with(i, casts[value, wanted])
        if node in lowered:
            for value in node.outputs:
                value.dtype = half
    RemoveUnusedNodesPass()(model)  # and with them the weights' float32 originals
    if precision == "bf16" and any(node.op_type == "Conv" for node in lowered):
        # 22 is the first whose convolution takes bf16; only types were added.
        graph.opset_imports[""] = max(22, graph.opset_imports[""])


def _lowered(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that compute in half."""
    lowered: set[ir.Node] = set()
    for node in graph:
        flowing = [v for v in node.inputs if v is not None and v.dtype == FLOAT and v.producer() is not None]
        # A sum of two results is a residual: float32. A sum with a constant is a bias.
        residual = node.op_type in ("Add", "Sub") and len(flowing) > 1
        follows = node.op_type in _MOVES | _POINTWISE | {"Softmax"} and not residual
        product = node.op_type in _PRODUCTS and not any(v is not None and v.is_graph_input() for v in node.inputs)
        if product or (follows and flowing and all(v.producer() in lowered for v in flowing)):
            lowered.add(node)
    for node in reversed(list(graph)):
        # What leads to float32 alone (bias and LayerScale before a residual sum, a token on its way out) is computed in float32:
        # one rounding less for the same number of casts.
        users = [use.node for value in node.outputs for use in value.uses()]
        if node.op_type in _POINTWISE and not any(user in lowered for user in users):
            lowered.discard(node)
    return {node for node in lowered if not any(value.is_graph_output() for value in node.outputs)}


def emulate(model: ir.Model, precision: Precision) -> None:
    """Turn a typed graph, in place, into a float32 one with the numbers of its precision: the result of every operator in half, or
    for ``tf32`` every factor of a product, is rounded to it. Sums inside an operator stay float32, as tensor cores add. A fused
    kernel rounds less often than this, so hardware should come closer to fp32."""
    graph = model.graph
    if precision == "tf32":
        _round_factors(graph)
        RemoveUnusedNodesPass()(model)
    if precision not in HALF:
        return
    half = HALF[precision]
    for value in graph.initializers.values():
        if value.dtype == half and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = FLOAT
    for node in list(graph):
        for value in (v for v in node.outputs if v.dtype == half):
            value.dtype = FLOAT
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", FLOAT)
            if node.op_type not in _MOVES:
                uses = list(value.uses())
                down = _node("Cast", [value], half, {"to": int(half)})
                up = _node("Cast", down.outputs, FLOAT, {"to": int(FLOAT)})
                graph.insert_after(node, [down, up])
                for use in uses:
                    use.node.replace_input_with(use.idx, up.outputs[0])


def _round_factors(graph: ir.Graph) -> None:
    """Round the factors of every product to tf32's 11 significant bits: c - (c - x) with c = (2¹³ + 1) · x (Veltkamp)."""
    rounded: dict[ir.Value, ir.Value] = {}
    scale = np.float32(2**13 + 1)
    for node in list(graph):
        if node.op_type not in _PRODUCTS:
            continue
        for i, value in enumerate(node.inputs[:2]):  # the third is a bias
            assert value is not None
            if value not in rounded and value.const_value is not None:
                x = value.const_value.numpy()
                rounded[value] = _constant(graph, f"{value.name}.tf32", scale * x - (scale * x - x))
            elif value not in rounded:
                factor = _constant(graph, f"{value.name}.split", np.array(scale))
                c = _node("Mul", [value, factor])
                rest = _node("Sub", [c.outputs[0], value])
                result = _node("Sub", [c.outputs[0], rest.outputs[0]])
                graph.insert_before(node, [c, rest, result])
                rounded[value] = result.outputs[0]
            node.replace_input_with(i, rounded[value])


def realised(model: ir.Model) -> dict[str, dict[str, int]]:
    """What a graph's types say: operator → type of its results → how often. Operators on shapes are left out."""
    counts: dict[str, dict[str, int]] = {}
    for node in model.graph:
        name = _NAMES.get(node.outputs[0].dtype or ir.DataType.UNDEFINED)
        if name is not None:
            of = counts.setdefault(node.op_type, {})
            of[name] = of.get(name, 0) + 1
    return counts


# --- graph surgery -------------------------------------------------------------------------------------------------


def _cast(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> ir.Value:
    """``value`` in another type: a constant is converted here, a result by a node behind its producer."""
    if value.const_value is not None:
        with np.errstate(over="ignore"):  # the accuracy gate finds what became infinite
            return _constant(graph, f"{value.name}.{_NAMES[kind]}", value.const_value.numpy().astype(kind.numpy()))
    node = _node("Cast", [value], kind, {"to": int(kind)})
    producer = value.producer()
    if producer is None:  # the images
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]


def _node(op: str, inputs: Sequence[ir.Value], kind: ir.DataType = FLOAT, attributes: Any = None) -> ir.Node:
    """A node with one result of the shape of its first input."""
    return ir.node(op, inputs, attributes, outputs=[ir.Value(type=ir.TensorType(kind), shape=inputs[0].shape)])


def _constant(graph: ir.Graph, name: str, value: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(value, name=name)
    constant = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(value.shape), const_value=tensor)
    graph.register_initializer(constant)
    return constant
