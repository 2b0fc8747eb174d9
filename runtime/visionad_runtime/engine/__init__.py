"""Backbone engines: one small interface, each backend a leaf module that is imported only when it is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..artefacts import ModelManifest
from ..errors import VisionADError

BACKENDS = ("onnxruntime-cpu",)


class Tokens(NamedTuple):
    """``patch`` float32 (N, P, D) with unit rows; ``cls`` float32 (N, Dc) with unit rows, or ``None`` where not asked for."""

    patch: NDArray[np.float32]
    cls: NDArray[np.float32] | None


class Engine(Protocol):
    """What a backend provides. Rows are independent: the result of a row never depends on the others in the call."""

    name: str
    details: dict[str, str]

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """float32 (N, 3, crop, crop), normalised → :class:`Tokens`. With ``class_token=False`` a backend may skip its work."""
        ...


def open_engine(folder: Path, manifest: ModelManifest, backend: str = "auto", threads: int | None = None) -> Engine:
    """Open the model's backbone with a backend (``auto`` or one of :data:`BACKENDS`).

    Raises:
        VisionADError: unknown backend. ModelError: the ONNX file cannot be loaded.
    """
    if backend not in ("auto", *BACKENDS):
        raise VisionADError(f"backend {backend!r} is not known; choose auto or {', '.join(BACKENDS)}")
    from .ort_cpu import OrtCpuEngine

    return OrtCpuEngine(folder, manifest, threads)
