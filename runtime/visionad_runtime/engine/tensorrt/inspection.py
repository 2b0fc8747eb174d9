"""What TensorRT really built: types of the matrix products, fused attention, memory; read back, never assumed.

Two sources say the same. On a GPU it is the engine inspector (JSON). Without one (TensorRT-RTX builds on any PC) it is the listing
the builder writes into its own log. The spelling changed over the releases: 10.x has one field ``Format/Datatype`` with
"Half" or "Row major linear FP16 format" in it, 11.x and TensorRT-RTX have ``Datatype``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ModelError

_TYPES = (
    ("bf16", ("BFLOAT16", "BF16")),  # before FLOAT: it contains it
    ("fp16", ("HALF", "FLOAT16", "FP16")),
    ("fp8", ("FP8", "FLOAT8")),
    ("fp32", ("FLOAT", "FP32")),
    ("int8", ("INT8",)),
    ("int4", ("INT4",)),
)
_MATRIX_TYPE = re.compile(r"gemm|matrix|matmul|conv|correlation|fully|mha|attention", re.IGNORECASE)
_MATRIX_NAME = re.compile(r"_gemm_|_Fc[A-Z_]|_mha", re.ASCII)
_MHA = re.compile(r"(^|_)f?mha", re.IGNORECASE)
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: \[(?P<inputs>.*?)\](?:, Constants: \[(?P<constants>.*?)\])?, "
    r"Outputs: \[.*\], TacticName: (?P<tactic>[^,]*),"
)
_LINE_TENSOR = re.compile(r"Dimensions: \[([^\]]*)\].*?Data[tT]ype: ([^,}]*)")
_IO = re.compile(
    r"Name: (?P<name>[^,]*), IOMode: (?P<mode>\w+), DataType: (?P<type>\w+), Dimensions: \[(?P<shape>[^\]]*)\]"
    r"(?:.*?MinShape: \[(?P<min>[^\]]*)\], OptShape: \[(?P<opt>[^\]]*)\], MaxShape: \[(?P<max>[^\]]*)\])?"
)
_MEMORY = {
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+)"),
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+)"),
}

GRAPH_TYPE = {"fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "fp16"}
"""Type that a precision's matrix products have in the graph. TF32 is float32 whose products may be rounded: a builder's flag."""

_NARROW = ("int4", "int8", "fp8", "bf16", "fp16", "fp32")
"""Types of numbers, narrowest first; a tensor of any other type (an index, a mask) says nothing about precision."""


@dataclass(frozen=True)
class Layer:
    """A layer of an engine. ``inputs`` are the types of the tensors it reads, ``weights`` those of its constant matrices (where
    listed); scalars are left out."""

    name: str
    kind: str
    tactic: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...] = ()

    @property
    def type(self) -> str | None:
        """What it multiplies in. Weights say it; without them the narrowest type it reads, because a fusion may also read the
        float32 residual that is added to the product."""
        read = self.weights or self.inputs
        return min((t for t in read if t in _NARROW), key=_NARROW.index, default=None)

    @property
    def multiplies(self) -> bool:
        """Whether it is a matrix product or a convolution, alone or in a fusion: where precision matters."""
        return bool(_MATRIX_TYPE.search(self.kind) or _MATRIX_NAME.search(self.name))

    @property
    def fused_attention(self) -> bool:
        """Whether it is a whole attention: products and softmax in one kernel (``_gemm_mha_v2`` and its like)."""
        # One product of an attention, whatever its ONNX node is called.
        if re.search(r"gemm|matmul", self.kind, re.IGNORECASE):
            return False
        return bool(
            _MHA.search(self.tactic) or self.name.startswith("_gemm_mha") or re.search("mha|attention", self.kind)
        )


@dataclass(frozen=True)
class EngineSummary:
    """What was built: how many layers, and how many of them multiply in each type (``matrix_types``), are a whole attention, or run
    a TF32 kernel (by its name). ``memory``: bytes by what they are for."""

    layers: int
    matrix_types: Mapping[str, int]
    fused_attention: int
    tf32_kernels: int
    memory: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """``fp16 in 41 matrix layers, 10 attentions fused``."""
        types = ", ".join(f"{t} in {n}" for t, n in self.matrix_types.items())
        return f"{types} matrix layers, {self.fused_attention} attentions fused"


def type_name(text: str) -> str:
    """TensorRT's or ONNX's name of a type, as in a precision: ``Half`` → ``fp16``; others as they are."""
    upper = text.upper()
    return next((ours for ours, words in _TYPES if any(w in upper for w in words)), text.strip())


def layers_from_inspector(text: str) -> list[Layer]:
    """Layers from ``EngineInspector.get_engine_information(JSON)``.

    Raises:
        ModelError: the engine was built without detailed profiling verbosity, or the JSON is of an unknown form.
    """
    try:
        layers = json.loads(text)["Layers"]
        return [
            Layer(
                layer["Name"],
                layer["LayerType"],
                str(layer.get("TacticName", "")),
                _types((i.get("Dimensions", [-1]), _json_type(i)) for i in layer["Inputs"]),
                _types(((c.get("Dimensions", [1]), _json_type(c)) for c in layer.get("Constants", ())), matrices=True),
            )
            for layer in layers
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            "TensorRT's engine inspector gave no layer details, so the realised precision is unknown; build the engine again with "
            "`visionad build` (another program's engine, or a TensorRT release that visionad does not know)"
        ) from None


def _json_type(tensor: Mapping[str, Any]) -> str:
    found = tensor.get("Datatype") or tensor.get("DataType") or tensor["Format/Datatype"]
    return str(found)


def layers_from_build_log(messages: Iterable[str]) -> list[Layer]:
    """Layers from the listing in a builder's log."""

    def tensors(text: str | None) -> Iterable[tuple[list[int], str]]:
        return ((_numbers(shape), kind) for shape, kind in _LINE_TENSOR.findall(text or ""))

    return [
        Layer(
            m["name"],
            m["type"],
            m["tactic"],
            _types(tensors(m["inputs"])),
            _types(tensors(m["constants"]), matrices=True),
        )
        for message in messages
        for line in message.splitlines()
        if (m := _LINE.match(line.strip()))
    ]


def _types(tensors: Iterable[tuple[Sequence[int], str]], matrices: bool = False) -> tuple[str, ...]:
    return tuple(type_name(kind) for shape, kind in tensors if sum(n != 1 for n in shape) >= (2 if matrices else 1))


def io_from_log(messages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The engine's own tensors from a builder's log: name → ``mode``, ``type``, ``shape``; inputs: ``profile`` (min, opt, max)."""
    found: dict[str, dict[str, Any]] = {}
    for message in messages:
        for m in _IO.finditer(message):
            tensor: dict[str, Any] = {"mode": m["mode"], "type": type_name(m["type"]), "shape": _numbers(m["shape"])}
            if m["min"]:
                tensor["profile"] = [_numbers(m[k]) for k in ("min", "opt", "max")]
            found[m["name"]] = tensor
    return found


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n.strip()]


def memory_from_log(messages: Sequence[str]) -> dict[str, int]:
    """``activation_bytes`` and ``weights_bytes``, where the builder says so."""
    text = "\n".join(messages)
    return {name: int(found[-1]) for name, pattern in _MEMORY.items() if (found := pattern.findall(text))}


def summarize(layers: Sequence[Layer], memory: Mapping[str, int]) -> EngineSummary:
    """Count what matters."""
    counts = Counter(layer.type for layer in layers if layer.multiplies and layer.type)
    return EngineSummary(
        layers=len(layers),
        matrix_types=dict(counts.most_common()),
        fused_attention=sum(layer.fused_attention for layer in layers),
        tf32_kernels=sum("tf32" in layer.tactic.lower() for layer in layers),
        memory=dict(memory),
    )


def check_graph(graph_types: Mapping[str, int], precision: str, model: str) -> None:
    """Whether a parsed graph's matrix products (type → number) are of the precision that the manifest promises.

    Raises:
        ModelError: most of them are of another type: an engine of it would silently be something else.
    """
    expected = GRAPH_TYPE[precision]
    if not graph_types or max(graph_types, key=lambda t: graph_types[t]) != expected:
        found = _counted(graph_types) or "none at all"
        raise ModelError(
            f"{model}: expected {precision}, but the graph's matrix products are {found}; "
            f"export it again with `visionad export --precision {precision}`"
        )


def check_engine(built: EngineSummary, graph_types: Mapping[str, int], precision: str) -> None:
    """Whether an engine computes in the types of its graph, and not in TF32 unless that was chosen.

    Raises:
        ModelError: naming what was found.
    """
    expected = GRAPH_TYPE[precision]
    foreign = {t: n for t, n in built.matrix_types.items() if t != expected and n > graph_types.get(t, 0)}
    if expected not in built.matrix_types or foreign:
        found = _counted(built.matrix_types) or "no matrix layer"
        raise ModelError(
            f"realised precision is not {precision}: the graph has {_counted(graph_types)}, TensorRT built {found}; "
            "this engine was not kept. Use another TensorRT release or export another precision"
        )
    if precision == "fp32" and built.tf32_kernels:
        raise ModelError(
            f"realised precision is not fp32: {built.tf32_kernels} layers use TF32 kernels; "
            "this engine was not kept. Use another TensorRT release, or choose TF32 with `visionad export --precision tf32`"
        )


def _counted(types: Mapping[str, int]) -> str:
    return ", ".join(f"{n} in {t}" for t, n in types.items())
