"""Does the promise hold on real good parts? `python benchmarks/calibration.py`.

All good images of each set but the one support are scored once. Then, many times over, some are drawn to calibrate on and
the rest play the parts that come later: how many of them does the threshold reject? (A split's rate over a few later parts is
itself noisy, so it lies beyond the bound, which is on the true rate, more often than in 5 % of splits.)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import numpy as np
from visionad_runtime.scoring.conformal import conformal_threshold

RATE, NORMALS, SPLITS = 0.05, 19, 1000


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/calibration.json``."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset, part, inspector in common.real_sets(Path(folder)):
            support, *train = dataset.train(part)
            inspector.enroll_files(part, [support])
            groups = {
                "all good images": train + [s.path for s in dataset.test(part) if s.label == 0],
                "training images only": train,
            }
            found = inspector.inspect_files(groups["all good images"], class_name=part)
            scores = {one.path: one.result.score for one in found if one.result is not None}
            for label, paths in groups.items():
                rows.append({"set": name, "pictures": label, **splits(np.array([scores[p] for p in paths]))})
    print(f"| set | images | n | mean false-reject rate (promised {RATE:.0%}) | splits beyond the 95 % bound |")
    print("|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['set']} | {r['pictures']} | {r['n']} | {r['mean_false_reject']:.3f} | {r['beyond_bound']:.3f} |")
    facts = {"rate": RATE, "normals": NORMALS, "splits": SPLITS, "backbone": common.BACKBONE, "shots": 1, "rows": rows}
    print(f"written to {common.write('calibration', facts).relative_to(common.ROOT)}")


def splits(scores: np.ndarray) -> dict[str, float]:
    """Mean realised rate over random splits, and how often a split's rate lies above its own 95 % bound."""
    normals = min(NORMALS, len(scores) - 5)
    rate = max(RATE, 1 / (normals + 1))
    rng = np.random.default_rng(0)
    realised, beyond = [], 0
    for _ in range(SPLITS):
        order = rng.permutation(len(scores))
        threshold = conformal_threshold(scores[order[:normals]].tolist(), rate)
        realised.append(float((scores[order[normals:]] > threshold.value).mean()))
        beyond += realised[-1] > threshold.upper_bound
    return {
        "n": len(scores),
        "rate": rate,
        "mean_false_reject": float(np.mean(realised)),
        "beyond_bound": beyond / SPLITS,
    }


if __name__ == "__main__":
    main()
