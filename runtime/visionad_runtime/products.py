"""Matrix products of the search, by the kernels of ONNX Runtime.

They are there anyway, use the widest vector unit of the CPU whatever NumPy was built with, do not spin between calls, and run
beside each other from several threads. Each product is a model of one node, written here byte by byte (protobuf), because
the lean install has no ``onnx``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
OPSET, IR = 17, 8
ONNX_TYPE = {"float32": 1, "uint8": 2, "int8": 3}


def scores_float32(queries: F32, rows: F32, out: F32) -> None:
    """``out = queries @ rows.T``; float32 (M, D), (N, D) and (M, N), each C-contiguous."""
    _run(_float32(), {"a": queries, "b": rows}, out)


def scores_int8(
    queries: NDArray[np.uint8], zero: int, codes: NDArray[np.int8], unit: np.float32, scale: F32, offset: F32, out: F32
) -> None:
    """``out = ((queries - zero) @ codes) · unit · scale + offset``, the product in integers: exact with :func:`zero_point`.

    Args:
        queries: uint8 (M, D). codes: int8 (D, N). scale, offset: float32 (N,), per column. out: float32 (M, N).
    """
    inputs: dict[str, NDArray[Any]] = {"a": queries, "b": codes, "scale": scale, "offset": offset}
    inputs |= {"unit": np.array(unit, np.float32), "za": np.array(zero, np.uint8), "zb": np.array(0, np.int8)}
    _run(_int8(), inputs, out)


@functools.cache
def zero_point() -> int:
    """Zero of the queries' codes, which span ``1 .. 2 · zero - 1``: 128, or 64 where the CPU would cut sums off.

    Without VNNI, x86 adds pairs of products in 16 bits, saturating: 255 · 127 · 2 is too much for it, 127 · 127 · 2 is not.
    """
    queries, codes = np.full((4, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    out, one = np.empty((4, 16), np.float32), np.ones(16, np.float32)
    scores_int8(queries, 128, codes, np.float32(1), one, one * 0, out)
    return 128 if (out == 127 * 127 * 64).all() else 64


@functools.cache
def _float32() -> Any:
    node = _node("Gemm", "", ("a", "b"), _attribute("transB", 1))
    return _session(node, {"a": "float32", "b": "float32"})


@functools.cache
def _int8() -> Any:
    types = {"a": "uint8", "b": "int8", "unit": "float32", "scale": "float32", "za": "uint8", "zb": "int8"}
    types["offset"] = "float32"
    return _session(_node("MatMulIntegerToFloat", "com.microsoft", tuple(types)), types)


def _session(node: bytes, inputs: Mapping[str, str]) -> Any:
    import onnxruntime as ort

    values = [_bytes(11, _value(name, kind)) for name, kind in inputs.items()]
    graph = _bytes(1, node) + _bytes(2, b"product") + b"".join(values) + _bytes(12, _value("y", "float32"))
    opsets = [_bytes(8, _bytes(1, name) + _int(2, version)) for name, version in ((b"", OPSET), (b"com.microsoft", 1))]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the search brings its own threads
    options.log_severity_level = 3
    model = _int(1, IR) + _bytes(7, graph) + b"".join(opsets)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: Mapping[str, NDArray[Any]], out: F32) -> None:
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    session.run_with_iobinding(binding)


# Protobuf by field number, as in onnx.proto: ModelProto, GraphProto, NodeProto, AttributeProto, ValueInfoProto.


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _node(kind: str, domain: str, inputs: tuple[str, ...], attribute: bytes = b"") -> bytes:
    names = b"".join(_bytes(1, name.encode()) for name in inputs)
    return names + _bytes(2, b"y") + _bytes(4, kind.encode()) + attribute + _bytes(7, domain.encode())


def _attribute(name: str, value: int) -> bytes:
    return _bytes(5, _bytes(1, name.encode()) + _int(3, value) + _int(20, 2))


def _value(name: str, kind: str) -> bytes:
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _int(1, ONNX_TYPE[kind])))
