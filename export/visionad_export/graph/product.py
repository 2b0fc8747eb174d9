"""The model of one float32 matrix product, which the runtime runs in ONNX Runtime.

``python -m visionad_export.graph.product`` writes it into the runtime's package.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from visionad_runtime.scoring.product import MODEL_FILE

OPSET, IR_VERSION = 17, 8


def product_model() -> bytes:
    """Return the ONNX model ``y = a @ b.T`` of float32 matrices."""
    a, b = (ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in "ab")
    node = ir.node("Gemm", [a, b], {"transB": 1}, outputs=[ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))])
    graph = ir.Graph([a, b], node.outputs, nodes=[node], name="product", opset_imports={"": OPSET})
    return bytes(ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString())


def main() -> None:
    """Write the file into the runtime's package."""
    Path(MODEL_FILE).write_bytes(product_model())


if __name__ == "__main__":
    main()
