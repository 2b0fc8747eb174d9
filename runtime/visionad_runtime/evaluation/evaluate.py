"""Shots × seeds × classes of a data set → figures, curves and the worst mistakes. Resumable, bounded in memory.

The work is cut into units: the test pictures of one class with one seed's supports. A finished unit is written to the work
folder, under a digest of all that decides its numbers, and never computed again. Inside a unit pictures stream: one batch of
pictures and the tables of :class:`~visionad_runtime.evaluation.metrics.PixelMetrics` are all that is held.

``separate``: each class has a bank of its own. ``multi`` (one for all): one bank holds all classes, and each picture is matched
against the class it is found to be of. A picture taken for another class is scored against that class; one that is like no
class, against the nearest. Such a picture is inspected a second time with its class given, so that the price of misrouting is
known: figures named ``separate_…`` are those of the same bank with every class given, which is what mode ``separate`` measures.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import picture
from ..artefacts import ModelManifest, Precision, atomic_write, sha256_bytes
from ..bank import check_class_name
from ..errors import PictureError, VisionADError
from ..inspector import Inspector
from ..maps import MAP_SIZE, Geometry, colour_scale, regions, top_mean
from ..overlay import draw_overlay
from ..page import jpeg, with_truth
from ..support import choose_support_paths
from .datasets import Dataset, DatasetError, Sample, load_mask
from .judge import Judge, ReferenceJudge, RuntimeJudge, Seen, Step
from .metrics import PixelMetrics, image_metrics
from .published import METRICS

Mode = Literal["separate", "multi"]
EngineName = Literal["runtime", "reference"]
Progress = Callable[[str, int], AbstractContextManager[Step]]
Arrays = dict[str, NDArray[Any]]

WORST = 6
"""Pictures kept to look at, of a unit's lowest-scored defects and of its highest-scored good ones each."""
THUMB = 256
_FORMAT = 1
_NAMED = 8


def _no_progress(_what: str, _total: int) -> AbstractContextManager[Step]:
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class Unit:
    """One class with one seed's supports.

    ``result`` is its entry of the JSON file. ``arrays``: ``scores`` (n,), ``labels`` (n,), the points ``roc``, ``pr`` and ``pro``
    of its pixel curves (m, 2), and ``picture_K`` and ``overlay_K``, JPEG bytes of the K-th of ``result["worst"]``.
    """

    result: dict[str, Any]
    arrays: Arrays


@dataclass(frozen=True)
class Evaluation:
    """All units of a run, and what they were run with."""

    manifest: ModelManifest
    views: tuple[str, ...]
    dataset: str
    root: Path
    shots: int
    mode: Mode
    engine: str
    seeds: tuple[int | None, ...]
    calibrate: float | None
    units: tuple[Unit, ...]
    skipped: tuple[dict[str, Any], ...]
    resumed: int
    """How many units were found finished."""

    def of_class(self, name: str) -> list[Unit]:
        """A class's units, by seed."""
        return [unit for unit in self.units if unit.result["class"] == name]

    @property
    def classes(self) -> list[str]:
        """Class names, sorted."""
        return sorted({unit.result["class"] for unit in self.units})

    def to_dict(self) -> dict[str, Any]:
        """What ``visionad eval --json`` writes."""
        results = [unit.result for unit in self.units]
        per_seed = [{"seed": seed, **_over([_figures(r) for r in results if r["seed"] == seed])} for seed in self.seeds]
        by_class = {name: _spread([_figures(r) for r in results if r["class"] == name]) for name in self.classes}
        return {
            "model": self.manifest.identity.describe(),
            "model_digest": self.manifest.identity.digest(),
            "dataset": self.dataset,
            "root": str(self.root),
            "shots": self.shots,
            "mode": self.mode,
            "engine": self.engine,
            "views": list(self.views),
            "top_share": self.manifest.top_share,
            "rarity": self.manifest.rarity,
            "calibrate": self.calibrate,
            "seeds": list(self.seeds),
            "results": results,
            "per_seed": per_seed,
            "mean": {"by_class": by_class, "all": _spread(per_seed)},
            "skipped": list(self.skipped),
        }


def evaluate(
    model: Path,
    dataset: Dataset,
    shots: int,
    *,
    seeds: Sequence[int] | None = None,
    mode: Mode = "separate",
    engine: EngineName = "runtime",
    backend: str = "auto",
    precision: Precision | None = None,
    device: str | None = None,
    threads: int | None = None,
    views: Sequence[str] | None = None,
    weights: Path | None = None,
    batch: int = 1,
    bit_depth: int | None = None,
    calibrate: float | None = None,
    skip_unreadable: bool = False,
    work: Path | None = None,
    progress: Progress = _no_progress,
) -> Evaluation:
    """Measure a model on a data set.

    Args:
        seeds: of the published choice of supports; ``None`` takes the first ``shots`` pictures by name, once.
        weights: for the reference, where the path noted at export no longer holds them.
        calibrate: also set each class's threshold for this false-reject rate, from the good pictures the data set has for training
            and validation that are not supports, and count false rejects and misses on the test pictures.
        skip_unreadable: pass over (and list) pictures and masks that cannot be read. Without it they are all counted and named in
            one error at the end, and the units they belong to stay undone.
        work: folder of finished units; ``None`` keeps nothing.
        progress: called with a title and a number of pictures; gives the function that counts one.

    Raises:
        VisionADError: too few pictures, unreadable pictures or masks, or what ``Inspector.open`` raises.
    """
    if calibrate is not None and not 0 < calibrate < 1:
        raise VisionADError(f"--calibrate {calibrate}: wanted a false-reject rate between 0 and 1, e.g. 0.01")
    chosen: tuple[int | None, ...] = (None,) if seeds is None else tuple(seeds)
    if not chosen or len(set(chosen)) != len(chosen):
        raise VisionADError(f"seeds {', '.join(map(str, chosen)) or '(none)'}: wanted one or more, each once")
    for name in dataset.classes:  # before anything is loaded
        check_class_name(name)
        for seed in chosen:
            _supports(dataset, name, shots, seed)
    with ExitStack() as stack:
        judge: Judge
        if engine == "reference":
            if bit_depth is not None:
                raise VisionADError(
                    "--bit-depth: the reference defines 8-bit pictures only; leave it out or convert them"
                )
            judge = ReferenceJudge(model, weights=weights, threads=threads, views=views)
        else:
            inspector = stack.enter_context(
                Inspector.open(model, backend=backend, precision=precision, device=device, threads=threads, views=views)
            )
            judge = RuntimeJudge(inspector, batch=batch, bit_depth=bit_depth)
        run = _Run(judge, dataset, shots, chosen, mode, bit_depth, calibrate, skip_unreadable, _Store(work))
        with progress(f"{dataset.name}, {shots} shot{'s' if shots > 1 else ''}", run.pictures()) as step:
            run.go(step)
        return run.evaluation()


class Fault(NamedTuple):
    """A picture or mask that cannot be read. ``role``: ``support``, ``normal`` (to calibrate) or ``test``."""

    path: Path
    role: str
    class_name: str
    reason: str


@dataclass
class _Run:
    judge: Judge
    dataset: Dataset
    shots: int
    seeds: tuple[int | None, ...]
    mode: Mode
    bit_depth: int | None
    rate: float | None
    skip: bool
    store: _Store
    faults: list[Fault] = field(default_factory=list)
    units: dict[tuple[int | None, str], Unit] = field(default_factory=dict)
    resumed: int = 0

    def __post_init__(self) -> None:
        manifest, data = self.judge.manifest, self.dataset
        self._trains = {c: _listing(data.root, [*data.train(c), *data.validation(c)]) for c in data.classes}
        self._tests = {c: _test_listing(data, c) for c in data.classes}
        self._base = {
            "format": _FORMAT,
            "model": manifest.identity.digest(),
            "files": manifest.files,
            "views": self.judge.views,
            "top_share": manifest.top_share,
            "rarity": manifest.rarity,
            "engine": self.judge.name,
            "bit_depth": self.bit_depth,
            "dataset": data.name,
            "shots": self.shots,
            "rate": self.rate,
        }
        for seed in self.seeds:
            for name in data.classes:
                found = self.store.get(self._key(seed, name))
                if found is not None and self._still_holds(found):
                    self._keep(seed, name, found)
        self.resumed = len(self.units)

    def evaluation(self) -> Evaluation:
        """What has been found.

        Raises:
            DatasetError: something could not be read, and was not to be skipped.
        """
        if self.faults:
            self._complain()
        units = tuple(self.units[seed, name] for seed in self.seeds for name in self.dataset.classes)
        skipped = [{"seed": u.result["seed"], **fault} for u in units for fault in u.result["skipped"]]
        return Evaluation(
            self.judge.manifest, self.judge.views, self.dataset.name, self.dataset.root, self.shots, self.mode, self.judge.name,
            self.seeds, self.rate, units, tuple(skipped), self.resumed,
        )  # fmt: skip

    def pictures(self) -> int:
        """How many pictures are left to encode, about: a step each."""
        total = 0
        for seed, tested, enrolled in self._groups():
            total += sum(len(self.dataset.test(name)) for name in tested)
            for name in enrolled:
                total += self.shots
                if self.rate is not None and self.store.get(self._calibration_key(seed, name)) is None:
                    total += len(self._normals(name, seed))
        return total

    def go(self, step: Step) -> None:
        """Do what is left to do."""
        for seed, tested, enrolled in self._groups():
            # Where nothing is kept, inspecting on after a fault is lost work; what can be read is still looked at.
            if self.faults and self.store.folder is None:
                self._only_check(tested, step)
                continue
            with tempfile.TemporaryDirectory(prefix="visionad-eval-") as folder:
                self.judge.clear(Path(folder) / "bank")
                self._group(seed, tested, enrolled, step)

    def _groups(self) -> Iterable[tuple[int | None, list[str], list[str]]]:
        """Seed, classes to test, classes to enrol together for that."""
        for seed in self.seeds:
            left = [name for name in self.dataset.classes if (seed, name) not in self.units]
            if self.mode == "separate":
                yield from ((seed, [name], [name]) for name in left)
            elif left:
                yield seed, left, self.dataset.classes

    def _group(self, seed: int | None, tested: list[str], enrolled: list[str], step: Step) -> None:
        faults: dict[str, list[Fault]] = {name: [] for name in enrolled}
        calibrations: dict[str, dict[str, Any]] = {}
        learned: dict[str, list[Path]] = {}
        digests: dict[str, set[str]] = {name: set() for name in enrolled}
        for name in enrolled:
            chosen = _supports(self.dataset, name, self.shots, seed)
            learned[name] = self._sift(name, chosen, "support", faults[name], digests[name])
            if self.skip and not learned[name]:
                raise DatasetError(
                    f"class {name!r}: none of its {len(chosen)} support pictures can be read ({faults[name][0].reason})"
                )
        if not self.skip and any(faults.values()):
            self.faults += [fault for found in faults.values() for fault in found]
            self._only_check(tested, step)
            return
        for name in enrolled:
            self.judge.enrol(name, learned[name], step)
        if self.rate is not None:
            for name in enrolled:
                calibrations[name] = self._calibration(seed, name, self.rate, faults[name], digests[name], step)
        if not self.skip and any(faults.values()):
            self.faults += [fault for found in faults.values() for fault in found]
            self._only_check(tested, step)
            return
        for name in tested:
            unit = self._test(seed, name, learned[name], faults[name], calibrations.get(name), step)
            if unit is not None:
                self.store.put(self._key(seed, name), unit)
                self._keep(seed, name, unit)

    def _keep(self, seed: int | None, name: str, unit: Unit) -> None:
        if seed != self.seeds[0]:  # pictures are shown of the first seed only; the others' would only fill the memory
            arrays = {k: v for k, v in unit.arrays.items() if not k.startswith(("picture_", "overlay_"))}
            unit = Unit(unit.result, arrays)
        self.units[seed, name] = unit

    # -- pictures that cannot be read ---------------------------------------------------------------------------------

    def _sift(self, name: str, paths: Sequence[Path], role: str, faults: list[Fault], digests: set[str]) -> list[Path]:
        """The readable ones, each picture once (a copy of a picture teaches nothing new); ``digests`` are known already."""
        kept = []
        for path in paths:
            try:
                data = picture.read_bytes(path)
                picture.decode(data, path, self.bit_depth)
            except PictureError as exc:
                faults.append(Fault(path, role, name, str(exc)))
                continue
            digest = sha256_bytes(data)
            if digest not in digests:
                digests.add(digest)
                kept.append(path)
        return kept

    def _only_check(self, names: Iterable[str], step: Step, done: int = 0) -> None:
        """Count what cannot be read among the test pictures, without inspecting any."""
        for name in names:
            for sample in self.dataset.test(name)[done:]:
                try:
                    picture.load(sample.path, self.bit_depth)
                    self._mask(sample)
                except VisionADError as exc:
                    self.faults.append(Fault(sample.path, "test", name, str(exc)))
                step()

    def _mask(self, sample: Sample) -> NDArray[np.bool_] | None:
        if not sample.has_mask:
            return None
        spec = self.judge.manifest.identity.preprocess
        return load_mask(sample, spec.resize, spec.crop, MAP_SIZE)

    def _complain(self) -> None:
        by_path = {fault.path: fault for fault in self.faults}
        first = "; ".join(fault.reason for fault in list(by_path.values())[:_NAMED])
        more = f"; and {len(by_path) - _NAMED} more" if len(by_path) > _NAMED else ""
        done = len(self.units)
        kept = f"; {done} finished units are kept in {self.store.folder}" if self.store.folder and done else ""
        raise DatasetError(
            f"{self.dataset.name} at {self.dataset.root}: {len(by_path)} pictures or masks cannot be used: {first}{more}; mend "
            f"them or pass over them with --skip-unreadable{kept}"
        )

    def _still_holds(self, unit: Unit) -> bool:
        """Nothing was skipped, or the same would be skipped again."""
        skipped = [self.dataset.root / fault["image"] for fault in unit.result["skipped"]]
        if not skipped or not self.skip:
            return not skipped
        samples = {s.path: s for s in self.dataset.test(unit.result["class"])}
        for path in skipped:
            try:
                picture.load(path, self.bit_depth)
                if path in samples:
                    self._mask(samples[path])
            except VisionADError:
                continue
            return False
        return True

    # -- calibration --------------------------------------------------------------------------------------------------

    def _normals(self, name: str, seed: int | None) -> list[Path]:
        supports = set(_supports(self.dataset, name, self.shots, seed))
        return [p for p in (*self.dataset.train(name), *self.dataset.validation(name)) if p not in supports]

    def _calibration(
        self, seed: int | None, name: str, rate: float, faults: list[Fault], digests: set[str], step: Step
    ) -> dict[str, Any]:
        key = self._calibration_key(seed, name)
        known = self.store.get(key)
        if known is not None:
            if "threshold" in known.result:
                self.judge.recall(name, known.result)
            return known.result
        before = len(faults)
        normals = self._sift(name, self._normals(name, seed), "normal", faults, digests)
        needed = math.ceil(1 / rate - 1 - 1e-9)
        found: dict[str, Any] = {}
        if len(normals) < needed:
            found["reason"] = (
                f"a false-reject rate of {rate:g} takes at least {needed} good pictures besides the supports, found {len(normals)}"
            )
        elif self.skip or len(faults) == before:
            found = self.judge.calibrate(name, normals, rate, step)
        if len(faults) == before:
            self.store.put(key, Unit(found, {}))
        return found

    # -- one unit -----------------------------------------------------------------------------------------------------

    def _test(
        self,
        seed: int | None,
        name: str,
        supports: Sequence[Path],
        faults: list[Fault],
        calibration: dict[str, Any] | None,
        step: Step,
    ) -> Unit | None:
        """Inspect a class's test pictures; None if one of them cannot be read and must not be skipped."""
        own, samples = check_class_name(name), self.dataset.test(name)
        tally = _Tally()
        given = own if self.mode == "separate" else None
        for place, (sample, one) in enumerate(
            zip(samples, self.judge.inspect([s.path for s in samples], given), strict=True)
        ):
            try:
                if isinstance(one, PictureError):
                    raise one
                mask = self._mask(sample)
                again = one
                if one.class_name != own:  # taken for another class
                    (second,) = self.judge.inspect([sample.path], own)
                    if isinstance(second, PictureError):
                        raise second
                    again = second
            except VisionADError as exc:
                faults.append(Fault(sample.path, "test", name, str(exc)))
                if not self.skip:
                    self.faults += faults
                    step()
                    self._only_check([name], step, done=place + 1)
                    return None
            else:
                tally.add(sample, one, again, mask)
            step()
        return tally.unit(self, seed, name, supports, faults, calibration)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _key(self, seed: int | None, name: str) -> str:
        trains = self._trains if self.mode == "multi" else {name: self._trains[name]}
        return _digest(
            {**self._base, "seed": seed, "mode": self.mode, "class": name, "train": trains, "test": self._tests[name]}
        )

    def _calibration_key(self, seed: int | None, name: str) -> str:
        return _digest({**self._base, "seed": seed, "class": name, "calibration": self._trains[name]})

    def relative(self, path: Path) -> str:
        """A path as the JSON file names it: below the data set's root."""
        return _relative(self.dataset.root, path)


class _Worst(NamedTuple):
    badness: float
    sample: Sample
    seen: Seen
    mask: NDArray[np.bool_] | None


class _Tally:
    """Everything counted over a unit's pictures."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.given_scores: list[float] = []
        self.labels: list[int] = []
        # Pixels of pictures found to be of their own class; of the others, as routed, and with their class given.
        self.pixels, self.routed, self.given = PixelMetrics(), PixelMetrics(), PixelMetrics()
        self.taken_for: Counter[str | None] = Counter()
        self.verdicts: Counter[tuple[int, str]] = Counter()
        self.without_mask = self.outside_crop = 0
        self.good_levels: list[float] = []
        self.worst: dict[int, list[_Worst]] = {0: [], 1: []}

    def add(self, sample: Sample, seen: Seen, given: Seen, mask: NDArray[np.bool_] | None) -> None:
        """Count one picture, as it was routed and with its class given (the same object, if it was routed well)."""
        label = sample.label
        self.labels.append(label)
        self.scores.append(seen.score)
        self.given_scores.append(given.score)
        self.verdicts[label, seen.verdict] += 1
        if seen is not given:
            self.taken_for[seen.class_name] += 1
        if mask is None:
            self.without_mask += 1
        else:
            self.outside_crop += bool(label) and not mask.any()
            if seen is given:
                self.pixels.add(seen.anomaly_map, mask)
            else:
                self.routed.add(seen.anomaly_map, mask)
                self.given.add(given.anomaly_map, mask)
        if not label:
            self.good_levels.append(float(np.median(seen.anomaly_map)))
        worst = self.worst[label]
        worst.append(_Worst(seen.score if label else -seen.score, sample, seen, mask))
        worst.sort(key=lambda w: (w.badness, str(w.sample.path)))
        del worst[WORST:]

    def unit(
        self,
        run: _Run,
        seed: int | None,
        name: str,
        supports: Sequence[Path],
        faults: Sequence[Fault],
        calibration: Mapping[str, Any] | None,
    ) -> Unit:
        """Sum up, once: pixels that were counted apart are added to the others."""
        as_given = self.pixels
        if self.taken_for:
            as_given = self.given
            as_given.merge(self.pixels)
            self.pixels.merge(self.routed)
        values, reasons, bounds = self._metrics(self.scores, self.pixels)
        defects = sum(self.labels)
        result: dict[str, Any] = {
            "seed": seed,
            "class": name,
            "images": len(self.labels),
            "good": len(self.labels) - defects,
            "defects": defects,
            "without_mask": self.without_mask,
            "outside_crop": self.outside_crop,
            "supports": [run.relative(path) for path in supports],
            **values,
            "reasons": reasons,
            "error_bounds": bounds,
        }
        if run.mode == "multi":
            separate, _, _ = self._metrics(self.given_scores, as_given)
            result |= self._routing() | {f"separate_{metric}": value for metric, value in separate.items()}
        if calibration is not None:
            result["calibration"] = self._realised(calibration)
        worst = [*self.worst[1], *self.worst[0]]
        result["worst"] = [
            {
                "image": run.relative(w.sample.path),
                "label": w.sample.label,
                "defect": w.sample.defect,
                "score": w.seen.score,
                "class": w.seen.class_name,
            }
            for w in worst
        ]
        result["skipped"] = [
            {"image": run.relative(f.path), "role": f.role, "class": f.class_name, "reason": f.reason} for f in faults
        ]
        return Unit(result, self._arrays(run, worst))

    def _routing(self) -> dict[str, Any]:
        """Where the pictures went that were to find their class themselves."""
        wrong, images = sum(self.taken_for.values()), len(self.labels)
        return {
            "routing_accuracy": 1 - wrong / images if images else None,
            "unknown_rate": self.taken_for[None] / images if images else None,
            "taken_for": {c: n for c, n in sorted(self.taken_for.items(), key=str) if c is not None},
        }

    def _arrays(self, run: _Run, worst: Sequence[_Worst]) -> Arrays:
        """What the report's plots and pictures are made of."""
        curves = self.pixels.curves()
        arrays: Arrays = {
            "scores": np.asarray(self.scores, np.float64),
            "labels": np.asarray(self.labels, np.uint8),
            "roc": curves.roc,
            "pr": curves.pr,
            "pro": curves.pro,
        }
        scale = self._scale()
        for place, one in enumerate(worst):
            taken, drawn = _pictures(run, one, scale)
            arrays[f"picture_{place}"] = np.frombuffer(taken, np.uint8)
            arrays[f"overlay_{place}"] = np.frombuffer(drawn, np.uint8)
        return arrays

    def _metrics(
        self, scores: Sequence[float], pixels: PixelMetrics
    ) -> tuple[dict[str, float | None], dict[str, str], dict[str, float]]:
        image, pixel = image_metrics(scores, self.labels), pixels.compute()
        found = {**image.values, **pixel.values}
        reasons = {**image.reasons, **pixel.reasons}
        if self.without_mask and self.without_mask == sum(self.labels):
            reasons |= dict.fromkeys(pixel.reasons, f"none of the {self.without_mask} defects has a mask")
        bounds = {name: bound for name, bound in pixel.error_bounds.items() if bound > 0}
        return {metric: found[metric] for metric in METRICS}, reasons, bounds

    def _realised(self, calibration: Mapping[str, Any]) -> dict[str, Any]:
        """What the threshold did on the test pictures."""
        if "threshold" not in calibration:
            return {"threshold": None, "reason": calibration.get("reason", "")}
        record, count = calibration["record"], self.verdicts
        good, bad = (sum(n for (kind, _), n in count.items() if kind == label) for label in (0, 1))
        return {
            "threshold": calibration["threshold"],
            "normals": record["normals"],
            "guaranteed_false_reject": record["guaranteed_false_reject"],
            "bound_false_reject": record["bound_false_reject"],
            "false_rejects": count[0, "anomalous"],
            "false_reject_rate": count[0, "anomalous"] / good if good else None,
            "misses": count[1, "ok"],
            "miss_rate": count[1, "ok"] / bad if bad else None,
            "without_verdict": count[0, "unknown"] + count[1, "unknown"],
        }

    def _scale(self) -> tuple[float, float]:
        """One colour scale for the unit's heat maps: cold is a good picture's usual level, the middle where F1 is best."""
        low = float(np.median(self.good_levels)) if self.good_levels else 0.0
        middle = best_threshold(np.asarray(self.scores), np.asarray(self.labels))
        return colour_scale(low, middle)


def _pictures(run: _Run, one: _Worst, scale: tuple[float, float]) -> tuple[bytes, bytes]:
    """A picture with its true defect outlined, and with its heat, as JPEG."""
    rgb = picture.load(one.sample.path, run.bit_depth)
    height, width = rgb.shape[:2]
    geometry = Geometry.of(width, height, run.judge.manifest.identity.preprocess)
    mask = None
    if one.mask is not None and one.mask.any():
        left, top = geometry.to_original(0, 0)
        right, bottom = geometry.to_original(MAP_SIZE, MAP_SIZE)
        to_x, to_y = THUMB / width, THUMB / height
        place = np.array(
            [[(right - left) * to_x / MAP_SIZE, 0, left * to_x], [0, (bottom - top) * to_y / MAP_SIZE, top * to_y]]
        )
        laid = cv2.warpAffine(one.mask.astype(np.uint8), place, (THUMB, THUMB), flags=cv2.INTER_NEAREST)
        mask = np.asarray(laid) > 0
    found = one.seen
    _, edge = top_mean(found.anomaly_map, run.judge.manifest.top_share)
    hot = regions(found.anomaly_map, geometry, edge, reached=True)
    drawn = draw_overlay(
        rgb, found.anomaly_map, geometry, hot, found.verdict, found.score, None,
        found.class_name, scale, caption=False,
    )  # fmt: skip
    return jpeg(with_truth(rgb, mask, THUMB), THUMB), jpeg(drawn, THUMB)


def best_threshold(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """The score from which on to reject for the best F1; the largest score where there are no defects."""
    if not scores.size:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order], np.cumsum(labels[order])
    f1 = 2 * found / (np.arange(1, ranked.size + 1) + max(int(labels.sum()), 1))
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores fall on the same side
    return float(ranked[int(np.argmax(f1))]) if labels.any() else float(ranked[0])


# -- finished units on disk -------------------------------------------------------------------------------------------


class _Store:
    """Units by key: ``KEY.json`` beside ``KEY.npz``. The JSON file is written last and holds the other's sha256, so a unit is there
    whole or not at all; a damaged one counts as not there."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise VisionADError(
                    f"work folder {folder} cannot be made: {exc.strerror}; choose another with --work"
                ) from None

    def get(self, key: str) -> Unit | None:
        if self.folder is None:
            return None
        try:
            held = json.loads((self.folder / f"{key}.json").read_bytes())
            data = (self.folder / f"{key}.npz").read_bytes()
            if sha256_bytes(data) != held["npz_sha256"]:
                return None
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return Unit(held["result"], {name: arrays[name] for name in arrays.files})
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, key: str, unit: Unit) -> None:
        if self.folder is None:
            return
        stream = io.BytesIO()
        np.savez(stream, **unit.arrays)  # type: ignore[arg-type, unused-ignore]
        atomic_write(self.folder / f"{key}.npz", stream.getvalue())
        held = {"npz_sha256": sha256_bytes(stream.getvalue()), "result": unit.result}
        atomic_write(self.folder / f"{key}.json", json.dumps(held, ensure_ascii=False, indent=1).encode())


def _supports(dataset: Dataset, name: str, shots: int, seed: int | None) -> list[Path]:
    try:
        return choose_support_paths(dataset.train(name), shots, seed)
    except VisionADError as exc:
        raise VisionADError(f"class {name!r}: {exc}") from None


def _relative(root: Path, path: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _listing(root: Path, paths: Iterable[Path]) -> str:
    """A digest of names and sizes."""
    return _digest([[_relative(root, path), path.stat().st_size] for path in paths])


def _test_listing(dataset: Dataset, name: str) -> str:
    samples = dataset.test(name)
    files = _listing(dataset.root, [p for s in samples for p in (s.path, *s.masks)])
    return _digest([files, [[s.label, s.defect, len(s.masks), s.boxes] for s in samples]])


def _digest(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# -- means ------------------------------------------------------------------------------------------------------------

RATES = ("routing_accuracy", "unknown_rate", "false_reject_rate", "miss_rate")


def _figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """A result's numbers that can be averaged."""
    every = {**result, **result.get("calibration", {})}
    return {name: every[name] for name in (*METRICS, *(f"separate_{m}" for m in METRICS), *RATES) if name in every}


def _over(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean over classes, of those that have the figure."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [v for row in rows if (v := row.get(name)) is not None] for name in names}
    return {name: math.fsum(values) / len(values) if values else None for name, values in found.items()}


def _spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and sample standard deviation over seeds; no deviation of a single one."""
    names = dict.fromkeys(name for row in rows for name in row if name != "seed")
    out: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        mean = math.fsum(values) / len(values) if values else None
        out[name] = {"mean": mean, "std": statistics.stdev(values) if len(values) > 1 else None}
    return out
