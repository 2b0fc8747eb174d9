"""Work tables of the kernels, computed in NumPy on the host.

The tables are in device memory, so one launch (and one recorded graph) serves images of any size and banks of any class. The
kernels define the columns: see docs/kernels.md.
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
"""Bank rows per maximum. Fewer mean more maxima to store; more mean more rows to rescore."""
RUN = 128
"""Rows whose groups are interleaved. A tile's rows are a multiple of it."""
PADDING = 64
"""Divisor of a 16-bit row's width: the depth of a tile, and whole 16-byte loads."""
MAX_NEIGHBOURS = 8
JOB_COLUMNS = 6
IMAGE_COLUMNS = 12
MAX_WAVES = 8
"""Splits of the bank that are tried: into items for one wave of all programs, for two waves, and so on."""
ITEM_COST = 0.25
"""Overhead of an item in tiles: its first loads are not hidden."""


def packed_width(dim: int) -> int:
    """Return the columns of a 16-bit row of ``dim`` features."""
    return -(-dim // PADDING) * PADDING


def accumulation_slack(dim: int) -> float:
    """Return a bound of the float32 accumulation error of a 16-bit score, relative to ``|q| |b|``.

    Each of ``dim`` products, and one partial sum per 8 of them, loses less than one unit of 2^-23 of a sum that never exceeds
    ``|q| |b|`` (Cauchy-Schwarz). The unit is 2^-23 instead of 2^-24, because tensor cores truncate. The constant covers the
    evaluation of the bound itself in float32.
    """
    return (1.125 * dim + 16) * 2.0**-23


# --- preprocessing ---------------------------------------------------------------------------------------------------


class Taps(NamedTuple):
    """Pillow's filter along one axis, for n consecutive output positions.

    Attributes:
        first: int32 (n,), the first input position of each output position.
        weights: int32 (taps, n) in units of 2^-22; zero where a position needs fewer taps.
    """

    first: I32
    weights: I32


@lru_cache(maxsize=64)
def bilinear_taps(n_in: int, n_out: int, begin: int, end: int) -> Taps:
    """Return the filter that resizes ``n_in`` pixels to ``n_out``, for output positions ``begin`` to ``end`` (exclusive).

    ``docs/reference/formats.md`` defines it.
    """
    step = n_in / n_out
    reach = max(step, 1.0)
    centre = (np.arange(begin, end) + 0.5) * step
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), n_in)
    at = first + np.arange(int((last - first).max()))[:, None]
    raw = np.maximum(0.0, 1.0 - np.abs((at - centre + 0.5) * (1.0 / reach)))
    raw[at >= last] = 0.0
    total = np.cumsum(raw, axis=0)[-1]  # in order, as Pillow adds them
    weights = np.floor(raw / total * (1 << FRACTION_BITS) + 0.5)
    return Taps(first.astype(np.int32), weights.astype(np.int32))


def table_size(height: int, width: int, spec: PreprocessSpec) -> int:
    """Return the int32s of the resize tables for images up to ``height`` × ``width``."""
    return sum((1 + _max_taps(n, spec.resize)) * spec.crop for n in (height, width))


def _max_taps(n_in: int, n_out: int) -> int:
    return 2 * int(np.ceil(max(n_in / n_out, 1.0))) + 1


@dataclass(frozen=True)
class ImagePlan:
    """How to resize images of one size.

    Attributes:
        tables: int32 filter tables; :meth:`columns` are relative to their place.
        channels: 1 or 3.
        width: Width of the image.
        top: First row that the crop needs.
        rows: Number of rows that the crop needs.
        taps_x: Taps along x.
        taps_y: Taps along y.
    """

    tables: I32
    channels: int
    width: int
    top: int
    rows: int
    taps_x: int
    taps_y: int

    @classmethod
    def of(cls, height: int, width: int, channels: int, spec: PreprocessSpec) -> ImagePlan:
        """Return the plan for uint8 images (height, width) of 1 or 3 channels."""
        at = crop_offset(spec.resize, spec.crop)
        x = bilinear_taps(width, spec.resize, at, at + spec.crop)
        y = bilinear_taps(height, spec.resize, at, at + spec.crop)
        top = int(y.first[0])
        rows = min(int(y.first[-1]) + len(y.weights), height) - top
        tables = np.concatenate([x.first, y.first, x.weights.ravel(), y.weights.ravel()])
        return cls(tables, channels, width, top, rows, len(x.weights), len(y.weights))

    def columns(self, pixels: int, tables: int, across: int) -> list[int]:
        """Return the kernels' table row of an image.

        Args:
            pixels: Address of the image's bytes.
            tables: Offset of its filter tables.
            across: Offset of its scratch memory.
        """
        crop = len(self.tables) // (2 + self.taps_x + self.taps_y)
        weights_x = tables + 2 * crop
        return [
            pixels, self.width, self.channels, self.top, self.rows, self.taps_x, self.taps_y,
            tables, tables + crop, weights_x, weights_x + self.taps_x * crop, across,
        ]  # fmt: skip


def level_table(spec: PreprocessSpec) -> F32:
    """Return float32 (3, 256): the normalised value of each byte by channel, computed by the host's ``normalise``."""
    every = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    return normalise(every, spec).reshape(3, 256)


def check_image(image: NDArray[np.uint8], max_height: int, max_width: int) -> None:
    """Check that an image is uint8 (H, W), (H, W, 1) or (H, W, 3) and not larger than the limit.

    Raises:
        ImageError: It is not.
    """
    shape = image.shape
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and shape[2] not in (1, 3)):
        raise ImageError(f"expected a uint8 image (H, W, 3) or grey (H, W), got {image.dtype} {shape}")
    if not image.size:
        raise ImageError(f"expected an image with pixels, got an empty one {shape}")
    if shape[0] > max_height or shape[1] > max_width:
        raise ImageError(
            f"expected an image of at most {max_width} x {max_height} pixels, got {shape[1]} x {shape[0]}; open the executor "
            "with a larger max_image"
        )


# --- search ----------------------------------------------------------------------------------------------------------


class BankView(NamedTuple):
    """A view's rows in device memory.

    Attributes:
        rows32: Address of the float32 rows.
        rows16: Address of the 16-bit rows.
        rows: Number of rows.
        quantization_error: Largest norm, over the whole bank, of what rounding to 16 bits took from a row.
        quantized_norm: Largest norm, over the whole bank, of a 16-bit row.
    """

    rows32: int
    rows16: int
    rows: int
    quantization_error: float
    quantized_norm: float


@dataclass(frozen=True)
class SearchPlan:
    """Tables of one search launch of S queries, J jobs and I items.

    Attributes:
        order: int32 (S,), query rows, grouped by job.
        job_of: int32 (S,), the job of each.
        jobs: int64 (J, 6).
        bounds: float32 (J, 2), the two norms of :class:`BankView`.
        items: int32 (I, 4).
        maxima: Number of float32 maxima.
    """

    order: I32
    job_of: I32
    jobs: I64
    bounds: F32
    items: I32
    maxima: int


Count = TypeVar("Count", int, I64)


def maxima_per_query(rows: Count, block_n: int) -> Count:
    """Return the number of float32 maxima of a query: one per group, in whole tiles, and one per tile, padded to 16 bytes."""
    tiles = -(-rows // block_n)
    return tiles * (block_n // GROUP) + -(-tiles // 4) * 4


def plan_search(
    work: Sequence[tuple[BankView, I32]], block_q: int, block_n: int, programs: int, neighbours: int = 1
) -> SearchPlan:
    """Plan one launch for several pairs of bank and query rows.

    Pairs with the same bank are merged, so images of one class fill tiles together. Items of the same bank rows are adjacent, so
    the rows are read from memory once and from cache afterwards.

    Args:
        work: Pairs of a bank view and its query rows, int32 (n,).
        block_q: Queries of a tile.
        block_n: Bank rows of a tile.
        programs: Programs that run at once.
        neighbours: Nearest rows per query, 1 to :data:`MAX_NEIGHBOURS`.

    Raises:
        VisionADError: A bank is empty or has fewer rows than ``neighbours``.
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
    counts = np.array([len(q) for q in queries], np.int64)
    first = np.cumsum(counts) - counts
    rows = np.array([b.rows for b in merged], np.int64)
    maxima = counts * maxima_per_query(rows, block_n)
    jobs = np.stack(
        [
            np.array([b.rows16 for b in merged], np.int64), np.array([b.rows32 for b in merged], np.int64),
            rows, first, counts, np.cumsum(maxima) - maxima,
        ], axis=1,
    )  # fmt: skip
    tiles_q, tiles_n = -(-counts // block_q), -(-rows // block_n)
    run = _run_length(tiles_q, tiles_n, programs)
    items = [_items(j, int(first[j]), int(counts[j]), int(rows[j]), block_q, run * block_n) for j in range(len(merged))]
    return SearchPlan(
        order=np.concatenate(queries).astype(np.int32),
        job_of=np.repeat(np.arange(len(merged), dtype=np.int32), counts),
        jobs=jobs,
        bounds=np.array([(b.quantization_error, b.quantized_norm) for b in merged], np.float32),
        items=np.concatenate(items),
        maxima=int(maxima.sum()),
    )


def _run_length(tiles_q: I64, tiles_n: I64, programs: int) -> int:
    """Return the bank tiles of an item that let the last program finish as early as possible.

    A fixed target of four items per program lost a fifth of a large search where one program had five.
    """

    def items(run: int) -> int:
        return int((tiles_q * -(-tiles_n // run)).sum())

    min_waves = -(-int(tiles_q.sum()) // programs)
    longest = max(1, int(tiles_n.max()))
    runs = range(1, longest + 1)
    costs = []
    for waves in range(min_waves, min_waves + MAX_WAVES):
        run = runs[bisect_left(runs, True, hi=longest - 1, key=lambda r: items(r) <= waves * programs)]
        costs.append((waves * (run + ITEM_COST), run))
    return min(costs)[1]


def _items(job: int, first: int, queries: int, rows: int, block_q: int, run: int) -> I32:
    begin, query = np.meshgrid(np.arange(0, rows, run), np.arange(first, first + queries, block_q), indexing="ij")
    end = np.minimum(begin + run, rows)
    return np.stack([np.full_like(begin, job), query, begin, end], axis=-1).reshape(-1, 4).astype(np.int32)


def max_items(queries: int, jobs: int, block_q: int, programs: int) -> int:
    """Return the maximum number of items of a plan.

    A plan has at most :data:`MAX_WAVES` waves beyond one item per tile of queries.

    Args:
        queries: Maximum number of queries.
        jobs: Maximum number of jobs.
        block_q: Queries of a tile.
        programs: Programs that run at once.
    """
    return MAX_WAVES * programs + queries // block_q + jobs


# --- map -------------------------------------------------------------------------------------------------------------


def upsample_tables(side: int) -> tuple[I32, F32]:
    """Return the tables of :func:`visionad_runtime.scoring.anomaly_map.upsample` for a grid of ``side`` × ``side``.

    Returns:
        Lower grid position, int32 (256,), and weight of the upper one, float32 (256,).
    """
    at = np.maximum(
        (np.arange(MAP_SIZE, dtype=np.float32) + np.float32(0.5)) * np.float32(side / MAP_SIZE) - np.float32(0.5), 0
    )
    low = at.astype(np.int64)
    return low.astype(np.int32), (at - low).astype(np.float32)
