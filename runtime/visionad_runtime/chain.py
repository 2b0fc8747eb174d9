"""The arithmetic between a decoded picture and its map: one interface, on the host here, on an NVIDIA GPU in ``cuda/chain.py``.

What is read of a bank, which class a picture is of, thresholds and verdicts are the inspector's; a chain only computes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .artefacts import FeatureIdentity, ViewName
from .bank import ClassBank
from .engine import Engine, Tokens
from .maps import TOP_SHARE, fuse, image_score, upsample
from .preprocess import prepare, query_views
from .search import nearest

F32 = NDArray[np.float32]


class Encoded(Protocol):
    """Pictures, encoded. ``cls`` float32 (N, V, Dc), unit rows, or ``None`` where not asked for; patch tokens stay where the chain
    computes. ``timings``: milliseconds by stage, of the whole batch."""

    @property
    def cls(self) -> F32 | None: ...
    @property
    def timings(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, eq=False)
class Matched:
    """One picture against one class: ``distances`` float32 (side, side) by view, as seen in that view; ``anomaly_map`` float32
    (256, 256); ``score`` of :func:`~visionad_runtime.maps.image_score`. ``timings``: milliseconds by stage, of the picture."""

    distances: Mapping[ViewName, F32]
    anomaly_map: F32
    score: float
    timings: Mapping[str, float]


class Chain(Protocol):
    """Picture → tokens → map. A picture's outcome does not depend on the others of a call."""

    def encode(self, rgbs: Sequence[NDArray[np.uint8]], views: Sequence[ViewName], class_token: bool = True) -> Any:
        """Encode pictures, uint8 (H, W, 3) RGB of any sizes, at least one, in these views → :class:`Encoded`."""
        ...

    def match(self, encoded: Any, banks: Sequence[ClassBank]) -> list[Matched]:
        """Match each encoded picture against its class, a bank a picture."""
        ...

    def trace(self, encoded: Any) -> tuple[F32, F32]:
        """What lies between picture and distances: normalised views (N, V, 3, crop, crop), unit patch tokens (N, V, P, D)."""
        ...


class HostEncoded(NamedTuple):
    """See :class:`Encoded`; here with everything at hand: ``images`` (N, V, 3, crop, crop), ``patch`` (N, V, P, D)."""

    cls: F32 | None
    timings: Mapping[str, float]
    images: F32
    patch: F32
    views: tuple[ViewName, ...]


class HostChain:
    """NumPy, Pillow and any backbone engine."""

    def __init__(
        self, engine: Engine, identity: FeatureIdentity, top_share: float = TOP_SHARE, threads: int | None = None
    ) -> None:
        self._engine, self._identity, self._top_share, self._threads = engine, identity, top_share, threads

    def encode(
        self, rgbs: Sequence[NDArray[np.uint8]], views: Sequence[ViewName], class_token: bool = True
    ) -> HostEncoded:
        """See :class:`Chain`."""
        clock = Clock()
        images = np.stack([query_views(prepare(rgb, self._identity.preprocess), views) for rgb in rgbs])
        clock.lap("preprocess")
        tokens: Tokens = self._engine.encode(images.reshape(-1, *images.shape[2:]), class_token=class_token)
        clock.lap("engine")
        lead = images.shape[:2]
        cls = None if tokens.cls is None else tokens.cls.reshape(*lead, -1)
        return HostEncoded(cls, clock.laps, images, tokens.patch.reshape(*lead, *tokens.patch.shape[1:]), tuple(views))

    def match(self, encoded: HostEncoded, banks: Sequence[ClassBank]) -> list[Matched]:
        """See :class:`Chain`."""
        return [self._match(encoded, i, bank) for i, bank in enumerate(banks)]

    def _match(self, encoded: HostEncoded, picture: int, bank: ClassBank) -> Matched:
        clock, side = Clock(), self._identity.grid
        distances = {
            view: nearest(encoded.patch[picture, i], bank.searchable(view), threads=self._threads).distance
            for i, view in enumerate(encoded.views)
        }
        grids = {view: d.reshape(side, side) for view, d in distances.items()}
        clock.lap("search")
        anomaly_map = upsample(fuse(grids))
        score = image_score(anomaly_map, self._top_share)
        clock.lap("map")
        return Matched(grids, anomaly_map, score, clock.laps)

    def trace(self, encoded: HostEncoded) -> tuple[F32, F32]:
        """See :class:`Chain`."""
        return encoded.images, encoded.patch


class Clock:
    """Milliseconds a stage: ``laps``."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The stage that ends now."""
        now = time.perf_counter()
        self.laps[stage] = (now - self._last) * 1e3
        self._last = now
