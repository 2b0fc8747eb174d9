"""Results of a call of the CUDA executor: encoded images on the GPU, matched images on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...formats.manifest import ViewName

F32 = NDArray[np.float32]
Views = tuple[ViewName, ...]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded images. Their patch tokens stay on the device until the same slot encodes again.

    Attributes:
        cls: float32 (N, V, Dc), unit rows.
        views: The V views.
        timings: Milliseconds by stage, of the whole batch.
        slot: The slot that holds the patch tokens.
        ticket: Number of the encoding in its slot.
    """

    cls: F32
    views: Views
    timings: Mapping[str, float]
    slot: int
    ticket: int = field(repr=False)


@dataclass(frozen=True, eq=False)
class ExecutorOutput:
    """Result of one image.

    Attributes:
        distances: View -> float32 (side, side).
        anomaly_map: float32 (256, 256).
        score: Mean of the largest pixels (:func:`~visionad_runtime.scoring.anomaly_map.top_k_mean`).
        cutoff: The smallest of these pixels.
        timings: Milliseconds by stage, of the whole batch.
    """

    distances: Mapping[ViewName, F32]
    anomaly_map: F32
    score: float
    cutoff: float
    timings: Mapping[str, float]
