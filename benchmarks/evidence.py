"""What evidence and the look for mix-ups cost: `python benchmarks/evidence.py [--rounds 21]`.

DeiT-Tiny with real weights, a bank of two classes with four supports each, and real images of defective parts whose class is
given. Three ways in turn, on the same image, in changing order: without the class token, as inspection does it with two classes
(with the class token, to find a mix-up), and with evidence too. Ratios are medians of pairs. Scores and maps must be equal bit for
bit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import cv2
from visionad_export.exporter import export_model
from visionad_runtime import Inspector

CLASSES = ("mvtec_bottle", "adfi_hazelnut")
PROMISED_RATIO = 1.02
WAYS = ("without", "mix-ups", "mix-ups and evidence")


class WithoutClassToken(Inspector):
    """An inspector that does not look for mix-ups."""

    @property
    def has_free_class_token(self) -> bool:
        """See ``OpenedModel``."""
        return False


def images_of(name: str) -> tuple[list[Path], list[Path]]:
    """Return good images, and images of defective parts, of a set."""
    folder = common.shared() / "data" / name
    every = sorted(
        p for p in folder.rglob("*") if p.suffix in (".png", ".jpg", ".bmp") and "ground_truth" not in p.parts
    )
    return [p for p in every if "train" in p.parts], [p for p in every if "test" in p.parts and "good" not in p.parts]


def main() -> None:
    """Measure, print, write ``benchmarks/results/evidence.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.rounds, args.threads)
    path = common.write("evidence", result)
    print("\n".join(f"{name}: {value}" for name, value in result.items()))
    print(f"written to {path.relative_to(common.ROOT)}")


def measure(folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Measure all ways."""
    weights = common.shared() / "weights" / common.BACKBONE / "model.safetensors"
    export_model(common.BACKBONE, folder / "model", weights=weights)
    parts = []
    with Inspector.open(folder / "model", folder / "bank", threads=threads) as inspector:
        for name in CLASSES:
            good, bad = images_of(name)
            inspector.enroll_files(name, good[:4])
            parts += [(name, cv2.imread(str(path))) for path in bad[:4]]
        with WithoutClassToken.open(folder / "model", folder / "bank", threads=threads) as without:
            ways = dict(zip(WAYS, ((without, False), (inspector, False), (inspector, True)), strict=True))
            wall: dict[str, list[float]] = {way: [] for way in WAYS}
            busy: dict[str, list[float]] = {way: [] for way in WAYS}
            regions = []
            for turn in range(-2, rounds):
                name, image = parts[turn % len(parts)]
                outcomes = {}
                first = turn % len(WAYS)  # each way comes first, second and third equally often
                for way in (*WAYS[first:], *WAYS[:first]):
                    one, evidence = ways[way]
                    start, start_busy = time.perf_counter(), time.process_time()
                    outcomes[way] = one.inspect(image, class_name=name, evidence=evidence)
                    if turn >= 0:  # the first ones warm up
                        wall[way].append(time.perf_counter() - start)
                        busy[way].append(time.process_time() - start_busy)
                maps = {(r.score, r.verdict, r.anomaly_map.tobytes()) for r in outcomes.values()}
                assert len(maps) == 1, "the ways differ"
                regions.append(len(outcomes[WAYS[2]].regions))

    def ratio(times: dict[str, list[float]], way: str) -> float:
        pairs = [one / plain for one, plain in zip(times[way], times[WAYS[0]], strict=True)]
        return round(statistics.median(pairs), 4)

    return {
        "backbone": common.BACKBONE,
        "threads": threads,
        "rounds": rounds,
        "ms without, median": round(1e3 * statistics.median(wall[WAYS[0]]), 1),
        "ratio of time": {way: ratio(wall, way) for way in WAYS[1:]},
        "ratio of CPU time": {way: ratio(busy, way) for way in WAYS[1:]},
        "ratio promised for mix-ups": PROMISED_RATIO,
        "regions an image, median": statistics.median(regions),
    }


if __name__ == "__main__":
    main()
