"""Exact nearest-neighbour search in a memory bank, on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import VisionADError

TILE_ROWS = 8192
"""Bank rows per tile: a 784 x 1024 float32 score tile (3 MiB) stays in cache between the product and its maximum."""


class Neighbours(NamedTuple):
    """``distance`` float32 (Q,), 0..2 up to rounding, and ``row`` int64 (Q,), the nearest bank row.

    Of rows whose float32 scores are equal the lowest index is taken. Equal rows can have scores an ulp apart, because a
    matrix product treats the edges of its blocks differently: then it is any of them, at the same distance.
    """

    distance: NDArray[np.float32]
    row: NDArray[np.int64]


def nearest(queries: NDArray[np.float32], bank: NDArray[np.float32]) -> Neighbours:
    """Cosine distance ``1 - max_rows cos(q, row)`` of each query (method, section 4).

    The score matrix is never held beyond one tile. The winner found by the float32 product is scored again in float64, so
    the distance does not depend on how the product was blocked or threaded, unless two rows are within float32 rounding
    of each other (about 1e-7): then it is the distance of either.

    Args:
        queries: float32 (Q, D), unit rows.
        bank: float32 (N, D), unit rows, N >= 1; may be memory-mapped.

    Raises:
        VisionADError: empty bank, other widths, NaN or Inf among the queries.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise VisionADError(
            f"search: wanted (Q, D) queries and (N, D) bank rows, found {queries.shape} and {bank.shape}"
        )
    if not len(bank):
        raise VisionADError("search: the bank has no rows; enrol at least one good picture with `visionad bank add`")
    if not np.isfinite(queries).all():
        raise VisionADError(
            "search: NaN or Inf among the patch tokens; the engine's output is broken, run `visionad doctor`"
        )
    count = len(queries)
    best = np.full(count, -np.inf, np.float32)
    index = np.zeros(count, np.int64)
    every = np.arange(count)
    tile = np.empty((count, min(TILE_ROWS, len(bank))), np.float32)
    for start in range(0, len(bank), TILE_ROWS):
        rows = bank[start : start + TILE_ROWS]
        scores = tile if len(rows) == tile.shape[1] else np.empty((count, len(rows)), np.float32)
        np.matmul(queries, rows.T, out=scores)
        winner = scores.argmax(axis=1)
        score = scores[every, winner]
        better = score > best
        best[better] = score[better]
        index[better] = start + winner[better]
    exact = np.einsum("qd,qd->q", queries, bank[index], dtype=np.float64, casting="safe")
    return Neighbours((1.0 - exact).astype(np.float32), index)
