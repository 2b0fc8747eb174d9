"""Scores of any good image against any choice of supports, from distances that are computed once.

The distance of a patch to a bank is the smallest of its distances to the supports. So with the distances of every good image to
every other one as its only support, 1000 random banks cost no further search. Distances come from a float32 product. The
runtime's search computes the nearest ones in float64, so scores differ in rounding.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np
from numpy.typing import NDArray
from visionad_runtime.bank.memory_bank import MemoryBank
from visionad_runtime.formats.roi import WHOLE_IMAGE
from visionad_runtime.images.decode import load
from visionad_runtime.preprocess import encoding_names, prepare, support_encodings
from visionad_runtime.scoring.anomaly_map import fuse, top_pixels, upsample
from visionad_runtime.scoring.score import score_distances
from visionad_runtime.scoring.spec import ScoringSpec
from visionad_runtime.tools.evaluation.datasets.registry import open_dataset

if TYPE_CHECKING:
    from visionad_runtime import Inspector

LAYOUTS = {"mvtec_bottle": "folder", "adfi_hazelnut": "folder", "magnetic_tile": "folder", "deeppcb": "deeppcb"}
MAX_IMAGES = 52
"""Good images of a class, drawn at random where there are more: 40 supports and 12 others."""

SPEC = ScoringSpec(views=("original",))
"""One view: an image takes 6 encodings instead of 14. What is promised does not depend on how images are scored."""

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class GoodParts:
    """Good images of one class.

    Attributes:
        name: data set, and its class where it has several.
        paths: the images, in order of name.
        pairs: float32 (N, N, V, P): distance of each patch of image ``i`` in each view to support ``j`` alone.
    """

    name: str
    paths: tuple[Path, ...]
    pairs: F32

    def score(self, image: int, supports: Sequence[int]) -> float:
        """Score an image against a bank of these supports."""
        return fast_score(self.pairs[image, supports].min(axis=0))

    def left_out(self, supports: Sequence[int]) -> list[float]:
        """Score each support against the others."""
        return [self.score(s, [other for other in supports if other != s]) for s in supports]


def fast_score(distances: F32) -> float:
    """Return ``score_distances(...).score`` but for rounding, in a third of the time. :func:`check_scores` compares them.

    Args:
        distances: float32 (V, P).
    """
    side = math.isqrt(distances.shape[1])
    fused = fuse({view: grid.reshape(side, side) for view, grid in zip(SPEC.views, distances, strict=True)})
    weights, count = upsampling(side), top_pixels(SPEC.top_fraction)
    anomaly_map = weights @ fused @ weights.T
    at_least = np.partition(anomaly_map[::2, ::2].ravel(), -count)[
        -count
    ]  # of fewer pixels, so no higher than the cutoff
    high = anomaly_map[anomaly_map >= at_least]
    return float(np.partition(high, -count)[-count:].mean(dtype=np.float64))


@cache
def upsampling(side: int) -> F32:
    """Return the weights of rows that ``upsample`` uses, float32 (256, side)."""
    one_row = np.eye(side, dtype=np.float32)
    return np.stack([upsample(np.repeat(row[:, None], side, axis=1))[:, 0] for row in one_row], axis=1)


def check_scores(parts: GoodParts) -> None:
    """Stop if :func:`fast_score` is not the runtime's score."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        image, *supports = rng.permutation(len(parts.paths))[: int(rng.integers(2, 12))]
        nearest = parts.pairs[image, supports].min(axis=0)
        exact = score_distances(dict(zip(SPEC.views, nearest, strict=True)), SPEC).score
        if abs(parts.score(image, supports) / exact - 1) > 1e-5:
            raise SystemExit(f"{parts.name}, image {image}: fast score {parts.score(image, supports)}, exact {exact}")


def good_images() -> dict[str, tuple[Path, ...]]:
    """Return the good images of every class of every shared set."""
    images = {}
    for name, layout in LAYOUTS.items():
        dataset = open_dataset(layout, common.shared() / "data" / name)
        for part in dataset.classes:
            good = sorted({*dataset.train(part), *(s.path for s in dataset.test(part) if s.label == 0)})
            if len(good) > MAX_IMAGES:
                drawn = np.random.default_rng(0).permutation(len(good))[:MAX_IMAGES]
                good = [good[i] for i in sorted(drawn)]
            images[name if len(dataset.classes) == 1 else f"{name}/{part}"] = tuple(good)
    return images


def encode(inspector: Inspector, rgb: NDArray[np.uint8]) -> MemoryBank:
    """Return a bank whose only support is this image."""
    blocks = encoding_names(SPEC.views)
    tokens = inspector.encode(support_encodings(prepare(rgb, inspector.manifest.identity.preprocess), blocks))
    return MemoryBank("", WHOLE_IMAGE, 1, blocks, tokens.patch[:, None])


def distances(queries: dict[Any, F32], bank: MemoryBank) -> F32:
    """Return the distance of each patch in each view to the nearest row, float32 (V, P)."""
    return np.stack([1 - (queries[view] @ bank.rows(view).T).max(axis=1) for view in SPEC.views])


def measure(name: str, paths: tuple[Path, ...], work: Path) -> GoodParts:
    """Encode the images and compare all pairs, or read the distances that an earlier run left in ``work``."""
    file = work / f"{name.replace('/', '-')}.npy"
    if file.exists():
        return GoodParts(name, paths, np.load(file, mmap_mode="r"))
    from visionad_runtime import Inspector

    with Inspector.open(work / "model", threads=1) as inspector:
        banks = [encode(inspector, load(path)) for path in paths]
    queries = [bank.unrotated(0, SPEC.views) for bank in banks]
    pairs = np.stack([np.stack([distances(query, bank) for bank in banks]) for query in queries])
    np.save(file.with_suffix(".part.npy"), pairs)
    file.with_suffix(".part.npy").replace(file)
    return GoodParts(name, paths, pairs)


@contextmanager
def arguments(description: str) -> Iterator[tuple[Path, int]]:
    """Read the command line, and yield a work folder with the exported model, and the number of processes."""
    from visionad_export.exporter import export_model

    options = argparse.ArgumentParser(description=description)
    options.add_argument("--work", type=Path, help="keep the model and the distances here for the next run")
    options.add_argument("--processes", type=int, default=os.cpu_count(), help="classes that are measured at a time")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "model").exists():
            weights = common.shared() / "weights" / common.BACKBONE / "model.safetensors"
            export_model(common.BACKBONE, work / "model", weights=weights)
        yield work, given.processes


def of_each_class(task: Callable[[GoodParts, Path], Any], work: Path, processes: int) -> list[Any]:
    """Return what ``task`` gives for each class, in the order of the classes. It runs in processes of its own."""
    images = good_images()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return list(pool.map(partial(_run, task, work), images, images.values()))


def _run(task: Callable[[GoodParts, Path], Any], work: Path, name: str, paths: tuple[Path, ...]) -> Any:
    parts = measure(name, paths, work)
    check_scores(parts)
    return task(parts, work)
