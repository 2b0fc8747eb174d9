"""Slow, literal definitions that the fast code is held against. They share no code with it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

FRACTION_BITS = 22
"""Pillow keeps filter weights as integers in units of 2^-22: 32 bits less 8 of the pixel and 2 of headroom."""


def bilinear_weights(n_in: int, n_out: int) -> list[tuple[int, list[int]]]:
    """For each of ``n_out`` output positions: the first input position it reads, and its integer weights.

    The triangle filter is as wide as an output pixel (antialiasing) but never narrower than an input pixel. Weights are
    taken between pixel centres, divided by their sum in float64, then rounded half up to 22 bits. The order of the
    summation and the truncations towards zero are part of the definition.
    """
    step = n_in / n_out
    reach = max(step, 1.0)
    table = []
    for i in range(n_out):
        centre = (i + 0.5) * step
        first = max(int(centre - reach + 0.5), 0)
        end = min(int(centre + reach + 0.5), n_in)
        raw = [max(0.0, 1.0 - abs((j - centre + 0.5) * (1.0 / reach))) for j in range(first, end)]
        total = 0.0
        for weight in raw:
            total += weight
        table.append((first, [math.floor(w / total * (1 << FRACTION_BITS) + 0.5) for w in raw]))
    return table


def resize_rows(pixels: NDArray[np.uint8], n_out: int) -> NDArray[np.uint8]:
    """One pass: (H, W, C) uint8 → (n_out, W, C) uint8, rounded half up and clipped to 0..255."""
    out = np.empty((n_out, *pixels.shape[1:]), np.uint8)
    half = 1 << (FRACTION_BITS - 1)
    for i, (first, weights) in enumerate(bilinear_weights(len(pixels), n_out)):
        window = pixels[first : first + len(weights)].astype(np.int64)
        total = np.tensordot(np.array(weights, np.int64), window, axes=1) + half
        out[i] = np.clip(total >> FRACTION_BITS, 0, 255)
    return out


def pillow_bilinear(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, C) uint8 → (side, side, C) uint8: across first, rounded to bytes in between, then down.

    Byte for byte ``PIL.Image.resize((side, side), BILINEAR)``, in integers. Channels do not mix.
    """
    across = resize_rows(pixels.transpose(1, 0, 2), side).transpose(1, 0, 2)
    return resize_rows(across, side)


def brute_force(queries: F32, bank: F32, k: int = 1) -> tuple[F32, NDArray[np.int64]]:
    """The definition: float64 scores, nearest first, the lowest of equal ones."""
    scores = np.einsum("qd,nd->qn", queries.astype(np.float64), bank.astype(np.float64))
    row = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return (1.0 - np.take_along_axis(scores, row, axis=1)).astype(np.float32), row


def every(queries: F32) -> NDArray[np.int32]:
    """The number of each query."""
    return np.arange(len(queries), dtype=np.int32)


def check_neighbours(queries: F32, bank: F32, distance: F32, row: NDArray[np.int32], k: int = 1) -> None:
    """Rows (Q, k) are those of :func:`brute_force`, distances are within one unit in the last place of its."""
    wanted_distance, wanted_row = brute_force(queries, bank, k)
    np.testing.assert_array_max_ulp(distance, wanted_distance, maxulp=1)
    np.testing.assert_array_equal(row, wanted_row)


def check_distances(found: F32, wanted: F32, dim: int) -> None:
    """Each 1 - q·b of unit rows, added up in float64 in whatever order, then rounded to float32.

    A sum of D products, which float64 has exactly, goes through D - 1 roundings of at most 2^-53, so two orders differ by less than
    D 2^-52. Of a distance near zero that is many units in the last place, of others less than one.
    """
    apart = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    unit = np.spacing(np.maximum(np.abs(found), np.abs(wanted))).astype(np.float64)
    worst = np.unravel_index(np.argmax(apart - unit), apart.shape)
    assert (apart <= unit + dim * 2.0**-52).all(), f"{found[worst]!r} instead of {wanted[worst]!r} at {worst}"
