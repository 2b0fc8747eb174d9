"""Export the reference to a model folder: ONNX, manifest and golden tensors."""
