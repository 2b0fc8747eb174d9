"""What a call of the CUDA executor leaves: encoded images on the GPU, matched ones on the host."""

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
    """Images on the device, encoded. ``cls`` float32 (N, V, Dc), unit rows. The patch tokens stay where they are, until
    the same camera encodes again. ``timings``: milliseconds by stage, of the whole batch."""

    cls: F32
    views: Views
    timings: Mapping[str, float]
    camera: int
    ticket: int = field(repr=False)


@dataclass(frozen=True, eq=False)
class ExecutorOutput:
    """One image's outcome: ``distances`` float32 (side, side) by view, ``anomaly_map`` float32 (256, 256), ``score`` and ``cutoff``
    of :func:`~visionad_runtime.scoring.anomaly_map.top_k_mean`. ``timings``: milliseconds by stage, of the whole batch."""

    distances: Mapping[ViewName, F32]
    anomaly_map: F32
    score: float
    cutoff: float
    timings: Mapping[str, float]
