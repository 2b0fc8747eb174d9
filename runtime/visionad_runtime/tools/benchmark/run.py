"""One run of ``visionad bench``: open all backends, time them side by side, then measure cold start, energy and roofline."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..._threads import drain_background
from ...bank.memory_bank import ClassBank
from ...engine.base import NVIDIA_GPU
from ...engine.registry import auto_backends, backend_spec
from ...errors import VisionADError
from ...formats.manifest import BankManifest, ModelManifest, read_manifest
from ...formats.model_folder import read_model
from ...images.discover import find_images
from ...inspector import Inspector
from ...scoring.spec import ScoringSpec, choose_views
from ...system import environment
from ..demo.rendering import render
from . import measure
from .cold_start import cold_start
from .measure import Candidate, TorchBaseline
from .nvml import Nvml, energy, open_nvml
from .roofline import add_roofline

PARTS = 4
PART_SIZE = 1024
MAX_IMAGES, MAX_BYTES = 32, 512 << 20
"""Limits of the images in memory. Each is held as pixels, and as views for the bare engine (5.5 MB at a crop of 392)."""
PART = "gear"
NO_GPU = "the backend uses no NVIDIA GPU"

TorchBaselines = Callable[[ModelManifest, ClassBank, ScoringSpec, int | None], Mapping[str, TorchBaseline]]
"""Opens PyTorch for a model, a class, a scoring and CPU threads. Returns the baselines by kind."""
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def _no_progress(_what: str, _total: int) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class Settings:
    """Options of `visionad bench`.

    Without ``backends``, every backend of ``auto`` that runs is measured. ``views=None`` takes all views of the bank. ``precision``
    and ``device`` apply to the backends that offer them.
    """

    bank: Path | None = None
    images: tuple[Path, ...] = ()
    class_name: str | None = None
    backends: tuple[str, ...] = ()
    precision: str | None = None
    device: str | None = None
    batches: tuple[int, ...] = (1, 2, 4, 8)
    seconds: float = 10
    rounds: int = 7
    starts: int = 3
    threads: int | None = None
    views: tuple[str, ...] | None = None

    def options(self, backend: str) -> dict[str, Any]:
        """Return precision and device to open a backend with; ``None`` where it offers no choice."""
        spec = backend_spec(backend)
        return {
            "precision": self.precision if self.precision in spec.precisions else None,
            "device": self.device if spec.takes_device else None,
        }


class Images(NamedTuple):
    """Images of the run, in order.

    Attributes:
        paths: image files.
        pixels: pixels of each, uint8 (H, W, 3) BGR.
        views: input of the engine for each, float32 (V, 3, crop, crop).
        classes: class of each, as routed; ``None`` for no known class.
    """

    paths: list[Path]
    pixels: list[NDArray[np.uint8]]
    views: list[NDArray[np.float32]]
    classes: list[str | None]

    def files(self, call: int, batch: int) -> list[Path]:
        """Return the files of a call."""
        return [self.paths[i] for i in self._which(call, batch)]

    def decoded(self, call: int, batch: int) -> list[NDArray[np.uint8]]:
        """Return the pixels of a call's images."""
        return [self.pixels[i] for i in self._which(call, batch)]

    def prepared(self, call: int, batch: int) -> NDArray[np.float32]:
        """Return the views of a call's images, float32 (batch · V, 3, crop, crop)."""
        return np.concatenate([self.views[i] for i in self._which(call, batch)])

    def _which(self, call: int, batch: int) -> list[int]:
        return [(call * batch + i) % len(self.paths) for i in range(batch)]


def run_bench(
    model: Path,
    settings: Settings,
    *,
    torch_baselines: TorchBaselines | None = None,
    progress: Progress = _no_progress,
) -> dict[str, Any]:
    """Measure a model.

    Args:
        model: model folder.
        settings: what to measure, and for how long.
        torch_baselines: opens PyTorch to time side by side with the backends; ``None`` leaves it out.
        progress: called with a title and a number of steps; yields the function that counts one.

    Returns:
        The report, JSON types.

    Raises:
        VisionADError: the settings are wrong, an image is unreadable, or no backend runs.
    """
    manifest = read_model(model)
    source = manifest if settings.bank is None else read_manifest(settings.bank, BankManifest)
    choose_views(settings.views, source.views)  # reports an error once, not for each backend
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="visionad-bench-")))
        files = [file.path for file in find_images(list(settings.images))] if settings.images else _render(work)
        bank, support = settings.bank, None
        if bank is None:  # the enrolled image is not timed, if there are others
            bank, support = work / "bank", files[0]
            files = files[1:] or files
        close = stack.enter_context(ExitStack())
        opened, failed = _open_all(model, bank, support, settings, close)
        nvml = stack.enter_context(open_nvml())
        images = _prepare(next(iter(opened.values())), files[:MAX_IMAGES], settings.class_name)
        report = _Run(model, manifest, bank, settings, opened, images, nvml, failed, torch_baselines, progress).measure(
            support is not None
        )
        close.close()  # a fresh process must find the machine idle
        for name, entry in report["backends"].items():
            entry["cold_start"] = _cold_start(model, bank, images.paths[0], name, settings, report, nvml)
        add_roofline(report, model, manifest)
    report["failed"] = failed
    report["pictures"]["source"] = "given" if settings.images else "rendered"
    if support is not None:
        report["bank"]["note"] = (
            f"temporary, enrolled from {'one of the images' if settings.images else 'a rendered part'}"
        )
    return report


def _render(work: Path) -> list[Path]:
    paths = [work / f"{PART}-{seed}.png" for seed in range(PARTS + 1)]
    for seed, path in enumerate(paths):
        Image.fromarray(render(PART, seed, size=PART_SIZE)[0]).save(path, compress_level=4)
    return paths


def _open_all(
    model: Path, bank: Path, support: Path | None, settings: Settings, close: ExitStack
) -> tuple[dict[str, Inspector], dict[str, str]]:
    """Open an inspector for each backend; ``close`` closes them. A backend that was not named never starts a build.

    Returns:
        Inspectors by backend, and the reasons by backend that did not open.

    Raises:
        VisionADError: no backend runs, or none in the given precision.
    """
    opened: dict[str, Inspector] = {}
    failed: dict[str, str] = {}
    for name in settings.backends or [spec.name for spec in auto_backends()]:
        try:
            require_engine = backend_spec(name).require_engine
            if not settings.backends and require_engine is not None:
                require_engine(model)
            inspector = close.enter_context(
                Inspector.open(
                    model, bank, backend=name, threads=settings.threads, views=settings.views, **settings.options(name)
                )
            )
        except VisionADError as exc:
            failed[name] = str(exc)
            continue
        opened[name] = inspector
        if support is not None and len(opened) == 1:
            inspector.enroll_files(settings.class_name or "part", [support])
    if settings.precision is not None and all(settings.precision != i.engine.precision for i in opened.values()):
        failed = failed or {name: f"it computes in {i.engine.precision}" for name, i in opened.items()}
        opened = {}
    if not opened:
        raise VisionADError("no backend runs here: " + "; ".join(f"{n}: {r}" for n, r in failed.items()))
    return opened, failed


def _prepare(inspector: Inspector, paths: list[Path], class_name: str | None) -> Images:
    """Read as many of the files as the limits allow, at least one."""
    images, size = Images([], [], [], []), 0
    for file in inspector.inspect_files(paths, class_name=class_name, trace=True):
        if file.trace is None or file.result is None or file.rgb is None:
            raise VisionADError(f"bench: {file.error}")
        size += file.rgb.nbytes + file.trace.views.nbytes
        if images.paths and size > MAX_BYTES:
            break
        images.paths.append(file.path)
        images.pixels.append(np.ascontiguousarray(file.rgb[:, :, ::-1]))
        images.views.append(file.trace.views)
        images.classes.append(file.result.class_name)
    return images


@dataclass
class _Run:
    """The opened backends and their measurement."""

    model: Path
    manifest: ModelManifest
    bank: Path
    settings: Settings
    opened: Mapping[str, Inspector]
    images: Images
    nvml: Nvml | str
    failed: dict[str, str]
    torch_baselines: TorchBaselines | None
    progress: Progress

    def measure(self, temporary: bool) -> dict[str, Any]:
        """Time everything side by side, and measure energy."""
        settings, first = self.settings, next(iter(self.opened.values()))
        batches: dict[str, dict[str, Any]] = {name: {} for name in self.opened}
        stages: dict[str, dict[str, Any]] = {}
        report: dict[str, Any] = {}
        for inspector in self.opened.values():
            self._build_indexes(inspector)
        with self.progress("measuring", len(settings.batches) * settings.rounds) as step:
            for batch in settings.batches:
                timings: dict[str, dict[str, list[Mapping[str, float]]]]
                timings = {name: {"whole": [], "pixels": []} for name in self.opened}
                end_to_end = {
                    n: Candidate(n, self._end_to_end(i, batch, timings[n]["whole"])) for n, i in self.opened.items()
                }
                pixels = {
                    n: Candidate(f"{n}, from pixels", self._from_pixels(i, batch, timings[n]["pixels"]))
                    for n, i in self.opened.items()
                }
                ready = self._ready(batch)
                engine_only = {
                    n: Candidate(f"{n}, bare engine", self._engine_only(i, ready)) for n, i in self.opened.items()
                }
                is_first = batch == settings.batches[0]
                torch = self._torch(batch, ready) if is_first else {}
                measure.time_interleaved(
                    [*end_to_end.values(), *pixels.values(), *engine_only.values(), *torch.values()],
                    settings.seconds,
                    settings.rounds,
                    step,
                )
                for name in self.opened:
                    batches[name][str(batch)] = {
                        "whole": measure.summarize(end_to_end[name].times),
                        "pixels": measure.summarize(pixels[name].times),
                        "bare_engine": measure.summarize(engine_only[name].times),
                        "whole_to_bare_engine": measure.ratio(end_to_end[name], engine_only[name]),
                        "pixels_to_bare_engine": measure.ratio(pixels[name], engine_only[name]),
                        "pictures_per_s": measure.throughput(end_to_end[name], batch),
                    }
                if is_first:
                    stages = {
                        name: {source: measure.stage_table(rows[batch:]) for source, rows in by_source.items()}
                        for name, by_source in timings.items()
                    }
                    report["against"] = self._against(end_to_end, pixels, engine_only, torch)
        entries: dict[str, dict[str, Any]] = {}
        for name, inspector in self.opened.items():
            call = self._end_to_end(inspector, settings.batches[0], [])
            entries[name] = {
                "details": dict(inspector.engine.info),
                "precision": inspector.engine.precision,
                "chain_memory_mb": {k: round(v / 1e6, 1) for k, v in inspector.pipeline.memory().items()},
                "group": inspector.engine.batch_size,
                "stages": stages[name],
                "batches": batches[name],
                "energy": energy(self.nvml, call, settings.batches[0], settings.seconds)
                if backend_spec(name).device == NVIDIA_GPU
                else {"joules_per_picture": None, "watts": None, "why_null": NO_GPU},
            }
        return {**self._describe(first, temporary), "backends": entries, **report}

    def _build_indexes(self, inspector: Inspector) -> None:
        """Let the search indexes be built now; otherwise they would be built during the first timed calls."""
        for rgb in {name: self.images.pixels[i] for i, name in enumerate(self.images.classes)}.values():
            for _ in range(2):
                inspector.inspect(rgb, class_name=self.settings.class_name)
        drain_background()

    def _describe(self, first: Inspector, temporary: bool) -> dict[str, Any]:
        assert first.bank is not None
        settings, classes = self.settings, first.bank.classes
        searched = [classes[name] for name in self.images.classes if name is not None]
        return {
            "environment": environment(),
            "model": {
                "name": self.manifest.identity.describe(),
                "folder": str(self.model),
                "precision": self.manifest.precision,
                "mb": round(sum(p.stat().st_size for p in self.model.iterdir() if p.is_file()) / 1e6, 1),
            },
            "bank": {
                "folder": None if temporary else str(self.bank),
                "classes": len(classes),
                "rows_per_view": {v: float(np.mean([len(c.rois[0].rows(v)) for c in searched])) for v in first.views}
                if searched
                else None,
                "mb": round(sum(p.stat().st_size for p in self.bank.rglob("*.safetensors")) / 1e6, 1),
            },
            "pictures": {
                "count": len(self.images.paths),
                "sizes": sorted({f"{rgb.shape[1]} x {rgb.shape[0]}" for rgb in self.images.pixels}),
                "class": settings.class_name or "routed",
            },
            "views": list(first.views),
            "settings": {
                "batches": list(settings.batches),
                "seconds": settings.seconds,
                "rounds": settings.rounds,
                "threads": settings.threads,
                "precision": settings.precision,
                "device": settings.device,
            },
        }

    def _end_to_end(
        self, inspector: Inspector, batch: int, timings: list[Mapping[str, float]]
    ) -> Callable[[int], object]:
        """Return a call from files to results, as in `visionad predict`."""

        def call(number: int) -> None:
            files = self.images.files(number, batch)
            for file in inspector.inspect_files(files, class_name=self.settings.class_name, batch=batch):
                if file.result is None:
                    raise VisionADError(f"bench: {file.error}")
                timings.append(file.result.timings)

        return call

    def _from_pixels(
        self, inspector: Inspector, batch: int, timings: list[Mapping[str, float]]
    ) -> Callable[[int], object]:
        """Return a call from decoded BGR images, as OpenCV gives them, to results: the call of a program at the line."""

        def call(number: int) -> None:
            images = self.images.decoded(number, batch)
            results = inspector.inspect_batch(images, class_name=self.settings.class_name)
            timings.extend(result.timings for result in results)

        return call

    def _ready(self, batch: int) -> list[NDArray[np.float32]]:
        """Prepare the views of different calls, as many as the limit on images allows."""
        count = len(self.images.paths)
        different = count // math.gcd(count, batch)
        return [self.images.prepared(call, batch) for call in range(min(different, max(1, MAX_IMAGES // batch)))]

    def _engine_only(self, inspector: Inspector, ready: list[NDArray[np.float32]]) -> Callable[[int], object]:
        """Return a call of the engine alone on the same images."""
        routed = self.settings.class_name is None
        return lambda number: inspector.engine.encode(ready[number % len(ready)], class_token=routed)

    def _torch(self, batch: int, ready: list[NDArray[np.float32]]) -> dict[str, Candidate]:
        if self.torch_baselines is None:
            return {}
        settings, first = self.settings, next(iter(self.opened.values()))
        assert first.bank is not None
        name = settings.class_name or next(iter(first.bank.classes))
        baselines = self.torch_baselines(self.manifest, first.bank.classes[name], first.scoring, settings.threads)
        calls = {}
        for kind, (where, encode, inspect) in baselines.items():
            if encode is not None:
                calls[f"torch {kind}, bare backbone on {where}"] = self._torch_backbone(encode, ready)
            if inspect is not None:
                calls[f"torch reference, whole on {where}"] = self._torch_method(inspect, batch)
        candidates = {}
        for title, call in calls.items():
            try:
                call(0)  # compilation takes minutes and must not be timed
            except Exception as exc:  # a missing compiler, a full GPU: torch raises any type
                self.failed[title] = f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
                continue
            candidates[title] = Candidate(title, call)
        return candidates

    @staticmethod
    def _torch_backbone(
        encode: Callable[[NDArray[np.float32]], object], ready: list[NDArray[np.float32]]
    ) -> Callable[[int], object]:
        return lambda number: encode(ready[number % len(ready)])

    def _torch_method(self, inspect: Callable[[Path], object], batch: int) -> Callable[[int], object]:
        return lambda number: [inspect(path) for path in self.images.files(number, batch)]

    @staticmethod
    def _against(
        end_to_end: Mapping[str, Candidate],
        pixels: Mapping[str, Candidate],
        engine_only: Mapping[str, Candidate],
        torch: Mapping[str, Candidate],
    ) -> list[dict[str, Any]]:
        """Compare every other candidate with the first backend, like with like: end to end, from pixels, engine."""
        first = next(iter(end_to_end))
        comparisons = []
        for candidate in (*end_to_end.values(), *pixels.values(), *torch.values()):
            if candidate in (end_to_end[first], pixels[first]):
                continue
            own = end_to_end[first]
            if ", bare " in candidate.name:
                own = engine_only[first]
            elif candidate.name.endswith(", from pixels"):
                own = pixels[first]
            comparisons.append(
                {
                    "what": candidate.name,
                    "by": own.name,
                    "ratio": measure.ratio(candidate, own),
                    **measure.summarize(candidate.times),
                }
            )
        return comparisons


def _cold_start(
    model: Path,
    bank: Path,
    image: Path,
    backend: str,
    settings: Settings,
    report: Mapping[str, Any],
    nvml: Nvml | str,
) -> dict[str, Any] | None:
    if not settings.starts:
        return None
    used = nvml.used if isinstance(nvml, Nvml) else nvml
    if backend_spec(backend).device != NVIDIA_GPU:
        used = NO_GPU
    return cold_start(
        model,
        bank,
        image,
        backend,
        settings.threads,
        report["views"],
        settings.class_name,
        settings.starts,
        used,
        settings.options(backend),
    )
