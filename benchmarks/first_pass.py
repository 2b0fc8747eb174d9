"""Groups that a first pass in fewer bits leaves to the second: `python benchmarks/first_pass.py`.

The GPU's search takes the largest 16-bit score of each group of 8 bank rows, and rescores from the 16-bit rows every group that
could hold the nearest one (docs/kernels.md). This benchmark counts the same for products of fp16, bf16, fp8 and int8 on real
tokens. Each format gets its best case: a scale per row, 8 bits for the difference to the bank's center, the error bound of each
pair, and the exact score of the nearest row as the limit.

8-bit products are twice as fast as 16-bit ones. An 8-bit pass therefore saves half the product's time: N D / F for a query, with
N rows of D columns and F 16-bit operations per second. Fetching a group again takes 2 * 8 D / B at B bytes per second. The pass
pays off while the fraction of rescored groups is below B / 2F, unless the bank fits in the GPU's cache, where the search is short
anyway.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from visionad_runtime.pipeline.cuda.work_tables import GROUP, RUN

F32 = NDArray[np.float32]
SHOTS, IMAGES = (1, 4, 16), 4
RATES = {"H100": (3.35, 989), "L4": (0.3, 121)}
"""From the data sheets: memory in TB/s, dense 16-bit products in TFLOP/s."""


def main() -> None:
    """Count, print a table, write ``benchmarks/results/first_pass.json``."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset, part, inspector in common.real_sets(Path(folder)):
            inspector.enroll_files(part, dataset.train(part)[: max(SHOTS)])
            assert inspector.bank is not None
            enrolled, samples = inspector.bank.classes[part], dataset.test(part)
            paths = [s.path for s in samples[:: len(samples) // IMAGES][:IMAGES]]
            files = inspector.inspect_files(paths, class_name=part, trace=True)
            queries = np.concatenate([file.trace.tokens.patch[0] for file in files if file.trace is not None])
            for shots in SHOTS:
                few = enrolled
                for place in range(len(enrolled.entry.images) - 1, shots - 1, -1):
                    few = few.leave_out(place)
                bank = few.rois[0].rows(inspector.views[0])
                rows += [{"set": name, "shots": shots, "rows": len(bank), **row} for row in count(queries, bank)]
    limits = {gpu: memory / (2 * product) for gpu, (memory, product) in RATES.items()}
    print("| set | bank rows | product | groups rescored: mean | median | 99th percentile | share of all |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        figures = f"{r['mean']:.1f} | {r['median']:.0f} | {r['p99']:.0f} | {r['share']:.3%}"
        print(f"| {r['set']} | {r['rows']} | {r['product']} | {figures} |")
    print("8 bits pay off below " + ", ".join(f"{share:.3%} ({gpu})" for gpu, share in limits.items()))
    facts = {"backbone": common.BACKBONE, "pictures": IMAGES, "group": GROUP, "pays off below": limits, "rows": rows}
    print(f"written to {common.write('first_pass', facts).relative_to(common.ROOT)}")


def count(queries: F32, bank: F32) -> list[dict[str, object]]:
    """Count the groups that each product leaves, over all queries."""
    best = (queries.astype(np.float64) @ bank.T.astype(np.float64)).max(axis=1)
    zero, center = np.zeros(bank.shape[1], np.float32), bank.mean(axis=0)
    products: dict[str, tuple[F32, Callable[[F32], F32]]] = {
        "fp16": (zero, lambda x: x.astype(np.float16).astype(np.float32)),
        "bf16": (zero, lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32)),
        "fp8": (center, lambda x: _scaled(x, 448, lambda y: y.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))),
        "int8": (center, lambda x: _scaled(x, 127, np.rint)),
    }
    counts = []
    for name, (middle, rounded) in products.items():
        groups = left(queries, bank, best, middle, rounded)
        share = float(groups.mean() / -(-len(bank) // GROUP))
        row = {
            "mean": float(groups.mean()),
            "median": float(np.median(groups)),
            "p99": float(np.percentile(groups, 99)),
        }
        counts.append({"product": name, **row, "share": share})
    return counts


def left(
    queries: F32, bank: F32, best: NDArray[np.float64], middle: F32, rounded: Callable[[F32], F32]
) -> NDArray[np.int64]:
    """For each query the number of groups with a row that, by its rounded product, could reach ``best``."""
    mine, theirs = queries - middle, bank - middle
    near_mine, near_theirs = rounded(mine), rounded(theirs)
    lost_mine, lost_theirs = _lengths(mine - near_mine), _lengths(theirs - near_theirs)
    upper = near_mine @ near_theirs.T  # float32 sums; what tensor cores lose beyond is left out, in favour of 8 bits
    upper += lost_mine[:, None] * _lengths(theirs) + _lengths(near_mine)[:, None] * lost_theirs
    upper += (queries @ middle)[:, None] + theirs @ middle
    upper = np.pad(upper, ((0, 0), (0, -len(bank) % RUN)), constant_values=-np.inf)
    pairs = upper.reshape(len(queries), -1, GROUP // 2, RUN // GROUP, 2)  # a group: pairs of rows, a stride apart
    reached: NDArray[np.int64] = (pairs.max(axis=(2, 4)) >= best[:, None, None] - 1e-6).sum(axis=(1, 2))
    return reached


def _scaled(rows: F32, largest: float, rounded: Callable[[F32], F32]) -> F32:
    scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-30) / np.float32(largest)
    back: F32 = rounded(rows / scale) * scale
    return back


def _lengths(rows: F32) -> F32:
    lengths: F32 = np.linalg.norm(rows, axis=1)
    return lengths


if __name__ == "__main__":
    main()
