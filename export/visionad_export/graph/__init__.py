"""Transformations of the exported ONNX graph: folding, precision, fused operators; and the model of one product."""
