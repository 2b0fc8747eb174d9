"""Search of a bank's rows with what is remembered of defects: the only one, for inspection and leave-one-out scores.

A patch that is nearer to a remembered defect than to any good patch gets a larger distance. One search covers all rows. Only the
patches whose nearest row is a remembered one are searched again among the good rows.
"""

from __future__ import annotations

import numpy as np

from ..bank.memory_bank import MemoryBank
from ..formats.manifest import ViewName
from ..scoring.score import F32, SearchBank
from ..search import SearchIndex, nearest

MARGIN_WEIGHT = np.float32(2)
"""Weight of the margin by which a remembered defect is nearer. The variant was chosen by ``benchmarks/defect_memory.py``."""


def raised(good: F32, defect: F32) -> F32:
    """Return the distances that are scored: ``good + 2 · max(0, good − defect)``.

    Args:
        good: float32 (N,), distances to the nearest good patch.
        defect: float32 (N,), distances to the nearest remembered patch.
    """
    distances: F32 = good + MARGIN_WEIGHT * np.maximum(good - defect, np.float32(0))
    return distances


def bank_search(bank: MemoryBank, index: SearchIndex | None = None, threads: int | None = None) -> SearchBank:
    """Return the search of a bank.

    Args:
        bank: the rows.
        index: indexes of banks that are searched often; ``None`` searches plain rows. The result does not depend on it.
        threads: maximum number of threads (default: all CPUs). The result does not depend on it.
    """

    def search_rows(view: ViewName, tokens: F32) -> F32:
        rows = bank.rows(view)
        return nearest(tokens, rows if index is None else index.index_for(bank, view, rows, tokens), threads=threads)[0]

    def search(view: ViewName, tokens: F32) -> F32:
        if bank.defects is None:
            return search_rows(view, tokens)
        rows = bank.rows_with_defects(view)
        key = f"{view} with defects"
        found = nearest(tokens, rows if index is None else index.index_for(bank, key, rows, tokens), threads=threads)
        remembered = found.row >= len(bank.rows(view))
        distances = found.distance.copy()
        if remembered.any():
            distances[remembered] = raised(search_rows(view, tokens[remembered]), found.distance[remembered])
        return distances

    return search
