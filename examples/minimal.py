#!/usr/bin/env python3
"""Enroll good parts and inspect images: ``python minimal.py MODEL BANK CLASS GOOD_DIR IMAGE...``."""

import sys
from pathlib import Path

from visionad_runtime import Inspector


def main(model: str, bank: str, class_name: str, good: str, *images: str) -> None:
    """Enroll every PNG of ``good`` and print a line for each image."""
    with Inspector.open(model, bank) as inspector:
        version = inspector.enroll_files(class_name, sorted(Path(good).glob("*.png")))
        print(f"bank version {version}")
        for file in inspector.inspect_files(images):
            if file.result is None:
                print(file.path, file.error)
                continue
            result = file.result
            place = result.regions[0].bbox if result.regions else None
            print(file.path, result.class_name, result.verdict, f"{result.score:.4f}", place)


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
