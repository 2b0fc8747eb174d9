"""What a change of one support costs in a class of many: `python benchmarks/bank.py`.

The tokens are random unit vectors of the shape that a backbone gives: time and bytes do not depend on their values. Each change is
made as the commands make it: by a bank that was opened without reading its classes. The bytes are those of the files that are new
or changed afterwards.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from visionad_runtime.bank.history import undo
from visionad_runtime.bank.memory_bank import SupportTokens
from visionad_runtime.bank.store import Bank
from visionad_runtime.bank.supports import NewSupport, png_file
from visionad_runtime.formats.manifest import ModelManifest, SupportImage, read_manifest
from visionad_runtime.pipeline.calibration import recalibrate
from visionad_runtime.tools.demo.rendering import render

MAX_SECONDS = 0.2
MAX_BYTES = 1.2
"""Bytes written, in multiples of one support's files."""


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/bank.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--backbone", default="dinov2_vits14_reg")
    options.add_argument("--supports", type=int, default=64)
    options.add_argument("--rounds", type=int, default=7)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = common.export_random(args.backbone, Path(folder) / "model")
        rows = measure(Path(folder) / "bank", read_manifest(model, ModelManifest), args.supports, args.rounds)
    path = common.write("bank", {"backbone": args.backbone, "supports": args.supports, **rows})
    for name, row in rows["changes"].items():
        print(f"{name:<8} {row['seconds']:.3f} s  {row['bytes'] / 1e6:.2f} MB  {row['bytes_ratio']:.3f} of a support")
    print(f"written to {path.relative_to(common.ROOT)}")


def measure(folder: Path, manifest: ModelManifest, supports: int, rounds: int) -> dict:
    """Measure enrolling, removing and undoing one support of a class."""
    bank = Bank.open_or_new(folder, manifest.identity, manifest.views)
    for number in range(supports):
        bank.add("part", [support(manifest, bank, number)])
    image = bank.classes["part"].entry.images[0]
    one = sum(
        path.stat().st_size
        for path in (folder / "supports" / f"{image.tokens}.safetensors", folder / "images" / str(image.kept))
    )
    times: dict[str, list[tuple[float, int]]] = {"enroll": [], "remove": [], "undo": []}
    for number in range(supports, supports + rounds):
        new = support(manifest, bank, number)

        def enroll(new: NewSupport = new) -> None:
            Bank.open(folder, manifest.identity, lazy=True).add("part", [new])

        def remove(name: str = new.image.sha256) -> None:
            Bank.open(folder, lazy=True).remove("part", name, calibrate=recalibrate)

        for name, change in (("enroll", enroll), ("remove", remove), ("undo", lambda: undo(folder))):
            times[name].append(timed(folder, change))
    changes = {
        name: {
            "seconds": round(statistics.median(seconds for seconds, _ in rows), 4),
            "bytes": max(size for _, size in rows),
            "bytes_ratio": round(max(size for _, size in rows) / one, 4),
        }
        for name, rows in times.items()
    }
    whole = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    holds = all(row["seconds"] <= MAX_SECONDS and row["bytes_ratio"] <= MAX_BYTES for row in changes.values())
    return {
        "bytes of a support": one,
        "bytes of the bank": whole,
        "versions": supports + 3 * rounds,
        "limits": {"seconds": MAX_SECONDS, "bytes_ratio": MAX_BYTES},
        "holds": holds,
        "changes": changes,
    }


def support(manifest: ModelManifest, bank: Bank, number: int) -> NewSupport:
    """Return a support with random tokens and a rendered image."""
    identity, blocks = manifest.identity, len(bank.manifest.blocks)
    rng = np.random.default_rng(number)

    def unit(*shape: int) -> np.ndarray:
        rows = rng.standard_normal(shape, np.float32)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    tokens = SupportTokens((unit(blocks, 1, identity.grid**2, identity.dim),), unit(blocks, identity.class_token_dim))
    record = SupportImage(sha256=f"{number:064x}", source=f"{number}.png")
    return NewSupport(record, tokens, png_file(render("gear", number % 8, size=900)[0]), ".png")


def timed(folder: Path, change: Callable[[], object]) -> tuple[float, int]:
    """Return the seconds of a change and the bytes that it wrote."""
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    start = time.perf_counter()
    change()
    seconds = time.perf_counter() - start
    written = 0
    for path in folder.rglob("*"):
        if path.is_file() and before.get(path) != (path.stat().st_ino, path.stat().st_mtime_ns):
            written += path.stat().st_size
    return seconds, written


if __name__ == "__main__":
    main()
