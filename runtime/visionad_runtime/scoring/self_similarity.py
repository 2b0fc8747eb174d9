"""Self-similarity weight: weight a patch's distance by its distance to the rest of its own image. It is not in the paper.

A patch that no support resembles may still be normal: a layout that the supports lack, or a texture that varies. Then a similar
patch usually occurs elsewhere in the same image. A defect rarely does. Evidence: ``docs/guides/presets.md``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._threads import available_cpus, parallel_for
from ..errors import VisionADError
from .product import scores_float32

F32 = NDArray[np.float32]

EXCLUSION_RADIUS = 2
"""Patches within this distance in both directions are not elsewhere: they share content, so a defect would resemble itself."""
MIN_DISTANCE = 0.05
"""Lower bound of the distance. Where something is missing, the image shows background, which occurs everywhere. The weight must not
vanish there."""
MIN_GRID = 2 * (EXCLUSION_RADIUS + 1)
"""Minimum patches per side: from here on, every patch has at least one elsewhere."""
BATCH = 256
"""Patches per matrix product. It is fixed, so that no bit of the result depends on the number of threads."""


def check_grid(side: int) -> None:
    """Check that every patch of a grid has at least one patch elsewhere.

    Raises:
        VisionADError: The grid has fewer than :data:`MIN_GRID` patches per side.
    """
    if side < MIN_GRID:
        raise VisionADError(
            f"self-similarity: expected a grid of at least {MIN_GRID} patches a side, got {side}; choose a scoring without it, or "
            "export with a larger crop"
        )


def self_similarity_weight(patch: F32, side: int, threads: int | None = None) -> F32:
    """Return the fourth root of each patch's cosine distance to the nearest patch elsewhere in the same image.

    Args:
        patch: float32 (side², D), unit rows, patch tokens of one view of an image.
        side: patches per side, at least :data:`MIN_GRID`.
        threads: maximum number of threads (default: all CPUs). The result does not depend on it.

    Returns:
        float32 (side²,), 0.47 (:data:`MIN_DISTANCE`) to 1.19.

    Raises:
        VisionADError: The grid is too small.
    """
    check_grid(side)
    patch = np.ascontiguousarray(patch)
    count, positions = len(patch), np.arange(side)
    is_near = abs(positions[:, None] - positions) <= EXCLUSION_RADIUS
    best_score = np.empty(count, np.float32)

    def score_patches(start: int) -> None:
        indices = np.arange(start, min(start + BATCH, count))
        scores = np.empty((len(indices), count), np.float32)
        scores_float32(patch[start : start + BATCH], patch, scores)
        row, column = np.divmod(indices, side)
        scores.reshape(-1, side, side)[is_near[row][:, :, None] & is_near[column][:, None, :]] = -np.inf
        best_score[indices] = scores.max(axis=1)

    parallel_for(score_patches, range(0, count, BATCH), max(1, threads if threads is not None else available_cpus()))
    # Two square roots instead of a power: square roots are rounded identically on every machine.
    return np.sqrt(np.sqrt(np.maximum(1 - best_score, np.float32(MIN_DISTANCE))))
