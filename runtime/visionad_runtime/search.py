"""Exact nearest-neighbour search in a memory bank, on the CPU.

Every search has two passes. The first is in arithmetic that is fast and errs by no more than a known bound, and keeps the rows that
the bound does not rule out. The second scores those in float64, one pair at a time and always in the same order. So the rows found
are the nearest by float64 score, ties to the lowest row, whatever the tiles, the threads, the other queries or the CPU's
instructions were.

Float32 banks are searched by machine code that does both passes at once (``cpu/``), or, on a CPU for which there is none, by NumPy.
"""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import cpu
from .axes import TurnedBank, find_axes
from .errors import VisionADError
from .products import scores_int8, zero_point
from .workers import cores, spread

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TILE_ROWS = 4096
"""Bank rows that NumPy scores at a time: 784 x 4096 float32 scores are 12 MiB."""
CODE_ROWS = 1024
"""Bank rows per tile of an :class:`Int8Bank`, whatever the number of threads that will share them."""
BLOCK_QUERIES = 1024
"""Queries per sweep over the tiles, so that memory does not grow with them."""
PAIRS = 512
"""Pairs that NumPy scores at a time in float64, which then stay in cache."""
FEW = 1 / 64
"""A larger part of a tile of codes costs more pair by pair than by a float32 search of the whole tile."""
MANY = 8
"""More than this times k candidates per query of a tile are thinned before they are kept."""
PARTS = 8
"""Partial sums of a float64 score (``exact`` of ``search.c``)."""
INT8_ROWS = 16384
"""Bank rows from which an int8 first pass is the faster one, on a CPU that has instructions for it."""
WORTH, WORTH_BESIDE_INT8 = 0.75, 0.4
"""Most of the float32 search's work that a bank's heads may be expected to leave; where int8 codes leave about half, less."""
SMALL_WORK = 4e6
"""Multiplications that are not worth another thread (about 0.05 ms)."""


class Neighbours(NamedTuple):
    """``distance`` float32, 0..2 up to rounding, and ``row`` int64: the nearest bank rows, (Q,) for k = 1, else (Q, k), nearest
    first. Of rows at the same float64 distance the lowest comes first."""

    distance: NDArray[np.float32]
    row: NDArray[np.int64]


def worth_coding(rows: int) -> bool:
    """Whether a bank of that many rows is searched faster as an :class:`Int8Bank` on this CPU (``benchmarks/search.py``): one that
    adds up products of bytes in 32 bits (VNNI and its like), from 16 k rows on."""
    return rows >= INT8_ROWS and zero_point() == 128


def prepared(rows: F32, queries: F32, threads: int | None = None) -> F32 | Int8Bank | TurnedBank:
    """A bank as it is searched fastest on this CPU, which finds the same. Takes 0.1 to 0.5 s up to 50 000 rows, on two cores.

    Args:
        rows: float32 (N, D), unit rows.
        queries: float32 (Q, D), unit rows such as it will be searched for.
        threads: default all cores. The result does not depend on it.

    Raises:
        VisionADError: NaN or Inf among them.
    """
    for x, message in ((rows, NOT_FINITE), (queries, BROKEN_TOKENS)):
        if not np.isfinite(x).all():
            raise VisionADError(message)
    library, threads = machine_code()[0], threads or cores()
    if library is not None:
        axes = find_axes(rows, queries, WORTH_BESIDE_INT8 if worth_coding(len(rows)) else WORTH, library, threads)
        if axes is not None:
            return TurnedBank(_plain(rows), axes, library, threads)
    return Int8Bank(rows) if worth_coding(len(rows)) else rows


class Int8Bank:
    """A bank to be searched by an int8 first pass: faster, and with a quarter of the bank in memory. Finds the same rows.

    Row ``b`` is held as ``centre + scale · codes``, codes -127..127, with the length of what that leaves out. ``rows`` is kept
    as given (copied only if it isn't C-contiguous), read only where a row may be a winner, and may be memory-mapped.

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
        self.rows = _plain(rows)
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


def nearest(queries: F32, bank: F32 | Int8Bank | TurnedBank, k: int = 1, *, threads: int | None = None) -> Neighbours:
    """The ``k`` bank rows of smallest cosine distance ``1 - cos(q, row)`` of each query (method, section 4).

    The score matrix is never held: not at all for a float32 bank, one tile a thread for an int8 one.

    Args:
        queries: float32 (Q, D), unit rows.
        bank: float32 (N, D), unit rows, N >= k; may be memory-mapped. Or one of :func:`prepared`'s of such rows.
        threads: default all cores. The result does not depend on it.

    Raises:
        VisionADError: empty bank, other widths or types, more neighbours wanted than rows, NaN or Inf.
    """
    rows = bank if isinstance(bank, np.ndarray) else bank.rows
    _check(queries, rows, k)
    queries = _plain(queries)
    width = bank.heads.shape[1] if isinstance(bank, TurnedBank) else rows.shape[1]
    workers = max(1, threads if threads is not None else cores())
    workers = int(min(workers, max(1, len(queries) * width * len(rows) / SMALL_WORK)))
    if isinstance(bank, Int8Bank):
        score, row = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
        for start, end in _tiles(len(queries), BLOCK_QUERIES):
            score[start:end], row[start:end] = _search_codes(queries[start:end], bank, k, workers)
    else:
        score, row = _search(queries, rows, k, workers, bank if isinstance(bank, TurnedBank) else None)
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


def _plain(rows: F32) -> F32:
    """As machine code reads it: C-contiguous and aligned."""
    return np.require(rows, requirements=["C", "A"])


def _tiles(count: int, most: int) -> list[tuple[int, int]]:
    """Equal ranges of at most ``most``."""
    parts = -(-count // most)
    return [(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


@functools.cache
def machine_code() -> tuple[cpu.Library | None, tuple[str, ...]]:
    """The machine code that searches on this CPU, none if NumPy does, and why better builds than that are not used.

    A build is used only if it finds on this box what NumPy does: a compiler or a hypervisor may have got an instruction wrong.
    """
    try:
        names = cpu.here()
    except VisionADError as exc:
        return None, (f"search: {exc}",)
    unfit = []
    for name in names:
        try:
            library = cpu.Library(name)
        except VisionADError as exc:
            unfit.append(f"search: {exc}")
            continue
        if _agrees(library):
            return library, tuple(unfit)
        unfit.append(
            f"search: the build {name} gives other neighbours than NumPy on this box, so it is not used; please report it"
        )
    return None, tuple(unfit)


def _agrees(library: cpu.Library) -> bool:
    """Whether a build finds what NumPy finds among rows with repeats, near-ties and a width that is no multiple of anything."""
    x = np.sin(np.arange(90 * 43, dtype=np.float64) ** 1.5).reshape(90, 43)
    x[30:60] = x[:1] + 1e-7 * x[30:60]
    x[60:] = x[20:50]
    rows = (x / np.sqrt((x * x).sum(axis=1, keepdims=True))).astype(np.float32)
    queries = np.concatenate([rows[::2], -rows[:5]])
    axes = np.zeros((43, 16))
    axes[:, :15] = np.linalg.qr(x[:15].T)[0]
    heads = library.product(queries, axes, 1, heads=True), library.product(rows, axes, 1, heads=True)
    for k in (1, 3):
        score, row = _search_numpy(queries, rows, k)
        for beside in (None, heads):
            found = library.nearest(queries, rows, k, _slack(43), 1, beside)
            if not (found.finite and np.array_equal(found.row, row) and np.array_equal(found.score, score)):
                return False
    return True


def _search(queries: F32, rows: F32, k: int, workers: int, turned: TurnedBank | None = None) -> tuple[F64, I64]:
    """Scores float64 (Q, k) and rows (Q, k), by machine code or NumPy."""
    library = machine_code()[0]
    if library is None:
        return _search_numpy(queries, rows, k)
    rows, heads = _plain(rows), None
    if turned is not None:
        if not np.isfinite(queries).all():
            raise _not_finite(queries)
        heads = library.product(queries, turned.axes, workers, heads=True), turned.heads
    found = library.nearest(queries, rows, k, _slack(rows.shape[1]), workers, heads)
    if not found.finite:
        raise _not_finite(queries)
    return found.score, found.row


def _search_numpy(queries: F32, rows: F32, k: int) -> tuple[F64, I64]:
    """The same without machine code."""
    score, row = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for start, end in _tiles(len(queries), BLOCK_QUERIES):
        score[start:end], row[start:end] = _block_numpy(queries[start:end], rows, k)
    return score, row


def _block_numpy(queries: F32, rows: F32, k: int) -> tuple[F64, I64]:
    slack = 2 * _slack(rows.shape[1])
    best = _Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    floor = np.full(len(queries), -np.inf)  # float32 score of the k-th best row of a tile
    for start, end in _tiles(len(rows), TILE_ROWS):
        tile = _plain(rows[start:end])
        with np.errstate(invalid="ignore", over="ignore"):  # refused below, in words
            scores = queries @ tile.T
        if not np.isfinite(scores).all():
            raise _not_finite(queries)
        if k <= len(tile):
            np.maximum(floor, np.partition(scores, -k, axis=1)[:, -k], out=floor)
        query, row = _where(scores >= (floor - slack)[:, None])
        if len(query) > MANY * k * len(queries):
            early = _early(tile, k)[row]
            query, row = query[early], row[early]
        score = _exact_numpy(queries, tile, query, row)
        best = _best(_joined([best, _Pairs(query, row + start, score)]), k)
    return best.score.reshape(-1, k), best.row.reshape(-1, k)


def _early(tile: F32, k: int) -> NDArray[np.bool_]:
    """Of identical rows the first k: the others cannot be among the k nearest."""
    same = tile.view(np.dtype((np.void, tile.itemsize * tile.shape[1]))).ravel()
    groups = np.unique(same, return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    early = np.empty(len(tile), bool)
    early[order] = _first(groups[order], k)
    return early


class _Pairs(NamedTuple):
    """Queries, rows, and the score of each pair or an upper bound of it."""

    query: I64
    row: I64
    score: F64


def _joined(parts: list[_Pairs]) -> _Pairs:
    return _Pairs(*(np.concatenate([part[i] for part in parts]) for i in range(3)))


def _best(pairs: _Pairs, k: int) -> _Pairs:
    """Each query's k pairs of highest score, ties to the lowest row; by query, then score."""
    order = np.lexsort((pairs.row, -pairs.score, pairs.query))
    order = order[_first(pairs.query[order], k)]
    return _Pairs(pairs.query[order], pairs.row[order], pairs.score[order])


def _first(groups: I64, k: int) -> NDArray[np.bool_]:
    """Which of sorted ``groups`` are among the first k of their kind."""
    starts = np.searchsorted(groups, groups)
    return np.arange(len(groups)) - starts < k


def _where(mask: NDArray[np.bool_]) -> tuple[I64, I64]:
    """``np.nonzero`` of a sparse (Q, N) mask, three times as fast."""
    flat = np.flatnonzero(mask)
    return flat // mask.shape[1], flat % mask.shape[1]


def _exact(queries: F32, rows: F32, query: I64, row: I64) -> F64:
    """Score of each pair: products in float64 (exact), added up in an order that depends on D alone."""
    library = machine_code()[0]
    exact = _exact_numpy if library is None else library.exact
    return exact(queries, rows, np.ascontiguousarray(query), np.ascontiguousarray(row))


def _exact_numpy(queries: F32, rows: F32, query: I64, row: I64) -> F64:
    """The same sums as ``exact`` of ``search.c``, to the last bit."""
    out, dim = np.empty(len(query)), rows.shape[1]
    for i in range(0, len(query), PAIRS):
        left, right = queries[query[i : i + PAIRS]], rows[row[i : i + PAIRS]]
        products = left.astype(np.float64) * right
        s = np.zeros((len(products), PARTS))
        for d in range(0, dim, PARTS):
            s[:, : dim - d] += products[:, d : d + PARTS]
        s = s[:, :4] + s[:, 4:]
        s = s[:, :2] + s[:, 2:]
        out[i : i + PAIRS] = s[:, 0] + s[:, 1]
    return out


class _Floor:
    """Per query, the k-th best score so far."""

    def __init__(self, count: int, k: int) -> None:
        self._best, self._lock = np.full((count, k), -np.inf), threading.Lock()

    def now(self) -> F64:
        """It (Q,)."""
        with self._lock:  # of a row read half before and half after a change, the lowest may be above the true one
            lowest: F64 = self._best.min(axis=1)
        return lowest

    def rise(self, queries: I64, score: F64) -> None:
        """Take over scores (Q, any) of rows not seen before."""
        with self._lock:
            k = self._best.shape[1]
            best = np.concatenate([self._best[queries], score], axis=1)
            self._best[queries] = np.partition(best, -k, axis=1)[:, -k:]


class _CodesPass:
    """Upper bounds of scores by a product of int8 codes; rows it cannot tell apart are left to a float32 search.

    With ``c`` the bank's centre, ``b - c = β B + r`` and ``q - c = α A + s`` (codes A, B; what they leave out r, s):
    ``q·b = q·c + c·(b - c) + αβ A·B + αA·r + s·(b - c)``, and by Cauchy and Schwarz the last two terms are at most
    ``|αA| |r| + |s| |b - c|``. The bound is on single pairs, so the winner is proven, not likely.
    """

    def __init__(self, queries: F32, bank: Int8Bank, k: int) -> None:
        if not np.isfinite(queries).all():
            raise _not_finite(queries)
        self.queries, self.bank, self.k = queries, bank, k
        self.tiles = _tiles(len(bank.rows), CODE_ROWS)
        self.floor = _Floor(len(queries), k)
        self.zero = zero_point()
        self.highest = np.full(len(queries), -np.inf, np.float32)
        rest = queries - bank.centre
        self.unit = np.float32(max(float(np.abs(rest).max(initial=0)), 1e-30) / (self.zero - 1))
        codes = np.rint(rest / self.unit)
        self.codes = (codes + self.zero).astype(np.uint8)
        codes *= self.unit
        rest -= codes
        self.length, self.left = (float(_lengths(x).max()) for x in (codes, rest))
        self.shared = queries @ bank.centre
        self.slack = _slack(queries.shape[1])

    def candidates(self, number: int, scratch: F32) -> _Pairs:
        """Pairs with a row of one tile that may be among the k best."""
        (start, end), tile, count = self.tiles[number], self.bank.tiles[number], len(self.queries)
        offset = tile.shared + (self.length * tile.left + self.left * tile.rest + 4 * self.slack).astype(np.float32)
        upper = scratch[: count * (end - start)].reshape(count, end - start)
        scores_int8(self.codes, self.zero, tile.codes, self.unit, tile.scale, offset, upper)
        k = min(self.k, end - start)
        winner, top = _top(upper, k)
        high = top.max(axis=1)
        hit = np.flatnonzero(high >= self.floor.now() - self.shared)
        better = hit[high[hit] > self.highest[hit]]
        self.highest[better] = high[better]
        # The true score of what looks best is a much higher floor than the lower bound of its int8 score would be.
        score = _exact(self.queries, self.bank.rows, np.repeat(better, k), start + winner[better].ravel())
        self.floor.rise(better, score.reshape(-1, k))
        cut = (self.floor.now() - self.shared)[hit].astype(np.float32)
        near = upper if len(hit) == count else upper[hit]
        q, r = _where(near >= cut[:, None])
        many = np.bincount(q, minlength=len(hit)) > FEW * (end - start) + k
        few = ~many[q]
        bound = (near[q[few], r[few]] + self.shared[hit[q[few]]]).astype(np.float64)
        pairs = _Pairs(hit[q[few]], start + r[few], bound)
        if len(pairs.query) > MANY * k * count:
            pairs = self.settled(pairs)
        if many.any():
            score, row = _search(self.queries[hit[many]], self.bank.rows[start:end], k, 1)
            pairs = _joined([pairs, _Pairs(np.repeat(hit[many], k), start + row.ravel(), score.ravel())])
        return pairs

    def settled(self, pairs: _Pairs) -> _Pairs:
        """Each query's k best of them."""
        score = _exact(self.queries, self.bank.rows, pairs.query, pairs.row)
        return _best(_Pairs(pairs.query, pairs.row, score), self.k)


def _search_codes(queries: F32, bank: Int8Bank, k: int, workers: int) -> tuple[F64, I64]:
    """Scores float64 (Q, k) and rows (Q, k), by an int8 first pass."""
    first = _CodesPass(queries, bank, k)
    found, scratches = list[_Pairs](), threading.local()

    def search(number: int) -> None:
        scratch = getattr(scratches, "scores", None)
        if scratch is None:
            scratch = scratches.scores = np.empty(len(queries) * max(e - s for s, e in first.tiles), np.float32)
        found.append(first.candidates(number, scratch))

    spread(search, range(len(first.tiles)), workers)
    pairs = _joined(found)
    likely = pairs.score >= first.floor.now()[pairs.query]
    best = first.settled(_Pairs(pairs.query[likely], pairs.row[likely], pairs.score[likely]))
    if not np.isfinite(best.score).all():
        raise _not_finite(queries)
    return best.score.reshape(-1, k), best.row.reshape(-1, k)


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
