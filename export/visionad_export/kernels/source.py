"""The GPU kernels, all of them: search, preprocessing, map and score. ``docs/kernels.md`` explains and proves what they promise.

This file is Triton and is compiled ahead of time by ``python -m visionad_export.kernels``; the line PC gets machine code
only. The same source runs on CPU tensors under Triton's interpreter, which is how the tests hold it against the numpy
path.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Work tables are written by the host (``work_tables``), so that one launch, and one captured graph, serves
# any mix of classes. Columns of a search job:
JOB_BANK16 = tl.constexpr(0)  # address of the view's first row, 16 bits
JOB_BANK32 = tl.constexpr(1)  # the same row in float32
JOB_ROWS = tl.constexpr(2)
JOB_FIRST = tl.constexpr(3)  # first slot (place in ``order``) of the job's queries
JOB_SLOTS = tl.constexpr(4)
JOB_MAXIMA = tl.constexpr(5)  # where its maxima begin, in floats
JOB_COLUMNS = tl.constexpr(6)


@triton.jit
def pack(tokens, packed, norms, rows, dim, width, BLOCK: tl.constexpr):
    """float32 rows (R, dim) → 16-bit rows (R, width), padded with zeros; ``norms`` (R, 2): |row - packed| and |packed|.

    One program a row. Those beyond ``rows`` write rows of zeros, which a search may come upon after the last one."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.where(row < rows, dim, 0)
    lost = tl.zeros([BLOCK], tl.float32)
    kept = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(tokens + row * dim + at, mask=at < columns, other=0.0)
        small = value.to(packed.dtype.element_ty)
        tl.store(packed + row * width + at, small, mask=at < width)
        back = small.to(tl.float32)
        lost += (value - back) * (value - back)
        kept += back * back
    tl.store(norms + 2 * row, tl.sqrt(tl.sum(lost)), mask=row < rows)
    tl.store(norms + 2 * row + 1, tl.sqrt(tl.sum(kept)), mask=row < rows)


@triton.jit
def group_maxima(
    queries, order, jobs, items, count, maxima, width,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Largest score of each query in each group of ``GROUP`` bank rows and in each tile of ``BLOCK_N``. The score matrix stays in
    registers.

    What lies beyond a bank's last row counts in the last tile, so its maxima may be too large, never too small. A group is made of
    rows whose scores one thread holds, so that its maximum needs no other thread: see :func:`member_of`. Programs take ``items``
    (job, first slot, first row, end row) in turn, so the grid does not depend on the work.
    """
    per_run: tl.constexpr = RUN // GROUP
    per_tile: tl.constexpr = BLOCK_N // GROUP
    for item in range(tl.program_id(0), tl.load(count), tl.num_programs(0)):
        job = jobs + tl.load(items + 4 * item) * JOB_COLUMNS
        first = tl.load(job + JOB_FIRST).to(tl.int32)
        slots = tl.load(job + JOB_SLOTS).to(tl.int32)
        tiles = tl.cdiv(tl.load(job + JOB_ROWS).to(tl.int32), BLOCK_N)
        slot = tl.load(items + 4 * item + 1) - first + tl.arange(0, BLOCK_Q)
        live = slot < slots
        query = tl.load(order + first + slot, mask=live, other=0).to(tl.int64)
        begin = tl.load(items + 4 * item + 2)
        number = begin // BLOCK_N
        fine = maxima + tl.multiple_of(tl.load(job + JOB_MAXIMA), 4)
        coarse = fine + slots.to(tl.int64) * tiles * per_tile + slot.to(tl.int64) * (tl.cdiv(tiles, 4) * 4)
        fine += (slot.to(tl.int64) * tiles * per_tile)[:, None] + tl.arange(0, per_tile)[None, :]
        inner = tl.arange(0, BLOCK_K)
        left = queries + query[:, None] * width + inner[None, :]
        right = tl.arange(0, BLOCK_N)[:, None] * width + inner[None, :]
        tile = tl.load(job + JOB_BANK16).to(queries.dtype) + begin.to(tl.int64) * width
        k = 0
        depth = width // BLOCK_K
        done = 0
        scores = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        # Tiles and depth in one loop, so that the loads of the next tile are under way while this one's maxima are taken. They are
        # ahead of the products: what says where to load (tile, k) must not wait for what says what is done.
        for _step in range(tl.cdiv(tl.load(items + 4 * item + 3) - begin, BLOCK_N) * depth):
            queries16 = tl.load(tl.multiple_of(left + k, [1, 16]))
            rows16 = tl.load(tl.multiple_of(tile + k + right, [1, 16]))
            scores = tl.dot(queries16, tl.trans(rows16), scores)
            k += BLOCK_K
            last = k == width
            tile += tl.where(last, BLOCK_N * width, 0)
            k = tl.where(last, 0, k)
            done += 1
            if done == depth:
                each = tl.reshape(scores, [BLOCK_Q, BLOCK_N // RUN, GROUP // 2, per_run, 2])
                top = tl.reshape(tl.max(tl.max(each, axis=4), axis=2), [BLOCK_Q, per_tile])
                tl.store(fine + number * per_tile, top, mask=live[:, None])
                tl.store(coarse + number, tl.max(top, axis=1), mask=live)
                scores = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
                number += 1
                done = 0


@triton.jit
def member_of(group, RUN: tl.constexpr, GROUP: tl.constexpr):
    """The bank rows of a group: pairs, a stride apart, within a run of ``RUN`` rows, which has ``RUN`` / ``GROUP`` groups.

    In every layout of a tensor core's accumulators 2 columns side by side are one thread's, the next two bits of a column tell
    threads apart, and bits above them tell warps apart where warps share a tile's columns: two at most. The two bits of the stride,
    32 and 64, are neither's.
    """
    per_run: tl.constexpr = RUN // GROUP
    i = tl.arange(0, GROUP)
    return group // per_run * RUN + group % per_run * 2 + i // 2 * (2 * per_run) + i % 2


@triton.jit
def rescore(
    tokens, norms, order, job_of, jobs, bounds, maxima, distance, row, dim, width, slack, k,
    KEEP: tl.constexpr, SCAN: tl.constexpr, BLOCK_N: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr, ROW_D: tl.constexpr,
):  # fmt: skip
    """The ``k`` (at most ``KEEP``) nearest rows of each query, exactly: of every tile that can hold one, every group that can is
    scored again, row by row, from the float32 query and the 16-bit rows; then, in float64 from the float32 rows, the rows which
    that leaves, mostly one.

    One program of one warp a slot: a warp's reductions need no barrier, and many programs fit a multiprocessor. Best tile first,
    in it the best group first, so that the first row found already rules out most others.
    Results go to the query's own place: ``distance`` float32 and ``row`` int32 (R, k), nearest first. A query that is not
    finite gets NaN and -1.
    """
    per_tile: tl.constexpr = BLOCK_N // GROUP
    slot = tl.program_id(0)
    query = tl.load(order + slot).to(tl.int64)
    number = tl.load(job_of + slot)
    job = jobs + number * JOB_COLUMNS
    rows = tl.load(job + JOB_ROWS).to(tl.int32)
    bank16 = tl.multiple_of(tl.load(job + JOB_BANK16).to(tl.pointer_type(tl.float16)), 16)
    bank32 = tl.load(job + JOB_BANK32).to(tokens.dtype)
    tiles = tl.cdiv(rows, BLOCK_N)
    own = slot - tl.load(job + JOB_FIRST)
    fine = maxima + tl.multiple_of(tl.load(job + JOB_MAXIMA), 4)
    padded = tl.cdiv(tiles, 4) * 4
    coarse = fine + tl.load(job + JOB_SLOTS) * tiles * per_tile + own * padded
    fine += own * tiles * per_tile
    lost = tl.load(norms + 2 * query)
    kept = tl.load(norms + 2 * query + 1)
    lost_bank = tl.load(bounds + 2 * number)
    kept_bank = tl.load(bounds + 2 * number + 1)
    finite = (lost + kept) < float("inf")
    # |exact - 16-bit| <= |q - q'| |b| + |q'| |b - b'| + |q'| |b'| slack
    error = lost * (kept_bank + lost_bank) + kept * (lost_bank + kept_bank * slack)
    # |exact - second| <= |q| |b - b'| + |q| |b'| times so many roundings of 2^-24 as a product goes through at most, in any order
    roundings = (tl.cdiv(width, BLOCK_D) + BLOCK_D // 8 + 9).to(tl.float32)
    nearly = 1.001 * (kept + lost) * (lost_bank + 6.0e-8 * roundings * kept_bank)

    # The k-th largest maximum of a tile without rows beyond the last, equal ones counted each: at least k rows score that much.
    # -inf if there are fewer.
    level = float("inf")
    taken = -1
    for _k in range(k):
        best = float("-inf")
        place = 2147483647
        for start in range(0, rows // BLOCK_N, SCAN):
            at = start + tl.arange(0, SCAN)
            value = tl.load(coarse + at, mask=at < padded, other=0.0)
            lower = (value < level) | ((value == level) & (at > taken))
            value = tl.where(lower & (at < rows // BLOCK_N), value, float("-inf"))
            top = tl.max(value, axis=0)
            if top > best:
                best = top
                place = tl.min(tl.where(value == top, at, 2147483647), axis=0)
        level = best
        taken = place

    lane = tl.arange(0, KEEP)
    best_score = tl.where(lane < k, float("-inf"), float("inf")).to(tl.float64)
    best_row = 2147483647 - lane  # no two alike
    worst = tl.min(best_score, axis=0)  # of the best so far, and its row
    worst_row = tl.max(tl.where(best_score == worst, best_row, -1), axis=0)
    least = level - 2.001 * error
    cut = least
    for start in range(0, tl.where(finite, tiles, 0), SCAN):
        at = start + tl.arange(0, SCAN)
        tops = tl.where(at < tiles, tl.load(coarse + at, mask=at < padded, other=0.0), float("-inf"))
        top = tl.max(tops, axis=0)
        while (top >= cut) & (top > float("-inf")):
            tile = tl.min(tl.where(tops == top, at, 2147483647), axis=0)
            tops = tl.where(at == tile, float("-inf"), tops)
            group = tl.arange(0, per_tile)
            values = tl.load(fine + tile * per_tile + group)
            value = tl.max(values, axis=0)
            while (value >= cut) & (value > float("-inf")):
                chosen = tl.min(tl.where(values == value, group, 2147483647), axis=0)
                values = tl.where(group == chosen, float("-inf"), values)
                within = member_of(chosen, RUN, GROUP)
                member = tile * BLOCK_N + within
                left = tokens + query * dim
                right = bank16 + tile.to(tl.int64) * BLOCK_N * width
                inner = tl.arange(0, BLOCK_D)
                places = within[:, None] * width + inner[None, :]
                sums = tl.zeros([GROUP, BLOCK_D // 8], tl.float32)
                for d in range(0, width, BLOCK_D):
                    query32 = tl.load(left + d + inner, mask=inner < dim - d, other=0.0)
                    rows16 = tl.load(right + d + places, mask=(inner < width - d)[None, :], other=0.0)
                    products = query32[None, :] * rows16.to(tl.float32)
                    sums += tl.sum(tl.reshape(products, [GROUP, BLOCK_D // 8, 8]), axis=2)
                scores = tl.where(member < rows, tl.sum(sums, axis=1), float("-inf"))
                score = tl.max(scores, axis=0)
                while (score > float("-inf")) & (score.to(tl.float64) + nearly >= worst):
                    found = tl.min(tl.where(scores == score, member, 2147483647), axis=0)
                    scores = tl.where(member == found, float("-inf"), scores)
                    score = tl.max(scores, axis=0)
                    products64 = tl.zeros([ROW_D], tl.float64)
                    for d in range(0, dim, ROW_D):
                        column = d + tl.arange(0, ROW_D)
                        left32 = tl.load(tokens + query * dim + column, mask=column < dim, other=0.0)
                        right32 = tl.load(bank32 + found.to(tl.int64) * dim + column, mask=column < dim, other=0.0)
                        products64 += left32.to(tl.float64) * right32.to(tl.float64)
                    exact = tl.sum(products64, axis=0)
                    nearer = (best_score < exact) | ((best_score == exact) & (best_row > found))
                    swap = (best_score == worst) & (best_row == worst_row) & nearer
                    best_score = tl.where(swap, exact, best_score)
                    best_row = tl.where(swap, found, best_row)
                    worst = tl.min(best_score, axis=0)
                    worst_row = tl.max(tl.where(best_score == worst, best_row, -1), axis=0)
                cut = tl.maximum(least, (worst - error).to(tl.float32))
                value = tl.max(values, axis=0)
            top = tl.max(tops, axis=0)
    best_score = tl.where(lane < k, best_score, float("-inf"))
    for nth in range(k):
        best64 = tl.max(best_score, axis=0)
        found = tl.min(tl.where(best_score == best64, best_row, 2147483647), axis=0)
        best_score = tl.where(best_row == found, float("-inf"), best_score)
        tl.store(distance + query * k + nth, tl.where(finite, (1.0 - best64).to(tl.float32), float("nan")))
        tl.store(row + query * k + nth, tl.where(finite, found, -1))


@triton.jit
def weigh_rarity(
    tokens, distance, side, dim, floor,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    """Multiply each patch's distance by the fourth root of its distance, at least ``floor``, to the nearest patch of its image
    that is more than ``REACH`` patches away across or down. ``tokens`` (rows, side², dim), ``distance`` (rows, side²), float32.

    Products in float32, not in 16 bits: there is no second pass that would make up for them.
    """
    patches = side * side
    row = tl.program_id(1).to(tl.int64)
    mine = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inner = tl.arange(0, BLOCK_K)
    image = tokens + row * patches * dim
    nearest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    for start in range(0, patches, BLOCK_N):
        other = start + tl.arange(0, BLOCK_N)
        scores = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        for k in range(0, dim, BLOCK_K):
            deep = (k + inner) < dim
            left = tl.load(
                image + mine[:, None] * dim + (k + inner)[None, :],
                mask=(mine < patches)[:, None] & deep[None, :],
                other=0.0,
            )
            right = tl.load(
                image + other[:, None] * dim + (k + inner)[None, :],
                mask=(other < patches)[:, None] & deep[None, :],
                other=0.0,
            )
            scores = tl.dot(left, tl.trans(right), scores, input_precision="ieee")
        # No tl.abs: of the larger of two absolute values ptxas 12.9 makes, for sm_90, a VIMNMX3 that has lost the sign of one.
        down = (mine[:, None] // side - other[None, :] // side + REACH).to(tl.uint32)
        across = (mine[:, None] % side - other[None, :] % side + REACH).to(tl.uint32)
        near = ((down <= 2 * REACH) & (across <= 2 * REACH)) | (other >= patches)[None, :]
        nearest = tl.maximum(nearest, tl.max(tl.where(near, float("-inf"), scores), axis=1))
    weight = tl.sqrt_rn(tl.sqrt_rn(tl.maximum(1.0 - nearest, floor)))
    at = distance + row * patches + mine
    tl.store(at, tl.load(at, mask=mine < patches, other=0.0) * weight, mask=mine < patches)


# Columns of an image to preprocess. Offsets of the resize tables are in int32s from ``tables``.
IMAGE_PIXELS = tl.constexpr(0)  # address of its first byte
IMAGE_WIDTH = tl.constexpr(1)
IMAGE_CHANNELS = tl.constexpr(2)  # 3, or 1 for grey
IMAGE_TOP = tl.constexpr(3)  # first source row that the crop needs
IMAGE_ROWS = tl.constexpr(4)  # and how many
IMAGE_TAPS_X = tl.constexpr(5)
IMAGE_TAPS_Y = tl.constexpr(6)
IMAGE_FIRST_X = tl.constexpr(7)  # per output column: first source column
IMAGE_FIRST_Y = tl.constexpr(8)
IMAGE_WEIGHTS_X = tl.constexpr(9)  # (taps, crop), in units of 2^-22
IMAGE_WEIGHTS_Y = tl.constexpr(10)
IMAGE_ACROSS = tl.constexpr(11)  # where its rows begin in ``across``, in bytes
IMAGE_COLUMNS = tl.constexpr(12)

FRACTION_BITS = tl.constexpr(22)
HALF = tl.constexpr(1 << 21)


@triton.jit
def to_byte(total):
    """Pillow's rounding of a fixed-point sum that started at one half."""
    return tl.minimum(tl.maximum(total >> FRACTION_BITS, 0), 255)


@triton.jit
def resize_across(plans, tables, across, crop, BLOCK: tl.constexpr):
    """First pass of Pillow's bilinear resize: the source rows and output columns that the crop needs, as bytes (rows, 3,
    crop)."""
    image = plans + tl.program_id(1) * IMAGE_COLUMNS
    pixels = tl.load(image + IMAGE_PIXELS).to(across.dtype)
    width = tl.load(image + IMAGE_WIDTH)
    channels = tl.load(image + IMAGE_CHANNELS)
    top = tl.load(image + IMAGE_TOP)
    taps = tl.load(image + IMAGE_TAPS_X).to(tl.int32)
    first_x = tables + tl.load(image + IMAGE_FIRST_X)
    weights = tables + tl.load(image + IMAGE_WEIGHTS_X)
    out = across + tl.load(image + IMAGE_ACROSS)
    for row in range(tl.program_id(0), tl.load(image + IMAGE_ROWS).to(tl.int32), tl.num_programs(0)):
        line = pixels + (top + row) * width * channels
        for start in range(0, crop, BLOCK):
            x = start + tl.arange(0, BLOCK)
            inside = x < crop
            column = tl.load(first_x + x, mask=inside, other=0)
            for c in tl.static_range(3):
                total = tl.full([BLOCK], HALF, tl.int32)
                for tap in range(taps):
                    weight = tl.load(weights + tap * crop + x, mask=inside, other=0)
                    at = tl.minimum(column + tap, width - 1) * channels + tl.minimum(c, channels - 1)
                    total += weight * tl.load(line + at, mask=inside, other=0).to(tl.int32)
                tl.store(out + (row * 3 + c) * crop + x, to_byte(total).to(tl.uint8), mask=inside)


VIEW_FLIP = tl.constexpr(1)  # 0: as it is
VIEW_CLAMP = tl.constexpr(2)


@triton.jit
def resize_down(plans, tables, across, levels, views, count, images, crop, BLOCK: tl.constexpr):
    """Second pass, normalised by table, in every view: float32 (images, views, 3, crop, crop)."""
    y = tl.program_id(0)
    number = tl.program_id(1).to(tl.int64)
    image = plans + number * IMAGE_COLUMNS
    rows = tl.load(image + IMAGE_ROWS).to(tl.int32)
    taps = tl.load(image + IMAGE_TAPS_Y).to(tl.int32)
    first = tl.load(tables + tl.load(image + IMAGE_FIRST_Y) + y) - tl.load(image + IMAGE_TOP).to(tl.int32)
    weights = tables + tl.load(image + IMAGE_WEIGHTS_Y)
    source = across + tl.load(image + IMAGE_ACROSS)
    for start in range(0, crop, BLOCK):
        x = start + tl.arange(0, BLOCK)
        inside = x < crop
        for c in tl.static_range(3):
            total = tl.full([BLOCK], HALF, tl.int32)
            for tap in range(taps):
                weight = tl.load(weights + tap * crop + y)
                row = tl.minimum(first + tap, rows - 1).to(tl.int64)
                total += weight * tl.load(source + (row * 3 + c) * crop + x, mask=inside, other=0).to(tl.int32)
            value = tl.load(levels + c * 256 + to_byte(total))
            for v in range(count):
                view = tl.load(views + v)
                at = tl.where(view == VIEW_FLIP, crop - 1 - y, y)
                seen = tl.where(view == VIEW_CLAMP, tl.maximum(value, 0.0), value)
                plane = (number * count + v) * 3 + c
                tl.store(images + (plane * crop + at) * crop + x, seen, mask=inside)


@triton.jit
def fuse_map(distance, views, count, low, part, region, anomaly_map, side, SIZE: tl.constexpr):
    """Flip back, add in the views' order, upsample: distances (images, views, side, side) → maps (images, SIZE, SIZE).

    The numpy path's arithmetic, operation by operation; compiled without fused multiply-add. Pixels whose ``region`` byte
    is 0 become 0.
    """
    y = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    x = tl.arange(0, SIZE)
    low_x = tl.load(low + x)
    high_x = tl.minimum(low_x + 1, side - 1)
    part_x = tl.load(part + x)
    low_y = tl.load(low + y)
    high_y = tl.minimum(low_y + 1, side - 1)
    part_y = tl.load(part + y)
    upper_left = tl.zeros([SIZE], tl.float32)
    upper_right = tl.zeros([SIZE], tl.float32)
    lower_left = tl.zeros([SIZE], tl.float32)
    lower_right = tl.zeros([SIZE], tl.float32)
    for v in range(count):
        flip = tl.load(views + v) == VIEW_FLIP
        grid = distance + (image * count + v) * side * side
        upper = grid + tl.where(flip, side - 1 - low_y, low_y) * side
        lower = grid + tl.where(flip, side - 1 - high_y, high_y) * side
        upper_left += tl.load(upper + low_x)
        upper_right += tl.load(upper + high_x)
        lower_left += tl.load(lower + low_x)
        lower_right += tl.load(lower + high_x)
    above = upper_left * (1.0 - part_x) + upper_right * part_x
    below = lower_left * (1.0 - part_x) + lower_right * part_x
    value = above * (1.0 - part_y) + below * part_y
    place = (image * SIZE + y) * SIZE + x
    tl.store(anomaly_map + place, tl.where(tl.load(region + place) != 0, value, 0.0))


@triton.jit
def ordered(bits):
    """Bits of a float32 as an unsigned number with the floats' order."""
    return tl.where(bits >> 31 == 0, bits | 0x80000000, bits ^ 0xFFFFFFFF)


@triton.jit
def top_mean(anomaly_map, found, top, PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    """``found`` float64 (maps, 2): mean of the ``top`` largest pixels, and the smallest of them, their edge.

    One program a map: the edge by radix select, then the sum of what lies above it and of the rest of equal ones. A NaN makes the
    mean NaN, and the edge means nothing then. float64 sums float32 values without rounding while the largest is below 2^29 /
    ``top`` times the smallest (2^19 for the usual 1 % of the map), so the order of the sum does not show.
    """
    source = anomaly_map + tl.program_id(0).to(tl.int64) * PIXELS
    digit = tl.arange(0, 256)
    level = tl.zeros([], tl.uint32)
    above = 0
    broken = 0
    for turn in tl.static_range(4):
        shift = 24 - 8 * turn
        counts = tl.zeros([256], tl.int32)
        for start in range(0, PIXELS, BLOCK):
            value = tl.load(source + start + tl.arange(0, BLOCK))
            key = ordered(value.to(tl.uint32, bitcast=True)) >> shift
            if turn == 0:
                broken += tl.sum((value != value).to(tl.int32), axis=0)
                counts += tl.histogram(key.to(tl.int32), 256)
            else:
                counts += tl.histogram((key & 255).to(tl.int32), 256, mask=(key >> 8) == (level >> (shift + 8)))
        at_least = above + tl.cumsum(counts, axis=0, reverse=True)
        chosen = tl.sum((at_least >= top).to(tl.int32), axis=0) - 1
        above = tl.sum(tl.where(digit == chosen, at_least - counts, 0), axis=0)
        level = level | (chosen.to(tl.uint32) << shift)
    edge = tl.where(level >> 31 == 0, level ^ 0xFFFFFFFF, level & 0x7FFFFFFF).to(tl.float32, bitcast=True)
    total = (top - above).to(tl.float64) * edge.to(tl.float64)
    for start in range(0, PIXELS, BLOCK):
        value = tl.load(source + start + tl.arange(0, BLOCK))
        higher = ordered(value.to(tl.uint32, bitcast=True)) > level
        total += tl.sum(tl.where(higher, value, 0.0).to(tl.float64), axis=0)
    tl.store(found + 2 * tl.program_id(0), tl.where(broken > 0, float("nan"), total / top))
    tl.store(found + 2 * tl.program_id(0) + 1, edge.to(tl.float64))
