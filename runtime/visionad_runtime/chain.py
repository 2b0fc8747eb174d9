"""The arithmetic between a decoded picture and its map: one interface, on the host here, on an NVIDIA GPU in ``cuda/chain.py``.

What is read of a bank, which class a picture is of, thresholds and verdicts are the inspector's; a chain only computes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .artefacts import ClassEntry, FeatureIdentity, ModelManifest, ViewName
from .bank import ClassBank
from .engine.base import Engine, Tokens
from .errors import ModelError, VisionADError
from .pipeline.self_test import GOLDEN_TOLERANCE
from .preprocess import bank_blocks, prepare, query_views, support_encodings
from .scoring.score import score_tokens
from .scoring.spec import ScoringSpec
from .search import SearchIndex, nearest
from .workers import cores

if TYPE_CHECKING:
    from .cuda.interface import DeviceEngine

log = logging.getLogger("visionad")

F32 = NDArray[np.float32]

Choose = Callable[[F32 | None], Sequence[ClassBank]]
"""Class tokens float32 (N, V, Dc), or ``None`` where not asked for → the bank that each of the N pictures is matched against."""


@dataclass(frozen=True, eq=False)
class Matched:
    """One picture against one class: ``distances`` float32 (side, side) by view, as seen in that view and weighed where the scoring
    says so; ``anomaly_map`` float32 (256, 256); ``score`` and ``edge`` of
    :func:`~visionad_runtime.scoring.anomaly_map.top_k_mean`. ``timings``: milliseconds by stage, of the picture.

    ``cls`` float32 (V, Dc), unit rows, where class tokens were asked for. With ``trace`` what lies between: ``images`` float32
    (V, 3, crop, crop), normalised, and ``patch`` float32 (V, P, D), unit rows.
    """

    distances: Mapping[ViewName, F32]
    anomaly_map: F32
    score: float
    edge: float
    timings: Mapping[str, float]
    cls: F32 | None = None
    images: F32 | None = None
    patch: F32 | None = None


class Chain(Protocol):
    """Picture → tokens → map. A picture's outcome does not depend on the others of a call. Any thread may call.

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
        choose: Choose,
        *,
        class_token: bool,
        trace: bool = False,
    ) -> list[Matched]:
        """Inspect pictures, uint8 (H, W, 3) RGB or (H, W) grey of any sizes, at least one and at most :meth:`limit`.

        Args:
            choose: called once, with class tokens when the pictures are encoded; what it takes is the stage ``route``.
            class_token: whether ``choose`` is given class tokens.
        """
        ...

    def keep(self, banks: Iterable[ClassBank]) -> None:
        """These banks will be inspected with, and no others: have them where the chain computes. Others work, but slower."""
        ...

    def limit(self) -> int | None:
        """Pictures a call can take; ``None``: any number."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes that it has taken beside the engine's: ``chain`` and ``banks`` on the GPU, ``page_locked`` on the host. It
        grows with banks and with the largest picture."""
        ...

    def close(self) -> None:
        """Give back what it took, once calls under way are done; twice is harmless. The engine is not closed."""
        ...


class HostChain:
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
        choose: Choose,
        *,
        class_token: bool,
        trace: bool = False,
    ) -> list[Matched]:
        """See :class:`Chain`."""
        clock = Clock()
        spec, threads = self._identity.preprocess, self._threads or cores()
        images = np.stack([query_views(prepare(rgb, spec, threads), self.scoring.views) for rgb in rgbs])
        clock.lap("preprocess")
        tokens: Tokens = self._engine.encode(images.reshape(-1, *images.shape[2:]), class_token=class_token)
        clock.lap("engine")
        lead = images.shape[:2]
        patch = tokens.patch.reshape(*lead, *tokens.patch.shape[1:])
        cls = None if tokens.cls is None else tokens.cls.reshape(*lead, -1)
        banks = choose(cls)
        clock.lap("route")
        shared = {stage: ms / len(rgbs) for stage, ms in clock.laps.items()}
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
    ) -> Matched:
        clock = Clock()

        def search(view: ViewName, tokens: F32) -> F32:
            index = self.index.index_for(bank, view, bank.rows(view), tokens)
            return nearest(tokens, index, threads=self._threads).distance

        tokens = dict(zip(self.scoring.views, patch, strict=True))
        one = score_tokens(tokens, search, self.scoring, threads=self._threads, mark=clock.lap)
        return Matched(
            one.distances, one.anomaly_map, one.score, one.cutoff, {**timings, **clock.laps}, cls, images,
            patch if trace else None,
        )  # fmt: skip

    def keep(self, banks: Iterable[ClassBank]) -> None:
        """See :class:`Chain`. Banks are in the host's memory already."""

    def limit(self) -> int | None:
        """See :class:`Chain`."""
        return None

    def memory(self) -> dict[str, int]:
        """See :class:`Chain`."""
        return dict.fromkeys(("chain", "banks", "page_locked"), 0)

    def close(self) -> None:
        """See :class:`Chain`. All it has is the engine's and the bank's."""


def open_chain(
    engine: Engine,
    manifest: ModelManifest,
    scoring: ScoringSpec,
    golden: Mapping[str, NDArray[Any]],
    threads: int | None = None,
    keep_alive: float | None = None,
) -> Chain:
    """The chain for an engine: on the GPU where it has one that the engine shares, else on the host. ``keep_alive``: as
    :meth:`Inspector.open <visionad_runtime.inspector.Inspector.open>` has it.

    The one on the GPU must give what the host's gives for the blemished golden picture against a bank of the plain one, within the
    self-test's tolerance, on every camera, as enqueued and as recorded. Where it does not, or there is no memory for it, and ONNX
    Runtime is the engine, the host's is taken, with a warning: it gives the same, slower.

    Raises:
        ModelError: it does not, naming the stage. VisionADError: no memory for it.
    """
    host = HostChain(engine, manifest.identity, scoring, threads=threads)
    if engine.device_engine is None:
        return host
    try:
        return _open_on_device(engine, engine.device_engine, manifest, golden, host, keep_alive)
    except VisionADError as exc:
        if engine.requires_device_pipeline:
            raise
        log.warning("backend %s: preprocessing, search and map stay on the CPU: %s", engine.name, exc)
        engine.info["chain"] = f"on the host: {exc}"
        return host


def _open_on_device(
    engine: Engine,
    make: Callable[[], DeviceEngine],
    manifest: ModelManifest,
    golden: Mapping[str, NDArray[Any]],
    host: HostChain,
    keep_alive: float | None,
) -> Chain:
    from .cuda.device import Owner
    from .cuda.inspect import CAMERAS, DeviceChain

    identity = manifest.identity
    blocks = bank_blocks(host.scoring.views)
    tokens = engine.encode(support_encodings(prepare(golden["image"], identity.preprocess), blocks), class_token=False)
    bank = ClassBank(
        "golden", ClassEntry(file="", sha256="", images=()), blocks, tokens.patch[:, None], tokens.patch[:, :0]
    )
    chain = DeviceChain(Owner.of(0), make(), identity, host.scoring, keep_alive=keep_alive)
    try:
        wanted = _stages(host, golden["blemished"], bank)
        chain.keep([bank])
        worst = 0.0
        for _ in range(2 * CAMERAS):
            for stage, found in _stages(chain, golden["blemished"], bank).items():
                allowed = 0.0 if stage == "preprocess" else GOLDEN_TOLERANCE[engine.precision]
                apart = float(np.abs(found - wanted[stage]).max())
                if not apart <= allowed:
                    raise ModelError(
                        f"self-test of the device chain failed at {stage}: differs from the host's by {apart:.3g} on the golden "
                        f"picture (allowed {allowed:g}); do not inspect with this box, run `visionad doctor`"
                    )
                worst = max(worst, apart)
        chain.keep([])
    except BaseException:
        chain.close()
        raise
    taken = {name: f"{nbytes / 2**20:.0f} MiB" for name, nbytes in chain.memory().items()}
    engine.info["chain"] = f"on the GPU, within {worst:.2g} of the host's"
    engine.info["chain memory"] = f"{taken['chain']}, {taken['page_locked']} page-locked on the host; banks are added"
    return chain


def _stages(chain: Chain, rgb: NDArray[np.uint8], bank: ClassBank) -> dict[str, F32]:
    """What a chain makes of a picture, in the order of the work."""
    (found,) = chain.run([rgb], lambda _: [bank], class_token=True, trace=True)
    assert found.images is not None and found.patch is not None and found.cls is not None
    return {
        "preprocess": found.images,
        "patch_tokens": found.patch,
        "class_token": found.cls,
        "search": np.stack(list(found.distances.values())),
        "map": found.anomaly_map,
        "score": np.array(found.score, np.float32),
        "edge": np.array(found.edge, np.float32),
    }


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
