"""The pipeline on the host: NumPy, Pillow and any backbone engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._threads import available_cpus
from ..bank.memory_bank import ClassBank
from ..engine.base import Engine, Tokens
from ..formats.manifest import FeatureIdentity, ViewName
from ..preprocess import prepare, query_views
from ..scoring.score import score_tokens
from ..scoring.spec import ScoringSpec
from ..search import SearchIndex, nearest

if TYPE_CHECKING:
    pass

from .base import BankSelector, PipelineOutput, StageTimer

F32 = NDArray[np.float32]


class HostPipeline:
    """NumPy, Pillow and any backbone engine."""

    cameras = 1

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
        """See :class:`Pipeline`."""
        clock = StageTimer()
        spec, threads = self._identity.preprocess, self._threads or available_cpus()
        images = np.stack([query_views(prepare(rgb, spec, threads), self.scoring.views) for rgb in rgbs])
        clock.mark("preprocess")
        tokens: Tokens = self._engine.encode(images.reshape(-1, *images.shape[2:]), class_token=class_token)
        clock.mark("engine")
        lead = images.shape[:2]
        patch = tokens.patch.reshape(*lead, *tokens.patch.shape[1:])
        cls = None if tokens.cls is None else tokens.cls.reshape(*lead, -1)
        banks = choose(cls)
        clock.mark("route")
        shared = {stage: ms / len(rgbs) for stage, ms in clock.milliseconds.items()}
        return [
            self._match(patch[i], bank, shared, None if cls is None else cls[i], images[i] if trace else None, trace)
            for i, bank in enumerate(banks)
        ]

    def _match(
        self,
        patch: F32,
        bank: ClassBank,
        timings: Mapping[str, float],
        cls: F32 | None,
        images: F32 | None,
        trace: bool,
    ) -> PipelineOutput:
        clock = StageTimer()

        def search(view: ViewName, tokens: F32) -> F32:
            index = self.index.index_for(bank, view, bank.rows(view), tokens)
            return nearest(tokens, index, threads=self._threads).distance

        tokens = dict(zip(self.scoring.views, patch, strict=True))
        one = score_tokens(tokens, search, self.scoring, threads=self._threads, mark=clock.mark)
        return PipelineOutput(
            one.distances, one.anomaly_map, one.score, one.cutoff, {**timings, **clock.milliseconds}, cls, images,
            patch if trace else None,
        )  # fmt: skip

    def load_banks(self, banks: Iterable[ClassBank]) -> None:
        """See :class:`Pipeline`. Banks are in the host's memory already."""

    def max_batch_size(self) -> int | None:
        """See :class:`Pipeline`."""
        return None

    def memory(self) -> dict[str, int]:
        """See :class:`Pipeline`."""
        return dict.fromkeys(("chain", "banks", "page_locked"), 0)

    def close(self) -> None:
        """See :class:`Pipeline`. All it has is the engine's and the bank's."""
