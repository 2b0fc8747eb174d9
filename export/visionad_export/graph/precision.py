"""Write the precision into the types of the ONNX graph: TensorRT 11 has no precision flags and follows the graph's types.

Half precision (fp16, bf16) is for tensor cores: convolutions, matrix products and, between them, biases, GELU and the attention
softmax. So query · keyᵀ -> softmax -> · value stays in one type, which is the pattern that TensorRT fuses.

Float32 is for accuracy: LayerNorm, LayerScale, the residual stream (ViTs grow activations there that fp16 cannot hold), the mean
over layers, the normalisation to unit length, and the convolution that reads the images. That convolution is 1 % of the work, and
rounding its factors to 11 bits moved DeiT-Tiny's tokens four times as far as rounding all others.

``tf32`` is the fp32 graph. The manifest tells the backend to allow it.

:func:`emulate` measures the cost of a precision without a GPU: it runs the same graph in float32 and rounds every result as the
hardware does. Running the typed graph in ONNX Runtime on a CPU would not show the cost: its half operators compute in float32, it
drops casts between neighbours, overflow included, and it has no bf16 operators.
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
"""Precision -> ONNX type, for half precision."""

FLOAT = ir.DataType.FLOAT
_NAMES = {FLOAT: "fp32", **{kind: name for name, kind in HALF.items()}}

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_POINTWISE = frozenset({"Add", "Clip", "Div", "Erf", "Gelu", "HardSwish", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"})
_MOVES = frozenset({"Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})


MIN_COSINE = 0.999
"""Accuracy gate: smallest allowed cosine of a token to the fp32 token. A unit token then moves by at most √0.002 = 0.045."""


class Probes(NamedTuple):
    """Images and the reference's tokens of them. The first is the golden image.

    Attributes:
        names: N names.
        images: float32 (N, 3, crop, crop), normalised.
        patch: float32 (N, P, D), unit rows.
        cls: float32 (N, Dc), unit rows.
    """

    names: tuple[str, ...]
    images: NDArray[np.float32]
    patch: NDArray[np.float32]
    cls: NDArray[np.float32]


def lower_file(path: Path, precision: Precision, probes: Probes, external_data_limit: int) -> Accuracy | None:
    """Lower a float32 ONNX file to a precision, in place, if its emulated tokens pass the accuracy gate.

    Args:
        path: The file.
        precision: The precision.
        probes: Images to measure the cost on.
        external_data_limit: Bytes of weights above which they get a separate file.

    Returns:
        The cost of the precision; ``None`` for ``fp32``.

    Raises:
        ModelError: The tokens are not finite, or too far from the reference's. The message names a precision that passes, and the
            file is not changed.
    """
    if precision == "fp32":
        return None
    accuracy, where = _measure(path, precision, probes, external_data_limit)
    if accuracy.min_cosine < MIN_COSINE:
        fault = f"{where} has cosine {accuracy.min_cosine:.5f} to fp32, expected at least {MIN_COSINE}"
        if not np.isfinite(accuracy.min_cosine):
            fault = f"{where} is not finite" + (": fp16 ends at 65504" if precision == "fp16" else "")
        remedy = _remedy(path, precision, probes, external_data_limit)
        raise ModelError(f"{precision} costs this backbone too much ({fault}); {remedy}; nothing was written")
    if precision in HALF:
        model = ir.load(path)
        lower(model, precision)
        with tempfile.TemporaryDirectory(dir=path.parent) as fresh:  # the old file is read during the write
            save_onnx(model, Path(fresh) / path.name, external_data_limit)
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)
            for file in Path(fresh).iterdir():
                file.replace(path.parent / file.name)
    return accuracy


def save_onnx(model: ir.Model, path: Path, external_data_limit: int) -> None:
    """Write an ONNX file. Weights above the limit in bytes go to ``NAME.data`` beside it."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > external_data_limit else None)


def _measure(path: Path, precision: Precision, probes: Probes, external_data_limit: int) -> tuple[Accuracy, str]:
    """Measure the cost of a precision on the probes.

    Returns:
        The cost, with a cosine of -∞ for a token that is not finite, and the name of the worst token.
    """
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
    for name, row, reference in zip(probes.names, rows, zip(probes.patch, probes.cls, strict=True), strict=True):
        for kind, got, expected in zip(("patch token", "class token"), row, reference, strict=True):
            cosine = (got[0].astype(np.float64) * expected).sum(-1).min()  # unit rows
            cosines.append((float(cosine) if np.isfinite(cosine) else -np.inf, f"a {kind} of the {name} image"))
            differences.append(float(np.abs(got[0] - expected).max()))
    cosine, where = min(cosines)
    return Accuracy(min_cosine=min(cosine, 1.0), max_abs=max(differences), golden_max_abs=max(differences[:2])), where


def _remedy(path: Path, precision: Precision, probes: Probes, external_data_limit: int) -> str:
    """Return which other precision passes the gate, the smallest and fastest first, for a message."""
    others: tuple[Precision, ...] = ("fp16", "bf16", "tf32")
    for other in (p for p in others if p != precision):
        accuracy, _ = _measure(path, other, probes, external_data_limit)
        if accuracy.min_cosine >= MIN_COSINE:
            return f"--precision {other} passes, with {accuracy.min_cosine:.5f}"
    return "stay with --precision fp32"


def lower(model: ir.Model, precision: Precision) -> None:
    """Set the types of a float32 graph, in place. Inputs and outputs stay float32; ``fp32`` and ``tf32`` change nothing.

    Every operator computes in the type of its kind (module docstring). Operators that only move numbers keep their type. There is
    one cast per value, only where the type changes.
    """
    if precision not in HALF:
        return
    graph, half = model.graph, HALF[precision]
    lowered = _lowered(graph)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        target = half if node in lowered else FLOAT
        for i, value in enumerate(node.inputs):
            if value is None or value.dtype not in (FLOAT, half) or value.dtype == target:
                continue
            if (value, target) not in casts:
                casts[value, target] = _cast(graph, value, target)
            node.replace_input_with(i, casts[value, target])
        if node in lowered:
            for value in node.outputs:
                value.dtype = half
    RemoveUnusedNodesPass()(model)  # also removes the float32 originals of the weights
    if precision == "bf16" and any(node.op_type == "Conv" for node in lowered):
        # Opset 22 is the first whose convolution takes bf16. It only added types.
        graph.opset_imports[""] = max(22, graph.opset_imports[""])


def _lowered(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that compute in half precision."""
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
        # A node whose users are all float32 (bias and LayerScale before a residual sum, a token before the output) computes in
        # float32: one rounding less for the same number of casts.
        users = [use.node for value in node.outputs for use in value.uses()]
        if node.op_type in _POINTWISE and not any(user in lowered for user in users):
            lowered.discard(node)
    return {node for node in lowered if not any(value.is_graph_output() for value in node.outputs)}


def emulate(model: ir.Model, precision: Precision) -> None:
    """Turn a typed graph, in place, into a float32 graph that rounds as its precision does.

    It rounds the result of every operator in half precision, or for ``tf32`` every factor of a product. Sums inside an operator
    stay float32, as in tensor cores. A fused kernel rounds less often, so hardware should be closer to fp32.
    """
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
    """Count a graph's operators: operator -> type of its result -> count, without operators on shapes."""
    counts: dict[str, dict[str, int]] = {}
    for node in model.graph:
        name = _NAMES.get(node.outputs[0].dtype or ir.DataType.UNDEFINED)
        if name is not None:
            of = counts.setdefault(node.op_type, {})
            of[name] = of.get(name, 0) + 1
    return counts


# --- graph surgery -------------------------------------------------------------------------------------------------


def _cast(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> ir.Value:
    """Return a value in another type: convert a constant, or add a node after the producer of a result."""
    if value.const_value is not None:
        with np.errstate(over="ignore"):  # the accuracy gate detects infinite values
            return _constant(graph, f"{value.name}.{_NAMES[kind]}", value.const_value.numpy().astype(kind.numpy()))
    node = _node("Cast", [value], kind, {"to": int(kind)})
    producer = value.producer()
    if producer is None:  # the images
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]


def _node(op: str, inputs: Sequence[ir.Value], kind: ir.DataType = FLOAT, attributes: Any = None) -> ir.Node:
    """Return a node with one result, of the shape of its first input."""
    return ir.node(op, inputs, attributes, outputs=[ir.Value(type=ir.TensorType(kind), shape=inputs[0].shape)])


def _constant(graph: ir.Graph, name: str, value: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(value, name=name)
    constant = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(value.shape), const_value=tensor)
    graph.register_initializer(constant)
    return constant
