"""Pruned index: rule out most rows by a few numbers per row. A third to a tenth of a search's products remain.

Patch tokens of one class lie near few directions. Let ``V`` (D, W - 1) be orthonormal components along these, ``b' = Vᵀb`` the
coordinates of a row ``b``, and ``|b - V b'|`` the length of its residual. By Cauchy-Schwarz

    ``q·b <= q'·b' + |q - V q'| |b - V b'|``,

a product of W numbers of ``q`` and of ``b``, their *projections*. If this bound is below the score of another row, the row is not
the nearest. The other rows are scored in full. So the result does not depend on the components; bad ones only cost time.

The bound holds despite rounding. Components are orthonormal to 1e-12. Coordinates and lengths are summed in float64 and rounded
once, lengths upwards by more than the float64 error. Two roundings of each coordinate and those of the product remain, and the
error bound of a float32 score of D > W + 8 numbers covers them.
"""

from __future__ import annotations

import numpy as np

from .._threads import available_cpus
from ..errors import VisionADError
from . import native
from .native import Library
from .numpy_search import BROKEN_TOKENS, F32, F64, NOT_FINITE, as_contiguous

PROJECTION_WIDTHS = (16, 32, 48, 64, 96, 128)
"""Widths W to try: multiples of 8, the number of products that native code adds at a time."""
MIN_ROWS = 2048
"""Minimum number of rows for an index. Fewer rows are searched in a few milliseconds without one."""
MAX_RELATIVE_COST = 0.75
"""Maximum expected cost of a search with the index, relative to one without. Above it no index is built."""
SAMPLE_ROWS, SAMPLE_QUERIES = 2048, 64
"""Number of rows that components are fitted to, and of queries that the cost is estimated with. Multiples of 8."""
ITERATIONS = 3
"""Number of steps of the orthogonal iteration."""
RESCORE_COST, RESCORE_OVERHEAD = 12.0, 80
"""A float64 product of a pair costs as much as ``RESCORE_COST * (D + RESCORE_OVERHEAD)`` numbers of a float32 product."""


class PrunedIndex:
    """Bank rows and their projections. A search of the index gives the same result as one of the rows.

    Attributes:
        rows: float32 (N, D), unit rows.
        components: float64 (D, W), orthonormal except for the last, which is zero.
        projections: float32 (N, W).
    """

    def __init__(self, rows: F32, components: F64, library: Library, threads: int) -> None:
        """Project the rows.

        Args:
            rows: float32 (N, D), unit rows, C-contiguous.
            components: as the attribute.
            library: native code.
            threads: number of threads.
        """
        self.rows, self.components = rows, components
        self.projections = library.project(rows, components, threads)

    @property
    def nbytes(self) -> int:
        """Size in bytes, without ``rows``."""
        return self.projections.nbytes + self.components.nbytes


def build_index(rows: F32, queries: F32, threads: int | None = None) -> F32 | PrunedIndex:
    """Return the fastest index of a bank on this CPU: a :class:`PrunedIndex`, or ``rows`` if none is worth it.

    It takes 0.1 to 0.5 s for up to 50 000 rows, on two CPUs.

    Args:
        rows: float32 (N, D), unit rows.
        queries: float32 (Q, D), unit rows, typical queries.
        threads: number of threads (default: all CPUs). The result does not depend on it.

    Raises:
        VisionADError: There are NaN or Inf among rows or queries.
    """
    for tokens, message in ((rows, NOT_FINITE), (queries, BROKEN_TOKENS)):
        if not np.isfinite(tokens).all():
            raise VisionADError(message)
    library, threads = native.native_library()[0], threads or available_cpus()
    components = None if library is None else fit_components(rows, queries, MAX_RELATIVE_COST, library, threads)
    if library is None or components is None:
        return rows
    return PrunedIndex(as_contiguous(rows), components, library, threads)


def fit_components(rows: F32, queries: F32, max_cost: float, library: Library, threads: int) -> F64 | None:
    """Fit components to a bank.

    Args:
        rows: float32 (N, D), unit rows without NaN or Inf.
        queries: float32 (Q, D), unit rows, typical queries.
        max_cost: maximum expected cost of a search with them, relative to one without.
        library: native code that will search.
        threads: number of threads.

    Returns:
        :attr:`PrunedIndex.components`, or ``None`` if every width is expected to cost more than ``max_cost``.
    """
    dim = rows.shape[1]
    widths = [width for width in PROJECTION_WIDTHS if width + 8 < dim]
    if len(rows) < MIN_ROWS or not len(queries) or not widths:
        return None
    rows, queries = _sample(rows, SAMPLE_ROWS), _sample(queries, SAMPLE_QUERIES)
    components = principal_components(rows, widths[-1], library, threads)
    if not are_orthonormal(components):
        return None
    best = library.product(rows, np.ascontiguousarray(queries.T, np.float64), threads).max(axis=0)
    costs = []
    for width in widths:
        projected_rows, projected_queries = (
            library.project(vectors, _truncated(components, width), threads) for vectors in (rows, queries)
        )
        bounds = library.product(projected_rows, np.ascontiguousarray(projected_queries.T, np.float64), threads)
        rescored = float((bounds >= best).mean())
        costs.append((width + RESCORE_COST * rescored * (dim + RESCORE_OVERHEAD), width))
    cost, width = min(costs)
    return _truncated(components, width) if cost <= max_cost * dim else None


def _truncated(components: F64, width: int) -> F64:
    """Return the first ``width`` components, with the last of them set to zero."""
    out = components[:, :width].copy()
    out[:, -1] = 0
    return out


def _sample(rows: F32, count: int) -> F32:
    """Return ``count`` rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def principal_components(rows: F32, count: int, library: Library, threads: int) -> F64:
    """Return approximate principal components of rows, uncentered, float64 (D, count), largest first (orthogonal iteration)."""
    transposed = np.ascontiguousarray(rows.T)
    components = np.random.default_rng(0).standard_normal((rows.shape[1], count))
    for _ in range(ITERATIONS):
        coordinates = library.product(rows, components, threads)
        components = orthonormalized(
            library.product(transposed, coordinates.astype(np.float64), threads).astype(np.float64)
        )
    return components


def orthonormalized(columns: F64) -> F64:
    """Return orthonormal columns with the same span, by Gram-Schmidt, applied twice.

    LAPACK is not used: threads of its OpenBLAS spin, and where another process needs one of their CPUs it takes a hundred times as
    long.
    """
    out = np.ascontiguousarray(columns.T)
    # Rows that are nearly identical span too few directions. The remaining components take arbitrary ones.
    out += 1e-9 * (np.abs(out).max(initial=0) + 1e-30) * np.random.default_rng(1).standard_normal(out.shape)
    for i, component in enumerate(out):
        for _ in range(2):
            component -= np.einsum("k,kd->d", np.einsum("kd,d->k", out[:i], component), out[:i])
            component /= np.sqrt(np.einsum("d,d->", component, component))
    return np.ascontiguousarray(out.T)


def are_orthonormal(components: F64) -> bool:
    """Return whether components (D, W) are orthonormal to 1e-12."""
    products = np.einsum("dk,dl->kl", components, components)
    return bool(np.abs(products - np.eye(components.shape[1])).max(initial=0) < 1e-12)
