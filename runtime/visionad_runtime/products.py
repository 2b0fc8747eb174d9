"""A float32 matrix product by ONNX Runtime's kernel.

It is there anyway, uses the widest vector unit of the CPU whatever NumPy was built with, does not spin between calls, and runs in
several threads at once. The product is a model of one node.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .onnxfile import GRAPH, NODE, OPSETS, OUTPUT, Node, bytes_field, int_field, opset, write_node

F32 = NDArray[np.float32]
OPSET, IR = 17, 8
ONNX_TYPE = {"float32": 1}


def scores_float32(queries: F32, rows: F32, out: F32) -> None:
    """``out = queries @ rows.T``; float32 (M, D), (N, D) and (M, N), each C-contiguous."""
    _run(_float32(), {"a": queries, "b": rows}, out)


@functools.cache
def _float32() -> Any:
    return _session(Node("Gemm", ["a", "b"], ["y"], {"transB": 1}), {"a": "float32", "b": "float32"})


def _session(node: Node, inputs: Mapping[str, str]) -> Any:
    import onnxruntime as ort

    values = [bytes_field(11, _value(name, kind)) for name, kind in inputs.items()]
    graph = [bytes_field(NODE, write_node(node)), bytes_field(2, "product"), *values]
    graph.append(bytes_field(OUTPUT, _value("y", "float32")))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # callers bring their own threads
    options.log_severity_level = 3
    model = int_field(1, IR) + bytes_field(GRAPH, b"".join(graph)) + bytes_field(OPSETS, opset("", OPSET))
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
