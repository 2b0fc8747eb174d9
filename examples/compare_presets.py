#!/usr/bin/env python3
"""Which preset separates your parts best: ``python compare_presets.py MODEL BANK CLASS GOOD_DIR DEFECT_DIR [PRESET...]``.

Use good images that are not enrolled. A preset that is meant for another image size than the model's needs an export and a bank
of its own; its row says so.
"""

import sys
from pathlib import Path

from visionad_runtime import Inspector, VisionADError

PRESETS = ("paper", "full-image", "full-image-weighted")


def scores(inspector: Inspector, class_name: str, folder: str) -> tuple[list[float], list[float]]:
    """Return score and milliseconds of each PNG of a folder."""
    files = inspector.inspect_files(sorted(Path(folder).glob("*.png")), class_name=class_name)
    results = [file.result for file in files if file.result is not None]
    return [result.score for result in results], [result.timings["total"] for result in results]


def auroc(good: list[float], defect: list[float]) -> float:
    """Return the probability that a defective part scores higher than a good one."""
    wins = sum((d > g) + 0.5 * (d == g) for d in defect for g in good)
    return wins / (len(good) * len(defect))


def main(model: str, bank: str, class_name: str, good_dir: str, defect_dir: str, *presets: str) -> None:
    """Print a row for each preset."""
    print(f"{'preset':<20}  {'AUROC':>6}  {'ms/image':>8}")
    for preset in presets or PRESETS:
        try:
            inspector = Inspector.open(model, bank, preset=preset)
        except VisionADError as error:
            print(f"{preset:<20}  {error}")
            continue
        with inspector:
            good, _ = scores(inspector, class_name, good_dir)
            defect, times = scores(inspector, class_name, defect_dir)
        print(f"{preset:<20}  {auroc(good, defect):6.3f}  {sorted(times)[len(times) // 2]:8.1f}")


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
