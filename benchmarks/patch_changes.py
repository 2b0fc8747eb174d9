"""Distances and weights that ``accuracy_changes.py`` tries instead of the runtime's, and a fast AUPRO."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from visionad_runtime.search import nearest
from visionad_runtime.tools.evaluation.metrics import PRO_MAX_FPR, PRO_THRESHOLDS

F32 = NDArray[np.float32]

FLOOR = 0.05
"""Smallest distance to the border that counts in the foreground weight, as in the self-similarity weight."""


class Regions(NamedTuple):
    """Defects of several images.

    Attributes:
        good: bool (N, 256, 256), pixels without a defect.
        weights: float64 (defect pixels,), 1 / area of a pixel's region over the number of regions, in the order of ``~good``.
    """

    good: NDArray[np.bool_]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, masks: NDArray[np.bool_]) -> Regions:
        """Return the regions of masks, bool (N, 256, 256)."""
        weights, count = [], 0
        for mask in masks:
            number, region, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
            count += number - 1
            weights.append(1.0 / stats[region[mask], cv2.CC_STAT_AREA])
        return cls(~masks, np.concatenate(weights) / max(count, 1))


def aupro(maps: F32, regions: Regions) -> float | None:
    """Return the AUPRO of the method's protocol from counts between its 200 thresholds, several times faster than ``PixelMetrics``.

    Args:
        maps: float32 (N, 256, 256).
        regions: the defects of the same images.
    """
    lowest, highest = maps.min(), maps.max()
    if lowest == highest:
        return None
    step = np.minimum((maps - lowest) * (PRO_THRESHOLDS / (highest - lowest)), PRO_THRESHOLDS - 1).astype(np.int16)
    marked = np.bincount(step[regions.good], minlength=PRO_THRESHOLDS)[::-1].cumsum() / np.count_nonzero(regions.good)
    overlap = np.bincount(step[~regions.good], regions.weights, PRO_THRESHOLDS)[::-1].cumsum()
    kept = marked < PRO_MAX_FPR
    if np.count_nonzero(kept) < 2 or not marked[kept].max():
        return None
    return float(np.trapezoid(overlap[kept], marked[kept] / marked[kept].max()))


def windowed(queries: F32, upright: F32, side: int, reach: int) -> F32:
    """Return each patch's distance to the nearest patch of an upright support in a window around its own place, float32 (P,)."""
    place = np.arange(side)
    near = abs(place[:, None] - place) <= reach
    scores = (queries @ upright.T).reshape(side, side, side, side)
    scores = np.where(near[:, None, :, None] & near[None, :, None, :], scores, np.float32(-np.inf))
    return np.asarray(np.maximum(1 - scores.reshape(side * side, -1).max(axis=1), 0), np.float32)


def around(queries: F32, poses: F32, row: NDArray[np.int64], side: int) -> F32:
    """Return the mean distance of the patches around each patch to those around its nearest one, the middle included.

    Args:
        queries: float32 (P, D), unit rows.
        poses: float32 (poses, P, D), unit rows.
        row: int64 (P,), nearest row of all poses' rows.
        side: patches per side.

    Returns:
        float32 (P,). Pairs of which one lies outside of its image are left out.
    """
    pose, place = np.divmod(row, side * side)
    their_row, their_column = np.divmod(place, side)
    own_row, own_column = np.divmod(np.arange(side * side), side)
    total, count = np.zeros(side * side, np.float32), np.zeros(side * side, np.float32)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            rows = own_row + down, their_row + down
            columns = own_column + across, their_column + across
            inside = np.logical_and.reduce([(v >= 0) & (v < side) for v in (*rows, *columns)])
            mine = queries[(rows[0] * side + columns[0])[inside]]
            theirs = poses[pose[inside], (rows[1] * side + columns[1])[inside]]
            total[inside] += np.maximum(1 - np.einsum("pd,pd->p", mine, theirs), 0)
            count += inside
    return np.asarray(total / count, np.float32)


def border(side: int) -> NDArray[np.intp]:
    """Return the indices of a grid's outermost patches."""
    grid = np.zeros((side, side), np.bool_)
    grid[[0, -1]] = grid[:, [0, -1]] = True
    return np.flatnonzero(grid)


def foreground(queries: F32, rows: F32) -> F32:
    """Return the fourth root of each patch's distance to the border patches of the supports, float32 (P,)."""
    return np.asarray(
        np.sqrt(np.sqrt(np.maximum(nearest(queries, rows, threads=1).distance, np.float32(FLOOR)))), np.float32
    )
