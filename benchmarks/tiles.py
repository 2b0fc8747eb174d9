"""Tiles against whole images: `python benchmarks/tiles.py`. The evidence of `docs/guides/roi.md`.

Real images, real weights (DeiT-Tiny, EfficientNet-Lite0), preset `full-image`. Each test image is encoded once whole and once in
tiles by its aspect ratio: 2 x 2 for square images, 3 x 1 for tall and 1 x 3 for wide ones. The set `tile` has images of all three
kinds, so its tall and its wide ones are sets of their own here. Test images are a subsample, evenly spaced by name, half of them
good if there are as many. Images of a set that differ in size are first resized to the set's median size, because a ROI is drawn on
one size.

For each layout: image AUROC with four supports, and the mean over those four as the only one; and what leave-one-out scores of the
four say without any defect: their spread, standard deviation over mean.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import common
import cv2
import numpy as np
from numpy.typing import NDArray
from visionad_export.exporter import export_model
from visionad_runtime import Inspector
from visionad_runtime.bank.memory_bank import MemoryBank
from visionad_runtime.formats.roi import Roi, RoiSpec
from visionad_runtime.images.decode import load
from visionad_runtime.pipeline.leave_one_out import leave_one_out, search_rows
from visionad_runtime.scoring.score import score_tokens
from visionad_runtime.scoring.spec import ScoringSpec
from visionad_runtime.teaching.sampling import sample_support_paths
from visionad_runtime.tools.evaluation.datasets.base import Dataset
from visionad_runtime.tools.evaluation.datasets.registry import open_dataset
from visionad_runtime.tools.evaluation.metrics import image_metrics

BACKBONES = ("deit_tiny_patch16_224", "efficientnet_lite0")
SIZES = {"deit_tiny_patch16_224": 448, "efficientnet_lite0": 288}
"""Sides of the preset's image."""
SETS = {
    "tile, tall": ("folder", "magnetic_tile"),
    "tile, wide": ("folder", "magnetic_tile"),
    "boards": ("deeppcb", "deeppcb"),
    "hazelnut": ("folder", "adfi_hazelnut"),
}
"""The bottles are left out: whole images have an image AUROC of 1 on them (``presets.json``)."""
ELONGATED = 1.25
"""Ratio of the sides above which an image is tall or wide."""
PRESET, SHOTS, SEED = "full-image", 4, 0
Image = NDArray[np.uint8]


def kind_of(image: Image) -> str:
    """Return ``tall``, ``wide`` or ``square``."""
    height, width = image.shape[:2]
    return "tall" if height > ELONGATED * width else "wide" if width > ELONGATED * height else "square"


def layouts(kind: str) -> dict[str, tuple[int, int]]:
    """Return the layouts to measure: name → rows and columns."""
    tiles = {"square": (2, 2), "tall": (3, 1), "wide": (1, 3)}[kind]
    return {"whole": (1, 1), f"{tiles[0]}x{tiles[1]}": tiles}


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/tiles.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="test images of a set")
    parser.add_argument("--backbone", choices=BACKBONES, action="append", help="[default: both]")
    parser.add_argument("--set", choices=tuple(SETS), action="append", help="[default: all]")
    arguments = parser.parse_args()
    weights, start = common.shared() / "weights", time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for backbone in arguments.backbone or BACKBONES:
            model, size = Path(folder) / backbone, SIZES[backbone]
            # EfficientNet-Lite0's weights come with a package of the extra `export`.
            file = weights / backbone / "model.safetensors"
            scoring = ScoringSpec(views=("original",), top_fraction=0.002)
            export_model(
                backbone, model, weights=file if file.is_file() else None, resize=size, crop=size, scoring=scoring
            )
            for name in arguments.set or SETS:
                kind, place = SETS[name]
                data = open_dataset(kind, common.shared() / "data" / place)
                labels = {"backbone": backbone, "set": name}
                add(measure(model, Path(folder), data, data.classes[0], labels, arguments.images), arguments.images)
    print(f"{time.perf_counter() - start:.0f} s")


def add(rows: list[dict[str, Any]], images: int) -> None:
    """Write the rows of a set to the result file, in place of older ones. So a run that is stopped keeps what it measured."""
    stored = common.RESULTS / "tiles.json"
    known = json.loads(stored.read_text())["rows"] if stored.exists() else []
    new = {(row["backbone"], row["set"]) for row in rows}
    rows = [*(row for row in known if (row["backbone"], row["set"]) not in new), *rows]
    rows.sort(key=lambda row: (BACKBONES.index(row["backbone"]), list(SETS).index(row["set"])))
    facts = {"preset": PRESET, "shots": SHOTS, "seed": SEED, "images": images, "rows": rows, "advice": advice(rows)}
    print(f"written to {common.write('tiles', facts).relative_to(common.ROOT)}", flush=True)


def measure(
    model: Path, folder: Path, data: Dataset, part: str, labels: dict[str, Any], count: int
) -> list[dict[str, Any]]:
    """Measure all layouts of a set."""
    wanted = labels["set"].rpartition(", ")[2]
    train = [p for p in data.train(part) if wanted not in ("tall", "wide") or kind_of(load(p)) == wanted]
    test = [s for s in data.test(part) if wanted not in ("tall", "wide") or kind_of(load(s.path)) == wanted]
    samples = [
        group[i]
        for label in (0, 1)
        if (group := [s for s in test if s.label == label])
        for i in np.unique(np.linspace(0, len(group) - 1, min(len(group), count // 2)).round().astype(int))
    ]
    supports = [load(path) for path in sample_support_paths(train, SHOTS, SEED)]
    tests = [load(s.path) for s in samples]
    width, height = (int(np.median([image.shape[i] for image in (*supports, *tests)])) for i in (1, 0))
    supports, tests = ([resized(image, width, height) for image in images] for images in (supports, tests))
    truth = np.array([s.label for s in samples])
    rows = []
    for name, grid in layouts(kind_of(tests[0])).items():
        spec = RoiSpec(image_size=(width, height), rois=(Roi(name="all", box=(0, 0, width, height), grid=grid),))
        with Inspector.open(model, folder / f"{labels['backbone']}-{labels['set']}-{name}") as inspector:
            inspector.enroll("x", supports, color="rgb", roi=spec)
            assert inspector.bank is not None
            bank = inspector.bank.classes["x"]
            four, single = [], []
            for image in tests:
                ((result, trace),) = inspector.trace_batch([image], "x")
                assert trace is not None
                four.append(result.score)
                single.append([one_shot(inspector, bank.rois[0], k, trace.tiles) for k in range(SHOTS)])
            scores = np.array([s.score for s in leave_one_out(bank, inspector.scoring)])
        rows.append({
            **labels, "width": width, "height": height, "good": int((truth == 0).sum()), "defects": int(truth.sum()),
            "layout": name,
            "auroc 4 shots": auroc(np.array(four), truth),
            "auroc 1 shot": mean(auroc(column, truth) for column in np.array(single).T),
            "leave-one-out mean": float(scores.mean()), "leave-one-out spread": float(scores.std(ddof=1) / scores.mean()),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def one_shot(inspector: Inspector, bank: MemoryBank, support: int, tiles: Any) -> float:
    """Return the score of an image against one support: that of its worst tile."""
    first = support * bank.tiles
    alone = MemoryBank(bank.name, bank.roi, bank.tiles, bank.blocks, bank.features[:, first : first + bank.tiles])
    search = search_rows(alone)
    return max(
        score_tokens(
            dict(zip(inspector.views, tile.tokens.patch, strict=True)), search, inspector.scoring
        ).score
        for tile in tiles
    )  # fmt: skip


def resized(image: Image, width: int, height: int) -> Image:
    """Return an image in another size."""
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def auroc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the image AUROC."""
    value = image_metrics(scores.tolist(), labels.tolist()).values["image_auroc"]
    assert value is not None
    return value


def advice(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what happens if the layout with the smallest spread of leave-one-out scores is taken instead of the whole image."""
    gains, regrets = [], []
    for backbone in BACKBONES:
        for name in SETS:
            group = [r for r in rows if (r["backbone"], r["set"]) == (backbone, name)]
            if not group:
                continue
            advised = min(group, key=lambda r: r["leave-one-out spread"])
            gains.append(advised["auroc 4 shots"] - group[0]["auroc 4 shots"])
            regrets.append(max(r["auroc 4 shots"] for r in group) - advised["auroc 4 shots"])
    return {
        "cases": len(gains),
        "better than whole": sum(g > 0.005 for g in gains),
        "worse than whole": sum(g < -0.005 for g in gains),
        "mean gain": mean(gains),
        "mean below best": mean(regrets),
    }


if __name__ == "__main__":
    main()
