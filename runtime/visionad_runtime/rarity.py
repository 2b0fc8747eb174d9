"""How unlike the rest of its own picture a patch is (presets of the project; not in the paper).

A patch that no support explains may still be an ordinary one: a layout the supports do not have, a texture that varies. Then it has
its like elsewhere in the picture, which a defect seldom does. Evidence: ``docs/presets.md``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import VisionADError
from .products import scores_float32
from .workers import cores, spread

F32 = NDArray[np.float32]

REACH = 2
"""Patches this near, across and down, do not count as elsewhere: neighbours share content and would explain a defect by itself."""
FLOOR = 0.05
"""Distances below count as this much. What a part lacks shows its background, which is all over the picture: its score must not
sink without bound."""
SMALLEST_GRID = 2 * (REACH + 1)
"""Patches a side from which on every patch has one elsewhere."""
BLOCK = 256
"""Patches a product, whatever the threads: it is the same to the last bit then."""


def rarity(patch: F32, side: int, threads: int | None = None) -> F32:
    """Factor of each patch's distance: the fourth root of the cosine distance to its nearest patch elsewhere in the picture.

    Args:
        patch: float32 (side², D), unit rows, one view of a picture; ``side`` at least :data:`SMALLEST_GRID`.
        threads: default all cores. The result does not depend on it.

    Returns:
        float32 (side²,), 0.47 (``FLOOR``) to 1.19.

    Raises:
        VisionADError: a smaller grid.
    """
    if side < SMALLEST_GRID:
        raise VisionADError(
            f"rarity: wanted a grid of at least {SMALLEST_GRID} patches a side, found {side}; export again without it"
        )
    patch = np.ascontiguousarray(patch)
    count, own = len(patch), np.arange(side)
    near = abs(own[:, None] - own) <= REACH
    elsewhere = np.empty(count, np.float32)

    def block(start: int) -> None:
        some = np.arange(start, min(start + BLOCK, count))
        scores = np.empty((len(some), count), np.float32)
        scores_float32(patch[start : start + BLOCK], patch, scores)
        down, across = np.divmod(some, side)
        scores.reshape(-1, side, side)[near[down][:, :, None] & near[across][:, None, :]] = -np.inf
        elsewhere[some] = scores.max(axis=1)

    spread(block, range(0, count, BLOCK), max(1, threads if threads is not None else cores()))
    # Two square roots, which every machine rounds alike, as it does not a power.
    return np.sqrt(np.sqrt(np.maximum(1 - elsewhere, np.float32(FLOOR))))
