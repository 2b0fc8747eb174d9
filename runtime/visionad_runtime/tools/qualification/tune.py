"""Measure set-ups on the user's images on this machine: models, presets, backends, precisions, shots, tiles.

An image is encoded once for each model and precision. Its tokens are kept in files, so presets and numbers of shots cost a search
each, and a stopped run goes on where it was. Backends that compute in one precision have the same tokens up to rounding: the first
of them is scored, and of the others only the latency is measured.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...bank.store import Bank
from ...engine.registry import auto_backends, backend_spec, backends
from ...errors import VisionADError
from ...formats.files import sha256_bytes
from ...formats.manifest import ModelManifest, Precision, read_manifest
from ...formats.roi import Roi, RoiSpec, make_spec
from ...images.decode import load
from ...inspector import Inspector
from ...pipeline.self_test import read_golden
from ...scoring.preset import load_preset, scoring_for
from ...system import environment
from ...teaching.kept_tokens import KeptTokensEngine
from ...teaching.sampling import sample_support
from .choice import (
    Candidate,
    Measured,
    accuracy,
    fewer_shots_suffice,
    is_beaten,
    is_hopeless,
    pareto,
    recommend,
    same_scores,
)
from .inputs import Labeled
from .performance import latency
from .tune_cache import Pixels, append_result, read_results

FORMAT = 1
CLASS = "part"
PRESETS = ("paper", "full-image", "full-image-weighted")
SHOTS = (1, 2, 4, 8)
MAX_IMAGES = 24
"""Good images, and as many bad ones, that each set-up is measured on."""
CALLS = 9
"""Timed inspections of a set-up."""
ELONGATED = 1.5
"""Ratio of an image's sides from which on tiles are tried."""
RESULTS = "work.jsonl"


@dataclass(frozen=True)
class Choices:
    """What is tried.

    Attributes:
        models: name → model folder.
        presets: names of presets.
        backends: names of backends; none for those that run here.
        precisions: precisions; none for the model's own, and further ones that a backend offers.
        shots: numbers of supports.
        tiles: whether tiles are tried on elongated images.
        budget_ms: highest median latency.
        max_images: good images, and as many bad ones, to measure on.
        seed: of the choice of supports and images.
        threads: CPU threads.
        bit_depth: bits that the camera fills in 16-bit files.
    """

    models: Mapping[str, Path]
    presets: Sequence[str] = PRESETS
    backends: Sequence[str] = ()
    precisions: Sequence[Precision] = ()
    shots: Sequence[int] = SHOTS
    tiles: bool = True
    budget_ms: float | None = None
    max_images: int = MAX_IMAGES
    seed: int = 0
    threads: int | None = None
    bit_depth: int | None = None


@dataclass
class Images:
    """Images of a tuning.

    Attributes:
        supports: images to enroll, in order; a number of shots takes the first ones.
        good: other good images.
        bad: images with defects.
        shape: height and width that all images share, or ``None``.
    """

    supports: list[Labeled]
    good: list[Labeled]
    bad: list[Labeled]
    shape: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """Return the sha256 of all images in order."""
        return sha256_bytes("\n".join(one.sha256 for one in (*self.supports, *self.good, *self.bad)).encode())


Step = Callable[[int, int, Measured, float], None]
"""Called after each set-up: how many are done, of how many, the set-up, and the seconds that the others may take."""


def choose_images(
    train: Sequence[Labeled], good: Sequence[Labeled], bad: Sequence[Labeled], choices: Choices
) -> Images:
    """Choose supports and images to measure on.

    Args:
        train: good images that supports are drawn from.
        good: further good images to measure on. Those of ``train`` that are not enrolled count too, where there are too few.
        bad: images with defects.
        choices: numbers and seed.

    Raises:
        VisionADError: There are too few good images, or an image cannot be read.
    """
    most = max(choices.shots)
    if (count := len({one.sha256 for one in (*train, *good)})) < most + 2:
        raise VisionADError(
            f"--good: expected {most + 2} good images or more for {most} shots and 2 to measure on, got {count}; "
            "give more images or a lower --shots"
        )
    order = [train[i] for i in sample_support(len(train), len(train), choices.seed)] if train else []
    supports, rest = order[:most], order[most:]
    if len(supports) < most:
        raise VisionADError(f"--shots {most}: only {len(train)} good images to enroll; give a lower --shots")
    rng = np.random.default_rng([choices.seed, 21])
    known = {one.sha256 for one in supports}
    others = [one for one in good if one.sha256 not in known]
    drawn = [others[i] for i in rng.permutation(len(others))][: choices.max_images]
    known |= {one.sha256 for one in others}  # a copy counts once
    drawn += [one for one in rest if one.sha256 not in known][: max(0, choices.max_images - len(drawn))]
    bads = [bad[i] for i in rng.permutation(len(bad))][: choices.max_images]
    images = Images(supports, drawn, bads)
    shapes = {load(one.path, choices.bit_depth).shape[:2] for one in (*supports, *drawn, *bads)}
    if len(shapes) == 1:
        images.shape = (int(next(iter(shapes))[0]), int(next(iter(shapes))[1]))
    elif choices.tiles:
        images.notes.append(
            f"the images have {len(shapes)} sizes, so tiles were not tried: a region holds for one size"
        )
    return images


def tune(
    choices: Choices, images: Images, out: Path, step: Step = lambda *_: None, keep_work: bool = False
) -> dict[str, Any]:
    """Measure all set-ups and recommend one.

    Args:
        choices: what to try.
        images: images from :func:`choose_images`.
        out: folder; intermediate files lie in its folder ``work``.
        step: shows progress.
        keep_work: whether kept tokens and banks stay when all is measured.

    Returns:
        The report, JSON types.

    Raises:
        VisionADError: Nothing can run, an image cannot be read, or a model is damaged.
    """
    work = out / "work"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise VisionADError(f"--out {out}: {exc.strerror}; choose a folder that can be written") from None
    notes: list[str] = []
    setups = _setups(choices, images, notes)
    total = sum(len(candidates) for _, candidates in setups)
    known, rows, began, fresh = read_results(out / RESULTS), list[Measured](), time.monotonic(), 0
    pixels = Pixels(choices.bit_depth)
    for (name, backend, precision), candidates in setups:
        bench = _Bench(choices, images, work, choices.models[name], backend, precision, pixels)
        try:
            if not all(bench.key(candidate) in known for candidate in candidates):
                try:
                    bench.open()
                except VisionADError as exc:  # the backend offers the precision, but not on this machine
                    if precision in choices.precisions or precision == bench.own_precision:
                        raise
                    notes.append(f"{backend} in {precision} was not tried with {name}: {exc}")
                    total -= len(candidates)
                    continue
            for candidate in candidates:
                key = bench.key(candidate)
                measured = known.get(key)
                if measured is None:
                    measured = bench.measure(candidate, rows)
                    fresh += 1
                    append_result(out / RESULTS, key, measured)
                rows.append(measured)
                left = (time.monotonic() - began) / max(fresh, 1) * (total - len(rows))
                step(len(rows), total, measured, left)
        finally:
            bench.close()
    if not keep_work:
        shutil.rmtree(work, ignore_errors=True)
    chosen = recommend(rows, choices.budget_ms)
    paper = recommend([r for r in rows if r.candidate.preset == "paper"], choices.budget_ms)
    return {
        "format": FORMAT,
        "budget_ms": choices.budget_ms,
        "images": {"supports": [one.name for one in images.supports], "good": len(images.good), "bad": len(images.bad)},
        "rows": [row.to_dict() for row in rows],
        "pareto": [row.candidate.name() for row in pareto(rows)],
        "recommended": None if chosen is None else chosen.to_dict(),
        "paper": None if paper is None else paper.to_dict(),
        "sentence": sentence(chosen, paper, choices.budget_ms),
        "commands": [] if chosen is None else commands(chosen.candidate, images, choices),
        "notes": [*images.notes, *notes],
        "environment": environment(),
    }


def sentence(chosen: Measured | None, paper: Measured | None, budget_ms: float | None) -> str:
    """Return the recommendation in one sentence."""
    if chosen is None:
        return f"No set-up stays within {budget_ms:g} ms on this machine; try a smaller model or a higher --budget-ms."
    budget = "" if budget_ms is None else f" within {budget_ms:g} ms"
    text = f"Take {chosen.candidate.name()}: {chosen.latency_ms:.0f} ms an image{budget}"
    if chosen.auroc_choose is not None:
        figure = chosen.auroc_report if chosen.auroc_report is not None else chosen.auroc_choose
        text += f", image AUROC {figure:.3f}" + (
            " on images that did not choose it" if chosen.auroc_report is not None else ""
        )
        if paper is not None and paper.candidate != chosen.candidate:
            other = paper.auroc_report if paper.auroc_report is not None else paper.auroc_choose
            text += f" ({other:.3f} for the best with paper)"
    elif chosen.spread is not None:
        text += f", scores of good parts spread by {100 * chosen.spread:.1f} % (there were no bad images to tell apart)"
    return text + "."


def commands(candidate: Candidate, images: Images, choices: Choices) -> list[str]:
    """Return the commands that set a candidate up. MODEL, BANK and NAME are the user's to choose."""
    options = f" --backend {candidate.backend} --preset {candidate.preset}"
    if candidate.precision in backend_spec(candidate.backend).precisions:
        options += f" --precision {candidate.precision}"
    roi = ""
    if candidate.grid != (1, 1):
        assert images.shape is not None
        roi = f" --roi {_tiles(images.shape, candidate.grid).text()}"
    files = " ".join(f"'{one.path}'" for one in images.supports[: candidate.shots])
    good = " ".join(f"'{one.path}'" for one in images.good)
    model = candidate.folder
    depth = "" if choices.bit_depth is None else f" --bit-depth {choices.bit_depth}"
    return [
        f"visionad bank add '{model}' BANK --class NAME{roi}{depth} --backend {candidate.backend} {files}",
        f"visionad calibrate '{model}' BANK --class NAME{options}{depth} {good}",
        f"visionad predict '{model}' BANK --class NAME{options}{depth} IMAGE",
    ]


def available_backends(choices: Choices, manifest: ModelManifest) -> list[tuple[str, Precision]]:
    """Return backends that may run here with the precisions to try.

    Args:
        choices: names and precisions that were asked for.
        manifest: of a model.

    Raises:
        VisionADError: A backend or a precision is not known.
    """
    names = list(choices.backends)
    if not names:
        specs = [*auto_backends(), *(spec for spec in backends().values() if spec.priority is None)]
        names = [spec.name for spec in specs if not spec.needs_build and not spec.experimental and spec.probe().runs]
    pairs: list[tuple[str, Precision]] = []
    for name in dict.fromkeys(names):
        offered = backend_spec(name).precisions
        asked = [p for p in choices.precisions if p in offered or p == manifest.precision]
        for precision in asked if choices.precisions else (manifest.precision, *(p for p in offered if p == "bf16")):
            if (name, precision) not in pairs:
                pairs.append((name, precision))
    return pairs


def _setups(
    choices: Choices, images: Images, notes: list[str]
) -> list[tuple[tuple[str, str, Precision], list[Candidate]]]:
    """Return what to measure, by model, backend and precision. Cheap ones come first: they may spare the others."""
    setups, refused = [], dict[str, str]()
    for name, folder in sorted(choices.models.items(), key=lambda item: _size(item[1])):
        manifest = read_manifest(folder, ModelManifest)
        presets = []
        for preset in choices.presets:
            try:
                load_preset(preset).check_size(manifest)
                scoring_for(manifest, manifest.views, preset)
            except VisionADError as exc:
                refused[preset] = f"{preset} was not tried with {name}: {exc}"
                continue
            presets.append(preset)
        for backend, precision in available_backends(choices, manifest):
            candidates = [
                Candidate(name, str(folder), preset, backend, precision, shots, grid)
                for grid in _grids(choices, images)
                for shots in sorted(set(choices.shots))
                for preset in presets
            ]
            if candidates:
                setups.append(((name, backend, precision), candidates))
    tried = {candidate.preset for _, candidates in setups for candidate in candidates}
    notes += [line for preset, line in refused.items() if preset not in tried]
    if not setups:
        raise VisionADError(f"tune: no preset fits a model: {'; '.join(notes) or 'no backend runs here'}")
    return setups


def _size(folder: Path) -> float:
    """Return a rough measure of what an encoding costs: bytes of weights times pixels."""
    crop = read_manifest(folder, ModelManifest).identity.preprocess.crop
    return float(crop**2 * sum(file.stat().st_size for file in folder.glob("*.onnx")))


def _grids(choices: Choices, images: Images) -> list[tuple[int, int]]:
    """Return whole images, and, for elongated ones, as many tiles as make them square."""
    grids = [(1, 1)]
    if choices.tiles and images.shape is not None:
        height, width = images.shape
        ratio = max(height, width) / min(height, width)
        if ratio >= ELONGATED:
            count = max(2, round(ratio))
            grids.append((count, 1) if height > width else (1, count))
    return grids


def _tiles(shape: tuple[int, int], grid: tuple[int, int]) -> Roi:
    return Roi(name="tiles", box=(0, 0, shape[1], shape[0]), grid=grid)


class _Bench:
    """Measures the set-ups of one model, backend and precision. The model is opened when it is first needed."""

    def __init__(
        self,
        choices: Choices,
        images: Images,
        work: Path,
        folder: Path,
        backend: str,
        precision: Precision,
        pixels: Pixels,
    ) -> None:
        self._pixels = pixels
        self._choices, self._images, self._work, self._folder = choices, images, work, folder
        self._backend, self._precision = backend, precision
        self._manifest = read_manifest(folder, ModelManifest)
        self._opened: Inspector | None = None
        self._kept: KeptTokensEngine | None = None
        self._over: set[tuple[str, tuple[int, int]]] = set()

    @property
    def own_precision(self) -> Precision:
        """Precision that the model was exported in."""
        return self._manifest.precision

    def key(self, candidate: Candidate) -> str:
        """Return what names a measurement of a candidate."""
        facts = {**asdict(candidate), "folder": "", "model": self._manifest.content_digest()}
        facts |= {"images": self._images.digest(), "threads": self._choices.threads, "budget": self._choices.budget_ms}
        facts |= {"scoring": load_preset(candidate.preset).scoring.describe(), "depth": self._choices.bit_depth}
        return sha256_bytes(json.dumps(facts, sort_keys=True).encode())

    def measure(self, candidate: Candidate, before: Sequence[Measured]) -> Measured:
        """Measure a candidate: its latency first, then, if that is within the budget, its scores."""
        budget, place = self._choices.budget_ms, (candidate.preset, candidate.grid)
        if place in self._over:  # more shots take longer
            return Measured(candidate, "over budget")
        if fewer_shots_suffice(candidate, before):
            return Measured(candidate, "beaten")
        opened, kept = self.open()
        bank = self._bank(candidate, opened, kept)
        spec = scoring_for(self._manifest, bank.manifest.views, candidate.preset)
        rows = bank.classes[CLASS].rois
        share = len(spec.views) / len(self._manifest.views)
        memory = sum(r.features.nbytes for r in rows) * share + sum(
            f.stat().st_size for f in self._folder.glob("*.onnx")
        )
        with opened.with_bank(bank, spec) as timed:
            paths = [one.path for one in self._images.good]
            times = latency(timed, CLASS, paths, calls=CALLS, bit_depth=self._choices.bit_depth)
        found = Measured(candidate, "measured", times["p50"], memory / 1e6)
        if budget is not None and times["p50"] > budget:
            self._over.add(place)
            return Measured(candidate, "over budget", times["p50"], memory / 1e6)
        if is_beaten(times["p50"], before):
            return Measured(candidate, "beaten", times["p50"], memory / 1e6)
        for other in before:
            if same_scores(other.candidate, candidate) and other.status in ("measured", "stopped early"):
                return replace(other, candidate=candidate, latency_ms=times["p50"], memory_mb=memory / 1e6)
        best = max((r.auroc for r in before if r.status == "measured" and r.auroc is not None), default=None)
        with opened.with_bank(bank, spec, kept) as inspection:

            def scores(images: Sequence[Labeled]) -> list[float]:
                return [
                    inspection.trace_batch([self._pixels.load(one.path)], CLASS, trace=False)[0][0].score
                    for one in images
                ]

            third = (len(self._images.good) + 2) // 3, (len(self._images.bad) + 2) // 3
            good, bad = scores(self._images.good[: third[0]]), scores(self._images.bad[: third[1]])
            if is_hopeless(good, bad, best):
                return Measured(candidate, "stopped early", times["p50"], memory / 1e6)
            good += scores(self._images.good[third[0] :])
            bad += scores(self._images.bad[third[1] :])
        return Measured(candidate, found.status, found.latency_ms, found.memory_mb, **accuracy(good, bad))

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def open(self) -> tuple[Inspector, KeptTokensEngine]:
        """Open the model, once.

        Raises:
            VisionADError: The backend cannot run it in this precision.
        """
        if self._opened is None or self._kept is None:
            offered = self._precision in backend_spec(self._backend).precisions
            self._opened = Inspector.open(
                self._folder, backend=self._backend, precision=self._precision if offered else None,
                threads=self._choices.threads,
            )  # fmt: skip
            self._kept = KeptTokensEngine(
                self._opened.engine, self._work / "tokens", self._opened.digest, self._manifest.identity
            )
        return self._opened, self._kept

    def _bank(self, candidate: Candidate, opened: Inspector, kept: KeptTokensEngine) -> Bank:
        """Return a bank with the candidate's supports, enrolled with kept tokens."""
        supports = [one.path for one in self._images.supports[: candidate.shots]]
        name = f"{opened.digest} {opened.engine.precision} {candidate.shots} {candidate.grid}"
        folder = self._work / "banks" / sha256_bytes(f"{name} {self._images.digest()}".encode())[:24]
        folder.parent.mkdir(parents=True, exist_ok=True)
        bank = Bank.open_or_new(folder, self._manifest.identity, self._manifest.views)
        if CLASS not in bank.classes:
            roi: RoiSpec | None = None
            if candidate.grid != (1, 1):
                assert self._images.shape is not None
                height, width = self._images.shape
                roi = make_spec([_tiles(self._images.shape, candidate.grid)], (width, height))
            teacher = Inspector(
                self._manifest, kept, bank, opened.scoring, read_golden(self._folder), self._choices.threads
            )
            teacher.enroll_files(
                CLASS, supports, bit_depth=self._choices.bit_depth, keep_images=False, roi=roi, calibrate=False
            )
            teacher.close()
        return bank
