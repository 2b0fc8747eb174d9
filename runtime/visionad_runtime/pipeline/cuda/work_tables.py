"""Host side of the kernels: the work tables they read. Plain numpy, no GPU.

The tables live in device memory, so a launch (and a captured graph) stays the same while images of other sizes and
banks of other classes pass through it. Their columns are the kernels', whose source (docs/kernels.md) names
them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, VisionADError
from ...formats.manifest import PreprocessSpec, ViewName
from ...preprocess import crop_offset, normalise
from ...scoring.anomaly_map import MAP_SIZE
from ...search import NO_ROWS

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

FRACTION_BITS = 22
"""Pillow's filter weights are integers in units of 2^-22."""
VIEW_CODES: dict[ViewName, int] = {"original": 0, "flip": 1, "clamp": 2}
GROUP = 8
"""Bank rows per maximum. Fewer: more maxima to store; more: more rows to score again."""
RUN = 128
"""Rows whose groups are dealt together: a tile's rows are a multiple of it."""
PADDING = 64
"""Width of a 16-bit row is a multiple of this many columns: the depth of a tile, and whole 16-byte loads."""
MAX_NEIGHBOURS = 8
JOB_COLUMNS = 6
IMAGE_COLUMNS = 12
MAX_WAVES = 8
"""Ways to split the bank that are tried: into items for one turn of all programs, for two, and so on."""
ITEM_COST = 0.25
"""Of an item besides its tiles, in tiles: the loads of its first one are waited for."""


def packed_width(dim: int) -> int:
    """Columns of a 16-bit row of ``dim`` features."""
    return -(-dim // PADDING) * PADDING


def accumulation_slack(dim: int) -> float:
    """Bound of the float32 accumulation error of a 16-bit score, relative to ``|q| |b|``.

    Each of ``dim`` products, and one partial sum per 8 of them, may lose less than one unit of 2^-23 of a sum that never
    exceeds ``|q| |b|`` (Cauchy-Schwarz); tensor cores truncate, so it is 2^-23 and not 2^-24. The constant covers the
    bound's own evaluation in float32.
    """
    return (1.125 * dim + 16) * 2.0**-23


# --- preprocessing ---------------------------------------------------------------------------------------------------


class Taps(NamedTuple):
    """Pillow's filter along one axis, for a run of output positions: ``first`` int32 (n,), the first input position each
    reads, and ``weights`` int32 (taps, n) in units of 2^-22, zero where a position needs fewer taps."""

    first: I32
    weights: I32


@lru_cache(maxsize=64)
def bilinear_taps(n_in: int, n_out: int, begin: int, end: int) -> Taps:
    """Filter of output positions ``begin`` to ``end`` (excluded) when ``n_in`` pixels become ``n_out`` (``docs/formats.md``)."""
    step = n_in / n_out
    reach = max(step, 1.0)
    centre = (np.arange(begin, end) + 0.5) * step
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), n_in)
    at = first + np.arange(int((last - first).max()))[:, None]
    raw = np.maximum(0.0, 1.0 - np.abs((at - centre + 0.5) * (1.0 / reach)))
    raw[at >= last] = 0.0
    total = np.cumsum(raw, axis=0)[-1]  # one after the other, as Pillow adds them
    weights = np.floor(raw / total * (1 << FRACTION_BITS) + 0.5)
    return Taps(first.astype(np.int32), weights.astype(np.int32))


def table_size(height: int, width: int, spec: PreprocessSpec) -> int:
    """int32s that the resize tables of images up to ``height`` × ``width`` take."""
    return sum((1 + _max_taps(n, spec.resize)) * spec.crop for n in (height, width))


def _max_taps(n_in: int, n_out: int) -> int:
    return 2 * int(np.ceil(max(n_in / n_out, 1.0))) + 1


@dataclass(frozen=True)
class ImagePlan:
    """How to resize images of one size. ``tables`` int32 is copied as it is; ``columns`` are relative to where it lies."""

    tables: I32
    channels: int
    width: int
    top: int
    rows: int
    taps_x: int
    taps_y: int

    @classmethod
    def of(cls, height: int, width: int, channels: int, spec: PreprocessSpec) -> ImagePlan:
        """Plan for uint8 (height, width) images of 1 or 3 channels."""
        at = crop_offset(spec.resize, spec.crop)
        x = bilinear_taps(width, spec.resize, at, at + spec.crop)
        y = bilinear_taps(height, spec.resize, at, at + spec.crop)
        top = int(y.first[0])
        rows = min(int(y.first[-1]) + len(y.weights), height) - top
        tables = np.concatenate([x.first, y.first, x.weights.ravel(), y.weights.ravel()])
        return cls(tables, channels, width, top, rows, len(x.weights), len(y.weights))

    def columns(self, pixels: int, tables: int, across: int) -> list[int]:
        """The kernels' row for an image whose bytes lie at address ``pixels``, with its ``tables`` and ``across`` at
        these offsets."""
        crop = len(self.tables) // (2 + self.taps_x + self.taps_y)
        weights_x = tables + 2 * crop
        return [
            pixels, self.width, self.channels, self.top, self.rows, self.taps_x, self.taps_y,
            tables, tables + crop, weights_x, weights_x + self.taps_x * crop, across,
        ]  # fmt: skip


def level_table(spec: PreprocessSpec) -> F32:
    """float32 (3, 256): a byte's normalised value per channel, by the numpy path itself."""
    every = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    return normalise(every, spec).reshape(3, 256)


def check_image(image: NDArray[np.uint8], max_height: int, max_width: int) -> None:
    """Raises ImageError unless ``image`` is uint8 (H, W), (H, W, 1) or (H, W, 3) and fits."""
    shape = image.shape
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and shape[2] not in (1, 3)):
        raise ImageError(f"expected a uint8 image (H, W, 3) or grey (H, W), got {image.dtype} {shape}")
    if not image.size:
        raise ImageError(f"expected an image with pixels, got an empty one {shape}")
    if shape[0] > max_height or shape[1] > max_width:
        raise ImageError(
            f"image of {shape[1]} x {shape[0]} pixels: this chain was opened for up to {max_width} x {max_height}; "
            "open it with a larger max_image"
        )


# --- search ----------------------------------------------------------------------------------------------------------


class BankView(NamedTuple):
    """A view's rows in device memory: addresses of the float32 and the 16-bit copy, row count, and two largest norms over the whole
    bank: ``lost``, of what rounding to 16 bits took from a row, and ``kept``, of a 16-bit row."""

    rows32: int
    rows16: int
    rows: int
    lost: float
    kept: float


@dataclass(frozen=True)
class SearchPlan:
    """Tables of one search launch. ``order`` int32 (S,): query rows, those of a job together; ``job_of`` int32 (S,);
    ``jobs`` int64 (J, 6); ``bounds`` float32 (J, 2); ``items`` int32 (I, 4); ``maxima``: float32s the maxima take."""

    order: I32
    job_of: I32
    jobs: I64
    bounds: F32
    items: I32
    maxima: int


Count = TypeVar("Count", int, I64)


def maxima_a_query(rows: Count, block_n: int) -> Count:
    """float32s that the maxima of a query take: of each group, in whole tiles, and of each tile, up to whole 16 bytes."""
    tiles = -(-rows // block_n)
    return tiles * (block_n // GROUP) + -(-tiles // 4) * 4


def plan_search(
    work: Sequence[tuple[BankView, I32]], block_q: int, block_n: int, programs: int, neighbours: int = 1
) -> SearchPlan:
    """Lay out one launch for several (bank, query rows) pairs.

    Pairs with the same bank are merged, so images of one class fill whole tiles together. Items of one stretch of bank
    follow each other, so it is read from memory once and from cache for the other queries.

    Raises:
        VisionADError: an empty bank, or fewer rows than neighbours wanted.
    """
    merged: dict[BankView, list[I32]] = {}
    for bank, tokens in work:
        if not bank.rows:
            raise VisionADError(NO_ROWS)
        if not 1 <= neighbours <= min(bank.rows, MAX_NEIGHBOURS):
            raise VisionADError(
                f"search: expected 1 to {min(bank.rows, MAX_NEIGHBOURS)} neighbours of {bank.rows} bank rows, got {neighbours}"
            )
        merged.setdefault(bank, []).append(tokens)
    queries = [np.concatenate(tokens) for tokens in merged.values()]
    slots = np.array([len(q) for q in queries], np.int64)
    first = np.cumsum(slots) - slots
    rows = np.array([b.rows for b in merged], np.int64)
    maxima = slots * maxima_a_query(rows, block_n)
    jobs = np.stack(
        [
            np.array([b.rows16 for b in merged], np.int64), np.array([b.rows32 for b in merged], np.int64),
            rows, first, slots, np.cumsum(maxima) - maxima,
        ], axis=1,
    )  # fmt: skip
    tiles_q, tiles_n = -(-slots // block_q), -(-rows // block_n)
    run = _run_length(tiles_q, tiles_n, programs)
    items = [_items(j, int(first[j]), int(slots[j]), int(rows[j]), block_q, run * block_n) for j in range(len(merged))]
    return SearchPlan(
        order=np.concatenate(queries).astype(np.int32),
        job_of=np.repeat(np.arange(len(merged), dtype=np.int32), slots),
        jobs=jobs,
        bounds=np.array([(b.lost, b.kept) for b in merged], np.float32),
        items=np.concatenate(items),
        maxima=int(maxima.sum()),
    )


def _run_length(tiles_q: I64, tiles_n: I64, programs: int) -> int:
    """Most bank tiles an item, so that the last program is done as early as can be: a fifth of a large search was lost where four
    items a program were aimed at and one had five."""

    def items(run: int) -> int:
        return int((tiles_q * -(-tiles_n // run)).sum())

    least = -(-int(tiles_q.sum()) // programs)
    longest = max(1, int(tiles_n.max()))
    runs = range(1, longest + 1)
    tried = []
    for turns in range(least, least + MAX_WAVES):
        run = runs[bisect_left(runs, True, hi=longest - 1, key=lambda r: items(r) <= turns * programs)]
        tried.append((turns * (run + ITEM_COST), run))
    return min(tried)[1]


def _items(job: int, first: int, slots: int, rows: int, block_q: int, run: int) -> I32:
    begin, query = np.meshgrid(np.arange(0, rows, run), np.arange(first, first + slots, block_q), indexing="ij")
    end = np.minimum(begin + run, rows)
    return np.stack([np.full_like(begin, job), query, begin, end], axis=-1).reshape(-1, 4).astype(np.int32)


def max_items(slots: int, jobs: int, block_q: int, programs: int) -> int:
    """Return the most items of any plan of up to ``slots`` queries in up to ``jobs`` jobs.

    It has :data:`MAX_WAVES` rounds beyond one item a tile of queries.
    """
    return MAX_WAVES * programs + slots // block_q + jobs


# --- map -------------------------------------------------------------------------------------------------------------


def upsample_tables(side: int) -> tuple[I32, F32]:
    """Lower grid position int32 (256,) and the part of the upper one float32 (256,), as
    :func:`visionad_runtime.scoring.anomaly_map.upsample`."""
    at = np.maximum(
        (np.arange(MAP_SIZE, dtype=np.float32) + np.float32(0.5)) * np.float32(side / MAP_SIZE) - np.float32(0.5), 0
    )
    low = at.astype(np.int64)
    return low.astype(np.int32), (at - low).astype(np.float32)
