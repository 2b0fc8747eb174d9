"""``folder``: as ``mvtec``, with or without masks. Folders of ``train`` other than ``good`` are ignored."""

from __future__ import annotations

from pathlib import Path

from .base import ClassData, Faults
from .mvtec import mvtec_like
from .registry import register


@register("folder")
def folder(root: Path, faults: Faults) -> dict[str, ClassData]:
    """Read a folder laid out like MVTec-AD."""
    return mvtec_like(root, faults, masks_optional=True)
