"""A bank turned so that a few numbers of each row rule most rows out: a third to a tenth of a search's products are left.

Patch tokens of one class lie near few directions. With axes ``V`` (D, H - 1) along these, what of a row ``b`` lies along them is
``b' = Vᵀb``, and ``|b - V b'|`` is what they leave out. By Cauchy and Schwarz

    ``q·b <= q'·b' + |q - V q'| |b - V b'|``,

a product of H numbers each, the *heads* of ``q`` and ``b``. A row whose bound is below the score of a known one is not the nearest;
the others are scored as ever. So the same rows are found, whatever the axes: bad ones cost time, nothing else.

The bound holds to rounding: axes are orthonormal to 1e-12, coordinates and lengths are summed in float64 and rounded once, lengths
upwards by more than what float64 may have taken. What is left are two roundings of each coordinate and those of the product, for
which the search's bound of a float32 score of D > H + 8 numbers has room.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .cpu import Library

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

HEADS = (16, 32, 48, 64, 96, 128)
"""Numbers of a head that are tried: multiples of 8, which machine code adds at a time."""
FEWEST_ROWS = 2048
"""Banks of fewer rows are searched in a few milliseconds anyhow."""
SAMPLE_ROWS, SAMPLE_QUERIES = 2048, 64
"""From which axes are made, and on which they are tried. Multiples of 8 too."""
ITERATIONS = 3
EXACT_COST = 12.0
"""Numbers of a float32 product in the time of one in float64, pair by pair; and to get at a pair takes 80 such."""


class TurnedBank:
    """A bank beside the heads of its rows. Finds the same rows.

    Attributes:
        rows: as given, float32 (N, D).
        axes: float64 (D, H), the last zero.
        heads: float32 (N, H).
    """

    def __init__(self, rows: F32, axes: F64, library: Library, threads: int) -> None:
        self.rows, self.axes = rows, axes
        self.heads = library.product(rows, axes, threads, heads=True)

    @property
    def nbytes(self) -> int:
        """Bytes held besides ``rows``."""
        return self.heads.nbytes + self.axes.nbytes


def find_axes(rows: F32, queries: F32, worth: float, library: Library, threads: int) -> F64 | None:
    """Axes for a bank, as :attr:`TurnedBank.axes`; None if none are expected to be worth it.

    Args:
        rows: float32 (N, D), unit rows without NaN or Inf.
        queries: float32 (Q, D), unit rows such as will be searched for.
        worth: most of the float32 search's work that they may be expected to leave.
        library: that will search.
    """
    dim = rows.shape[1]
    widths = [width for width in HEADS if width + 8 < dim]
    if len(rows) < FEWEST_ROWS or not len(queries) or not widths:
        return None
    rows, queries = _some(rows, SAMPLE_ROWS), _some(queries, SAMPLE_QUERIES)
    axes = _principal(rows, widths[-1], library, threads)
    if not _are_orthonormal(axes):
        return None
    best = library.product(rows, np.ascontiguousarray(queries.T, np.float64), threads).max(axis=0)
    costs = []
    for width in widths:
        some = axes[:, :width].copy()
        some[:, -1] = 0
        heads = [library.product(x, some, threads, heads=True) for x in (rows, queries)]
        bounds = library.product(heads[0], np.ascontiguousarray(heads[1].T, np.float64), threads)
        left = float((bounds >= best).mean())
        costs.append((width + EXACT_COST * left * (dim + 80), width))
    cost, width = min(costs)
    if cost > worth * dim:
        return None
    axes = axes[:, :width].copy()
    axes[:, -1] = 0
    return axes


def _some(rows: F32, count: int) -> F32:
    """``count`` of them, from all over."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def _principal(rows: F32, count: int, library: Library, threads: int) -> F64:
    """Orthonormal axes (D, count), about those along which the rows are largest, largest first (orthogonal iteration)."""
    across = np.ascontiguousarray(rows.T)
    axes = np.random.default_rng(0).standard_normal((rows.shape[1], count))
    for _ in range(ITERATIONS):
        along = library.product(rows, axes, threads)
        axes = _orthonormal(library.product(across, along.astype(np.float64), threads).astype(np.float64))
    return axes


def _orthonormal(columns: F64) -> F64:
    """Gram and Schmidt, twice over, from left to right. Not by LAPACK: a hundred times as long where another process has a core
    on which a thread of its OpenBLAS should spin."""
    out = np.ascontiguousarray(columns.T)
    # Rows that are all alike span too little: the rest of the axes go anywhere.
    out += 1e-9 * (np.abs(out).max(initial=0) + 1e-30) * np.random.default_rng(1).standard_normal(out.shape)
    for i, axis in enumerate(out):
        for _ in range(2):
            axis -= np.einsum("k,kd->d", np.einsum("kd,d->k", out[:i], axis), out[:i])
            axis /= np.sqrt(np.einsum("d,d->", axis, axis))
    return np.ascontiguousarray(out.T)


def _are_orthonormal(axes: F64) -> bool:
    return bool(np.abs(np.einsum("dk,dl->kl", axes, axes) - np.eye(axes.shape[1])).max(initial=0) < 1e-12)
