"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...errors import ModelError
from ...formats.manifest import ModelManifest
from ..base import Tokens, closed_error
from .providers import CPU
from .session import check_provider, create_session


def open_cpu(folder: Path, manifest: ModelManifest, threads: int | None) -> OrtCpuEngine:
    """Open the model on the CPU.

    Args:
        folder: The model folder.
        manifest: Its manifest.
        threads: CPU threads. Default: all cores.

    Raises:
        VisionADError: The provider is not in this ONNX Runtime.
        ModelError: The ONNX file cannot be loaded, or the model is in bf16.
    """
    check_provider(CPU)
    if manifest.precision == "bf16":  # ONNX Runtime has no bf16 products on the CPU
        raise ModelError(
            f"{folder} is in bf16, which ONNX Runtime {ort.__version__} cannot run on a CPU; open it on a GPU, or export "
            "the model with --precision fp32 for this box (its banks fit both)"
        )
    return OrtCpuEngine(create_session(folder, manifest, CPU, threads, {}), manifest, threads)


class OrtCpuEngine:
    """Runs each row of a call alone.

    So a result cannot depend on batch size or order. On CPUs this was measured to be at least as fast as batches, because the
    working set is smaller.
    """

    name = CPU.backend
    batch_size = 1
    requires_device_pipeline = False

    def __init__(self, session: ort.InferenceSession, manifest: ModelManifest, threads: int | None) -> None:
        self.device_engine = None
        self.precision = manifest.precision
        self._session: ort.InferenceSession | None = session
        self._patch_only = ort.RunOptions()
        # without the class token, the blocks behind a final class token are skipped
        self._patch_only.only_execute_path_to_fetches = True
        self.info = {"onnxruntime": ort.__version__, "provider": CPU.name, "threads": str(threads or "all cores")}

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        session = self._session
        if session is None:
            raise closed_error(self.name)
        names = ["patch_tokens", "class_token"] if class_token else ["patch_tokens"]
        options = None if class_token else self._patch_only
        rows = [
            session.run(names, {"images": np.ascontiguousarray(images[i : i + 1])}, options) for i in range(len(images))
        ]
        patch = np.concatenate([r[0] for r in rows])
        return Tokens(patch, np.concatenate([r[1] for r in rows]) if class_token else None)

    def close(self) -> None:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        self._session = None
