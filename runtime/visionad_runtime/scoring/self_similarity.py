"""Weight of a patch's distance by how unlike the rest of its own image the patch is (presets of the project; not in the paper).

A patch that no support explains may still be an ordinary one: a layout the supports do not have, a texture that varies. Then a
similar patch mostly exists elsewhere in the same image, which is rarely true of a defect. Evidence: ``docs/presets.md``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._threads import available_cpus, parallel_for
from ..errors import VisionADError
from .product import scores_float32

F32 = NDArray[np.float32]

EXCLUSION_RADIUS = 2
"""Patches this near, across and down, do not count as elsewhere: neighbours share content and would explain a defect by itself."""
MIN_DISTANCE = 0.05
"""Smaller distances count as this much. What a part lacks shows its background, which is all over the image: its score must not
sink without bound."""
MIN_GRID = 2 * (EXCLUSION_RADIUS + 1)
"""Patches a side from which on every patch has one elsewhere."""
BLOCK = 256
"""Patches a product. It does not depend on the threads, so that no bit of the result does."""


def check_grid(side: int) -> None:
    """Check that every patch of a grid has one elsewhere.

    Raises:
        VisionADError: it has not.
    """
    if side < MIN_GRID:
        raise VisionADError(
            f"self-similarity: expected a grid of at least {MIN_GRID} patches a side, got {side}; choose a scoring without it, or "
            "export with a larger crop"
        )


def self_similarity_weight(patch: F32, side: int, threads: int | None = None) -> F32:
    """Return the fourth root of each patch's cosine distance to the nearest patch elsewhere in the same image.

    Args:
        patch: float32 (side², D), unit rows, one view of an image.
        side: at least :data:`MIN_GRID`.
        threads: default all cores. The result does not depend on it.

    Returns:
        float32 (side²,), 0.47 (:data:`MIN_DISTANCE`) to 1.19.

    Raises:
        VisionADError: a smaller grid.
    """
    check_grid(side)
    patch = np.ascontiguousarray(patch)
    count, own = len(patch), np.arange(side)
    near = abs(own[:, None] - own) <= EXCLUSION_RADIUS
    nearest = np.empty(count, np.float32)

    def block(start: int) -> None:
        some = np.arange(start, min(start + BLOCK, count))
        scores = np.empty((len(some), count), np.float32)
        scores_float32(patch[start : start + BLOCK], patch, scores)
        down, across = np.divmod(some, side)
        scores.reshape(-1, side, side)[near[down][:, :, None] & near[across][:, None, :]] = -np.inf
        nearest[some] = scores.max(axis=1)

    parallel_for(block, range(0, count, BLOCK), max(1, threads if threads is not None else available_cpus()))
    # Two square roots, which every machine rounds alike, as it does not a power.
    return np.sqrt(np.sqrt(np.maximum(1 - nearest, np.float32(MIN_DISTANCE))))
