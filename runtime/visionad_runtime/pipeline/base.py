"""The interface of a pipeline: images -> tokens -> anomaly maps as one call. The inspector derives verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..bank.memory_bank import MemoryBank
from ..formats.manifest import ViewName
from ..scoring.spec import ScoringSpec

F32 = NDArray[np.float32]

BankSelector = Callable[[F32 | None], Sequence[MemoryBank]]
"""Class tokens, float32 (N, V, Dc) or ``None`` if not requested -> the bank of each of the N images."""


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    """Result of one image against one class.

    Attributes:
        distances: View -> float32 (side, side), oriented as the view, weighted if the scoring says so.
        anomaly_map: float32 (256, 256).
        score: Mean of the map's largest pixels (:func:`~visionad_runtime.scoring.anomaly_map.top_k_mean`).
        cutoff: The smallest of these pixels.
        timings: Milliseconds by stage, of this image.
        cls: float32 (V, Dc), unit rows, if class tokens were requested.
        images: With ``trace``: float32 (V, 3, crop, crop), normalised.
        patch: With ``trace``: float32 (V, P, D), unit rows.
    """

    distances: Mapping[ViewName, F32]
    anomaly_map: F32
    score: float
    cutoff: float
    timings: Mapping[str, float]
    cls: F32 | None = None
    images: F32 | None = None
    patch: F32 | None = None


class Pipeline(Protocol):
    """Images -> tokens -> maps. The result of an image does not depend on the others of a call. Any thread may call.

    Attributes:
        scoring: Views, and how distances become scores.
        slots: Number of calls that run at once. Further calls wait.
    """

    @property
    def scoring(self) -> ScoringSpec: ...

    @property
    def slots(self) -> int: ...

    def run(
        self,
        rgbs: Sequence[NDArray[np.uint8]],
        choose: BankSelector,
        *,
        class_token: bool,
        trace: bool = False,
    ) -> list[PipelineOutput]:
        """Inspect images.

        Args:
            rgbs: uint8 (H, W, 3) RGB or (H, W) grey of any sizes; 1 to :meth:`max_batch_size` of them.
            choose: Selects the bank of each image. Called once; its time is the stage ``route``.
            class_token: Whether ``choose`` gets class tokens.
            trace: Whether the outputs hold ``images`` and ``patch``.

        Raises:
            ImageError: An array is no such image.
            VisionADError: The engine or the GPU failed, or the tokens contain NaN or Inf.
        """
        ...

    def load_banks(self, banks: Iterable[MemoryBank]) -> None:
        """Load the banks that will be used where the pipeline computes, and drop all others. Other banks work, but slower."""
        ...

    def max_batch_size(self) -> int | None:
        """Return the number of images that a call can take; ``None``: any number."""
        ...

    def memory(self) -> dict[str, int]:
        """Return the bytes in use, without the engine's: ``chain`` and ``banks`` on the GPU, ``page_locked`` on the host.

        They grow with the banks and with the largest image.
        """
        ...

    def close(self) -> None:
        """Free all memory after the current calls. A second call does nothing. The engine stays open."""
        ...


class StageTimer:
    """Stopwatch of stages.

    Attributes:
        milliseconds: Stage -> milliseconds.
    """

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """Record the end of a stage."""
        now = time.perf_counter()
        self.milliseconds[stage] = (now - self._last) * 1e3
        self._last = now
