"""``loco``: as ``mvtec``, with several masks per image (``ground_truth/TYPE/STEM/*.png``) and ``validation/good``."""

from __future__ import annotations

from pathlib import Path

from .base import ClassData, Faults
from .mvtec import mvtec_like
from .registry import register


@register("loco")
def loco(root: Path, faults: Faults) -> dict[str, ClassData]:
    """Read MVTec LOCO."""
    return mvtec_like(root, faults)
