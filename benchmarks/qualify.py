"""Detection limits from painted defects against real defects with masks: ``python benchmarks/qualify.py``.

Real images and DeiT-Tiny with real weights, preset ``full-image``. Four supports and up to twenty held-out good images set the
threshold. The other good images are what defects are painted on. Each set's rows are written when it is done, so a stopped run
keeps what it has measured; ``--work`` keeps scores too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from visionad_export.config import ExportConfig
from visionad_export.exporter import export_model
from visionad_runtime import Inspector
from visionad_runtime.teaching.calibrate import calibrate_class
from visionad_runtime.tools.evaluation.datasets.registry import open_dataset
from visionad_runtime.tools.qualification.inputs import Inputs, Labeled, read_inputs
from visionad_runtime.tools.qualification.qualify import Settings, qualify

SETS = ("mvtec_bottle", "magnetic_tile")
PRESET, SHOTS, CALIBRATION = "full-image", 4, 20


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/qualify.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, action="append", help="[default: both]")
    parser.add_argument("--defects", type=int, default=600)
    parser.add_argument("--work", type=Path, help="keep the model, the banks and the scores here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        model = work / "model"
        if not model.exists():
            weights = common.shared() / "weights" / common.BACKBONE / "model.safetensors"
            settings = ExportConfig(backbone=common.BACKBONE, preset=PRESET, weights=weights).resolved()
            export_model(common.BACKBONE, model, **settings.arguments())
        for name in arguments.set or SETS:
            add(measure(name, model, work / name, arguments.defects))


def measure(name: str, model: Path, work: Path, defects: int) -> dict[str, Any]:
    """Qualify one set, and return what its report says of detection."""
    start, root = time.perf_counter(), common.shared() / "data" / name
    work.mkdir(parents=True, exist_ok=True)
    data = open_dataset("folder", root)
    train = sorted(data.train(data.classes[0]))
    found = read_inputs(root / "test" / "good", root / "test", masks=root / "ground_truth")
    good = [found.good[i] for i in np.random.default_rng(0).permutation(len(found.good))]
    held_out = [*train[SHOTS:], *(one.path for one in good)][:CALIBRATION]
    used = set(held_out)
    fresh: tuple[Labeled, ...] = tuple(one for one in good if one.path not in used)
    inputs = Inputs(fresh, found.bad, masks=found.masks)
    with Inspector.open(model, work / "bank") as inspector:
        assert inspector.bank is not None
        if "part" not in inspector.bank.classes:
            inspector.enroll_files("part", train[:SHOTS])
            calibrate_class(inspector, "part", held_out)
        settings = Settings(model, work / "bank", "part", defects=defects, calls=20, starts=0)
        report = qualify(inspector, settings, inputs, work)
    kinds = {
        kind: {key: row[key] for key in ("defects", "found", "limits", "levels")}
        for kind, row in report["detection_limit"]["kinds"].items()
    }
    real = {key: value for key, value in report["real_defects"].items() if key != "rows"}
    return {
        "set": name,
        "seconds": round(time.perf_counter() - start),
        "promise": report["promise"],
        "false_rejects": report["false_rejects"]["all"],
        "misses": report["misses"]["all"],
        "sizes": report["detection_limit"]["sizes"],
        "painted": report["detection_limit"]["defects"],
        "note": report["detection_limit"]["note"],
        "kinds": kinds,
        "real": real,
    }


def add(row: dict[str, Any]) -> None:
    """Print a set's rows, and write them to the result file in place of older ones."""
    for kind, one in row["kinds"].items():
        at = one["limits"][-1]
        print(
            f"{row['set']:14} {kind:16} found {one['found']} of {one['defects']}, a90 {at['a90']}, a90/95 {at['a90_95']}"
        )
    for kind, one in row["real"]["types"].items():
        print(
            f"{row['set']:14} {kind:16} predicted {one['predicted']:.2f}, found {one['found']['rate']:.2f} {one['agrees']}"
        )
    stored = common.RESULTS / "qualify.json"
    known = json.loads(stored.read_text())["rows"] if stored.exists() else []
    rows = sorted([*(r for r in known if r["set"] != row["set"]), row], key=lambda r: SETS.index(r["set"]))
    print(
        f"written to {common.write('qualify', {'preset': PRESET, 'shots': SHOTS, 'rows': rows}).relative_to(common.ROOT)}"
    )


if __name__ == "__main__":
    main()
