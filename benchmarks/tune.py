"""What ``visionad tune`` recommends, against the preset ``paper`` on images that did not choose: ``python benchmarks/tune.py``.

Real images and DeiT-Tiny with real weights. Test images that ``tune`` did not use are then scored with the recommendation and with
the best set-up of ``paper``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
from visionad_export.config import ExportConfig
from visionad_export.exporter import export_model
from visionad_runtime.tools.qualification.choice import Measured
from visionad_runtime.tools.qualification.inputs import read_inputs
from visionad_runtime.tools.qualification.tune import PRESETS, Choices, Images, choose_images, tune

SETS = ("mvtec_bottle", "magnetic_tile")
SHOTS = (1, 4)
MAX_UNSEEN = 16
"""Good images, and as many bad ones, that the recommendation is checked on."""


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/tune.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, action="append", help="[default: both]")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--work", type=Path, help="keep the models and what was measured here")
    parser.add_argument("--backend", action="append", help="[default: onnxruntime-cpu]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = arguments.work or Path(temporary)
        models = {}
        for preset in PRESETS[:2]:  # the third has the size of the second
            weights = common.shared() / "weights" / common.BACKBONE / "model.safetensors"
            settings = ExportConfig(backbone=common.BACKBONE, preset=preset, weights=weights).resolved()
            models[f"deit-tiny-{settings.crop}"] = work / f"model-{settings.crop}"
            if not (work / f"model-{settings.crop}").exists():
                work.mkdir(parents=True, exist_ok=True)
                export_model(common.BACKBONE, work / f"model-{settings.crop}", **settings.arguments())
        for name in arguments.set or SETS:
            backends = arguments.backend or ["onnxruntime-cpu"]
            add(measure(name, models, work / name, backends, arguments.images))


def measure(name: str, models: dict[str, Path], work: Path, backends: list[str], images: int) -> dict[str, Any]:
    """Tune one set."""
    root = common.shared() / "data" / name
    train = read_inputs(root / "train" / "good")
    test = read_inputs(root / "test" / "good", root / "test")
    choices = Choices(models, backends=backends, shots=SHOTS, max_images=images)
    chosen = choose_images(train.good, test.good, test.bad, choices)

    def step(done: int, total: int, measured: Measured, _: float) -> None:
        print(f"{name} {done} of {total}: {measured.candidate.name()}: {measured.status} {measured.auroc}", flush=True)

    start, spent = time.perf_counter(), work / "seconds"  # a stopped run adds to what it took before
    report = tune(choices, chosen, work, step)
    seconds = (float(spent.read_text()) if spent.exists() else 0.0) + time.perf_counter() - start
    spent.write_text(str(seconds))
    seen = {one.sha256 for one in (*chosen.good, *chosen.bad)}
    rng = np.random.default_rng(0)
    unseen = []
    for files in (test.good, test.bad):
        others = [one for one in files if one.sha256 not in seen]
        unseen.append([others[i] for i in rng.permutation(len(others))][:MAX_UNSEEN])
    fresh = Images(chosen.supports, *unseen, chosen.shape)
    for kind in ("recommended", "paper"):
        one = report[kind]["candidate"]
        again = replace(
            choices, models={one["model"]: models[one["model"]]}, presets=[one["preset"]], shots=[one["shots"]], tiles=False
        )  # fmt: skip
        (scored,) = tune(again, fresh, work / kind, step)["rows"]
        report[kind] |= {"unseen_auroc": scored["auroc"], "unseen": [len(files) for files in unseen]}
    keys = ("images", "recommended", "paper", "sentence", "pareto", "notes", "rows")
    rows = [{key: value for key, value in row.items() if key != "candidate"} for row in report["rows"]]
    for row in (report["recommended"], report["paper"]):
        row["candidate"]["folder"] = ""
    return {
        "set": name,
        "seconds": round(seconds),
        **{key: report[key] for key in keys},
        "rows": rows,
    }


def add(row: dict[str, Any]) -> None:
    """Print a set's recommendation, and write its rows to the result file in place of older ones."""
    print(f"{row['set']}: {row['seconds']} s: {row['sentence']}")
    stored = common.RESULTS / "tune.json"
    known = json.loads(stored.read_text())["rows"] if stored.exists() else []
    rows = sorted([*(r for r in known if r["set"] != row["set"]), row], key=lambda r: SETS.index(r["set"]))
    print(f"written to {common.write('tune', {'backbone': common.BACKBONE, 'rows': rows}).relative_to(common.ROOT)}")


if __name__ == "__main__":
    main()
