"""Image → verdict: open a model and a bank, inspect images, follow the bank."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._threads import available_cpus, parallel_for
from ..bank.memory_bank import ClassBank, MemoryBank, Snapshot
from ..bank.names import normalize_class_name
from ..bank.routing import Route
from ..bank.store import Bank
from ..engine.base import Engine
from ..errors import ImageError, VisionADError
from ..formats.manifest import parse_precision
from ..formats.model_folder import read_model
from ..images import arrays, discover, pixels, reader
from ..pipeline.base import Pipeline, PipelineOutput, StageTimer
from ..pipeline.opening import open_engine
from ..pipeline.self_test import read_golden
from ..result import FileResult, MadeBy, Result, Trace, explain_result, make_result
from ..scoring.areas import Area
from ..scoring.preset import scoring_for
from ..scoring.spec import ScoringSpec
from .opened import OpenedModel
from .tiles import Request, combined, cut_tiles, route_whole, run_crops, tile_banks

F32 = NDArray[np.float32]


class Inspection(OpenedModel):
    """A model, a bank and an engine, ready to inspect. Any thread may call it.

    >>> inspector = Inspector.open("model", "bank")          # doctest: +SKIP
    >>> inspector.inspect(cv2.imread("part.png")).verdict    # doctest: +SKIP
    'ok'

    Use ``with Inspector.open(...) as inspector:`` to release GPU memory at the end.

    Attributes:
        manifest: manifest of the model.
        digest: sha256 of the model's content.
        engine: backbone that encodes images.
        bank: bank of enrolled classes, or ``None``.
        scoring: views and scoring settings.
        pipeline: preprocessing to score.
    """

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
        bank_version: int | None = None,
        lazy_bank: bool = False,
    ) -> Self:
        """Open a model and a bank, check them, and warm up.

        This checks every file's digest, the backend by its self-test (``pipeline/self_test.py``) and, on a GPU, the pipeline
        against the host's (``pipeline/assembly.py``). So a damaged file or a wrong operator is reported before the first part.

        Args:
            model: model folder.
            bank: bank folder. If it is missing or empty, the first ``enroll`` starts a new bank.
            backend: ``auto`` (the best that runs here and passes its self-test) or a name of ``engine.backends()``.
            precision: ``fp32``, ``bf16`` or ``fp16``, for backends that offer it (default: the model's own).
            device: ``cpu``, ``gpu`` or ``npu``, for backends that offer a choice (default: theirs).
            threads: CPU threads of engine and search, at most all CPUs (default: all). Search results do not depend on it.
            preset: name of a preset, or path of a preset file, for the model's image size (default: as exported). Banks stay
                valid. A threshold holds for the scoring and the precision that it was calibrated with.
            views: views to use, of those that the bank holds (default: the preset's, else all).
            keep_alive: seconds without an image after which a GPU re-runs the last image, repeatedly, to keep its clocks up, e.g.
                0.02 (default: never). It costs power and changes no result. It has no effect on a CPU.
            bank_version: version of the bank to inspect with, which then stays (default: the newest, and newer ones as they come).
            lazy_bank: whether a class is read, and its files are checked, when it is first needed. Enrolling needs no class.

        Raises:
            ModelError: The model is missing or damaged, or fails the self-test.
            BankError: The bank is missing files, damaged, or was made with another model.
            VisionADError: An argument is out of range, or no backend runs here.
        """
        if threads is not None:
            if threads < 1:
                raise VisionADError(f"threads {threads}: expected 1 or more, or None for all CPUs")
            threads = min(threads, available_cpus())
        if keep_alive is not None and not 0 < keep_alive < math.inf:
            raise VisionADError(f"keep_alive {keep_alive}: expected seconds above 0, or None for never")
        import cv2  # noqa: F401  # slow: neither `import visionad_runtime` nor the first anomalous part should wait for it

        folder = Path(model)
        manifest = read_model(folder)
        opened = None
        if bank is not None and bank_version is not None:
            opened = Bank.open(Path(bank), manifest.identity, version=bank_version, lazy=lazy_bank)
        elif bank is not None:
            opened = Bank.open_or_new(Path(bank), manifest.identity, manifest.views, lazy=lazy_bank)
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
            if opened is not None and not lazy_bank:
                inspector._load_bank()
        except BaseException:
            inspector.close()
            raise
        return inspector

    def with_bank(
        self, bank: Bank, scoring: ScoringSpec, engine: Engine | None = None, pipeline: Pipeline | None = None
    ) -> Inspection:
        """Return an inspection with another bank or scoring and the same model. Close it before this one.

        Args:
            bank: the bank.
            scoring: how to score, in views that the bank holds.
            engine: encodes instead of this one's engine, which stays open when the returned inspection is closed.
            pipeline: inspects instead of the one that suits the engine; with the same scoring.
        """
        other = Inspection(self.manifest, engine or self.engine, bank, scoring, self._golden, self._threads)
        other._owns_engine = False
        if pipeline is not None:
            other.pipeline.close()
            other.pipeline = pipeline
        return other

    def inspect(
        self,
        image: NDArray[np.uint8],
        *,
        class_name: str | None = None,
        colour: str = "bgr",
        color: str | None = None,
        evidence: bool = False,
    ) -> Result:
        """Inspect one image.

        Args:
            image: uint8 (H, W, 3) in ``colour`` order, or gray (H, W).
            class_name: class of the part. It skips routing.
            colour: ``"bgr"`` as OpenCV returns it, or ``"rgb"``.
            color: same as ``colour``, and overrides it.
            evidence: whether to look up the nearest good patch of each region.

        Returns:
            Score, verdict, class, regions, map and timings.

        Raises:
            ImageError: The array has another type or shape.
            BankError: Nothing is enrolled, or the class is unknown.
        """
        return self.inspect_batch([image], class_name=class_name, colour=colour, color=color, evidence=evidence)[0]

    def inspect_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        class_name: str | None = None,
        colour: str = "bgr",
        color: str | None = None,
        evidence: bool = False,
    ) -> list[Result]:
        """Inspect several images in one call.

        Each result equals that of the image alone, bit for bit.

        Args:
            images: arrays as for ``inspect``.
            class_name: class of all parts. It skips routing.
            colour: ``"bgr"`` as OpenCV returns it, or ``"rgb"``.
            color: same as ``colour``, and overrides it.
            evidence: whether to look up the nearest good patch of each region.

        Returns:
            One result per image, in order.

        Raises:
            ImageError: An array has another type or shape.
            BankError: Nothing is enrolled, or the class is unknown.
        """
        rgbs = arrays.from_arrays(images, colour if color is None else color)
        return [result for result, _ in self.trace_batch(rgbs, class_name, trace=False, evidence=evidence)]

    def trace_batch(
        self,
        rgbs: Sequence[pixels.RGB8],
        class_name: str | None = None,
        leave_out: int | None = None,
        trace: bool = True,
        evidence: bool = False,
    ) -> list[tuple[Result, Trace | None]]:
        """Inspect decoded images. All inspections go through this method.

        Args:
            rgbs: uint8 (H, W, 3) RGB or (H, W) gray.
            class_name: class of all parts. It skips routing.
            leave_out: index of a support of ``class_name`` to score without (calibration).
            trace: whether to return the intermediate results, which on a GPU must be copied to the host.
            evidence: whether to look up the nearest good patch of each region.
        """
        outcomes = self._inspect_all(rgbs, Request(class_name, leave_out, trace, evidence))
        results = []
        for outcome in outcomes:
            if isinstance(outcome, ImageError):
                raise outcome
            results.append(outcome)
        return results

    def _inspect_all(
        self, rgbs: Sequence[pixels.RGB8], request: Request
    ) -> Sequence[tuple[Result, Trace | None] | ImageError]:
        """Inspect images; an image of another size than its class's ROIs has an error in place of a result."""
        with self._lifetime.in_use():
            class_name = None if request.class_name is None else normalize_class_name(request.class_name)
            request = request._replace(class_name=class_name)
            bank = self._snapshot(class_name)
            if not rgbs:
                return []
            self._load_bank()
            if bank.has_rois and (class_name is None or bank.classes[class_name].entry.roi is not None):
                return self._inspect_tiles(rgbs, bank, request)
            batch_size = self.pipeline.max_batch_size() or len(rgbs)
            results: dict[int, list[tuple[Result, Trace | None]]] = {}

            def run_batch(start: int) -> None:
                results[start] = self._run_batch(rgbs[start : start + batch_size], bank, request)

            starts = range(0, len(rgbs), batch_size)
            parallel_for(run_batch, starts, min(len(starts), self.pipeline.slots))
            return [result for start in starts for result in results[start]]

    def _run_batch(
        self, rgbs: Sequence[pixels.RGB8], bank: Snapshot, request: Request
    ) -> list[tuple[Result, Trace | None]]:
        """Inspect at most as many images as the pipeline takes in one call."""
        class_name, leave_out = request.class_name, request.leave_out
        routes: list[Route | None] = [None] * len(rgbs)
        classes: list[ClassBank] = []
        mismatches: list[str | None] = [None] * len(rgbs)

        def select_classes(tokens: F32 | None) -> list[MemoryBank]:
            if tokens is not None:
                router = self._router_of(bank)
                found = [router.route(cls[0]) for cls in tokens]
                if class_name is None:
                    routes[:] = found
                else:
                    mismatches[:] = [route.mismatch(class_name) for route in found]
            classes[:] = [bank.classes[class_name if route is None else route.nearest] for route in routes]  # type: ignore[index]
            if leave_out is not None:
                classes[:] = [cls.leave_out(leave_out) for cls in classes]
            return [cls.rois[0] for cls in classes]

        finds_mix_ups = leave_out is None and len(bank.classes) > 1 and self.has_free_class_token
        outputs = self.pipeline.run(
            rgbs, select_classes, class_token=class_name is None or finds_mix_ups, trace=request.needs_tokens
        )
        return [
            (self._result(request, rgb, [output], output, cls, route, bank, mismatch=mismatch), request.stages(output))
            for rgb, output, route, cls, mismatch in zip(rgbs, outputs, routes, classes, mismatches, strict=True)
        ]

    def _inspect_tiles(
        self, rgbs: Sequence[pixels.RGB8], bank: Snapshot, request: Request
    ) -> Sequence[tuple[Result, Trace | None] | ImageError]:
        """Inspect images of a bank with ROIs: find the class of each first, then run all tiles of all images."""
        class_name, leave_out = request.class_name, request.leave_out
        routes: list[tuple[Route, Mapping[str, float]] | None] = [None] * len(rgbs)
        if class_name is None:
            router = self._router_of(bank)
            routes = [route_whole(rgb, bank, router, self._class_token) for rgb in rgbs]
        timer = StageTimer()
        classes = [bank.classes[class_name if route is None else route[0].nearest] for route in routes]  # type: ignore[index]
        layouts = [cls.layout for cls in classes]  # before a support is left out, which would compute it anew
        if leave_out is not None:
            classes = [cls.leave_out(leave_out) for cls in classes]
        cuts = [cut_tiles(rgb, layout) for rgb, layout in zip(rgbs, layouts, strict=True)]
        timer.mark("crop")
        banks = [tile_banks(cls) for cls, cut in zip(classes, cuts, strict=True) if not isinstance(cut, ImageError)]
        outputs = iter(run_crops(self.pipeline, cuts, list(itertools.chain(*banks)), request.needs_tokens))
        results: list[tuple[Result, Trace | None] | ImageError] = []
        for rgb, route, cls, layout, cut in zip(rgbs, routes, classes, layouts, cuts, strict=True):
            if isinstance(cut, ImageError):
                results.append(cut)
                continue
            before = {"crop": timer.milliseconds["crop"] / len(rgbs), **({} if route is None else route[1])}
            own = list(itertools.islice(outputs, len(cut)))
            output, areas, stages = combined(own, layout, self.scoring, self.manifest.identity.preprocess, before)
            result = self._result(request, rgb, own, output, cls, None if route is None else route[0], bank, areas)
            results.append((result, stages if request.trace else None))
        return results

    def _result(
        self,
        request: Request,
        rgb: pixels.RGB8,
        tiles: Sequence[PipelineOutput],
        output: PipelineOutput,
        cls: ClassBank,
        route: Route | None,
        bank: Snapshot,
        areas: tuple[Area, ...] = (),
        mismatch: str | None = None,
    ) -> Result:
        made_by = MadeBy(bank.manifest.version, bank.digest, self.digest, self.engine.name, self.engine.precision)
        spec = self.manifest.identity.preprocess
        result = make_result(cls, output, route, rgb.shape, spec, self.holds(cls.entry), made_by, areas, mismatch)
        return explain_result(result, cls, tiles, self.views[0], spec, self._threads) if request.evidence else result

    def inspect_files(
        self,
        paths: Iterable[Path | str],
        *,
        class_name: str | None = None,
        batch: int = 1,
        bit_depth: int | None = None,
        leave_out: int | None = None,
        trace: bool = False,
        evidence: bool = False,
    ) -> Iterator[FileResult]:
        """Inspect image files in order.

        Files of a list are read ahead in threads. From an iterator, only the paths of one batch are taken at a time. Memory holds
        one batch and the files read ahead, whatever the number of paths.

        Args:
            paths: files.
            class_name: class of all parts. It skips routing.
            batch: images per engine call. It never changes a result.
            bit_depth: bits that the camera fills in 16-bit files.
            leave_out: index of a support of ``class_name`` to score without.
            trace: whether to return the intermediate results too.
            evidence: whether to look up the nearest good patch of each region.

        Yields:
            One item per path. An unreadable file has ``error`` instead of ``result``.

        Raises:
            VisionADError: ``paths`` is not a list of paths, nothing is enrolled, or ``batch`` is below 1.
        """
        if batch < 1:
            raise VisionADError(f"batch {batch}: expected 1 image or more")
        self.require_class(class_name)
        with closing(reader.read_images(discover.as_paths(paths), bit_depth, self._threads)) as files:
            while loaded := list(itertools.islice(files, batch)):
                readable = [image.rgb for image in loaded if image.rgb is not None]
                request = Request(class_name, leave_out, trace, evidence)
                results = iter(self._inspect_all(readable, request))
                for path, rgb, error, decode_ms in loaded:
                    if rgb is None:
                        yield FileResult(path, None, None, None, error)
                        continue
                    outcome = next(results)
                    if isinstance(outcome, ImageError):
                        yield FileResult(path, rgb, None, None, ImageError(f"{path}: {outcome}"))
                        continue
                    result, stages = outcome
                    timings = {"decode": decode_ms, **result.timings, "total": result.timings["total"] + decode_ms}
                    yield FileResult(path, rgb, replace(result, timings=timings), stages, None)
