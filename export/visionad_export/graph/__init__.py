"""Changes of the exported ONNX graph: what is folded, the types of a precision, fused operators, small models of one node."""
