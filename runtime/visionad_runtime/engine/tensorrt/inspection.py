"""Read back what TensorRT built: types of the matrix products, fused attention, memory.

There are two sources: on a GPU the engine inspector (JSON), without one (TensorRT-RTX builds on any PC) the listing in the
builder's log. The spelling depends on the release: 10.x has one field ``Format/Datatype`` with "Half" or "Row major linear FP16
format", 11.x and TensorRT-RTX have ``Datatype``.
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
    ("bf16", ("BFLOAT16", "BF16")),  # before fp32, whose word FLOAT it contains
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
"""Precision -> type of the graph's matrix products. TF32 is float32 in the graph, and a flag of the builder allows rounding."""

_NARROW = ("int4", "int8", "fp8", "bf16", "fp16", "fp32")
"""Numeric types, narrowest first. A tensor of any other type (an index, a mask) says nothing about precision."""


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    Attributes:
        name: Its name.
        kind: TensorRT's layer type.
        tactic: TensorRT's name of the kernel.
        inputs: Types of the tensors that it reads, without scalars.
        weights: Types of its constant matrices, if listed.
    """

    name: str
    kind: str
    tactic: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...] = ()

    @property
    def type(self) -> str | None:
        """The type in which the layer multiplies; ``None`` if unknown.

        It is the type of the weights. Without weights it is the narrowest input type, because a fusion may also read the float32
        residual that is added to the product.
        """
        read = self.weights or self.inputs
        return min((t for t in read if t in _NARROW), key=_NARROW.index, default=None)

    @property
    def multiplies(self) -> bool:
        """Whether it contains a matrix product or a convolution, where precision matters."""
        return bool(_MATRIX_TYPE.search(self.kind) or _MATRIX_NAME.search(self.name))

    @property
    def fused_attention(self) -> bool:
        """Whether it is a whole attention: products and softmax in one kernel (such as ``_gemm_mha_v2``)."""
        # A single product of an attention, whatever the name of its ONNX node.
        if re.search(r"gemm|matmul", self.kind, re.IGNORECASE):
            return False
        return bool(
            _MHA.search(self.tactic) or self.name.startswith("_gemm_mha") or re.search("mha|attention", self.kind)
        )


@dataclass(frozen=True)
class EngineSummary:
    """Summary of an engine.

    Attributes:
        layers: Number of layers.
        matrix_types: Type -> number of layers that multiply in it.
        fused_attention: Number of layers that are a whole attention.
        tf32_kernels: Number of layers with a TF32 kernel, by its name.
        memory: Purpose -> bytes.
    """

    layers: int
    matrix_types: Mapping[str, int]
    fused_attention: int
    tf32_kernels: int
    memory: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """Describe the engine for people: ``fp16 in 41 matrix layers, 10 attentions fused``."""
        types = ", ".join(f"{t} in {n}" for t, n in self.matrix_types.items())
        return f"{types} matrix layers, {self.fused_attention} attentions fused"


def type_name(text: str) -> str:
    """Return our name of a type of TensorRT or ONNX: ``fp16`` for ``Half``. Unknown names are returned unchanged."""
    upper = text.upper()
    return next((name for name, words in _TYPES if any(w in upper for w in words)), text.strip())


def layers_from_inspector(text: str) -> list[Layer]:
    """Read the layers from the JSON of ``EngineInspector.get_engine_information``.

    Raises:
        ModelError: The engine was built without detailed profiling verbosity, or the JSON has an unknown form.
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
            "TensorRT's engine inspector gave no layer details, so the realized precision is unknown; build the engine again with "
            "`visionad build` (another program's engine, or a TensorRT release that visionad does not know)"
        ) from None


def _json_type(tensor: Mapping[str, Any]) -> str:
    return str(tensor.get("Datatype") or tensor.get("DataType") or tensor["Format/Datatype"])


def layers_from_build_log(messages: Iterable[str]) -> list[Layer]:
    """Read the layers from the listing in a builder's log."""

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
    """Read the engine's inputs and outputs from a builder's log.

    Returns:
        Name -> ``mode``, ``type``, ``shape``, and for inputs ``profile`` (min, opt, max).
    """
    tensors: dict[str, dict[str, Any]] = {}
    for message in messages:
        for m in _IO.finditer(message):
            tensor: dict[str, Any] = {"mode": m["mode"], "type": type_name(m["type"]), "shape": _numbers(m["shape"])}
            if m["min"]:
                tensor["profile"] = [_numbers(m[k]) for k in ("min", "opt", "max")]
            tensors[m["name"]] = tensor
    return tensors


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n.strip()]


def memory_from_log(messages: Sequence[str]) -> dict[str, int]:
    """Read ``activation_bytes`` and ``weights_bytes`` from a builder's log, as far as it has them."""
    text = "\n".join(messages)
    return {name: int(sizes[-1]) for name, pattern in _MEMORY.items() if (sizes := pattern.findall(text))}


def summarize(layers: Sequence[Layer], memory: Mapping[str, int]) -> EngineSummary:
    """Summarise layers.

    Args:
        layers: All layers.
        memory: Purpose -> bytes.
    """
    counts = Counter(layer.type for layer in layers if layer.multiplies and layer.type)
    return EngineSummary(
        layers=len(layers),
        matrix_types=dict(counts.most_common()),
        fused_attention=sum(layer.fused_attention for layer in layers),
        tf32_kernels=sum("tf32" in layer.tactic.lower() for layer in layers),
        memory=dict(memory),
    )


def check_graph(graph_types: Mapping[str, int], precision: str, model: str) -> None:
    """Check that a parsed graph's matrix products have the manifest's precision.

    Args:
        graph_types: Type -> number of products.
        precision: The manifest's precision.
        model: The file, for the message.

    Raises:
        ModelError: Most products have another type, so the engine would silently have another precision.
    """
    expected = GRAPH_TYPE[precision]
    if not graph_types or max(graph_types, key=lambda t: graph_types[t]) != expected:
        raise ModelError(
            f"{model}: expected matrix products in {precision}, got {_counted(graph_types) or 'none at all'}; "
            f"export it again with `visionad export --precision {precision}`"
        )


def check_engine(built: EngineSummary, graph_types: Mapping[str, int], precision: str) -> None:
    """Check that an engine computes in the types of its graph, and in TF32 only if that is the precision.

    Args:
        built: The engine.
        graph_types: Type -> number of the graph's products.
        precision: The manifest's precision.

    Raises:
        ModelError: It does not.
    """
    expected = GRAPH_TYPE[precision]
    foreign = {t: n for t, n in built.matrix_types.items() if t != expected and n > graph_types.get(t, 0)}
    if expected not in built.matrix_types or foreign:
        realized = _counted(built.matrix_types) or "no matrix layer"
        raise ModelError(
            f"realized precision is not {precision}: the graph has {_counted(graph_types)}, TensorRT built {realized}; "
            "this engine was not kept. Use another TensorRT release or export another precision"
        )
    if precision == "fp32" and built.tf32_kernels:
        raise ModelError(
            f"realized precision is not fp32: {built.tf32_kernels} layers use TF32 kernels; "
            "this engine was not kept. Use another TensorRT release, or choose TF32 with `visionad export --precision tf32`"
        )


def _counted(types: Mapping[str, int]) -> str:
    return ", ".join(f"{n} in {t}" for t, n in types.items())
