"""Realized false rejects of calibrated thresholds on real good parts: `python benchmarks/calibration.py`.

All good images of a set except the support are scored once. Then many random splits calibrate on some of them and count how many of
the others the threshold rejects. The rate over few images is noisy, and the bound is on the true rate, so a split's rate exceeds
it more often than in 5 % of the splits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common
import numpy as np
from visionad_runtime.scoring.conformal import conformal_threshold

RATE, NORMALS, SPLITS = 0.05, 19, 1000


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/calibration.json``."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset, part, inspector in common.real_sets(Path(folder)):
            support, *train = dataset.train(part)
            inspector.enroll_files(part, [support])
            groups = {
                "all good images": train + [s.path for s in dataset.test(part) if s.label == 0],
                "training images only": train,
            }
            files = inspector.inspect_files(groups["all good images"], class_name=part)
            scores = {file.path: file.result.score for file in files if file.result is not None}
            for label, paths in groups.items():
                rows.append({"set": name, "pictures": label, **splits(np.array([scores[p] for p in paths]))})
    print(f"| set | images | n | mean false-reject rate (target {RATE:.0%}) | splits beyond the 95 % bound |")
    print("|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['set']} | {r['pictures']} | {r['n']} | {r['mean_false_reject']:.3f} | {r['beyond_bound']:.3f} |")
    facts = {"rate": RATE, "normals": NORMALS, "splits": SPLITS, "backbone": common.BACKBONE, "shots": 1, "rows": rows}
    print(f"written to {common.write('calibration', facts).relative_to(common.ROOT)}")


def splits(scores: np.ndarray) -> dict[str, float]:
    """Return the mean realized rate over random splits, and how often a split's rate exceeds its own 95 % bound."""
    normals = min(NORMALS, len(scores) - 5)
    rate = max(RATE, 1 / (normals + 1))
    rng = np.random.default_rng(0)
    realized, beyond = [], 0
    for _ in range(SPLITS):
        order = rng.permutation(len(scores))
        threshold = conformal_threshold(scores[order[:normals]].tolist(), rate)
        realized.append(float((scores[order[normals:]] > threshold.value).mean()))
        beyond += realized[-1] > threshold.upper_bound
    return {
        "n": len(scores),
        "rate": rate,
        "mean_false_reject": float(np.mean(realized)),
        "beyond_bound": beyond / SPLITS,
    }


if __name__ == "__main__":
    main()
