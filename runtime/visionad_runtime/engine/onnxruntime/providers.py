"""The execution providers of ONNX Runtime that backends use. This module does not import ONNX Runtime."""

from __future__ import annotations

from typing import NamedTuple


class Provider(NamedTuple):
    """An execution provider.

    Attributes:
        backend: The backend's name.
        name: ONNX Runtime's name of the provider.
        library: Part of the file name of the provider's own library. ``None``: it is part of ONNX Runtime.
        disabled_optimizers: ONNX Runtime's optimisers that make the graph slower there.
        alternative: The backend to suggest if a library of the provider is missing.
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
# MatMulAddFusion turns a product and its bias into a Gemm. On a GPU that first copies the bias to every row, which took longer than
# the product on an H100 (ViT-L, fp16).
CUDA = Provider("onnxruntime-cuda", "CUDAExecutionProvider", "cuda", ("MatMulAddFusion",))
TENSORRT = Provider("onnxruntime-tensorrt", "TensorrtExecutionProvider", "tensorrt", alternative="tensorrt")
