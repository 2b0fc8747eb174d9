"""A float32 matrix product by ONNX Runtime.

ONNX Runtime is a dependency already. Its kernel uses the widest vector unit of the CPU, however NumPy was built, does not spin
between calls, and may run in several threads at once. ``visionad_export.graph.product`` writes the model, which has one node.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
MODEL_FILE = Path(__file__).with_name("product.onnx")


def scores_float32(queries: F32, rows: F32, out: F32) -> None:
    """Compute ``out = queries @ rows.T``.

    Args:
        queries: float32 (M, D), C-contiguous.
        rows: float32 (N, D), C-contiguous.
        out: float32 (M, N), C-contiguous, overwritten.
    """
    session = _session()
    binding = session.io_binding()
    for name, array in (("a", queries), ("b", rows)):
        binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    session.run_with_iobinding(binding)


@functools.cache
def _session() -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # callers use threads of their own
    options.log_severity_level = 3
    return ort.InferenceSession(MODEL_FILE.read_bytes(), options, providers=["CPUExecutionProvider"])
