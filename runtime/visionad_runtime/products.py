"""Matrix products of the search, by the kernels of ONNX Runtime.

They are there anyway, use the widest vector unit of the CPU whatever NumPy was built with, do not spin between calls, and run
beside each other from several threads. Each product is a model of one node.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .onnxfile import GRAPH, MICROSOFT, NODE, OPSETS, OUTPUT, Node, bytes_field, int_field, opset, write_node

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
    return _session(Node("Gemm", ["a", "b"], ["y"], {"transB": 1}), {"a": "float32", "b": "float32"})


@functools.cache
def _int8() -> Any:
    types = {"a": "uint8", "b": "int8", "unit": "float32", "scale": "float32", "za": "uint8", "zb": "int8"}
    types["offset"] = "float32"
    return _session(Node("MatMulIntegerToFloat", list(types), ["y"], domain=MICROSOFT), types)


def _session(node: Node, inputs: Mapping[str, str]) -> Any:
    import onnxruntime as ort

    values = [bytes_field(11, _value(name, kind)) for name, kind in inputs.items()]
    graph = [bytes_field(NODE, write_node(node)), bytes_field(2, "product"), *values]
    graph.append(bytes_field(OUTPUT, _value("y", "float32")))
    opsets = [bytes_field(OPSETS, opset(*one)) for one in (("", OPSET), (MICROSOFT, 1))]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the search brings its own threads
    options.log_severity_level = 3
    model = int_field(1, IR) + bytes_field(GRAPH, b"".join(graph)) + b"".join(opsets)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: Mapping[str, NDArray[Any]], out: F32) -> None:
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    session.run_with_iobinding(binding)


def _value(name: str, kind: str) -> bytes:
    """A ValueInfoProto."""
    return bytes_field(1, name) + bytes_field(2, bytes_field(1, int_field(1, ONNX_TYPE[kind])))
