"""Changes of the method that could raise its accuracy, chosen on some sets and reported on others.

``python benchmarks/accuracy_changes.py [--work DIR]``. The evidence of ``docs/benchmarks.md``, "Changes that were tried".

Real images and weights (DeiT-Tiny, EfficientNet-Lite0), whole images, one view. Tokens are encoded once by the runtime's engine and
kept in the work folder, so a stopped run goes on and a variant costs a search. A few lines here do what the runtime does not:
position windows, groups of layers, a foreground weight, finer rotations, neighbor-consistent distances. Everything else is the
runtime's. Tiles of higher resolution are measured by ``tiles.py``.

The sets form two halves. A change is chosen on one half and judged on the other, and the other way round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np
from numpy.typing import NDArray
from patch_changes import Regions, around, aupro, border, foreground, windowed
from visionad_export.exporter import export_model
from visionad_runtime import Inspector
from visionad_runtime.images.decode import load
from visionad_runtime.preprocess import SQUARE, apply_pose, prepare
from visionad_runtime.scoring.anomaly_map import MAP_SIZE, image_score, upsample
from visionad_runtime.scoring.self_similarity import self_similarity_weight
from visionad_runtime.search import PrunedIndex, build_index, nearest
from visionad_runtime.teaching.sampling import sample_support
from visionad_runtime.tools.evaluation.datasets.base import Dataset, Sample
from visionad_runtime.tools.evaluation.datasets.masks import load_mask
from visionad_runtime.tools.evaluation.datasets.registry import open_dataset
from visionad_runtime.tools.evaluation.metrics import image_metrics

F32 = NDArray[np.float32]
HALVES = {"first": ("bottle", "boards"), "second": ("tile", "hazelnut")}
SETS = {
    "bottle": ("folder", "mvtec_bottle"),
    "boards": ("deeppcb", "deeppcb"),
    "tile": ("folder", "magnetic_tile"),
    "hazelnut": ("folder", "adfi_hazelnut"),
}
SIZES = {"deit_tiny_patch16_224": 448, "efficientnet_lite0": 288}
"""Sides of the image of the presets without a crop."""
LAYERS: dict[str, dict[str, tuple[int, ...] | None]] = {
    "deit_tiny_patch16_224": {"own": None, "early": (2, 3, 4, 5), "late": (6, 7, 8, 9)},
    "efficientnet_lite0": {"own": None, "early": (1, 2), "late": (2, 3)},
}
"""Exports by backbone: blocks or stages of each group of layers; ``None`` for the backbone's own."""
SHOTS = (1, 4)
SEEDS = (0, 1, 2)
UNITS = tuple((seed, shots) for shots in SHOTS for seed in SEEDS)
"""Seed and shots of the choices of supports, in the order in which they are measured."""
POSES = SQUARE[:6]
ANGLES = (45, 135, 225, 315)
"""Further rotations of a support in degrees; those of the method are multiples of 90."""
SHARE = 0.002
MAX_TEST = 20
"""Good test images of a set, and as many defects, evenly spaced by name and shared by its classes."""
FIGURES = ("image_auroc", "pixel_aupro")
TIMED = 7
"""Images that the cost is measured on."""


@dataclass(frozen=True)
class Variant:
    """A change to measure.

    Attributes:
        name: title in the tables.
        base: preset that it changes.
        groups: exports whose distances are summed.
        window: rows and columns by which the nearest patch of the upright support may be displaced; ``None`` for any of all poses.
        rotations: whether supports are also rotated by ``ANGLES``.
        foreground: whether distances are weighted by the distance to the supports' border patches.
        consistent: weight of the neighbors' distances to the neighbors of the nearest patch.
    """

    name: str
    base: str
    groups: tuple[str, ...] = ("own",)
    window: int | None = None
    rotations: bool = False
    foreground: bool = False
    consistent: float = 0.0


CHANGES: dict[str, dict[str, Any]] = {
    "unchanged": {},
    "position window, 1 patch": {"window": 1},
    "position window, 3 patches": {"window": 3},
    "early layers": {"groups": ("early",)},
    "late layers": {"groups": ("late",)},
    "early and late layers, summed": {"groups": ("early", "late")},
    "foreground weight": {"foreground": True},
    "rotations by 45 degrees": {"rotations": True},
    "neighbor-consistent, half": {"consistent": 0.5},
    "neighbor-consistent, whole": {"consistent": 1.0},
}
BASES = ("full-image", "full-image-weighted")
VARIANTS = tuple(Variant(name, base, **change) for base in BASES for name, change in CHANGES.items())


class Tokens:
    """Patch tokens of one class from one export, kept in files: test images (N, P, D), supports (poses, P, D)."""

    def __init__(self, model: Path, folder: Path, data: Dataset, name: str) -> None:
        self._model, self._folder, self._data, self._class = model, folder, data, name
        self._opened: Inspector | None = None
        self._indexes: dict[tuple[int, bool], F32 | PrunedIndex] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def queries(self) -> F32:
        """Return the test images' tokens."""
        paths = [sample.path for sample in some(self._data, self._class)]
        return self._kept(
            "test", lambda: [prepare(load(path), self._inspector().manifest.identity.preprocess) for path in paths]
        )

    def poses(self, index: int) -> F32:
        """Return a support's tokens in the method's six poses, in the order of ``POSES``."""
        return self._kept(f"support-{index}", lambda: [apply_pose(self._support(index, 0), pose) for pose in POSES])

    def rotations(self, index: int) -> F32:
        """Return a support's tokens rotated by ``ANGLES``."""
        return self._kept(f"rotated-{index}", lambda: [self._support(index, angle) for angle in ANGLES])

    def index(self, index: int, rotated: bool) -> F32 | PrunedIndex:
        """Return the search index of a support's six poses, or of its further rotations."""
        key = index, rotated
        if key not in self._indexes:
            rows = self.rotations(index) if rotated else self.poses(index)
            self._indexes[key] = build_index(
                np.ascontiguousarray(rows.reshape(-1, rows.shape[-1])), np.array(self.queries()[0]), 1
            )
        return self._indexes[key]

    def encoding_ms(self, path: Path) -> float:
        """Return the milliseconds of CPU time of one encoding of an image, with one thread."""
        image = prepare(load(path), self._inspector().manifest.identity.preprocess)[None]
        start = time.process_time()
        self._inspector().engine.encode(image)
        return (time.process_time() - start) * 1e3

    def close(self) -> None:
        """Close the engine."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _support(self, index: int, angle: int) -> F32:
        rgb = load(self._data.train(self._class)[index])
        if angle:
            height, width = rgb.shape[:2]
            turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
            rgb = np.asarray(cv2.warpAffine(rgb, turn, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)
        return prepare(rgb, self._inspector().manifest.identity.preprocess)

    def _inspector(self) -> Inspector:
        if self._opened is None:
            self._opened = Inspector.open(self._model, self._folder / "bank", backend="onnxruntime-cpu", threads=1)
        return self._opened

    def _kept(self, name: str, images: Callable[[], list[F32]]) -> F32:
        file = self._folder / f"{name}.npy"
        if not file.exists():
            engine = self._inspector().engine
            tokens = np.concatenate([engine.encode(np.ascontiguousarray(one[None])).patch for one in images()])
            part = file.with_suffix(".tmp")
            with part.open("wb") as stream:
                np.save(stream, tokens)
            part.replace(file)
        return np.asarray(np.load(file, mmap_mode="r"))


class Measured:
    """Distances and figures of one class under all variants."""

    def __init__(self, tokens: dict[str, Tokens], data: Dataset, name: str, size: int) -> None:
        self.tokens = tokens
        samples = some(data, name)
        self.labels = np.array([sample.label for sample in samples])
        self.regions: Regions | None = None
        if all(sample.has_mask for sample in samples):
            self.regions = Regions.of(np.stack([load_mask(sample, size, size, MAP_SIZE) for sample in samples]))
        self.side = int(tokens["own"].queries().shape[1] ** 0.5)
        self._memo: dict[tuple[Any, ...], Any] = {}

    def memo(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Return a result that is computed once."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def figures(self, variant: Variant, supports: Sequence[int]) -> dict[str, float | None]:
        """Return image AUROC and AUPRO of a variant with these supports."""
        grids = self.distances(variant, supports).reshape(-1, self.side, self.side)
        maps = np.stack([upsample(grid) for grid in grids])
        scores = [image_score(anomaly_map, SHARE) for anomaly_map in maps]
        return {
            "image_auroc": image_metrics(scores, self.labels).values["image_auroc"],
            "pixel_aupro": None if self.regions is None else aupro(maps, self.regions),
        }

    def distances(self, variant: Variant, supports: Sequence[int]) -> F32:
        """Return the patches' distances, float32 (N, P)."""
        parts = [self._group(variant, group, supports) for group in variant.groups]
        total = np.sum(parts, axis=0, dtype=np.float32)
        if variant.foreground:
            total = total * self._foreground(supports)
        if variant.base == "full-image-weighted":
            group = variant.groups[0] if len(variant.groups) == 1 else "own"
            total = total * self.memo(("weight", group), lambda: self._self_similarity(group))
        return np.ascontiguousarray(total, np.float32)

    def _self_similarity(self, group: str) -> F32:
        return np.stack([self_similarity_weight(patch, self.side, 1) for patch in self.tokens[group].queries()])

    def _group(self, variant: Variant, group: str, supports: Sequence[int]) -> F32:
        if variant.window is not None:
            return np.min([self._windowed(group, index, variant.window) for index in supports], axis=0)
        found = [self._nearest(group, index) for index in supports]
        distances = np.stack([one[0] for one in found])
        if variant.rotations:
            turned = [self.memo(("turned", group, i), lambda i=i: self._turned(group, i)) for i in supports]
            return np.minimum(distances.min(axis=0), np.min(turned, axis=0))
        if not variant.consistent:
            return distances.min(axis=0)
        best = distances.argmin(axis=0)
        own = np.take_along_axis(distances, best[None], axis=0)[0]
        around = np.stack([self.memo(("around", group, i), lambda i=i: self._around(group, i)) for i in supports])
        near = np.take_along_axis(around, best[None], axis=0)[0]
        return (1 - variant.consistent) * own + variant.consistent * near

    def _nearest(self, group: str, support: int) -> tuple[F32, NDArray[np.int64]]:
        """Return distance and row of each patch's nearest of the six poses of one support."""

        def compute() -> tuple[F32, NDArray[np.int64]]:
            index = self.tokens[group].index(support, rotated=False)
            found = [nearest(q, index, threads=1) for q in self.tokens[group].queries()]
            return np.stack([one.distance for one in found]), np.stack([one.row for one in found])

        result: tuple[F32, NDArray[np.int64]] = self.memo(("nearest", group, support), compute)
        return result

    def _turned(self, group: str, index: int) -> F32:
        flat = self.tokens[group].index(index, rotated=True)
        return np.stack([nearest(q, flat, threads=1).distance for q in self.tokens[group].queries()])

    def _windowed(self, group: str, index: int, reach: int) -> F32:
        """Return the distances to the patches of the upright support at most ``reach`` rows and columns away."""

        def compute() -> F32:
            upright = self.tokens[group].poses(index)[POSES.index("e")]
            return np.stack([windowed(q, upright, self.side, reach) for q in self.tokens[group].queries()])

        result: F32 = self.memo(("window", group, index, reach), compute)
        return result

    def _around(self, group: str, index: int) -> F32:
        queries, rows = self.tokens[group].queries(), self.tokens[group].poses(index)
        return np.stack(
            [around(q, rows, row, self.side) for q, row in zip(queries, self._nearest(group, index)[1], strict=True)]
        )

    def _foreground(self, supports: Sequence[int]) -> F32:
        def compute() -> F32:
            edge = border(self.side)
            rows = np.concatenate([self.tokens["own"].poses(i)[POSES.index("e")][edge] for i in supports])
            return np.stack([foreground(q, rows) for q in self.tokens["own"].queries()])

        result: F32 = self.memo(("foreground", tuple(supports)), compute)
        return result


def open_sets() -> dict[str, Dataset]:
    """Return the sets by name, with one class each."""
    sets = {name: open_dataset(layout, common.shared() / "data" / place) for name, (layout, place) in SETS.items()}
    first = sets["boards"].classes[0]  # the groups are alike
    return sets | {"boards": replace(sets["boards"], by_class={first: sets["boards"].by_class[first]})}


def some(data: Dataset, name: str, most: int = MAX_TEST) -> list[Sample]:
    """Return a class's test images that are measured: of good images and of defects ``most``, shared by the set's classes."""
    chosen = []
    for label in (0, 1):
        samples = [sample for sample in data.test(name) if sample.label == label]
        count = min(len(samples), -(-most // len(data.classes)))
        chosen += [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]
    return chosen


def export_groups(backbone: str, folder: Path) -> dict[str, Path]:
    """Export a backbone with each group of layers."""
    weights = common.shared() / "weights" / backbone / "model.safetensors"
    options: dict[str, Any] = {"weights": weights} if weights.is_file() else {}
    models = {}
    for group, layers in LAYERS[backbone].items():
        models[group] = folder / group
        if not models[group].exists():
            folder.mkdir(parents=True, exist_ok=True)
            size = {"resize": SIZES[backbone], "crop": SIZES[backbone]}
            export_model(backbone, models[group], **options, **size, **({} if layers is None else {"layers": layers}))
    return models


def measure(
    backbone: str,
    models: dict[str, Path],
    name: str,
    data: Dataset,
    work: Path,
    units: Sequence[tuple[int, int]],
    until: float,
) -> list[dict[str, Any]]:
    """Return the rows of one backbone on one set: means over the set's classes by variant, shots and seed."""
    per: dict[tuple[Any, ...], list[dict[str, float | None]]] = defaultdict(list)
    for part in data.classes:
        tokens = {
            group: Tokens(model, work / backbone / group / name / part, data, part) for group, model in models.items()
        }
        file = work / f"{backbone}-{name}-{part}.json"
        found = json.loads(file.read_text()) if file.exists() else []
        missing = [unit for unit in units if unit not in {(row[3], row[2]) for row in found}]
        train = len(data.train(part))
        if missing:
            encode(tokens, sorted({i for seed, shots in units for i in sample_support(train, shots, seed)}), until)
            measured = Measured(tokens, data, part, SIZES[backbone])
        for seed, shots in missing:
            supports = sample_support(train, shots, seed)
            found += [
                [variant.base, variant.name, shots, seed, measured.figures(variant, supports)] for variant in VARIANTS
            ]
            file.write_text(json.dumps(found))
            if time.monotonic() > until:
                raise SystemExit("out of time; run again to go on")
        for *key, figures in (row for row in found if (row[3], row[2]) in units):
            per[tuple(key)].append(figures)
    return [
        {
            "backbone": backbone, "set": name, "base": base, "change": change, "shots": shots, "seed": seed,
            **{figure: mean([row[figure] for row in rows]) for figure in FIGURES},
        }
        for (base, change, shots, seed), rows in per.items()
    ]  # fmt: skip


def encode(tokens: dict[str, Tokens], supports: Sequence[int], until: float) -> None:
    """Encode all that the variants need."""
    for group, one in tokens.items():
        one.queries()
        for index in supports:
            one.poses(index)
            if group == "own":
                one.rotations(index)
            if time.monotonic() > until:
                one.close()
                raise SystemExit("out of time; run again to go on")
        one.close()


def cost(backbone: str, models: dict[str, Path], data: Dataset, work: Path) -> list[dict[str, Any]]:
    """Return each variant's CPU time an image in milliseconds, and over its base's: encoding, search, weights; medians, in turn."""
    (part,) = data.classes
    tokens = {
        group: Tokens(model, work / backbone / group / "bottle" / part, data, part) for group, model in models.items()
    }
    paths = [sample.path for sample in some(data, part)][:TIMED]
    times = {group: statistics.median(one.encoding_ms(path) for path in paths) for group, one in tokens.items()}

    times["late"] = times["own"]  # both end with the same layer
    for one in tokens.values():
        one.close()
    rows = []
    for shots in SHOTS:
        supports = sample_support(len(data.train(part)), shots, SEEDS[0])
        spent: dict[Variant, list[float]] = defaultdict(list)
        for number in range(TIMED):
            for variant in VARIANTS:
                single = _Single(tokens, number)
                encoding = max(times[group] for group in variant.groups)  # one pass yields all groups
                start = time.process_time()
                single.distances(variant, supports)
                spent[variant].append(encoding + (time.process_time() - start - single.loading) * 1e3)
        medians = {variant: statistics.median(values) for variant, values in spent.items()}
        for variant, value in medians.items():
            (base,) = (v for v in VARIANTS if v.base == variant.base and v.name == "unchanged")
            rows.append(
                {
                    "backbone": backbone, "base": variant.base, "change": variant.name, "shots": shots, "ms": round(value, 2),
                    "ratio": round(value / medians[base], 3),
                }
            )  # fmt: skip
    return rows


class _Single(Measured):
    """One image, nothing remembered between variants. The seconds that files take to read are counted apart."""

    def __init__(self, tokens: dict[str, Tokens], number: int) -> None:
        self.tokens = {group: _One(one, number) for group, one in tokens.items()}  # type: ignore[misc]
        self._memo = {}
        self.side = int(self.tokens["own"].queries().shape[1] ** 0.5)

    @property
    def loading(self) -> float:
        return sum(one.seconds for one in self.tokens.values())  # type: ignore[attr-defined]


class _One:
    def __init__(self, inner: Tokens, number: int) -> None:
        self._inner, self._number, self.seconds = inner, number, 0.0

    def _timed(self, read: Callable[[], Any]) -> Any:
        start = time.process_time()
        tokens = read()
        self.seconds += time.process_time() - start
        return tokens

    def queries(self) -> F32:
        tokens = self._inner.queries()[self._number : self._number + 1]
        return np.asarray(self._timed(lambda: np.ascontiguousarray(tokens)))

    def poses(self, index: int) -> F32:
        return np.asarray(self._timed(lambda: np.array(self._inner.poses(index))))

    def index(self, index: int, rotated: bool) -> F32 | PrunedIndex:
        built: F32 | PrunedIndex = self._timed(lambda: self._inner.index(index, rotated))
        return built


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or ``None`` if a value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def main() -> None:
    """Measure, write ``benchmarks/results/accuracy_changes.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--work", type=Path, help="keep tokens and finished classes here, to go on later")
    options.add_argument("--minutes", type=float, default=1e6, help="stop after about this time; run again to go on")
    options.add_argument("--backbone", choices=SIZES, help="measure this one into --work, and write no result")
    options.add_argument(
        "--set", choices=SETS, action="append", help="with --backbone: measure these only, in this order"
    )
    options.add_argument(
        "--units",
        type=int,
        default=len(UNITS),
        help="choices of supports: 3 with 1 shot, then 3 with 4",
    )
    args = options.parse_args()
    until = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = args.work or Path(temporary)
        rows, costs = [], []
        for backbone in [args.backbone] if args.backbone else SIZES:
            models = export_groups(backbone, work / f"models-{backbone}")
            sets = open_sets()
            for name in (args.backbone and args.set) or sets:
                start = time.perf_counter()
                rows += measure(backbone, models, name, sets[name], work, UNITS[: args.units], until)
                print(f"{backbone} {name}: {time.perf_counter() - start:.0f} s", flush=True)
            if not args.backbone:
                costs += cost(backbone, models, sets["bottle"], work)
    if args.backbone:
        return
    result = {"halves": HALVES, "units": UNITS[: args.units], "images": MAX_TEST, "rows": rows, "cost": costs}
    print(f"written to {common.write('accuracy_changes', result).relative_to(common.ROOT)}")


if __name__ == "__main__":
    main()
