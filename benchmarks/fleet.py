"""Costs that a fleet or an archive multiplies: `python benchmarks/fleet.py`.

CPU seconds of one core for an image, file to Parquet row, one thread a process; bytes of a support, a result row and a change that
is pushed and pulled. The parts are rendered, 512 x 512 pixels. EfficientNet-Lite0 has real weights, ViT-S random ones: time and
bytes do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np
from visionad_runtime import Inspector
from visionad_runtime.fleet.batch.rows import to_parquet
from visionad_runtime.fleet.batch.source import read_source
from visionad_runtime.fleet.batch.worker import Settings, Worker
from visionad_runtime.fleet.store.minisign import generate
from visionad_runtime.fleet.store.pull import PullOptions, pull_bank
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import parse_target
from visionad_runtime.images.decode import load
from visionad_runtime.tools.demo.rendering import DEFECTS, render

SIZE, CLASS = 512, "gear"


def main() -> None:
    """Measure, print, write ``benchmarks/results/fleet.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=20)
    options.add_argument("--backbones", nargs="+", default=["efficientnet_lite0", "dinov2_vits14_reg"])
    args = options.parse_args()
    result: dict[str, Any] = {"image": [SIZE, SIZE], "backbones": {}}
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder) / "images", args.images)
        files = sorted(images.iterdir())
        result["image_bytes"] = sum(path.stat().st_size for path in files) / len(files)
        start = time.process_time()
        for path in files:
            load(path)
        result["decode_core_s"] = (time.process_time() - start) / len(files)
        for backbone in args.backbones:
            result["backbones"][backbone] = measure(backbone, Path(folder) / backbone, images)
            print(backbone, json.dumps(result["backbones"][backbone], indent=1))
    print(common.write("fleet", result))


def write_images(folder: Path, count: int) -> Path:
    """Write rendered parts, every fifth with a defect."""
    folder.mkdir()
    for seed in range(count):
        rgb, _ = render(CLASS, 1000 + seed, DEFECTS[CLASS][0] if seed % 5 == 0 else None, size=SIZE)
        cv2.imwrite(str(folder / f"{seed:04d}.png"), rgb[:, :, ::-1])
    return folder


def measure(backbone: str, folder: Path, images: Path) -> dict[str, Any]:
    """Return the costs of a backbone."""
    folder.mkdir()
    model, bank = folder / "model", folder / "bank"
    if backbone == "efficientnet_lite0":
        from visionad_export.exporter import export_model

        export_model(backbone, model)
    else:
        common.export_random(backbone, model)
    with Inspector.open(model, bank, threads=1) as inspector:
        inspector.enroll(CLASS, [render(CLASS, seed, size=SIZE)[0] for seed in range(4)], colour="rgb")
    tokens = [path.stat().st_size for path in (bank / "supports").iterdir()]
    worker = Worker(Settings(str(model), str(bank)), str(folder / "out"))
    block = read_source(str(images), 10_000).read_block(0)
    worker.rows(
        block._replace(images=block.images[:2], classes=block.classes[:2])
    )  # the first image prepares the search
    start = time.process_time()
    rows = worker.rows(block)
    seconds = (time.process_time() - start) / len(rows)
    worker.close()
    for row in rows:
        row["timings_ms"] = dict(row["timings_ms"])
    as_json = sum(len(json.dumps({k: v for k, v in row.items() if k != "id"})) for row in rows) / len(rows)
    many = [varied(row, number) for number, row in enumerate(rows * (1000 // len(rows)))]
    plain = [{**row, "regions": []} for row in many]
    key = generate(folder / "visionad.key", folder / "visionad.pub")
    target, other = parse_target(f"{folder / 'store'}/bank"), folder / "other"
    whole = push_bank(bank, target, key).bytes
    pull_bank(target, other, PullOptions([key.public]))
    with Inspector.open(model, bank, threads=1) as inspector:
        inspector.enroll(CLASS, [render(CLASS, 99, size=SIZE)[0]], colour="rgb")
    push_bank(bank, target, key)
    return {
        "core_s": seconds,
        "support_bytes": sum(tokens) / len(tokens),
        "json_bytes": as_json,
        "parquet_bytes": len(to_parquet(many)) / len(many),
        "parquet_bytes_without_regions": len(to_parquet(plain)) / len(plain),
        "bank_bytes": whole,
        "one_support_bytes": pull_bank(target, other, PullOptions([key.public])).bytes,
        "revision_bytes": (folder / "store/names/bank/000002.json").stat().st_size,
    }


def varied(row: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a row with values of its own, as another image would have: copies would compress to nothing."""
    rng = np.random.default_rng(number)
    found = {**row, "id": number, "image": f"archive/2026-11/line3/{number:08d}.png"}
    for name in ("score", "class_margin", "p_value"):
        if row.get(name) is not None:
            found[name] = float(row[name] * rng.uniform(0.5, 1.5))
    shift = int(rng.integers(-100, 100))
    found["regions"] = [
        {
            **region,
            "score": float(region["score"] * rng.uniform(0.5, 1.5)),
            "bbox": [int(v) + shift for v in region["bbox"]],
            "polygon": [[int(x) + shift, int(y) - shift] for x, y in region["polygon"]],
        }
        for region in row.get("regions", ())
    ]
    found["timings_ms"] = [
        (name, round(float(ms * rng.uniform(0.9, 1.1)), 3)) for name, ms in row["timings_ms"].items()
    ]
    return found


if __name__ == "__main__":
    main()
