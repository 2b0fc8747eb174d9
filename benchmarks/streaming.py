"""Pixel metrics of a stream as large as Real-IAD: `python benchmarks/streaming.py [--classes 30 --maps 5000]`.

Synthetic maps of 256 x 256 are added as in `visionad eval`: class by class, one map at a time, a third of them with a defect.
Only the tables are kept. Each class is also merged into a table of all classes, which `visionad eval` does not need. Result: peak
memory of the process, time per 1000 maps, and the error bounds of coarsened tables.
"""

from __future__ import annotations

import argparse
import statistics
import time

import common
import cv2
import numpy as np
from numpy.typing import NDArray
from visionad_runtime.scoring.anomaly_map import MAP_SIZE
from visionad_runtime.tools.evaluation.metrics import PixelMetrics

GRID = 28
"""Patches along a side. Maps are upsampled from this many values, so their pixels are as distinct as real ones."""


def draw(rng: np.random.Generator, level: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw a map, float32 (256, 256), and its mask. A third of the maps have one or two defects."""
    patches = level + 0.1 * rng.standard_normal((GRID, GRID), np.float32)
    mask = np.zeros((MAP_SIZE, MAP_SIZE), np.uint8)
    if rng.random() < 1 / 3:
        for _ in range(rng.integers(1, 3)):
            center, axes = rng.integers(20, MAP_SIZE - 20, 2), rng.integers(3, 40, 2)
            cv2.ellipse(mask, center.tolist(), axes.tolist(), float(rng.integers(180)), 0, 360, 1, -1)
        patches += 0.25 * cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    large = cv2.resize(patches.astype(np.float32), (MAP_SIZE, MAP_SIZE), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large), mask > 0


def main() -> None:
    """Measure, print, write ``benchmarks/results/streaming.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--classes", type=int, default=30)
    options.add_argument("--maps", type=int, default=5000, help="per class")
    args = options.parse_args()
    start, adding = time.perf_counter(), []
    empty = common.memory("VmRSS")
    pooled, reports = PixelMetrics(), []
    for number in range(args.classes):
        rng, metrics, busy = np.random.default_rng(number), PixelMetrics(), 0.0
        for _ in range(args.maps):
            anomaly_map, mask = draw(rng, 0.3 + 0.01 * number)
            begin = time.perf_counter()
            metrics.add(anomaly_map, mask)
            busy += time.perf_counter() - begin
        begin = time.perf_counter()
        reports.append(metrics.compute())
        adding.append((busy + time.perf_counter() - begin) * 1000 / args.maps)
        pooled.merge(metrics)
        print(
            f"{(number + 1) * args.maps} maps, {adding[-1]:.1f} s per 1000, "
            f"{common.memory('VmRSS'):.0f} MB now, {common.memory('VmHWM'):.0f} MB at most",
            flush=True,
        )
    report = pooled.compute()
    result = {
        "classes": args.classes,
        "maps": args.classes * args.maps,
        "peak MB": common.memory("VmHWM"),
        "MB before the first map": empty,
        "seconds in all": time.perf_counter() - start,
        "seconds per 1000 maps, all four metrics": statistics.median(adding),
        "largest error bound in a class": max(max(r.error_bounds.values()) for r in reports),
        "all classes as one": {"values": report.values, "error_bounds": report.error_bounds},
    }
    print("\n".join(f"{k}: {v}" for k, v in result.items()))
    print(f"written to {common.write('streaming', result).relative_to(common.ROOT)}")


if __name__ == "__main__":
    main()
