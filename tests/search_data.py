"""Rows and queries for the tests of the search."""

from __future__ import annotations

import numpy as np
from conftest import unit
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def normed(x: NDArray[np.float64]) -> F32:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def near_ties(seed: int, rows: int, dim: int, scale: float = 1e-7) -> F32:
    """Rows that float32 scores cannot tell apart, and exact repeats among them."""
    rng = np.random.default_rng(seed)
    x = unit(seed, 1, dim) + scale * rng.standard_normal((max(1, rows // 2), dim))
    return normed(x)[rng.integers(0, len(x), rows)]


def patches(seed: int, rows: int, dim: int) -> F32:
    """As tokens are: a large common part with outlying dimensions, clusters, and little of each row's own."""
    rng = np.random.default_rng(seed)
    common = 0.1 * rng.standard_normal(dim) + 2 * (rng.random(dim) < 0.02)
    kinds_of_patch = rng.standard_normal((10, dim)) / dim**0.5
    own = 0.2 * rng.standard_normal((rows, dim)) / dim**0.5
    return normed(common + kinds_of_patch[rng.integers(0, 10, rows)] + own)
