"""Exact nearest-neighbour search in a memory bank, on the CPU.

Every search has two passes. The first goes over the bank tile by tile, in arithmetic that is fast and errs by no more than
a known bound, and keeps the rows that the bound does not rule out. The second scores those in float64, one pair at a time
and always in the same order. So the rows found are the nearest by float64 score, ties to the lowest row, whatever the
tiles, the threads, the other queries or the CPU's kernels were.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import VisionADError
from .products import scores_float32, scores_int8, zero_point
from .workers import cores, spread

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TILE_ROWS = 4096
"""Most bank rows per tile. 784 x 4096 float32 scores (12 MiB a thread) stay in the last cache until their maximum is found, and a
1-shot bank is one or two tiles, so that what is done once a tile costs little."""
CODE_ROWS = 1024
"""Bank rows per tile of an :class:`Int8Bank`, whatever the number of threads that will share them."""
BLOCK_QUERIES = 1024
"""Queries per sweep over the bank, so that memory does not grow with them."""
PAIRS = 128
"""Pairs scored at a time in float64, which then stay in cache."""
FEW = 1 / 64
"""A larger part of a tile costs more pair by pair than by a float32 product with the whole tile."""
MANY = 8
"""More than this times k candidates per query of a tile are thinned before they are kept."""
INT8_ROWS, INT8_ROWS_7_BITS = 16384, 131072
"""Bank rows from which an int8 first pass is the faster one, with queries' codes of 8 bits and of 7."""
SMALL_WORK = 4e6
"""Multiplications that are not worth another thread (about 0.05 ms)."""


class Neighbours(NamedTuple):
    """``distance`` float32, 0..2 up to rounding, and ``row`` int64: the nearest bank rows, (Q,) for k = 1, else (Q, k), nearest
    first. Of rows at the same float64 distance the lowest comes first."""

    distance: NDArray[np.float32]
    row: NDArray[np.int64]


def worth_coding(rows: int) -> bool:
    """Whether a bank of that many rows is searched faster as an :class:`Int8Bank` on this CPU (``benchmarks/search.py``): from 16 k
    rows on where it adds up products of bytes in 32 bits (VNNI and its like), else from where memory is the limit."""
    return rows >= INT8_ROWS and (rows >= INT8_ROWS_7_BITS or zero_point() == 128)


class Int8Bank:
    """A bank to be searched by an int8 first pass: faster, and with a quarter of the bank in memory. Finds the same rows.

    Row ``b`` is held as ``centre + scale · codes``, codes -127..127, with the length of what that leaves out. ``rows`` is kept
    as given, read only where a row may be a winner, and may be memory-mapped.

    Args:
        rows: float32 (N, D), unit rows, N >= 1.

    Raises:
        VisionADError: no rows, or NaN or Inf among them.
    """

    def __init__(self, rows: F32) -> None:
        if rows.ndim != 2 or rows.dtype != np.float32:
            raise VisionADError(f"search: wanted float32 (N, D) bank rows, found {rows.dtype} {rows.shape}")
        if not len(rows):
            raise VisionADError(NO_ROWS)
        self.rows = rows
        # What all rows share needs no bits: tokens of one class have a large common part, outlying dimensions above all.
        sums = sum(rows[s:e].sum(axis=0, dtype=np.float64) for s, e in _tiles(len(rows), CODE_ROWS))
        self.centre = (np.asarray(sums) / len(rows)).astype(np.float32)
        self.tiles = [self._encode(rows[s:e]) for s, e in _tiles(len(rows), CODE_ROWS)]

    @property
    def nbytes(self) -> int:
        """Bytes held besides ``rows``."""
        return sum(part.nbytes for tile in self.tiles for part in tile)

    def _encode(self, rows: F32) -> _Codes:
        if not np.isfinite(rows).all():
            raise VisionADError(NOT_FINITE)
        rest: F32 = rows - self.centre
        scale = np.maximum(np.abs(rest).max(axis=1), 1e-30) / np.float32(127)
        codes = np.rint(rest / scale[:, None])
        left = rest - codes * scale[:, None]
        shared: F32 = rest @ self.centre
        return _Codes(np.ascontiguousarray(codes.T.astype(np.int8)), scale, shared, _lengths(left), _lengths(rest))


def _lengths(rows: F32) -> F32:
    lengths: F32 = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return lengths


class _Codes(NamedTuple):
    """Tile of an :class:`Int8Bank`: codes int8 (D, n), scale (n,), product of the rest with the centre (n,), length of what
    the codes leave out (n,), length of the rest (n,)."""

    codes: NDArray[np.int8]
    scale: F32
    shared: F32
    left: F32
    rest: F32


def nearest(queries: F32, bank: F32 | Int8Bank, k: int = 1, *, threads: int | None = None) -> Neighbours:
    """The ``k`` bank rows of smallest cosine distance ``1 - cos(q, row)`` of each query (method, section 4).

    The score matrix is never held beyond one tile a thread.

    Args:
        queries: float32 (Q, D), unit rows.
        bank: float32 (N, D), unit rows, N >= k; may be memory-mapped. Or an :class:`Int8Bank` of such rows.
        threads: default all cores. The result does not depend on it.

    Raises:
        VisionADError: empty bank, other widths or types, more neighbours wanted than rows, NaN or Inf.
    """
    rows = bank.rows if isinstance(bank, Int8Bank) else bank
    _check(queries, rows, k)
    workers = max(1, threads if threads is not None else cores())
    workers = int(min(workers, max(1, queries.size * len(rows) / SMALL_WORK)))
    one_tile = isinstance(bank, np.ndarray) and len(bank) <= TILE_ROWS
    # Threads share the queries of a bank that is one tile, and the tiles of a larger one.
    share = -(-len(queries) // workers) if one_tile else BLOCK_QUERIES
    score, row = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)

    def block(part: tuple[int, int]) -> None:
        own = np.require(queries[slice(*part)], requirements=["C", "A"])
        score[slice(*part)], row[slice(*part)] = _search(own, bank, k, 1 if one_tile else workers)

    spread(block, _tiles(len(queries), min(BLOCK_QUERIES, max(1, share))), workers if one_tile else 1)
    shape = (len(queries),) if k == 1 else (len(queries), k)
    return Neighbours((1.0 - score).astype(np.float32).reshape(shape), row.reshape(shape))


NO_ROWS = "search: the bank has no rows; enrol at least one good picture with `visionad bank add`"
NOT_FINITE = "search: NaN or Inf among the bank rows; the bank is damaged, run `visionad bank verify`"
BROKEN_TOKENS = "search: NaN or Inf among the patch tokens; the engine's output is broken, run `visionad doctor`"


def _not_finite(queries: F32) -> VisionADError:
    """Whose fault it is that scores are not finite."""
    return VisionADError(NOT_FINITE if np.isfinite(queries).all() else BROKEN_TOKENS)


def _check(queries: F32, rows: F32, k: int) -> None:
    if (
        queries.ndim != 2
        or queries.shape[1:] != rows.shape[1:]
        or {queries.dtype, rows.dtype} != {np.dtype(np.float32)}
    ):
        raise VisionADError(
            f"search: wanted float32 (Q, D) queries and (N, D) bank rows, found {queries.dtype} {queries.shape} and "
            f"{rows.dtype} {rows.shape}"
        )
    if not len(rows):
        raise VisionADError(NO_ROWS)
    if not 1 <= k <= len(rows):
        raise VisionADError(f"search: wanted {k} neighbours, found {len(rows)} bank rows; k is 1 to {len(rows)}")


def _tiles(count: int, most: int, share: int = 1) -> list[tuple[int, int]]:
    """Equal ranges of at most ``most``, as many as ``share`` workers can divide evenly."""
    parts = -(-count // most)
    parts = min(-(-parts // share) * share, count)
    return [(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


class _Pairs(NamedTuple):
    """Queries and rows that may be neighbours, with an upper bound of their scores."""

    query: I64
    row: I64
    upper: F32 | F64


def _joined(parts: list[_Pairs]) -> _Pairs:
    return parts[0] if len(parts) == 1 else _Pairs(*(np.concatenate([part[i] for part in parts]) for i in range(3)))


class _Floor:
    """Per query, a lower bound of its k-th best score: what the best rows seen so far reach for certain."""

    def __init__(self, count: int, k: int) -> None:
        self.k, self._best, self._lock = k, np.full((count, k), -np.inf), threading.Lock()

    def now(self, queries: I64 | slice = slice(None)) -> F64:
        """The bounds (Q,)."""
        with self._lock:  # of a row read half before and half after a change, the lowest may be above the true bound
            lowest: F64 = self._best[queries].min(axis=1)
        return lowest

    def rise(self, queries: I64 | slice, lower: F64) -> F64:
        """Take over lower bounds (Q, any) of the scores of rows not seen before."""
        with self._lock:
            best = self._best[queries]
            if lower.shape[1] == self.k == 1:
                best = np.maximum(best, lower)
            else:
                best = np.partition(np.concatenate([best, lower], axis=1), -self.k, axis=1)[:, -self.k :]
            self._best[queries] = best
        lowest: F64 = best.min(axis=1)
        return lowest

    def seen(self, queries: I64 | slice, lower: F64) -> F64:
        """As :meth:`rise`, for rows that may have been counted already: nothing is kept."""
        return np.maximum(self.now(queries), lower.min(axis=1) if lower.shape[1] == self.k else -np.inf)


class _Pass(Protocol):
    """A first pass: goes over tiles of bank rows (start, end) and leaves the pairs that its error bound does not rule out."""

    tiles: list[tuple[int, int]]

    def candidates(self, number: int, scratch: F32) -> _Pairs: ...


class _Float32Pass:
    """Scores in float32, off by no more than :func:`_slack`."""

    def __init__(self, queries: F32, rows: F32, floor: _Floor, tiles: list[tuple[int, int]]) -> None:
        self.queries, self.rows, self.floor, self.tiles = queries, rows, floor, tiles

    def candidates(self, number: int, scratch: F32) -> _Pairs:
        return self.scan(slice(None), *self.tiles[number], scratch, self.floor.rise)

    def scan(
        self, which: I64 | slice, start: int, end: int, scratch: F32, rise: Callable[[I64 | slice, F64], F64]
    ) -> _Pairs:
        """Some of the queries against the rows ``start`` to ``end``; ``rise`` is told of lower bounds of their scores."""
        queries, rows = self.queries[which], np.require(self.rows[start:end], requirements=["C", "A"])
        count, k = len(queries), min(self.floor.k, end - start)
        scores = scratch[: count * len(rows)].reshape(count, len(rows))
        scores_float32(queries, rows, scores)
        winner, top = _top(scores, k)
        high = top.max(axis=1)
        if not np.isfinite(high).all():
            raise _not_finite(queries)
        slack = _slack(rows.shape[1])
        cut = (rise(which, top.astype(np.float64) - slack) - slack).astype(np.float32)
        hit = busy = np.flatnonzero(high >= cut)
        query, row, upper = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        if k == 1:  # mostly nothing but the winner itself: seen faster by a second maximum than by comparing all scores
            query, row, upper = hit, winner[hit, 0], high[hit]
            scores[np.arange(count), winner[:, 0]] = -np.inf
            # (a copy of most of them would cost more than it saves)
            some = hit if 4 * len(hit) < count else np.arange(count)
            second = scores[some] if len(some) < count else scores
            busy = some[_top(second, 1)[1][:, 0] >= cut[some]]
        near = scores[busy]
        q, r = _where(near >= cut[busy, None])
        query, row = np.concatenate([query, busy[q]]), np.concatenate([row, r])
        upper = np.concatenate([upper, near[q, r]]) + np.float32(slack)
        return _Pairs(query if isinstance(which, slice) else which[query], row + start, upper)


class _Int8Pass:
    """Upper bounds of scores by a product of int8 codes; rows it cannot tell apart are left to the float32 pass.

    With ``c`` the bank's centre, ``b - c = β B + r`` and ``q - c = α A + s`` (codes A, B; what they leave out r, s):
    ``q·b = q·c + c·(b - c) + αβ A·B + αA·r + s·(b - c)``, and by Cauchy and Schwarz the last two terms are at most
    ``|αA| |r| + |s| |b - c|``. The bound is on single pairs, so the winner is proven, not likely.
    """

    def __init__(self, queries: F32, bank: Int8Bank, floor: _Floor) -> None:
        if not np.isfinite(queries).all():
            raise _not_finite(queries)
        self.queries, self.bank, self.floor = queries, bank, floor
        self.tiles = _tiles(len(bank.rows), CODE_ROWS)
        self.finer = _Float32Pass(queries, bank.rows, floor, self.tiles)
        self.zero = zero_point()
        self.highest = np.full(len(queries), -np.inf, np.float32)
        rest = queries - bank.centre
        self.unit = np.float32(max(float(np.abs(rest).max()), 1e-30) / (self.zero - 1))
        codes = np.rint(rest / self.unit)
        self.codes = (codes + self.zero).astype(np.uint8)
        codes *= self.unit
        rest -= codes
        self.length, self.left = (float(_lengths(x).max()) for x in (codes, rest))
        self.shared = queries @ bank.centre
        self.slack = _slack(queries.shape[1])

    def candidates(self, number: int, scratch: F32) -> _Pairs:
        (start, end), tile, count = self.tiles[number], self.bank.tiles[number], len(self.queries)
        offset = tile.shared + (self.length * tile.left + self.left * tile.rest + 4 * self.slack).astype(np.float32)
        upper = scratch[: count * (end - start)].reshape(count, end - start)
        scores_int8(self.codes, self.zero, tile.codes, self.unit, tile.scale, offset, upper)
        k = min(self.floor.k, end - start)
        winner, top = _top(upper, k)
        high = top.max(axis=1)
        hit = np.flatnonzero(high >= self.floor.now() - self.shared)
        better = hit[high[hit] > self.highest[hit]]
        self.highest[better] = high[better]
        # The float32 score of what looks best is a much higher floor than the lower bound of its int8 score would be.
        score = _rough(self.queries, self.bank.rows, np.repeat(better, k), start + winner[better].ravel())
        self.floor.rise(better, score.reshape(-1, k).astype(np.float64) - self.slack)
        cut = (self.floor.now() - self.shared)[hit].astype(np.float32)
        near = upper if len(hit) == count else upper[hit]
        q, r = _where(near >= cut[:, None])
        many = np.bincount(q, minlength=len(hit)) > FEW * (end - start) + k
        few = ~many[q]
        pairs = _Pairs(hit[q[few]], start + r[few], near[q[few], r[few]] + self.shared[hit[q[few]]])
        if not many.any():
            return pairs
        own = self.finer.scan(hit[many], start, end, scratch, self.floor.seen)
        return _joined([pairs, own])


def _slack(dim: int) -> float:
    """Bound of the error of a float32 score of unit vectors.

    ``|fl(q·b) - q·b| <= γ_D |q|·|b| <= γ_D ‖q‖‖b‖`` with ``γ_n = n u / (1 - n u)``, ``u = 2⁻²⁴``, in whatever order a kernel
    adds, with or without fused multiplication (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section
    3.1); then Cauchy and Schwarz. Four more units pay for roundings of the bound itself, 1 % for rows whose length is 1
    within what ``visionad bank verify`` allows (0.1 %).
    """
    n = (dim + 4) * 2.0**-24
    return 1.01 * n / (1 - n)


def _top(scores: F32, k: int) -> tuple[I64, F32]:
    """The k largest of each row, in any order: where, and what. NaN counts as largest."""
    where = scores.argmax(axis=1)[:, None] if k == 1 else np.argpartition(scores, -k, axis=1)[:, -k:]
    return where, scores[np.arange(len(scores))[:, None], where]


def _where(mask: NDArray[np.bool_]) -> tuple[I64, I64]:
    """``np.nonzero`` of a sparse (Q, N) mask, three times as fast."""
    flat = np.flatnonzero(mask)
    return flat // mask.shape[1], flat % mask.shape[1]


def _search(queries: F32, bank: F32 | Int8Bank, k: int, workers: int) -> tuple[F64, I64]:
    """Scores float64 (Q, k) and rows (Q, k)."""
    rows = bank.rows if isinstance(bank, Int8Bank) else bank
    floor = _Floor(len(queries), k)
    first: _Pass
    if isinstance(bank, Int8Bank):
        first = _Int8Pass(queries, bank, floor)
    else:
        first = _Float32Pass(queries, bank, floor, _tiles(len(bank), TILE_ROWS, workers))
    found, scratches = list[_Pairs](), threading.local()

    def search(number: int) -> None:
        scratch = getattr(scratches, "scores", None)
        if scratch is None:
            scratch = scratches.scores = np.empty(len(queries) * max(e - s for s, e in first.tiles), np.float32)
        found.append(_thin(first.candidates(number, scratch), queries, rows, first.tiles[number], k))

    spread(search, range(len(first.tiles)), workers)
    query, row, upper = _joined(found)
    likely = upper >= floor.now()[query]
    query, row = query[likely], row[likely]
    if k == 1 and len(query) > 1.2 * len(queries):
        query, row = _sieve(queries, rows, query, row)
    score, row = _best(queries, rows, query, row, k)[1:]
    if not np.isfinite(score).all():
        raise _not_finite(queries)
    return score.reshape(-1, k), row.reshape(-1, k)


def _thin(pairs: _Pairs, queries: F32, rows: F32, tile: tuple[int, int], k: int) -> _Pairs:
    """Bound what a tile full of near-ties leaves. Of identical rows only the first k can be among the k nearest."""
    if len(pairs.query) <= MANY * k * len(queries):
        return pairs
    start, end = tile
    same = np.ascontiguousarray(rows[start:end]).view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    groups = np.unique(same, return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    early = np.empty(end - start, bool)
    early[order] = _first(groups[order], k)
    keep = early[pairs.row - start]
    query, score, row = _best(queries, rows, pairs.query[keep], pairs.row[keep], k)
    return _Pairs(query, row, np.nextafter(score.astype(np.float32), np.inf, dtype=np.float32))


def _best(queries: F32, rows: F32, query: I64, row: I64, k: int) -> tuple[I64, F64, I64]:
    """The k best of each query's pairs by float64 score, ties to the lowest row: queries, scores, rows, by query."""
    score = _exact(queries, rows, query, row)
    if k == 1:
        best, lowest = np.full(len(queries), -np.inf), np.full(len(queries), len(rows))
        np.maximum.at(best, query, score)
        tied = ~(score < best[query])
        np.minimum.at(lowest, query[tied], row[tied])
        found = np.flatnonzero(lowest < len(rows))
        return found, best[found], lowest[found]
    order = np.lexsort((row, -score, query))
    order = order[_first(query[order], k)]
    return query[order], score[order], row[order]


def _first(groups: I64, k: int) -> NDArray[np.bool_]:
    """Which of sorted ``groups`` are among the first k of their kind."""
    starts = np.searchsorted(groups, groups)
    return np.arange(len(groups)) - starts < k


def _sieve(queries: F32, rows: F32, query: I64, row: I64) -> tuple[I64, I64]:
    """Pairs that are within float32's error of their query's best: half the price of float64, for most of them."""
    score = _rough(queries, rows, query, row)
    best = np.full(len(queries), -np.inf, np.float32)
    np.maximum.at(best, query, score)
    near = score >= best[query] - np.float32(2 * _slack(queries.shape[1]))
    return query[near], row[near]


def _rough(queries: F32, rows: F32, query: I64, row: I64) -> F32:
    """Score of each pair in float32."""
    out = np.empty(len(query), np.float32)
    for i in range(0, len(query), PAIRS):
        np.einsum("pd,pd->p", queries[query[i : i + PAIRS]], rows[row[i : i + PAIRS]], out=out[i : i + PAIRS])
    return out


def _exact(queries: F32, rows: F32, query: I64, row: I64) -> F64:
    """Score of each pair: products in float64 (exact), added up in an order that depends on D alone."""
    out = np.empty(len(query))
    for i in range(0, len(query), PAIRS):
        left, right = queries[query[i : i + PAIRS]], rows[row[i : i + PAIRS]]
        np.einsum("pd,pd->p", left.astype(np.float64), right.astype(np.float64), out=out[i : i + PAIRS])
    return out
