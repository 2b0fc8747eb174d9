"""Exact nearest-neighbor search in NumPy: the definition of the result, and the fallback where no native build runs.

The search has two passes. The first computes float32 scores, whose error is below :func:`error_bound`, and keeps the rows that this
bound does not rule out. The second scores these rows in float64, in a summation order that depends on the dimension only. The
result is the nearest rows by float64 score, ties to the lowest row. It does not depend on tiles, threads, other queries or the
CPU's instructions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import VisionADError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TILE_ROWS = 4096
"""Bank rows scored at a time. For 784 queries the float32 scores take 12 MiB."""
QUERY_BATCH = 1024
"""Queries scored at a time, which bounds memory."""
PAIR_BATCH = 512
"""Pairs scored at a time in float64, few enough to stay in the cache."""
MAX_CANDIDATES = 8
"""Above this many candidates per query and neighbor, repeated rows of a tile are dropped first."""
PARTIAL_SUMS = 8
"""Partial sums of a float64 score, as in ``exact_score`` of ``search.c``."""

NO_ROWS = "search: the bank has no rows; enroll at least one good image with `visionad bank add`"
NOT_FINITE = "search: NaN or Inf among the bank rows; the bank is damaged, run `visionad bank verify`"
BROKEN_TOKENS = "search: NaN or Inf among the patch tokens; the engine's output is broken, run `visionad doctor`"


def search_numpy(queries: F32, rows: F32, k: int) -> tuple[F64, I64]:
    """Find the ``k`` rows with the highest score for each query.

    Args:
        queries: float32 (Q, D), unit rows.
        rows: float32 (N, D), unit rows, N >= k.
        k: number of neighbors.

    Returns:
        Scores float64 (Q, k), highest first, and rows int64 (Q, k). Ties go to the lowest row.

    Raises:
        VisionADError: There are NaN or Inf among the queries or rows.
    """
    score, row = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for start, end in _ranges(len(queries), QUERY_BATCH):
        score[start:end], row[start:end] = _search_batch(queries[start:end], rows, k)
    return score, row


def exact_scores(queries: F32, rows: F32, query: I64, row: I64) -> F64:
    """Score pairs of a query and a row in float64, in the same summation order as ``exact_score`` of ``search.c``.

    Args:
        queries: float32 (Q, D).
        rows: float32 (N, D).
        query: int64 (P,), the query of each pair.
        row: int64 (P,), the row of each pair.

    Returns:
        float64 (P,).
    """
    out, dim = np.empty(len(query)), rows.shape[1]
    for i in range(0, len(query), PAIR_BATCH):
        left, right = queries[query[i : i + PAIR_BATCH]], rows[row[i : i + PAIR_BATCH]]
        products = left.astype(np.float64) * right
        sums = np.zeros((len(products), PARTIAL_SUMS))
        for d in range(0, dim, PARTIAL_SUMS):
            sums[:, : dim - d] += products[:, d : d + PARTIAL_SUMS]
        sums = sums[:, :4] + sums[:, 4:]
        sums = sums[:, :2] + sums[:, 2:]
        out[i : i + PAIR_BATCH] = sums[:, 0] + sums[:, 1]
    return out


def error_bound(dim: int) -> float:
    """Return a bound of the error of a float32 score of unit vectors with ``dim`` elements.

    ``|fl(q·b) - q·b| <= γ_D |q|·|b| <= γ_D ‖q‖‖b‖`` with ``γ_n = n u / (1 - n u)``, ``u = 2⁻²⁴``, in any summation order, with or
    without fused multiplication (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), then
    Cauchy-Schwarz. Four more units cover roundings of the bound itself. One percent covers rows whose length is 1 only within
    0.1 %, which ``visionad bank verify`` allows.
    """
    n = (dim + 4) * 2.0**-24
    return 1.01 * n / (1 - n)


def not_finite_error(queries: F32) -> VisionADError:
    """Return the error for scores that are not finite. It names the bank if the queries are finite, else the engine."""
    return VisionADError(NOT_FINITE if np.isfinite(queries).all() else BROKEN_TOKENS)


def as_contiguous(rows: F32) -> F32:
    """Return ``rows`` C-contiguous and aligned, copied only if they are not."""
    return np.require(rows, requirements=["C", "A"])


class _Pairs(NamedTuple):
    """Queries, rows and scores of pairs, each (P,)."""

    query: I64
    row: I64
    score: F64


def _search_batch(queries: F32, rows: F32, k: int) -> tuple[F64, I64]:
    margin = 2 * error_bound(rows.shape[1])
    best = _Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    kth_score = np.full(len(queries), -np.inf)  # the highest float32 score of a tile's k-th best row
    for start, end in _ranges(len(rows), TILE_ROWS):
        tile = as_contiguous(rows[start:end])
        with np.errstate(invalid="ignore", over="ignore"):  # reported below, with a message
            scores = queries @ tile.T
        if not np.isfinite(scores).all():
            raise not_finite_error(queries)
        if k <= len(tile):
            np.maximum(kth_score, np.partition(scores, -k, axis=1)[:, -k], out=kth_score)
        query, row = _nonzero(scores >= (kth_score - margin)[:, None])
        if len(query) > MAX_CANDIDATES * k * len(queries):
            keep = _first_repeats(tile, k)[row]
            query, row = query[keep], row[keep]
        score = exact_scores(queries, tile, query, row)
        candidates = _Pairs(query, row + start, score)
        best = _best(_Pairs(*(np.concatenate(both) for both in zip(best, candidates, strict=True))), k)
    return best.score.reshape(-1, k), best.row.reshape(-1, k)


def _best(pairs: _Pairs, k: int) -> _Pairs:
    """Return the k pairs with the highest score for each query, sorted by query, then score. Ties go to the lowest row."""
    order = np.lexsort((pairs.row, -pairs.score, pairs.query))
    order = order[_within_first(pairs.query[order], k)]
    return _Pairs(pairs.query[order], pairs.row[order], pairs.score[order])


def _first_repeats(tile: F32, k: int) -> NDArray[np.bool_]:
    """Mark the first k of each set of identical rows. The others cannot be among the k nearest."""
    as_bytes = tile.view(np.dtype((np.void, tile.itemsize * tile.shape[1]))).ravel()
    groups = np.unique(as_bytes, return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    first = np.empty(len(tile), bool)
    first[order] = _within_first(groups[order], k)
    return first


def _within_first(groups: I64, k: int) -> NDArray[np.bool_]:
    """Mark the first k members of each group; ``groups`` is sorted."""
    starts = np.searchsorted(groups, groups)
    return np.arange(len(groups)) - starts < k


def _nonzero(mask: NDArray[np.bool_]) -> tuple[I64, I64]:
    """Return ``np.nonzero`` of a sparse (Q, N) mask, in a third of the time."""
    flat = np.flatnonzero(mask)
    return flat // mask.shape[1], flat % mask.shape[1]


def _ranges(count: int, largest: int) -> list[tuple[int, int]]:
    """Split ``range(count)`` into equal ranges of at most ``largest``."""
    parts = -(-count // largest)
    return [(i * count // parts, (i + 1) * count // parts) for i in range(parts)]
