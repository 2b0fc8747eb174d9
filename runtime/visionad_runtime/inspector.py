"""The chain image → verdict as one object. Every command and the Python API go through it."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._threads import Lifetime, available_cpus, parallel_for
from .bank.memory_bank import ClassBank, Snapshot
from .bank.names import normalize_class_name, unknown_class_message
from .bank.routing import LIMITS, Route, Router
from .bank.store import Bank
from .bank.supports import array_supports, check_new, read_supports
from .engine.base import Engine, Tokens
from .errors import BankError, ImageError, VisionADError
from .formats.files import sha256_bytes
from .formats.manifest import ClassEntry, ModelManifest, SupportImage, ViewName, parse_precision
from .formats.model_folder import read_model
from .images import arrays, decode, discover, pixels, reader
from .pipeline.assembly import open_pipeline
from .pipeline.base import Pipeline
from .pipeline.opening import open_engine
from .pipeline.self_test import read_golden
from .preprocess import prepare, support_encodings
from .result import FileResult, Result, Trace, make_result
from .scoring.preset import scoring_for
from .scoring.spec import ScoringSpec

log = logging.getLogger("visionad")

F32 = NDArray[np.float32]


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
        scoring: ScoringSpec,
        golden: Mapping[str, NDArray[Any]],
        threads: int | None = None,
        keep_alive: float | None = None,
    ) -> None:
        self.manifest = manifest
        self._stranger: F32 = golden["class_token"]
        self.engine = engine
        self.bank = bank
        self.scoring = scoring
        self.chain: Pipeline = open_pipeline(engine, manifest, scoring, golden, threads, keep_alive)
        self._threads = threads or available_cpus()
        self._kept: Snapshot | None = None
        self._router: tuple[Snapshot, Router] | None = None
        self._seen: tuple[int, ...] | None = None
        self._keeping = threading.Lock()
        self._lifetime = Lifetime("this inspector was closed; open another with Inspector.open")

    @classmethod
    def open(
        cls,
        model: str | Path,
        bank: str | Path | None = None,
        *,
        backend: str = "auto",
        precision: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        preset: str | None = None,
        views: Sequence[str] | None = None,
        keep_alive: float | None = None,
    ) -> Inspector:
        """Open, check and warm up.

        This checks every file's digest, the backend by its self-test (``pipeline/self_test.py``) and, on a GPU, the pipeline
        against the host's (``pipeline/assembly.py``): a damaged file or a wrong operator is found here, not at the line.

        Args:
            model: model folder. bank: bank folder; a missing or empty one starts a new bank with the first `enroll`.
            backend: ``auto`` (the best that runs here and passes its self-test) or a name of ``engine.backends()``.
            precision: ``fp32``, ``bf16`` or ``fp16``, for backends that offer it (default: the model's own).
            device: ``cpu``, ``gpu`` or ``npu``, for backends that offer a choice (default: theirs).
            preset: how to score: a name of ``scoring/presets/`` or such a file, of the model's image size (default: as exported).
                Banks stay valid. A threshold holds for the scoring and the precision that it was calibrated with.
            views: which of the bank's views to look through (default: the preset's, else all of the bank's).
            threads: CPU threads of engine and search, at most all cores (default: all). Search results do not depend on it.
            keep_alive: seconds without an image, such as 0.02, after which a GPU repeats its last one, again and again, so that
                its clocks stay up and the next part after a pause is as fast as the others. It costs power, changes no result,
                and does nothing on a CPU (default: never).

        Raises:
            ModelError, BankError, VisionADError: what is wrong and what mends it.
        """
        if threads is not None:
            if threads < 1:
                raise VisionADError(f"threads {threads}: expected 1 or more, or None for all cores")
            threads = min(threads, available_cpus())
        if keep_alive is not None and not 0 < keep_alive < math.inf:
            raise VisionADError(f"keep_alive {keep_alive}: expected seconds above 0, or None for never")
        import cv2  # noqa: F401  # too heavy for `import visionad_runtime`, and too slow for the first part that is not ok

        folder = Path(model)
        manifest = read_model(folder)
        opened = Bank.open_or_new(Path(bank), manifest.identity, manifest.views) if bank is not None else None
        available = opened.manifest.views if opened is not None else manifest.views
        scoring = scoring_for(manifest, available, preset, views)
        engine = open_engine(
            folder,
            manifest,
            backend,
            threads=threads,
            batch_size=len(scoring.views),
            precision=parse_precision(precision),
            device=device,
        )
        try:
            inspector = cls(manifest, engine, opened, scoring, read_golden(folder), threads, keep_alive)
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

    @property
    def views(self) -> tuple[ViewName, ...]:
        """The views that images are seen in."""
        return self.scoring.views

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release the memory of engine and pipeline.

        Calls that run in other threads end first. Later calls are refused. A second ``close`` does nothing.
        """
        with self._lifetime.end() as first:
            if first:
                try:
                    self.chain.close()
                finally:
                    self.engine.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inspect ------------------------------------------------------------------------------------------------------

    def inspect(
        self,
        image: NDArray[np.uint8],
        *,
        class_name: str | None = None,
        colour: str = "bgr",
        color: str | None = None,
    ) -> Result:
        """Inspect one image.

        Args:
            image: uint8 (H, W, 3) in ``colour`` order, or gray (H, W).
            class_name: class of the part. It skips routing.
            colour: ``"bgr"`` as OpenCV returns it, or ``"rgb"``.
            color: same as ``colour``, and overrides it.

        Returns:
            Score, verdict, class, regions, map and timings.

        Raises:
            ImageError: the array has another type or shape.
            BankError: nothing is enrolled, or the class is unknown.
        """
        return self.inspect_batch([image], class_name=class_name, colour=colour, color=color)[0]

    def inspect_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        class_name: str | None = None,
        colour: str = "bgr",
        color: str | None = None,
    ) -> list[Result]:
        """Inspect several images in one call.

        Each result equals that of the image alone, bit for bit.

        Args:
            images: arrays as for ``inspect``.
            class_name: class of all parts. It skips routing.
            colour: ``"bgr"`` as OpenCV returns it, or ``"rgb"``.
            color: same as ``colour``, and overrides it.

        Returns:
            One result per image, in order.

        Raises:
            ImageError: an array has another type or shape.
            BankError: nothing is enrolled, or the class is unknown.
        """
        rgbs = arrays.from_arrays(images, colour if color is None else color)
        return [r for r, _ in self.trace_batch(rgbs, class_name, trace=False)]

    def trace_batch(
        self,
        rgbs: Sequence[pixels.RGB8],
        class_name: str | None = None,
        leave_out: int | None = None,
        trace: bool = True,
    ) -> list[tuple[Result, Trace | None]]:
        """Inspect decoded images (uint8 (H, W, 3) RGB, or (H, W) grey). The one path to a verdict.

        Args:
            leave_out: compare as if this support image of ``class_name`` had not been enrolled (calibration).
            trace: also return the stages in between, which on a GPU have to be fetched.
        """
        with self._lifetime.in_use():
            class_name = None if class_name is None else normalize_class_name(class_name)
            bank = self._snapshot(class_name)
            if not rgbs:
                return []
            self._keep()
            at_once = self.chain.max_batch_size() or len(rgbs)
            found: dict[int, list[tuple[Result, Trace | None]]] = {}

            def part(start: int) -> None:
                found[start] = self._traced(rgbs[start : start + at_once], bank, class_name, leave_out, trace)

            starts = range(0, len(rgbs), at_once)
            parallel_for(part, starts, min(len(starts), self.chain.cameras))
            return [one for start in starts for one in found[start]]

    def _traced(
        self, rgbs: Sequence[pixels.RGB8], bank: Snapshot, class_name: str | None, leave_out: int | None, trace: bool
    ) -> list[tuple[Result, Trace | None]]:
        """:meth:`trace_batch` for as many images as the chain takes at once."""
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

        out, spec = [], self.manifest.identity.preprocess
        for i, found in enumerate(self.chain.run(rgbs, choose, class_token=class_name is None, trace=trace)):
            holds = self._calibrated_for(classes[i])
            result = make_result(
                classes[i], found, routes[i], rgbs[i].shape, spec, holds, bank.manifest.version, self.engine
            )
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
                self.chain.load_banks(newest.classes.values())
                self._kept = newest
            finally:
                self._keeping.release()

    def refresh(self) -> bool:
        """Load what another process has committed to the bank folder.

        Without a change this costs one look at the date of a file. A bank that became unreadable is logged once, and the
        version in memory stays in force.

        Returns:
            Whether a new version was loaded.
        """
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
        return record is None or self.scoring.holds_for(record, self.engine.precision)

    def calibration_warnings(self) -> list[str]:
        """Return why thresholds of the bank are not used here, a line for each such class."""
        here = f"{self.scoring.describe()} in {self.engine.precision}"
        return [
            f"class {name}: its threshold was calibrated with {ScoringSpec.of(record).describe()} in {record.precision}, which "
            f"does not hold for {here}; its verdicts are unknown until `visionad calibrate`"
            for name, matched in (self.bank.classes if self.bank is not None else {}).items()
            if (record := matched.entry.calibration) is not None and not self._calibrated_for(matched)
        ]

    def require_class(self, class_name: str | None) -> Bank:
        """The bank, if it can inspect (this class).

        Raises:
            BankError: no class yet, or not this one.
        """
        self._snapshot(class_name)
        assert self.bank is not None
        return self.bank

    def _snapshot(self, class_name: str | None) -> Snapshot:
        """The version in force, checked as in :meth:`require_class`: another thread may change the bank at any time."""
        if self.bank is None or not (bank := self.bank.snapshot).classes:
            where = self.bank.folder if self.bank else "(none opened)"
            raise BankError(f"bank {where} holds no class yet; enroll good images with `visionad bank add`")
        if class_name is not None and normalize_class_name(class_name) not in bank.classes:
            raise BankError(unknown_class_message(self.bank.folder, class_name, bank.classes))
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
        """Inspect image files in order.

        Files of a list are read ahead in threads. Of an iterator, only as many paths are taken as a batch needs. Memory holds
        one batch and what is read ahead, whatever the number of paths.

        Args:
            paths: files.
            class_name: class of all parts. It skips routing.
            batch: images in one engine call. It never changes a result.
            bit_depth: bits that the camera fills in 16-bit files.
            leave_out: score as if this support of ``class_name`` were not enrolled.
            trace: also return the stages between image and map.

        Yields:
            One item per path. An unreadable file has ``error`` instead of ``result``.

        Raises:
            VisionADError: ``paths`` is no list of paths, nothing is enrolled, or ``batch`` is below 1.
        """
        if batch < 1:
            raise VisionADError(f"batch {batch}: expected 1 image or more")
        self.require_class(class_name)
        with closing(reader.read_images(discover.as_paths(paths), bit_depth, self._threads)) as files:
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

    # -- enroll --------------------------------------------------------------------------------------------------------

    def encode_support(self, rgb: pixels.RGB8) -> Tokens:
        """All unique encodings of one good image: ``patch`` (B, P, D) and ``cls`` (B, Dc), blocks in the bank's order."""
        blocks = self._opened().manifest.blocks
        return self.encode(support_encodings(prepare(rgb, self.manifest.identity.preprocess, self._threads), blocks))

    def _opened(self) -> Bank:
        if self.bank is None:
            raise BankError("no bank was opened; give Inspector.open a bank folder")
        return self.bank

    def encode(self, images: F32) -> Tokens:
        """The engine's tokens of normalised images, float32 (N, 3, crop, crop)."""
        with self._lifetime.in_use():
            return self.engine.encode(images)

    def encode_class(self, name: str, support: SupportImage, rgb: pixels.RGB8) -> ClassBank:
        """What a class would be with this one image, not enrolled anywhere."""
        tokens = self.encode_support(rgb)
        assert tokens.cls is not None
        entry = ClassEntry(file="", sha256="", images=(support,))
        return ClassBank(name, entry, self._opened().manifest.blocks, tokens.patch[:, None], tokens.cls[:, None])

    def enroll(
        self, name: str, images: Sequence[NDArray[np.uint8]], *, colour: str = "bgr", color: str | None = None
    ) -> int:
        """Enroll good images in a new or existing class.

        The bank on disk changes first. Later inspections use the new version, without a restart.

        Args:
            name: the class.
            images: uint8 (H, W, 3) arrays in ``colour`` order, or gray (H, W).
            colour: ``"bgr"`` as OpenCV returns it, or ``"rgb"``.
            color: same as ``colour``, and overrides it.

        Returns:
            The bank's new version.

        Raises:
            ImageError: an array has another type or shape. Nothing was changed.
            BankError: an image is enrolled already, or the bank cannot be written. Nothing was changed.
        """
        given = arrays.from_arrays(images, colour if color is None else color)
        rgbs = [pixels.to_rgb(one) if one.ndim == 2 else one for one in given]  # one digest, however it is given
        return self.enroll_encoded(name, array_supports(rgbs), [self.encode_support(rgb) for rgb in rgbs])

    def enroll_files(
        self,
        name: str,
        paths: Sequence[Path | str],
        *,
        bit_depth: int | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> int:
        """Enroll image files: all of them or none.

        Args:
            name: the class.
            paths: files of good images.
            bit_depth: bits that the camera fills in 16-bit files.
            step: called after each image.

        Returns:
            The bank's new version.

        Raises:
            ImageError: a file cannot be read, is given twice, or changes meanwhile; or ``paths`` is no list.
            BankError: an image is enrolled already, or the bank cannot be written.
        """
        files = list(discover.as_paths(paths))
        supports = read_supports(files, bit_depth)
        # said before minutes of encoding; the bank checks again when it commits
        check_new(self._opened().classes, name, supports)
        encoded = []
        for path, s in zip(files, supports, strict=True):
            data = decode.read_bytes(path)
            if sha256_bytes(data) != s.sha256:
                raise ImageError(f"{path}: changed while it was being enrolled; nothing was enrolled")
            encoded.append(self.encode_support(decode.decode(data, path, bit_depth)))
            step()
        return self.enroll_encoded(name, supports, encoded)

    def enroll_encoded(self, name: str, supports: Sequence[SupportImage], encoded: Sequence[Tokens]) -> int:
        """The second half of :meth:`enroll`, for callers that have encoded the images already."""
        with self._lifetime.in_use():
            bank = self._opened()
            if not encoded:
                raise BankError(f"class {name!r}: no image given")
            features = np.stack([t.patch for t in encoded], axis=1)
            class_tokens = np.stack([t.cls for t in encoded if t.cls is not None], axis=1)
            return bank.add(name, supports, features, class_tokens)
