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
        distances: view → float32 (side, side), in that view's orientation. ``flip`` is flipped back before the sum.

    Returns:
        float32 (side, side), 0 to 2 per view.
    """
    total: F32 | None = None
    for view, grid in distances.items():
        grid = grid[::-1] if view == "flip" else grid
        total = grid.astype(np.float32) if total is None else total + grid
    assert total is not None
    return np.ascontiguousarray(total)


def upsample(grid: F32, size: int = MAP_SIZE) -> F32:
    """Upsample a map bilinearly, as ``torch.nn.functional.interpolate`` with ``align_corners=False``.

    Args:
        grid: float32 (side, side).
        size: side of the result.

    Returns:
        float32 (size, size).
    """
    side = len(grid)
    position = np.maximum(
        (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(side / size) - np.float32(0.5), 0
    )
    low = position.astype(np.int64)
    high = np.minimum(low + 1, side - 1)
    high_weight = (position - low).astype(np.float32)
    low_weight = np.float32(1) - high_weight
    across = grid[:, low] * low_weight + grid[:, high] * high_weight
    upsampled: F32 = across[low] * low_weight[:, None] + across[high] * high_weight[:, None]
    return upsampled


def top_pixels(fraction: float = TOP_FRACTION) -> int:
    """Return the number of pixels that the score is the mean of: ``int(fraction · 256 · 256)``, at least one."""
    return max(1, int(fraction * MAP_SIZE * MAP_SIZE))


def top_k_mean(anomaly_map: F32, fraction: float = TOP_FRACTION) -> tuple[float, float]:
    """Return the mean of the largest pixels, and the cutoff: the smallest of them.

    The mean is summed in float64 over sorted values, so it is the same on any machine. Pixels that equal the cutoff may lie outside
    the ones that count.

    Args:
        anomaly_map: float32 (256, 256).
        fraction: fraction of the pixels that count (:func:`top_pixels`).
    """
    count = top_pixels(fraction)
    top = np.sort(np.partition(anomaly_map.ravel(), -count)[-count:])
    return float(top.astype(np.float64).mean()), float(top[0])


def image_score(anomaly_map: F32, fraction: float = TOP_FRACTION) -> float:
    """Return the image's score: the mean of :func:`top_k_mean`."""
    return top_k_mean(anomaly_map, fraction)[0]
