"""``mvtec-ad2``: ``CLASS/{train/good,validation/good,test_public/{good,bad}}``, masks in ``[test_public/]ground_truth``.

A file's name ends in the light it was taken under: ``000_regular.png``, ``003_overexposed.png``, ``004_shift_1.png``. The private
test images, mixed light among them, have no published ground truth and are not read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .base import ClassData, Faults
from .mvtec import mvtec_like
from .registry import register


@register("mvtec-ad2", metrics=("segf1",))
def mvtec_ad2(root: Path, faults: Faults) -> dict[str, ClassData]:
    """Read MVTec AD 2."""
    return {
        name: replace(data, test=tuple(replace(sample, condition=light(sample.path)) for sample in data.test))
        for name, data in mvtec_like(root, faults, test="test_public").items()
    }


def light(path: Path) -> str:
    """Return the light in a file's name, what follows its number; empty if the name has none."""
    return path.stem.partition("_")[2]
