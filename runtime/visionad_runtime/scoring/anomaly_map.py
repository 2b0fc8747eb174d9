"""Patch distances → anomaly map → score (method, section 4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..formats.manifest import ViewName
from .spec import TOP_FRACTION

MAP_SIZE = 256
"""Side of the anomaly map in pixels."""

F32 = NDArray[np.float32]


def fuse(distances: Mapping[ViewName, F32]) -> F32:
    """Add the views' distance maps.

    Args:
        distances: view → float32 (side, side), as seen in that view; ``flip`` is flipped back first.

    Returns:
        float32 (side, side), 0 to 2 a view.
    """
    total: F32 | None = None
    for view, grid in distances.items():
        grid = grid[::-1] if view == "flip" else grid
        total = grid.astype(np.float32) if total is None else total + grid
    assert total is not None
    return np.ascontiguousarray(total)


def upsample(grid: F32, size: int = MAP_SIZE) -> F32:
    """Bilinear upsampling (side, side) → (size, size), ``align_corners=False``, as ``torch.nn.functional.interpolate``."""
    side = len(grid)
    at = np.maximum(
        (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(side / size) - np.float32(0.5), 0
    )
    low = at.astype(np.int64)
    high = np.minimum(low + 1, side - 1)
    part = (at - low).astype(np.float32)
    rest = np.float32(1) - part
    across = grid[:, low] * rest + grid[:, high] * part
    out: F32 = across[low] * rest[:, None] + across[high] * part[:, None]
    return out


def top_pixels(fraction: float = TOP_FRACTION) -> int:
    """Return how many pixels make the score: ``int(fraction · 256 · 256)``, at least one."""
    return max(1, int(fraction * MAP_SIZE * MAP_SIZE))


def top_k_mean(anomaly_map: F32, fraction: float = TOP_FRACTION) -> tuple[float, float]:
    """Return the mean of the largest pixels (:func:`top_pixels`), and the cutoff: the smallest of them.

    The mean is summed in float64 from the sorted values: one value on any machine. Not all pixels that equal the cutoff need be
    among those that count.
    """
    count = top_pixels(fraction)
    top = np.sort(np.partition(anomaly_map.ravel(), -count)[-count:])
    return float(top.astype(np.float64).mean()), float(top[0])


def image_score(anomaly_map: F32, fraction: float = TOP_FRACTION) -> float:
    """Return the mean of :func:`top_k_mean`."""
    return top_k_mean(anomaly_map, fraction)[0]
