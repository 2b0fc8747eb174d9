"""Protocol of an evaluation: shots × seeds × classes of a data set, resumable and with bounded memory.

A unit is the test images of one class with the supports of one seed. A finished unit is written to the work folder under a digest
of everything that determines its numbers, and is never computed again. Within a unit images are streamed: memory holds one batch
of images and the tables of :class:`~visionad_runtime.tools.evaluation.metrics.PixelMetrics`.

In mode ``separate`` each class has its own bank. In mode ``multi`` one bank holds all classes, and each image is routed. An image
that is routed to another class is scored against that class, and an image of no known class against the nearest. Such an image is
inspected again with its class given, which measures the cost of misrouting: the metrics ``separate_…`` are those of the same bank
with every class given, and equal the metrics of mode ``separate``.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bank.names import check_class_name
from ...errors import ImageError, VisionADError
from ...formats.files import sha256_bytes
from ...formats.roi import Roi
from ...images import decode
from ...inspector import Inspector
from ...scoring.anomaly_map import MAP_SIZE
from ...shards import WHOLE, Shard
from ...teaching.sampling import sample_support_paths
from .aggregate import Evaluation, Mode
from .copies import without_copies
from .datasets.base import Dataset, DatasetError, Sample
from .datasets.masks import Truth, image_size, load_mask, read_truth
from .own_metrics import OWN, OwnMetric
from .predictor import Predictor, RuntimePredictor, Step
from .store import EvaluationUnit, Store, digest, files_digest, samples_digest
from .tally import Tally, UnreadableFile

Progress = Callable[[str, int], AbstractContextManager[Step]]

_FORMAT = 3
_MAX_NAMED = 8


def _no_progress(_what: str, _total: int) -> AbstractContextManager[Step]:
    return nullcontext(lambda: None)


def evaluate(
    model: Path,
    dataset: Dataset,
    shots: int,
    *,
    seeds: Sequence[int] | None = None,
    mode: Mode = "separate",
    open_predictor: Callable[[], Predictor] | None = None,
    backend: str = "auto",
    precision: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    preset: str | None = None,
    views: Sequence[str] | None = None,
    batch: int = 1,
    bit_depth: int | None = None,
    calibrate: float | None = None,
    rois: Sequence[Roi] = (),
    skip_unreadable: bool = False,
    work: Path | None = None,
    shard: Shard = WHOLE,
    progress: Progress = _no_progress,
) -> Evaluation:
    """Measure a model on a data set.

    Args:
        model: model folder.
        dataset: what to measure on.
        shots: supports per class.
        seeds: seeds of the published support selection; ``None`` takes the first ``shots`` images by name, once.
        mode: ``separate`` for one bank per class, ``multi`` for one bank of all classes.
        open_predictor: opens a predictor in place of the runtime. The runtime's settings (``backend`` to ``batch``) are then
            unused.
        backend: the runtime's backend.
        precision: the runtime's precision, if the backend offers a choice; ``None`` takes the model's.
        device: the runtime's device, if the backend offers a choice; ``None`` takes its default.
        threads: the runtime's CPU threads, ``None`` for all cores.
        preset: the runtime's scoring, as :meth:`Inspector.open <visionad_runtime.inspector.Inspector.open>` takes it.
        views: the runtime's views, ``None`` for all of the model's.
        batch: images per engine call; never changes a result.
        bit_depth: bits that the camera fills in files with 16 bits per channel, 9..16.
        calibrate: false-reject rate. If given, each class's threshold is computed from its good training and validation images that
            are no supports, and false rejects and misses are counted on the test images.
        rois: what the runtime inspects of each class, of supports and test images alike; none for whole images. Images of another
            size than a class's first support count as unreadable.
        skip_unreadable: skip and list images and masks that cannot be read. Otherwise one error at the end counts and names them,
            and their units stay unfinished.
        work: folder of finished units; ``None`` keeps nothing.
        shard: units to compute. Several shards may use one work folder at once; finished units are not computed again.
        progress: called with a title and a number of images; yields the function that counts one.

    Returns:
        The evaluation. That of a shard holds the units that are finished in the work folder.

    Raises:
        VisionADError: a shard without a work folder, too few images, unreadable images or masks, or an error of ``Inspector.open``.
    """
    if calibrate is not None and not 0 < calibrate < 1:
        raise VisionADError(f"--calibrate {calibrate}: expected a false-reject rate between 0 and 1, e.g. 0.01")
    if shard != WHOLE and work is None:
        raise VisionADError("--shard: expected --work DIR, one folder for all shards, which then gathers the units")
    chosen: tuple[int | None, ...] = (None,) if seeds is None else tuple(seeds)
    if not chosen or len(set(chosen)) != len(chosen):
        raise VisionADError(f"seeds {', '.join(map(str, chosen)) or '(none)'}: expected one or more, each once")
    dataset = without_copies(dataset)
    for name in dataset.classes:  # reports an error before anything is loaded
        check_class_name(name)
        for seed in chosen:
            _supports(dataset, name, shots, seed)
    with ExitStack() as stack:
        predictor: Predictor
        if open_predictor is not None:
            predictor = open_predictor()
        else:
            inspector = stack.enter_context(
                Inspector.open(
                    model,
                    backend=backend,
                    precision=precision,
                    device=device,
                    threads=threads,
                    preset=preset,
                    views=views,
                )
            )
            predictor = RuntimePredictor(inspector, batch=batch, bit_depth=bit_depth, rois=rois)
        names = tuple(roi.text() for roi in rois)
        run = _Run(
            predictor, dataset, shots, chosen, mode, bit_depth, calibrate, skip_unreadable, Store(work), names, shard
        )
        with progress(f"{dataset.name}, {shots} shot{'s' if shots > 1 else ''}", run.images()) as step:
            run.execute(step)
        return run.evaluation()


@dataclass
class _Run:
    predictor: Predictor
    dataset: Dataset
    shots: int
    seeds: tuple[int | None, ...]
    mode: Mode
    bit_depth: int | None
    rate: float | None
    skip: bool
    store: Store
    rois: tuple[str, ...] = ()
    shard: Shard = WHOLE
    faults: list[UnreadableFile] = field(default_factory=list)
    units: dict[tuple[int | None, str], EvaluationUnit] = field(default_factory=dict)
    resumed: int = 0

    def __post_init__(self) -> None:
        manifest, data = self.predictor.manifest, self.dataset
        self._trains = {c: files_digest(data.root, [*data.train(c), *data.validation(c)]) for c in data.classes}
        self._tests = {c: samples_digest(data, c) for c in data.classes}
        self._base = {
            "format": _FORMAT,
            "model": manifest.identity.digest(),
            "files": manifest.files,
            **self.predictor.scoring.fields(),
            "engine": self.predictor.name,
            "bit_depth": self.bit_depth,
            "dataset": data.name,
            **({"own_metrics": data.metrics} if data.metrics else {}),
            "shots": self.shots,
            "rate": self.rate,
            **({"roi": self.rois} if self.rois else {}),
        }
        for seed in self.seeds:
            for name in data.classes:
                unit = self.store.get(self._key(seed, name))
                if unit is not None and self._is_current(unit):
                    self._keep(seed, name, unit)
        self.resumed = len(self.units)

    def evaluation(self) -> Evaluation:
        """Return the evaluation of all units.

        Raises:
            DatasetError: files could not be read and must not be skipped.
        """
        if self.faults:
            self._raise_faults()
        keys = ((seed, name) for seed in self.seeds for name in self.dataset.classes)
        units = tuple(self.units[key] for key in keys if self.shard == WHOLE or key in self.units)
        skipped = [{"seed": u.result["seed"], **fault} for u in units for fault in u.result["skipped"]]
        return Evaluation(
            manifest=self.predictor.manifest,
            scoring=self.predictor.scoring,
            dataset=self.dataset.name,
            root=self.dataset.root,
            shots=self.shots,
            mode=self.mode,
            engine=self.predictor.name,
            seeds=self.seeds,
            calibrate=self.rate,
            rois=self.rois,
            units=units,
            skipped=tuple(skipped),
            copies={name: dict(Counter(copy.kind for copy in copies)) for name, copies in self.dataset.copies.items()},
            resumed=self.resumed,
        )

    def images(self) -> int:
        """Estimate the number of images to encode, one step each."""
        total = 0
        for seed, tested, enrolled in self._groups():
            total += sum(len(self.dataset.test(name)) for name in tested)
            if self._needs_validation():
                total += sum(len(self.dataset.validation(name)) for name in tested)
            for name in enrolled:
                total += self.shots
                if self.rate is not None and self.store.get(self._calibration_key(seed, name)) is None:
                    total += len(self._normals(name, seed))
        return total

    def execute(self, step: Step) -> None:
        """Run the unfinished units."""
        for seed, tested, enrolled in self._groups():
            # If nothing is kept, inspecting after a fault is wasted work. The other files are still checked.
            if self.faults and self.store.folder is None:
                self._only_check(tested, step)
                continue
            with tempfile.TemporaryDirectory(prefix="visionad-eval-") as folder:
                self.predictor.clear(Path(folder) / "bank")
                self._group(seed, tested, enrolled, step)

    def _groups(self) -> Iterable[tuple[int | None, list[str], list[str]]]:
        """Yield seed, classes to test, and classes to enroll together for them."""
        for seed in self.seeds:
            unfinished = [
                name for name in self.dataset.classes if (seed, name) not in self.units and self._is_mine(seed, name)
            ]
            if self.mode == "separate":
                yield from ((seed, [name], [name]) for name in unfinished)
            elif unfinished:
                yield seed, unfinished, self.dataset.classes

    def _group(self, seed: int | None, tested: list[str], enrolled: list[str], step: Step) -> None:
        faults: dict[str, list[UnreadableFile]] = {name: [] for name in enrolled}
        calibrations: dict[str, dict[str, Any]] = {}
        supports: dict[str, list[Path]] = {}
        digests: dict[str, set[str]] = {name: set() for name in enrolled}
        for name in enrolled:
            chosen = _supports(self.dataset, name, self.shots, seed)
            supports[name] = self._readable(name, chosen, "support", faults[name], digests[name])
            if self.skip and not supports[name]:
                raise DatasetError(
                    f"class {name!r}: none of its {len(chosen)} support images can be read ({faults[name][0].reason})"
                )
        if not self.skip and any(faults.values()):
            self.faults += [fault for of_class in faults.values() for fault in of_class]
            self._only_check(tested, step)
            return
        for name in enrolled:
            self.predictor.enroll(name, supports[name], step)
        if self.rate is not None:
            for name in enrolled:
                calibrations[name] = self._calibration(seed, name, self.rate, faults[name], digests[name], step)
        if not self.skip and any(faults.values()):
            self.faults += [fault for of_class in faults.values() for fault in of_class]
            self._only_check(tested, step)
            return
        for name in tested:
            unit = self._test(seed, name, supports[name], faults[name], calibrations.get(name), step)
            if unit is not None:
                self.store.put(self._key(seed, name), unit)
                self._keep(seed, name, unit)

    def _keep(self, seed: int | None, name: str, unit: EvaluationUnit) -> None:
        if seed != self.seeds[0]:  # the page shows the images of the first seed only
            arrays = {k: v for k, v in unit.arrays.items() if not k.startswith(("picture_", "overlay_"))}
            unit = EvaluationUnit(unit.result, arrays)
        self.units[seed, name] = unit

    # -- images that cannot be read ---------------------------------------------------------------------------------

    def _readable(
        self, name: str, paths: Sequence[Path], role: str, faults: list[UnreadableFile], digests: set[str]
    ) -> list[Path]:
        """Return the readable files, each image once, because a copy of an image adds nothing.

        Args:
            name: class.
            paths: files to check.
            role: role of the files, for :class:`UnreadableFile`.
            faults: list to which unreadable files are added.
            digests: digests of known images; those of the returned files are added.
        """
        readable = []
        for path in paths:
            try:
                data = decode.read_bytes(path)
                decode.decode(data, path, self.bit_depth)
            except ImageError as exc:
                faults.append(UnreadableFile(path, role, name, str(exc)))
                continue
            digest = sha256_bytes(data)
            if digest not in digests:
                digests.add(digest)
                readable.append(path)
        return readable

    def _only_check(self, names: Iterable[str], step: Step, done: int = 0) -> None:
        """Find unreadable test images and masks without inspecting any."""
        for name in names:
            own = self._own_metrics(name)
            for sample in self.dataset.test(name)[done:]:
                try:
                    decode.load(sample.path, self.bit_depth)
                    self._mask(sample)
                    self._truth(sample, own)
                except VisionADError as exc:
                    self.faults.append(UnreadableFile(sample.path, "test", name, str(exc)))
                step()

    def _mask(self, sample: Sample) -> NDArray[np.bool_] | None:
        if not sample.has_mask:
            return None
        spec = self.predictor.manifest.identity.preprocess
        return load_mask(sample, spec.resize, spec.crop, MAP_SIZE)

    def _own_metrics(self, name: str) -> list[OwnMetric]:
        spec = self.predictor.manifest.identity.preprocess
        return [OWN[metric](spec, self.dataset.saturations(name)) for metric in self.dataset.metrics]

    def _needs_validation(self) -> bool:
        return any(metric.needs_validation for metric in self._own_metrics(self.dataset.classes[0]))

    def _truth(self, sample: Sample, own: Sequence[OwnMetric]) -> Truth | None:
        """Read the ground truth for the data set's own metrics; ``None`` if there are none, or the defect is not known."""
        if not own or not sample.has_mask:
            return None
        truth = read_truth(sample)
        for metric in own:
            metric.check(truth)
        return truth

    def _raise_faults(self) -> None:
        by_path = {fault.path: fault for fault in self.faults}
        first = "; ".join(fault.reason for fault in list(by_path.values())[:_MAX_NAMED])
        more = f"; and {len(by_path) - _MAX_NAMED} more" if len(by_path) > _MAX_NAMED else ""
        done = len(self.units)
        kept = f"; {done} finished units are kept in {self.store.folder}" if self.store.folder and done else ""
        raise DatasetError(
            f"{self.dataset.name} at {self.dataset.root}: {len(by_path)} images or masks cannot be used: {first}{more}; "
            f"repair them or skip them with --skip-unreadable{kept}"
        )

    def _is_current(self, unit: EvaluationUnit) -> bool:
        """Return whether nothing was skipped, or the same files would be skipped again."""
        skipped = [self.dataset.root / fault["image"] for fault in unit.result["skipped"]]
        if not skipped or not self.skip:
            return not skipped
        samples = {s.path: s for s in self.dataset.test(unit.result["class"])}
        for path in skipped:
            try:
                decode.load(path, self.bit_depth)
                if path in samples:
                    self._mask(samples[path])
                    self._truth(samples[path], self._own_metrics(unit.result["class"]))
            except VisionADError:
                continue
            return False
        return True

    # -- calibration --------------------------------------------------------------------------------------------------

    def _normals(self, name: str, seed: int | None) -> list[Path]:
        supports = set(_supports(self.dataset, name, self.shots, seed))
        return [p for p in (*self.dataset.train(name), *self.dataset.validation(name)) if p not in supports]

    def _calibration(
        self, seed: int | None, name: str, rate: float, faults: list[UnreadableFile], digests: set[str], step: Step
    ) -> dict[str, Any]:
        key = self._calibration_key(seed, name)
        stored = self.store.get(key)
        if stored is not None:
            if "threshold" in stored.result:
                self.predictor.recall(name, stored.result)
            return stored.result
        earlier_faults = len(faults)
        normals = self._readable(name, self._normals(name, seed), "normal", faults, digests)
        needed = math.ceil(1 / rate - 1 - 1e-9)
        calibration: dict[str, Any] = {}
        if len(normals) < needed:
            calibration["reason"] = (
                f"a false-reject rate of {rate:g} takes at least {needed} good images besides the supports, got {len(normals)}"
            )
        elif self.skip or len(faults) == earlier_faults:
            calibration = self.predictor.calibrate(name, normals, rate, step)
        if len(faults) == earlier_faults:
            self.store.put(key, EvaluationUnit(calibration, {}))
        return calibration

    # -- one unit -----------------------------------------------------------------------------------------------------

    def _test(
        self,
        seed: int | None,
        name: str,
        supports: Sequence[Path],
        faults: list[UnreadableFile],
        calibration: dict[str, Any] | None,
        step: Step,
    ) -> EvaluationUnit | None:
        """Inspect a class's test images. Return ``None`` if one of them cannot be read and must not be skipped."""
        own, samples, own_metrics = check_class_name(name), self.dataset.test(name), self._own_metrics(name)
        tally = Tally(
            self.dataset.root, self.mode, self.predictor.manifest, self.predictor.scoring, self.bit_depth, own_metrics
        )
        if self._needs_validation() and not self._validate(name, tally, faults, step):
            self._only_check([name], step)
            return None
        class_name = own if self.mode == "separate" else None
        predictions = self.predictor.inspect([s.path for s in samples], class_name)
        for index, (sample, outcome) in enumerate(zip(samples, predictions, strict=True)):
            try:
                if isinstance(outcome, ImageError):
                    raise outcome
                mask, truth = self._mask(sample), self._truth(sample, own_metrics)
                as_own = outcome
                if outcome.class_name != own:  # misrouted
                    (second,) = self.predictor.inspect([sample.path], own)
                    if isinstance(second, ImageError):
                        raise second
                    as_own = second
            except VisionADError as exc:
                faults.append(UnreadableFile(sample.path, "test", name, str(exc)))
                if not self.skip:
                    self.faults += faults
                    step()
                    self._only_check([name], step, done=index + 1)
                    return None
            else:
                tally.add(sample, outcome, as_own, mask, truth)
            step()
        return tally.unit(seed, name, supports, faults, calibration)

    def _validate(self, name: str, tally: Tally, faults: list[UnreadableFile], step: Step) -> bool:
        """Inspect a class's validation images. Return ``False`` if one of them cannot be read and must not be skipped."""
        paths, found = self.dataset.validation(name), len(faults)
        for path, outcome in zip(paths, self.predictor.inspect(paths, check_class_name(name)), strict=True):
            if isinstance(outcome, ImageError):
                faults.append(UnreadableFile(path, "validation", name, str(outcome)))
            else:
                tally.add_validation(outcome, *image_size(path))
            step()
        if len(faults) > found and not self.skip:
            self.faults += faults
            return False
        return True

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _is_mine(self, seed: int | None, name: str) -> bool:
        return self.shard.holds(int(self._key(seed, name), 16))

    def _key(self, seed: int | None, name: str) -> str:
        trains = self._trains if self.mode == "multi" else {name: self._trains[name]}
        return digest(
            {**self._base, "seed": seed, "mode": self.mode, "class": name, "train": trains, "test": self._tests[name]}
        )

    def _calibration_key(self, seed: int | None, name: str) -> str:
        return digest({**self._base, "seed": seed, "class": name, "calibration": self._trains[name]})


def _supports(dataset: Dataset, name: str, shots: int, seed: int | None) -> list[Path]:
    try:
        return sample_support_paths(dataset.train(name), shots, seed)
    except VisionADError as exc:
        raise VisionADError(f"class {name!r}: {exc}") from None
