"""Exact nearest-neighbour search in a memory bank, on the CPU.

Every search has two passes. The first is in arithmetic that is fast and errs by no more than a known bound, and keeps the rows that
the bound does not rule out. The second scores those in float64, one pair at a time and always in the same order. So the rows found
are the nearest by float64 score, ties to the lowest row, whatever the tiles, the threads, the other queries or the CPU's
instructions were.

Float32 banks are searched by machine code that does both passes at once (``cpu/``), or, on a CPU for which there is none, by NumPy.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import cpu
from .axes import TurnedBank, find_axes
from .errors import VisionADError
from .workers import cores

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TILE_ROWS = 4096
"""Bank rows that NumPy scores at a time: 784 x 4096 float32 scores are 12 MiB."""
BLOCK_QUERIES = 1024
"""Queries per sweep over the tiles, so that memory does not grow with them."""
PAIRS = 512
"""Pairs that NumPy scores at a time in float64, which then stay in cache."""
MANY = 8
"""More than this times k candidates per query of a tile are thinned before they are kept."""
PARTS = 8
"""Partial sums of a float64 score (``exact`` of ``search.c``)."""
WORTH = 0.75
"""Most of the float32 search's work that a bank's heads may be expected to leave."""
SMALL_WORK = 4e6
"""Multiplications that are not worth another thread (about 0.05 ms)."""


class Neighbours(NamedTuple):
    """``distance`` float32, 0..2 up to rounding, and ``row`` int64: the nearest bank rows, (Q,) for k = 1, else (Q, k), nearest
    first. Of rows at the same float64 distance the lowest comes first."""

    distance: NDArray[np.float32]
    row: NDArray[np.int64]


def prepared(rows: F32, queries: F32, threads: int | None = None) -> F32 | TurnedBank:
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
        axes = find_axes(rows, queries, WORTH, library, threads)
        if axes is not None:
            return TurnedBank(_plain(rows), axes, library, threads)
    return rows


def nearest(queries: F32, bank: F32 | TurnedBank, k: int = 1, *, threads: int | None = None) -> Neighbours:
    """The ``k`` bank rows of smallest cosine distance ``1 - cos(q, row)`` of each query (method, section 4).

    The score matrix is never held whole.

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


def _slack(dim: int) -> float:
    """Bound of the error of a float32 score of unit vectors.

    ``|fl(q·b) - q·b| <= γ_D |q|·|b| <= γ_D ‖q‖‖b‖`` with ``γ_n = n u / (1 - n u)``, ``u = 2⁻²⁴``, in whatever order a kernel
    adds, with or without fused multiplication (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section
    3.1); then Cauchy and Schwarz. Four more units pay for roundings of the bound itself, 1 % for rows whose length is 1
    within what ``visionad bank verify`` allows (0.1 %).
    """
    n = (dim + 4) * 2.0**-24
    return 1.01 * n / (1 - n)
