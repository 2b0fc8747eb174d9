"""What a change of light, focus or place does to a calibrated class: ``python benchmarks/robustness.py [--work DIR]``.

The evidence of ``docs/benchmarks.md``, "Changed light, focus and place". Real images and weights (DeiT-Tiny, EfficientNet-Lite0),
the runtime's inspector. A class has four supports and a threshold from up to 19 other good images, all as they are. Then unseen
good and defective images are inspected, unchanged and under each change of ``image_changes.py``. A station's check of light and
focus looks at each of them too.

Each finished unit (backbone, preset, set and seed) stays in the work folder, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import common
from accuracy_changes import SETS, open_sets, some
from image_changes import CHANGES
from visionad_export.config import ExportConfig
from visionad_export.exporter import export_model
from visionad_runtime import Inspector
from visionad_runtime.images.decode import load
from visionad_runtime.station.worker.checks import LightLimits, image_statistics
from visionad_runtime.teaching.calibrate import calibrate_class
from visionad_runtime.teaching.sampling import sample_support
from visionad_runtime.tools.evaluation.metrics import image_metrics

BACKBONES = ("deit_tiny_patch16_224", "efficientnet_lite0")
PRESETS = ("paper", "full-image")
SHOTS, NORMALS, SEEDS = 4, 19, (0, 1)
"""Supports, the good images that set the threshold where a set has so many more, and choices of both."""
MAX_TEST = 10
"""Good test images of a set, and as many defects, evenly spaced by name."""
PART = "part"


class Unit(NamedTuple):
    """What is measured at a time."""

    backbone: str
    preset: str
    set: str
    seed: int

    @property
    def file(self) -> str:
        """Name of its file in the work folder."""
        return f"{'-'.join(map(str, self))}.json"


def export(backbone: str, preset: str, folder: Path) -> Path:
    """Export a backbone with a preset, unless an earlier run has."""
    model = folder / f"model-{backbone}-{preset}"
    if not model.exists():
        file = common.shared() / "weights" / backbone / "model.safetensors"
        settings = ExportConfig(backbone=backbone, preset=preset).resolved().arguments()
        # EfficientNet-Lite0's weights come with a package of the extra `export`
        export_model(backbone, model, **settings, **({"weights": file} if file.is_file() else {}))
    return model


def measure(unit: Unit, work: Path, until: float) -> list[dict[str, Any]] | None:
    """Return a unit's rows, one a change; ``None`` if it is neither finished nor begun before ``until``, of ``time.time()``."""
    file = work / unit.file
    if file.exists():
        rows: list[dict[str, Any]] = json.loads(file.read_text())
        return rows
    if time.time() > until:
        return None
    data = open_sets()[unit.set]
    (part,) = data.classes
    train = data.train(part)
    chosen = [train[i] for i in sample_support(len(train), min(len(train), SHOTS + NORMALS), unit.seed)]
    supports, normals = chosen[:SHOTS], chosen[SHOTS:]
    limits = LightLimits([image_statistics(load(path)) for path in supports])
    images = [(load(sample.path), sample.label) for sample in some(data, part, MAX_TEST)]
    start, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        model = export(unit.backbone, unit.preset, work)
        with Inspector.open(model, Path(folder) / "bank", backend="onnxruntime-cpu", threads=1) as inspector:
            inspector.enroll_files(PART, supports, calibrate=False)
            promise = calibrate_class(inspector, PART, normals, review_rate=0).record
            for change, changed in CHANGES.items():
                seen = [(changed(rgb), label) for rgb, label in images]
                results = [inspector.inspect(rgb, class_name=PART, color="rgb") for rgb, _ in seen]
                alarms = [limits.problem(image_statistics(rgb)) is not None for rgb, _ in seen]
                rows.append({
                    **unit._asdict(), "change": change, "normals": promise.normals,
                    "promised": promise.guaranteed_false_reject,
                    **figures([r.score for r in results], [r.verdict == "anomalous" for r in results], alarms,
                              [label for _, label in seen]),
                })  # fmt: skip
    print(f"{', '.join(map(str, unit))}: {time.perf_counter() - start:.0f} s", flush=True)
    part_file = file.with_suffix(".part")
    part_file.write_text(json.dumps(rows))
    part_file.replace(file)
    return rows


def figures(
    scores: Sequence[float], anomalous: Sequence[bool], alarms: Sequence[bool], labels: Sequence[int]
) -> dict[str, Any]:
    """Return what a user sees of inspected images: counts, and the image AUROC.

    Args:
        scores: of each image.
        anomalous: whether its verdict is that.
        alarms: whether the check of light and focus raises its alarm; those of good images are counted.
        labels: 0 for good images, 1 for defects.
    """
    kinds = Counter(labels)
    rejected = Counter(label for label, out in zip(labels, anomalous, strict=True) if out)
    alarmed = Counter(label for label, alarm in zip(labels, alarms, strict=True) if alarm)
    return {
        "good": kinds[0],
        "false rejects": rejected[0],
        "light alarms": alarmed[0],
        "defects": kinds[1],
        "caught": rejected[1],
        "image_auroc": image_metrics(scores, labels).values["image_auroc"],
    }


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/robustness.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--work", type=Path, help="keep models and finished units here, to go on later")
    options.add_argument("--minutes", type=float, default=1e6, help="begin no unit after this time; run again to go on")
    options.add_argument("--processes", type=int, default=os.cpu_count(), help="units that are measured at a time")
    options.add_argument("--seeds", type=int, default=len(SEEDS), help="choices of supports and good images")
    args = options.parse_args()
    seeds = SEEDS[: args.seeds]
    until = time.time() + 60 * args.minutes
    units = [Unit(backbone, *one, seed) for seed, backbone, *one in product(seeds, BACKBONES, PRESETS, SETS)]
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for backbone, preset in product(BACKBONES, PRESETS):
            export(backbone, preset, work)
        with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
            found = list(pool.map(partial(measure, work=work, until=until), units))
    missing = sum(rows is None for rows in found)
    if missing:
        raise SystemExit(f"out of time: {missing} of {len(units)} units are left; run again to go on")
    rows = [row for rows in found for row in rows or ()]
    for row in rows:
        print(
            ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    facts = {"shots": SHOTS, "seeds": seeds, "images": MAX_TEST, "changes": list(CHANGES), "rows": rows}
    print(f"written to {common.write('robustness', facts).relative_to(common.ROOT)}")


if __name__ == "__main__":
    main()
