"""What a pipeline is: images -> tokens -> anomaly maps, as one call. Verdicts are the inspector's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bank.memory_bank import ClassBank
from ..formats.manifest import ViewName
from ..scoring.spec import ScoringSpec

if TYPE_CHECKING:
    pass


F32 = NDArray[np.float32]

BankSelector = Callable[[F32 | None], Sequence[ClassBank]]
"""Class tokens float32 (N, V, Dc), or ``None`` where not asked for → the bank that each of the N images is matched against."""


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    """One image against one class: ``distances`` float32 (side, side) by view, as seen in that view and weighed where the scoring
    says so; ``anomaly_map`` float32 (256, 256); ``score`` and ``cutoff`` of
    :func:`~visionad_runtime.scoring.anomaly_map.top_k_mean`. ``timings``: milliseconds by stage, of the image.

    ``cls`` float32 (V, Dc), unit rows, where class tokens were asked for. With ``trace`` what lies between: ``images`` float32
    (V, 3, crop, crop), normalised, and ``patch`` float32 (V, P, D), unit rows.
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
    """Image → tokens → map. An image's outcome does not depend on the others of a call. Any thread may call.

    ``scoring`` says in which views, and how scores are made of distances. ``cameras`` is how many calls it works on at once; more
    take turns.
    """

    @property
    def scoring(self) -> ScoringSpec: ...

    @property
    def cameras(self) -> int: ...

    def run(
        self,
        rgbs: Sequence[NDArray[np.uint8]],
        choose: BankSelector,
        *,
        class_token: bool,
        trace: bool = False,
    ) -> list[PipelineOutput]:
        """Inspect images, uint8 (H, W, 3) RGB or (H, W) grey of any sizes, at least one and at most :meth:`limit`.

        Args:
            choose: called once, with class tokens when the images are encoded; what it takes is the stage ``route``.
            class_token: whether ``choose`` is given class tokens.
        """
        ...

    def load_banks(self, banks: Iterable[ClassBank]) -> None:
        """These banks will be inspected with, and no others: have them where the chain computes. Others work, but slower."""
        ...

    def max_batch_size(self) -> int | None:
        """Images a call can take; ``None``: any number."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes that it has taken beside the engine's: ``chain`` and ``banks`` on the GPU, ``page_locked`` on the host. It
        grows with banks and with the largest image."""
        ...

    def close(self) -> None:
        """Give back what it took, once calls under way are done; twice is harmless. The engine is not closed."""
        ...


class StageTimer:
    """Milliseconds a stage: ``laps``."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """The stage that ends now."""
        now = time.perf_counter()
        self.milliseconds[stage] = (now - self._last) * 1e3
        self._last = now
