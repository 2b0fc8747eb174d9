#!/usr/bin/env python3
"""Which preset separates your parts best: ``python compare_presets.py MODEL BANK CLASS GOOD_DIR DEFECT_DIR``.

The image size is fixed at export, so this compares what a preset changes beyond it: views and score. Use good images that are
not enrolled.
"""

import sys
from pathlib import Path

from visionad_runtime import Inspector

PRESETS = ("paper", "full-image", "full-image-weighted")


def scores(inspector: Inspector, class_name: str, folder: str) -> list[float]:
    """Return the score of each PNG of a folder."""
    files = inspector.inspect_files(sorted(Path(folder).glob("*.png")), class_name=class_name)
    return [file.result.score for file in files if file.result is not None]


def auroc(good: list[float], defect: list[float]) -> float:
    """Return the probability that a defective part scores higher than a good one."""
    wins = sum((d > g) + 0.5 * (d == g) for d in defect for g in good)
    return wins / (len(good) * len(defect))


def main(model: str, bank: str, class_name: str, good_dir: str, defect_dir: str) -> None:
    """Print a table of the presets."""
    print(f"{'preset':<20}  {'AUROC':>6}  {'ms/image':>8}")
    for preset in PRESETS:
        with Inspector.open(model, bank, preset=preset) as inspector:
            good, defect = (scores(inspector, class_name, folder) for folder in (good_dir, defect_dir))
            files = inspector.inspect_files(sorted(Path(good_dir).glob("*.png"))[:1], class_name=class_name)
            time = [file.result.timings["total"] for file in files if file.result is not None]
        print(f"{preset:<20}  {auroc(good, defect):6.3f}  {time[0]:8.1f}")


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
