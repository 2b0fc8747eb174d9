"""The pipeline on the host: NumPy, Pillow and any backbone engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._threads import available_cpus
from ..bank.memory_bank import MemoryBank
from ..engine.base import Engine, Tokens
from ..formats.manifest import FeatureIdentity
from ..preprocess import prepare, query_views
from ..scoring.score import SearchBank, score_tokens
from ..scoring.spec import ScoringSpec
from ..search import SearchIndex
from .bank_search import bank_search
from .base import BankSelector, PipelineOutput, StageTimer

F32 = NDArray[np.float32]


class Encoded(NamedTuple):
    """N encoded images.

    Attributes:
        images: their views, float32 (N, V, 3, crop, crop), with ``trace``.
        tokens: of all N · V views.
        names: of the tokens of each image, one per view, where they are kept; else empty.
    """

    images: F32 | None
    tokens: Tokens
    names: Sequence[Sequence[str]]


class HostPipeline:
    """Pipeline on the CPU around any backbone engine.

    Attributes:
        index: The search indexes of the banks.
    """

    slots = 1

    def __init__(
        self,
        engine: Engine,
        identity: FeatureIdentity,
        scoring: ScoringSpec,
        *,
        threads: int | None = None,
    ) -> None:
        self._engine, self._identity, self._threads = engine, identity, threads
        self.scoring = scoring
        self.index = SearchIndex()

    def run(
        self,
        rgbs: Sequence[NDArray[np.uint8]],
        choose: BankSelector,
        *,
        class_token: bool,
        trace: bool = False,
    ) -> list[PipelineOutput]:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`."""
        timer = StageTimer()
        images, tokens, names = self._encode(rgbs, class_token, trace, timer)
        lead = len(rgbs), len(self.scoring.views)
        patch = tokens.patch.reshape(*lead, *tokens.patch.shape[1:])
        cls = None if tokens.cls is None else tokens.cls.reshape(*lead, -1)
        banks = choose(cls)
        timer.mark("route")
        shared = {stage: ms / len(rgbs) for stage, ms in timer.milliseconds.items()}
        return [
            self._match(
                patch[i], self._search(bank, names[i]), shared, None if cls is None else cls[i],
                None if images is None else images[i], trace,
            )
            for i, bank in enumerate(banks)
        ]  # fmt: skip

    def _encode(self, rgbs: Sequence[NDArray[np.uint8]], class_token: bool, trace: bool, timer: StageTimer) -> Encoded:
        """Encode N images in V views."""
        images = self._prepare(rgbs)
        timer.mark("preprocess")
        tokens = self._engine.encode(images.reshape(-1, *images.shape[2:]), class_token=class_token)
        timer.mark("engine")
        return Encoded(images if trace else None, tokens, [()] * len(rgbs))

    def _prepare(self, rgbs: Sequence[NDArray[np.uint8]]) -> F32:
        spec, threads = self._identity.preprocess, self._threads or available_cpus()
        return np.stack([query_views(prepare(rgb, spec, threads), self.scoring.views) for rgb in rgbs])

    def _search(self, bank: MemoryBank, _names: Sequence[str]) -> SearchBank:
        """Return the search of a bank for an image whose tokens have these names."""
        return bank_search(bank, self.index, self._threads)

    def _match(
        self,
        patch: F32,
        search: SearchBank,
        timings: Mapping[str, float],
        cls: F32 | None,
        images: F32 | None,
        trace: bool,
    ) -> PipelineOutput:
        timer = StageTimer()
        tokens = dict(zip(self.scoring.views, patch, strict=True))
        scored = score_tokens(tokens, search, self.scoring, threads=self._threads, mark=timer.mark)
        return PipelineOutput(
            scored.distances, scored.anomaly_map, scored.score, scored.cutoff, {**timings, **timer.milliseconds}, cls, images,
            patch if trace else None,
        )  # fmt: skip

    def load_banks(self, banks: Iterable[MemoryBank]) -> None:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`. Banks are in host memory already."""

    def max_batch_size(self) -> int | None:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`."""
        return None

    def memory(self) -> dict[str, int]:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`."""
        return dict.fromkeys(("chain", "banks", "page_locked"), 0)

    def close(self) -> None:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`. All memory belongs to the engine and the banks."""
