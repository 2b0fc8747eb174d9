"""Leave-one-out scores: the score that a support's inspection would have if it were not enrolled. No image is encoded for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bank.layout import cells_of
from ..bank.memory_bank import ClassBank, MemoryBank
from ..scoring.score import Scored, SearchBank, ignore_cells, score_tokens
from ..scoring.spec import ScoringSpec
from .bank_search import bank_search


class SupportScore(NamedTuple):
    """Leave-one-out score of a support.

    Attributes:
        support: its index in the class.
        score: score of its inspection without itself; of the worst tile, if the class has several.
        normal_level: median of that anomaly map.
    """

    support: int
    score: float
    normal_level: float


def leave_one_out(
    bank: ClassBank, spec: ScoringSpec, supports: Iterable[int] | None = None, threads: int | None = None
) -> list[SupportScore]:
    """Score supports of a class against the others.

    Args:
        bank: class with two supports or more.
        spec: how to score, in views that the bank holds.
        supports: indices of the supports to score (default: all).
        threads: maximum number of threads (default: all CPUs). The result does not depend on it.

    Raises:
        VisionADError: The grid is too small for self-similarity.
    """
    scores, layout = [], bank.layout
    for k in range(len(bank.entry.images)) if supports is None else supports:
        worst = max(
            (
                _score_tile(rows, k, tile, spec, rest, cells_of(layout, roi, tile), threads)
                for roi, rows, rest in ((roi, rows, rows.leave_out(k)) for roi, rows in enumerate(bank.rois))
                for tile in range(rows.tiles)
            ),
            key=lambda scored: scored.score,
        )
        scores.append(SupportScore(k, worst.score, float(np.median(worst.anomaly_map))))
    return scores


def search_rows(bank: MemoryBank, threads: int | None = None) -> SearchBank:
    """Return the search of plain rows. An index is not worth it for a bank that is searched a few times.

    Args:
        bank: the rows.
        threads: maximum number of threads (default: all CPUs).
    """

    return bank_search(bank, threads=threads)


def _score_tile(
    bank: MemoryBank,
    support: int,
    tile: int,
    spec: ScoringSpec,
    rest: MemoryBank,
    ignored: NDArray[np.bool_] | None,
    threads: int | None,
) -> Scored:
    tokens = bank.unrotated(support, spec.views, tile)
    scored = score_tokens(tokens, search_rows(rest, threads), spec, threads=threads)
    return scored if ignored is None else ignore_cells(scored.distances, ignored, spec)
