"""Reference → model folder: ONNX, manifest and golden tensors."""
