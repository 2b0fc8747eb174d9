"""Exact nearest-neighbor search in a memory bank, on the CPU.

:func:`nearest` searches plain bank rows or a :class:`PrunedIndex` (:func:`build_index`). It uses native code (``native.py``). Where
no native build runs, it uses NumPy (``numpy_search.py``, which defines the result). All results are bit-identical.
:class:`SearchIndex` builds indexes in the background.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._threads import available_cpus
from ..errors import VisionADError
from . import native
from .index import IndexState, SearchIndex
from .numpy_search import (
    BROKEN_TOKENS,
    F32,
    F64,
    I64,
    NO_ROWS,
    NOT_FINITE,
    as_contiguous,
    error_bound,
    not_finite_error,
    search_numpy,
)
from .pruning import PrunedIndex, build_index

__all__ = [
    "BROKEN_TOKENS",
    "NOT_FINITE",
    "NO_ROWS",
    "IndexState",
    "PrunedIndex",
    "SearchIndex",
    "SearchResult",
    "build_index",
    "nearest",
]

MIN_WORK_PER_THREAD = 4e6
"""Multiplications that one more thread must take over to be worth starting (about 0.05 ms)."""


class SearchResult(NamedTuple):
    """Nearest bank rows of each query: shape (Q,) for k = 1, else (Q, k), nearest first.

    Attributes:
        distance: float32 cosine distances, 0 to 2 up to rounding.
        row: int64 row numbers. Among rows at the same float64 distance, the lowest comes first.
    """

    distance: NDArray[np.float32]
    row: NDArray[np.int64]


def nearest(queries: F32, bank: F32 | PrunedIndex, k: int = 1, *, threads: int | None = None) -> SearchResult:
    """Find the ``k`` bank rows with the smallest cosine distance ``1 - cos(q, row)`` to each query (method, section 4).

    Memory never holds the full score matrix.

    Args:
        queries: float32 (Q, D), unit rows.
        bank: float32 (N, D), unit rows, N >= k, may be memory-mapped; or the index of such rows.
        k: number of neighbors.
        threads: maximum number of threads (default: all CPUs). The result does not depend on it.

    Raises:
        VisionADError: The bank is empty, a shape or dtype is wrong, ``k`` exceeds the number of rows, or there are NaN or Inf.
    """
    rows = bank.rows if isinstance(bank, PrunedIndex) else bank
    _check(queries, rows, k)
    queries = as_contiguous(queries)
    width = bank.projections.shape[1] if isinstance(bank, PrunedIndex) else rows.shape[1]
    threads = max(1, threads if threads is not None else available_cpus())
    threads = int(min(threads, max(1, len(queries) * width * len(rows) / MIN_WORK_PER_THREAD)))
    score, row = _search(queries, rows, k, threads, bank if isinstance(bank, PrunedIndex) else None)
    shape = (len(queries),) if k == 1 else (len(queries), k)
    return SearchResult((1.0 - score).astype(np.float32).reshape(shape), row.reshape(shape))


def _check(queries: F32, rows: F32, k: int) -> None:
    if (
        queries.ndim != 2
        or queries.shape[1:] != rows.shape[1:]
        or {queries.dtype, rows.dtype} != {np.dtype(np.float32)}
    ):
        raise VisionADError(
            f"search: expected float32 (Q, D) queries and (N, D) bank rows, got {queries.dtype} {queries.shape} and "
            f"{rows.dtype} {rows.shape}"
        )
    if not len(rows):
        raise VisionADError(NO_ROWS)
    if not 1 <= k <= len(rows):
        raise VisionADError(f"search: expected {k} neighbors, got {len(rows)} bank rows; k is 1 to {len(rows)}")


def _search(queries: F32, rows: F32, k: int, threads: int, index: PrunedIndex | None) -> tuple[F64, I64]:
    """Return scores float64 (Q, k) and rows int64 (Q, k), by native code or NumPy."""
    library = native.native_library()[0]
    if library is None:
        return search_numpy(queries, rows, k)
    projections = None
    if index is not None:
        if not np.isfinite(queries).all():
            raise not_finite_error(queries)
        projections = library.project(queries, index.components, threads), index.projections
    result = library.nearest(queries, as_contiguous(rows), k, error_bound(rows.shape[1]), threads, projections)
    if not result.finite:
        raise not_finite_error(queries)
    return result.score, result.row
