"""The chain picture → verdict as one object. Every command and the Python API go through it."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import picture
from .artefacts import (
    Calibration,
    ClassEntry,
    ModelManifest,
    Precision,
    SupportImage,
    ViewName,
    parse_precision,
    read_manifest,
    sha256_bytes,
    sha256_file,
)
from .bank import Bank, ClassBank, Snapshot, stored_name, unknown_class
from .chain import Chain, Clock, Matched, open_chain
from .engine.base import Engine, Tokens
from .errors import BankError, ModelError, PictureError, VisionADError
from .maps import Geometry, Region, regions
from .pipeline.opening import open_engine
from .pipeline.self_test import read_golden
from .preprocess import prepare, support_encodings
from .routing import LIMITS, Route, Router
from .workers import cores, spread

log = logging.getLogger("visionad")

F32 = NDArray[np.float32]
Verdict = Literal["ok", "anomalous", "unknown"]
ClassSource = Literal["given", "routed", "unknown"]


@dataclass(frozen=True)
class Result:
    """What inspecting one picture gave.

    ``anomaly_map`` is float32 (256, 256), the sum of the views' cosine distances (0..2 a view), of the centre crop;
    ``geometry`` maps it to the original picture. ``score`` is the mean of its largest pixels: 1 % of them, or the
    model's ``top_share``. ``verdict`` is ``unknown`` when the class has no threshold yet, or when the picture is like no
    class. ``timings`` are milliseconds. ``backend`` is the engine that encoded it, ``precision`` the one it computes in.
    """

    score: float
    verdict: Verdict
    class_name: str | None
    class_source: ClassSource
    class_margin: float | None
    threshold: float | None
    bank_version: int
    regions: tuple[Region, ...]
    anomaly_map: F32
    geometry: Geometry
    map_scale: tuple[float, float]
    timings: Mapping[str, float] = field(compare=False)
    backend: str = field(compare=False)
    precision: Precision = field(compare=False)

    def to_dict(self, image: str) -> dict[str, Any]:
        """The JSON object ``visionad predict --json`` prints for a picture."""
        return {
            "image": image,
            "class": self.class_name,
            "class_source": self.class_source,
            "class_margin": self.class_margin,
            "score": self.score,
            "threshold": self.threshold,
            "verdict": self.verdict,
            "bank_version": self.bank_version,
            "regions": [
                {"bbox": list(r.bbox), "score": r.score, "polygon": [list(p) for p in r.polygon]} for r in self.regions
            ],
            "timings_ms": {k: round(v, 3) for k, v in self.timings.items()},
            "backend": self.backend,
            "precision": self.precision,
        }


@dataclass(frozen=True)
class Trace:
    """The stages between picture and map, for ``visionad parity`` and for curious users."""

    views: F32
    tokens: Tokens
    distances: Mapping[ViewName, F32]


class FileResult(NamedTuple):
    """One file of :meth:`Inspector.inspect_files`: picture (RGB), result and trace, or the error that stopped it."""

    path: Path
    rgb: picture.RGB8 | None
    result: Result | None
    trace: Trace | None
    error: PictureError | None


class Inspector:
    """A model, a bank and an engine, ready to inspect.

    >>> inspector = Inspector.open("model", "bank")          # doctest: +SKIP
    >>> inspector.inspect(cv2.imread("part.png")).verdict    # doctest: +SKIP
    'ok'
    >>> inspector.close()                                    # doctest: +SKIP

    or ``with Inspector.open(...) as inspector:``, so that a GPU's memory is given back.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        engine: Engine,
        bank: Bank | None,
        views: Sequence[ViewName],
        golden: Mapping[str, NDArray[Any]],
        threads: int | None = None,
        keep_alive: float | None = None,
    ) -> None:
        self.manifest = manifest
        self._stranger: F32 = golden["class_token"]
        self.engine = engine
        self.bank = bank
        self.views: tuple[ViewName, ...] = tuple(views)
        self.chain: Chain = open_chain(engine, manifest, self.views, golden, threads, keep_alive)
        self._threads = threads or cores()
        self._kept: Snapshot | None = None
        self._router: tuple[Snapshot, Router] | None = None
        self._seen: tuple[int, ...] | None = None
        self._keeping = threading.Lock()
        self._life = threading.Condition()
        self._under_way = 0
        self._closing = self._closed = False

    @classmethod
    def open(
        cls,
        model: str | Path,
        bank: str | Path | None = None,
        *,
        backend: str = "auto",
        precision: Precision | None = None,
        device: str | None = None,
        threads: int | None = None,
        views: Sequence[str] | None = None,
        keep_alive: float | None = None,
    ) -> Inspector:
        """Open, check and warm up.

        Every file's digest is checked, then the backend must pass its self-test (``pipeline/self_test.py``), and on a GPU the
        chain around it must give what the host's does (``chain.open_chain``): a damaged file or a wrong operator is found here
        and not at the line.

        Args:
            model: model folder. bank: bank folder; a missing or empty one starts a new bank with the first `enroll`.
            views: which of the model's views to look through (default: all of the bank's).
            backend: ``auto`` (the best that runs here and passes its self-test) or a name of ``engine.backends()``.
            precision: ``fp32``, ``bf16`` or ``fp16``, for backends that offer it (default: the model's own). ``auto`` then takes
                the best backend that does. The realised one is ``inspector.engine.precision``; a threshold that was calibrated in
                bf16 holds in bf16 alone.
            device: ``cpu``, ``gpu`` or ``npu``, for backends that offer a choice (default: theirs).
            threads: CPU threads of engine and search (default: all cores, and no more than these: threads that wait for each
                other's core take minutes). The search's result does not depend on it.
            keep_alive: seconds without a picture after which a GPU runs its last one again, and again, so that its clocks stay
                up and the next part after a pause is as fast as the others, at the price of the power (default: never; results
                do not change; a CPU needs none). Well below the time in which the GPU slows down, such as 0.02.

        Raises:
            ModelError, BankError, VisionADError: what is wrong and what mends it.
        """
        if threads is not None:
            if threads < 1:
                raise VisionADError(f"threads {threads}: wanted 1 or more, or None for all cores")
            threads = min(threads, cores())
        if keep_alive is not None and not 0 < keep_alive < math.inf:
            raise VisionADError(f"keep_alive {keep_alive}: wanted seconds above 0, or None for never")
        import cv2  # noqa: F401  # too heavy for `import visionad_runtime`, and too slow for the first part that is not ok

        folder = Path(model)
        manifest = read_model(folder)
        opened = Bank.open_or_new(Path(bank), manifest.identity, manifest.views) if bank is not None else None
        available = opened.manifest.views if opened is not None else manifest.views
        chosen = choose_views(views, available)
        engine = open_engine(
            folder,
            manifest,
            backend,
            threads=threads,
            batch_size=len(chosen),
            precision=parse_precision(precision),
            device=device,
        )
        try:
            inspector = cls(manifest, engine, opened, chosen, read_golden(folder), threads, keep_alive)
        except BaseException:
            engine.close()
            raise
        try:
            if opened is not None:
                inspector._keep()
        except BaseException:
            inspector.close()
            raise
        return inspector

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the engine's and the chain's memory back. Calls under way in other threads end first; calls that come later are
        refused. Twice is harmless."""
        with self._life:
            self._closing = True
            self._life.wait_for(lambda: not self._under_way)
            if self._closed:
                return
            self._closed = True
            try:
                self.chain.close()
            finally:
                self.engine.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Around all that computes: :meth:`close` waits for it.

        Raises:
            VisionADError: closed.
        """
        with self._life:
            if self._closing:
                raise VisionADError("this inspector was closed; open another with Inspector.open")
            self._under_way += 1
        try:
            yield
        finally:
            with self._life:
                self._under_way -= 1
                self._life.notify_all()

    # -- inspect ------------------------------------------------------------------------------------------------------

    def inspect(self, image: NDArray[np.uint8], *, class_name: str | None = None, colour: str = "bgr") -> Result:
        """Inspect one picture.

        Args:
            image: uint8 (H, W, 3) in ``colour`` order (``"bgr"`` as OpenCV gives it, or ``"rgb"``), or grey (H, W).
            class_name: skip routing.

        Raises:
            PictureError: not such an array. BankError: nothing enrolled, or unknown class.
        """
        return self.inspect_batch([image], class_name=class_name, colour=colour)[0]

    def inspect_batch(
        self, images: Sequence[NDArray[np.uint8]], *, class_name: str | None = None, colour: str = "bgr"
    ) -> list[Result]:
        """:meth:`inspect` for several pictures at once. Each result is what the picture alone would give."""
        rgbs = picture.from_arrays(images, colour)
        return [r for r, _ in self.trace_batch(rgbs, class_name, trace=False)]

    def trace_batch(
        self,
        rgbs: Sequence[picture.RGB8],
        class_name: str | None = None,
        leave_out: int | None = None,
        trace: bool = True,
    ) -> list[tuple[Result, Trace | None]]:
        """Inspect decoded pictures (uint8 (H, W, 3) RGB, or (H, W) grey). The one path to a verdict.

        Args:
            leave_out: compare as if this support picture of ``class_name`` had not been enrolled (calibration).
            trace: also return the stages in between, which on a GPU have to be fetched.
        """
        with self._in_use():
            class_name = None if class_name is None else stored_name(class_name)
            bank = self._snapshot(class_name)
            if not rgbs:
                return []
            self._keep()
            at_once = self.chain.limit(self.views) or len(rgbs)
            found: dict[int, list[tuple[Result, Trace | None]]] = {}

            def part(start: int) -> None:
                found[start] = self._traced(rgbs[start : start + at_once], bank, class_name, leave_out, trace)

            starts = range(0, len(rgbs), at_once)
            spread(part, starts, min(len(starts), self.chain.cameras))
            return [one for start in starts for one in found[start]]

    def _traced(
        self, rgbs: Sequence[picture.RGB8], bank: Snapshot, class_name: str | None, leave_out: int | None, trace: bool
    ) -> list[tuple[Result, Trace | None]]:
        """:meth:`trace_batch` for as many pictures as the chain takes at once."""
        routes: list[Route | None] = [None] * len(rgbs)
        classes: list[ClassBank] = []

        def choose(tokens: F32 | None) -> list[ClassBank]:
            if tokens is not None:
                router = self._router_of(bank)
                routes[:] = [router.route(cls[0]) for cls in tokens]
            classes[:] = [bank.classes[class_name if found is None else found.nearest] for found in routes]  # type: ignore[index]
            if leave_out is not None:
                classes[:] = [matched.without(leave_out) for matched in classes]
            return classes

        out = []
        for i, found in enumerate(
            self.chain.run(rgbs, self.views, choose, class_token=class_name is None, trace=trace)
        ):
            result = self._verdict(rgbs[i], found, classes[i], routes[i], bank.manifest.version)
            one = None
            if found.images is not None and found.patch is not None:
                one = Trace(found.images, Tokens(found.patch, found.cls), found.distances)
            out.append((result, one))
        return out

    def _router_of(self, bank: Snapshot) -> Router:
        """Made once for each version of the bank, mostly."""
        held = self._router
        if held is None or held[0] is not bank:
            limits = LIMITS[self.manifest.identity.class_token]
            held = self._router = bank, Router(bank.classes, self._stranger, limits, self.views[0])
        return held[1]

    def _keep(self) -> None:
        """Have the bank in force where the chain computes. Whoever comes while another thread sees to that goes on."""
        assert self.bank is not None
        if self._kept is not self.bank.snapshot and self._keeping.acquire(blocking=False):
            try:
                newest = self.bank.snapshot
                self.chain.keep(newest.classes.values())
                self._kept = newest
            finally:
                self._keeping.release()

    def _verdict(
        self,
        rgb: picture.RGB8,
        found: Matched,
        matched: ClassBank,
        routed: Route | None,
        version: int,
    ) -> Result:
        clock = Clock()
        known = routed is None or routed.known
        threshold = matched.entry.threshold if known and self._calibrated_for(matched) else None
        verdict: Verdict = "unknown" if threshold is None else "anomalous" if found.score > threshold else "ok"
        geometry = Geometry.of(rgb.shape[1], rgb.shape[0], self.manifest.identity.preprocess)
        level, reached = (found.edge, True) if threshold is None else (threshold, False)
        hot = () if verdict == "ok" else regions(found.anomaly_map, geometry, level, reached=reached)
        clock.lap("verdict")
        laps = {**found.timings, **clock.laps}
        return Result(
            score=found.score,
            verdict=verdict,
            class_name=matched.name if known else None,
            class_source="given" if routed is None else "routed" if routed.known else "unknown",
            class_margin=routed.margin if routed is not None else None,
            threshold=threshold,
            bank_version=version,
            regions=hot,
            anomaly_map=found.anomaly_map,
            geometry=geometry,
            map_scale=matched.entry.map_scale or (0.0, 0.4 * len(self.views)),
            timings={**laps, "total": sum(laps.values())},
            backend=self.engine.name,
            precision=self.engine.precision,
        )

    def refresh(self) -> bool:
        """Take over what another process has committed to the bank folder, a new class or a threshold. Costs a look at one file's
        date where nothing was. Returns whether anything was taken over.

        A bank that cannot be read any more is said in the log, once, and the version in memory stays in force."""
        if self.bank is None or (stamp := self.bank.stamp()) == self._seen:
            return False
        self._seen = stamp  # of before the bank is read: what is committed meanwhile is seen the next time
        try:
            if stamp is not None:
                return self.bank.refresh()
            trouble = "it has no manifest any more"
        except VisionADError as exc:
            trouble = str(exc)
        log.warning(
            "bank %s: %s; going on with version %d in memory", self.bank.folder, trouble, self.bank.manifest.version
        )
        return False

    def _calibrated_for(self, matched: ClassBank) -> bool:
        record = matched.entry.calibration
        return record is None or record.holds_for(self.views, self.manifest, self.engine.precision)

    def uncalibrated(self) -> list[str]:
        """Why thresholds of the bank are not used here, a line for each such class."""
        return [
            f"class {name}: its threshold was calibrated with {_scoring(record.views, record, record.precision)}, which does not "
            f"hold for {_scoring(self.views, self.manifest, self.engine.precision)}; its verdicts are unknown until "
            "`visionad calibrate`"
            for name, matched in (self.bank.classes if self.bank is not None else {}).items()
            if (record := matched.entry.calibration) is not None and not self._calibrated_for(matched)
        ]

    def enrolled(self, class_name: str | None) -> Bank:
        """The bank, if it can inspect (this class).

        Raises:
            BankError: no class yet, or not this one.
        """
        self._snapshot(class_name)
        assert self.bank is not None
        return self.bank

    def _snapshot(self, class_name: str | None) -> Snapshot:
        """The version of the bank in force, checked as :meth:`enrolled` does: another thread may change the bank at any time."""
        if self.bank is None or not (bank := self.bank.snapshot).classes:
            where = self.bank.folder if self.bank else "(none opened)"
            raise BankError(f"bank {where} holds no class yet; enrol good pictures with `visionad bank add`")
        if class_name is not None and stored_name(class_name) not in bank.classes:
            raise BankError(unknown_class(self.bank.folder, class_name, bank.classes))
        return bank

    def inspect_files(
        self,
        paths: Iterable[Path | str],
        *,
        class_name: str | None = None,
        batch: int = 1,
        bit_depth: int | None = None,
        leave_out: int | None = None,
        trace: bool = False,
    ) -> Iterator[FileResult]:
        """Inspect picture files in order, ``batch`` pictures an engine call; an unreadable one yields its error.

        A list of paths is read ahead, see :func:`~visionad_runtime.picture.read_all`; of an iterator no more paths are taken than a
        batch needs. Memory holds one batch of pictures and what is read ahead, whatever the number of paths. ``leave_out`` and
        ``trace`` as in :meth:`trace_batch`.

        Raises:
            VisionADError: no list of paths, no class, or a batch below 1.
        """
        if batch < 1:
            raise VisionADError(f"batch {batch}: wanted 1 picture or more")
        self.enrolled(class_name)
        with closing(picture.read_all(picture.as_paths(paths), bit_depth, self._threads)) as files:
            while chunk := list(itertools.islice(files, batch)):
                readable = [one.rgb for one in chunk if one.rgb is not None]
                results = iter(self.trace_batch(readable, class_name, leave_out, trace))
                for path, rgb, error, decode_ms in chunk:
                    if rgb is None:
                        yield FileResult(path, None, None, None, error)
                        continue
                    result, stages = next(results)
                    timings = {"decode": decode_ms, **result.timings, "total": result.timings["total"] + decode_ms}
                    yield FileResult(path, rgb, replace(result, timings=timings), stages, None)

    # -- enrol --------------------------------------------------------------------------------------------------------

    def encode_support(self, rgb: picture.RGB8) -> Tokens:
        """All unique encodings of one good picture: ``patch`` (B, P, D) and ``cls`` (B, Dc), blocks in the bank's order."""
        blocks = self._opened().manifest.blocks
        return self.encode(support_encodings(prepare(rgb, self.manifest.identity.preprocess, self._threads), blocks))

    def _opened(self) -> Bank:
        if self.bank is None:
            raise BankError("no bank was opened; give Inspector.open a bank folder")
        return self.bank

    def encode(self, images: F32) -> Tokens:
        """The engine's tokens of normalised pictures, float32 (N, 3, crop, crop)."""
        with self._in_use():
            return self.engine.encode(images)

    def as_class(self, name: str, support: SupportImage, rgb: picture.RGB8) -> ClassBank:
        """What a class would be with this one picture, not enrolled anywhere."""
        tokens = self.encode_support(rgb)
        assert tokens.cls is not None
        entry = ClassEntry(file="", sha256="", images=(support,))
        return ClassBank(name, entry, self._opened().manifest.blocks, tokens.patch[:, None], tokens.cls[:, None])

    def enroll(self, name: str, images: Sequence[NDArray[np.uint8]], *, colour: str = "bgr") -> int:
        """Enrol good pictures in a new or existing class, live. Inspections that follow see them; disk is written first.

        Args:
            images: uint8 (H, W, 3) arrays in ``colour`` order, or grey (H, W).

        Returns:
            The bank's new version.

        Raises:
            PictureError, BankError: nothing was changed then.
        """
        given = picture.from_arrays(images, colour)
        rgbs = [picture.in_rgb(one) if one.ndim == 2 else one for one in given]  # one digest, however it is given
        supports = [SupportImage(sha256=sha256_bytes(rgb.tobytes()), source="array") for rgb in rgbs]
        return self.enroll_encoded(name, supports, [self.encode_support(rgb) for rgb in rgbs])

    def enroll_files(
        self,
        name: str,
        paths: Sequence[Path | str],
        *,
        bit_depth: int | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> int:
        """:meth:`enroll` for picture files: all of them or none. ``step`` is called after each.

        Raises:
            PictureError: one cannot be read, is given twice, or changes meanwhile; no list. BankError: as :meth:`Bank.add`.
        """
        files = list(picture.as_paths(paths))
        supports = read_supports(files, bit_depth)
        old = self.bank.classes.get(stored_name(name)) if self.bank is not None else None
        known = {image.sha256 for image in old.entry.images} if old is not None else set()
        for s in supports:  # said before minutes of encoding; the bank checks again when it commits
            if s.sha256 in known:
                raise BankError(f"class {name!r}: {s.source} is enrolled already (sha256 {s.sha256[:12]})")
        encoded = []
        for path, s in zip(files, supports, strict=True):
            data = picture.read_bytes(path)
            if sha256_bytes(data) != s.sha256:
                raise PictureError(f"{path}: changed while it was being enrolled; nothing was enrolled")
            encoded.append(self.encode_support(picture.decode(data, path, bit_depth)))
            step()
        return self.enroll_encoded(name, supports, encoded)

    def enroll_encoded(self, name: str, supports: Sequence[SupportImage], encoded: Sequence[Tokens]) -> int:
        """The second half of :meth:`enroll`, for callers that have encoded the pictures already."""
        with self._in_use():
            bank = self._opened()
            if not encoded:
                raise BankError(f"class {name!r}: no picture given")
            features = np.stack([t.patch for t in encoded], axis=1)
            class_tokens = np.stack([t.cls for t in encoded if t.cls is not None], axis=1)
            return bank.add(name, supports, features, class_tokens)


def read_supports(paths: Sequence[Path], bit_depth: int | None = None) -> list[SupportImage]:
    """Records of support picture files, after making sure that each can be decoded.

    Raises:
        PictureError: unreadable, or the same picture twice.
    """
    supports: list[SupportImage] = []
    for path in paths:
        data = picture.read_bytes(path)
        picture.decode(data, path, bit_depth)
        digest = sha256_bytes(data)
        twin = next((s.source for s in supports if s.sha256 == digest), None)
        if twin is not None:
            raise PictureError(f"{path} and {twin} are the same picture; give each once")
        supports.append(SupportImage(sha256=digest, source=str(path.absolute())))
    return supports


def read_model(folder: Path) -> ModelManifest:
    """Read a model folder's manifest and check every file against its digest.

    Raises:
        ModelError: missing or damaged, naming the file.
    """
    manifest = read_manifest(folder, ModelManifest)
    for name, digest in manifest.files.items():
        path = folder / name
        try:
            found = sha256_file(path)
        except OSError as exc:
            raise ModelError(
                f"{path} cannot be read: {exc.strerror}; export the model again or copy the whole folder"
            ) from None
        if found != digest:
            raise ModelError(
                f"{path} is damaged: wanted sha256 {digest[:12]}, found {found[:12]}; copy or export the model again"
            )
    return manifest


def choose_views(wanted: Sequence[str] | None, available: tuple[ViewName, ...]) -> tuple[ViewName, ...]:
    """The views to look through, in the order of ``available``; ``None``: all of them.

    Raises:
        VisionADError: none, one twice, or one that is not available.
    """
    if wanted is None:
        return available
    if isinstance(wanted, str):  # as on the command line
        wanted = [view.strip() for view in wanted.split(",")]
    unknown = [v for v in wanted if v not in available]
    if unknown or not wanted or len(set(wanted)) != len(wanted):
        raise VisionADError(f"views {','.join(wanted) or '(none)'}: wanted some of {','.join(available)}, each once")
    return tuple(v for v in available if v in wanted)


def _scoring(views: Sequence[ViewName], score: Calibration | ModelManifest, precision: Precision) -> str:
    weighed = " of weighed distances" if score.rarity else ""
    return f"views {','.join(views)} over {score.top_share:g} of the map{weighed} in {precision}"
