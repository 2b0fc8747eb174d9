"""The execution providers of ONNX Runtime that backends use. Importing this module does not import ONNX Runtime."""

from __future__ import annotations

from typing import NamedTuple


class Provider(NamedTuple):
    """An execution provider.

    Attributes:
        backend: The backend's name.
        name: ONNX Runtime's name of the provider.
        library: Part of the file name of the provider's own library. ``None``: it is part of ONNX Runtime.
        disabled_optimizers: ONNX Runtime's optimisers that make the graph slower there.
        alternative: The backend to use where a library of the provider is missing.
    """

    backend: str
    name: str
    library: str | None = None
    disabled_optimizers: tuple[str, ...] = ()
    alternative: str = "onnxruntime-cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on an NVIDIA GPU."""
        return self.library is not None


CPU = Provider("onnxruntime-cpu", "CPUExecutionProvider")
# MatMulAddFusion makes a Gemm of a product and its bias. On a GPU that copies the bias to every row first, which on an H100 took
# longer than the product (ViT-L, fp16).
CUDA = Provider("onnxruntime-cuda", "CUDAExecutionProvider", "cuda", ("MatMulAddFusion",))
TENSORRT = Provider("onnxruntime-tensorrt", "TensorrtExecutionProvider", "tensorrt", alternative="tensorrt")
