"""What ``visionad tune`` recommends, against the preset ``paper`` on images that did not choose: ``python benchmarks/tune.py``.

Real images, DeiT-Tiny and EfficientNet-Lite0 with real weights; all presets, numbers of shots and backends that ``visionad tune``
tries by default. Images that ``tune`` did not use are then scored with the recommendation and with the best set-up of ``paper``.
"""

from __future__ import annotations

import argparse
import json
import os
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
BACKBONES = ("deit_tiny_patch16_224", "efficientnet_lite0")
MAX_UNSEEN = 24
"""Good images, and as many bad ones, that the recommendation is checked on."""


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/tune.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, action="append", help="[default: both]")
    parser.add_argument(
        "--images", type=int, default=16, help="fewer than `visionad tune` takes, so that some are left to check on"
    )
    parser.add_argument("--work", type=Path, help="keep the models and what was measured here")
    parser.add_argument("--backend", action="append", help="[default: those that run here]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = arguments.work or Path(temporary)
        models = {}
        for backbone in BACKBONES:
            weights = common.shared() / "weights" / backbone / "model.safetensors"
            for preset in PRESETS[:2]:  # the third has the size of the second
                settings = ExportConfig(
                    backbone=backbone, preset=preset, weights=weights if weights.exists() else None
                ).resolved()
                name = f"{common.SHORT[backbone]}-{settings.crop}"
                models[name] = work / f"model-{name}"
                if not models[name].exists():
                    work.mkdir(parents=True, exist_ok=True)
                    export_model(backbone, models[name], **settings.arguments())
        for name in arguments.set or SETS:
            add(measure(name, models, work / name, arguments.backend or [], arguments.images))


def measure(name: str, models: dict[str, Path], work: Path, backends: list[str], images: int) -> dict[str, Any]:
    """Tune one set."""
    root = common.shared() / "data" / name
    train = read_inputs(root / "train" / "good")
    test = read_inputs(root / "test" / "good", root / "test")
    choices = Choices(models, backends=backends, max_images=images)
    chosen = choose_images(train.good, test.good, test.bad, choices)

    start, spent, load = time.perf_counter(), work / "seconds", os.getloadavg()[0]
    before = float(spent.read_text()) if spent.exists() else 0.0  # a stopped run adds to what it took before

    def show(done: int, total: int, measured: Measured, _: float) -> None:
        figures = f"{measured.latency_ms} ms, AUROC {measured.auroc}"
        print(f"{name} {done} of {total}: {measured.candidate.name()}: {measured.status}, {figures}", flush=True)

    def step(done: int, total: int, measured: Measured, left: float) -> None:
        spent.write_text(str(before + time.perf_counter() - start))
        show(done, total, measured, left)

    report = tune(choices, chosen, work, step)
    seconds = before + time.perf_counter() - start
    seen = {one.sha256 for one in (*chosen.good, *chosen.bad)}
    rng = np.random.default_rng(0)
    unseen = []
    for files in ((*test.good, *train.good), test.bad):
        others = [one for one in files if one.sha256 not in seen]
        unseen.append([others[i] for i in rng.permutation(len(others))][:MAX_UNSEEN])
    fresh = Images(chosen.supports, *unseen, chosen.shape)
    for kind in ("recommended", "paper"):
        one = report[kind]["candidate"]
        again = replace(
            choices, models={one["model"]: models[one["model"]]}, presets=[one["preset"]], backends=[one["backend"]],
            precisions=[one["precision"]], shots=[one["shots"]], tiles=False,
        )  # fmt: skip
        (scored,) = tune(again, fresh, work / kind, show)["rows"]
        report[kind] |= {"unseen_auroc": scored["auroc"], "unseen": [len(files) for files in unseen]}
    keys = ("images", "recommended", "paper", "sentence", "pareto", "notes", "rows")
    rows = [{key: value for key, value in row.items() if key != "candidate"} for row in report["rows"]]
    for row in (report["recommended"], report["paper"]):
        row["candidate"]["folder"] = ""
    return {
        "set": name,
        "seconds": round(seconds),
        "load": round(load, 1),
        **{key: report[key] for key in keys},
        "rows": rows,
    }


def add(row: dict[str, Any]) -> None:
    """Print a set's recommendation, and write its rows to the result file in place of older ones."""
    print(f"{row['set']}: {row['seconds']} s: {row['sentence']}")
    stored = common.RESULTS / "tune.json"
    known = json.loads(stored.read_text())["rows"] if stored.exists() else []
    rows = sorted([*(r for r in known if r["set"] != row["set"]), row], key=lambda r: SETS.index(r["set"]))
    print(f"written to {common.write('tune', {'backbones': BACKBONES, 'rows': rows}).relative_to(common.ROOT)}")


if __name__ == "__main__":
    main()
