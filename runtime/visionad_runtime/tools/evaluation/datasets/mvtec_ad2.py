"""``mvtec-ad2``: ``CLASS/{train/good,validation/good,test_public/{good,bad}}``, masks in ``[test_public/]ground_truth``."""

from __future__ import annotations

from pathlib import Path

from .base import ClassData, Faults
from .mvtec import mvtec_like
from .registry import register


@register("mvtec-ad2")
def mvtec_ad2(root: Path, faults: Faults) -> dict[str, ClassData]:
    """Read MVTec AD 2."""
    return mvtec_like(root, faults, test="test_public")
