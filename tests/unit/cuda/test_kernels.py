"""Every GPU kernel's source, run on CPU tensors by Triton's interpreter and held against the numpy path. No GPU involved."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionad_runtime import preprocess, search
from visionad_runtime.cuda.kernels import read_manifest, read_target
from visionad_runtime.errors import ImageError, VisionADError
from visionad_runtime.formats.manifest import PreprocessSpec, ViewName
from visionad_runtime.pipeline.cuda import work_tables as plan
from visionad_runtime.pipeline.cuda.slot import ROW_PROGRAMS
from visionad_runtime.pipeline.cuda.work_tables import GROUP, RUN, BankView, SearchPlan, maxima_per_query, plan_search
from visionad_runtime.scoring.anomaly_map import MAP_SIZE, fuse, top_k_mean, top_pixels, upsample
from visionad_runtime.scoring.self_similarity import MIN_DISTANCE, self_similarity_weight
from visionad_runtime.scoring.spec import TOP_FRACTION

from tests.data import noise, slow, unit
from tests.fakes.gpu import members_of
from tests.oracles import bilinear_weights, brute_force, check_neighbours, every

torch = pytest.importorskip("torch", reason="the kernels' interpreter needs torch")
triton = pytest.importorskip("triton", reason="the kernels' source needs Triton")

F32 = NDArray[np.float32]


if not triton.knobs.runtime.interpret:
    pytest.skip("Triton was imported before the tests could choose its interpreter", allow_module_level=True)
from triton.runtime import interpreter  # noqa: E402
from visionad_export.kernels import build  # noqa: E402
from visionad_export.kernels import source as kernels  # noqa: E402

from tests.fakes.interpreted_gpu import without_waste  # noqa: E402

tl = triton.language


class CheckedMemory:
    """The interpreter's loads and stores, each of which has to lie within one of the arrays that the kernel was given. ``written``:
    the addresses stored to."""

    def __init__(self, inner: Any, arrays: Sequence[Any]) -> None:
        self._inner = inner
        self._places = [(a.data_ptr(), a.data_ptr() + a.numel() * a.element_size()) for a in arrays]
        self.written: list[NDArray[np.uint64]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _check(self, pointers: NDArray[np.uint64], mask: NDArray[np.bool_], nbytes: int, doing: str) -> None:
        if len(wanted := pointers[mask]):
            first, end = int(wanted.min()), int(wanted.max()) + nbytes
            assert any(a <= first and end <= b for a, b in self._places), f"{doing} beyond the arrays it was given"

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._check(pointers, mask, np.dtype(dtype).itemsize, "reads")
        return self._inner.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        self._check(pointers, mask, value.dtype.itemsize, "writes")
        self.written.append(pointers[mask])
        return self._inner.store(pointers, value, mask)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, reached: Sequence[Any] = (), **constants: int) -> None:
    """Run a kernel. ``reached``: arrays whose addresses its tables hold."""
    arrays = [a for a in (*arguments, *reached) if isinstance(a, torch.Tensor)]
    memory = CheckedMemory(interpreter._interpreter, arrays)
    with without_waste() as patch:
        patch.setattr(interpreter, "_interpreter", memory)
        kernel[grid](*arguments, **constants)
    written = np.concatenate([np.empty(0, np.int64), *memory.written])
    assert len(np.unique(written)) == len(written), "two programs did the same work"


# --- search ----------------------------------------------------------------------------------------------------------


def packed_rows(rows: F32) -> tuple[NDArray[np.float16], F32]:
    """What ``pack`` is to give: 16-bit rows padded with zeros, and |row - packed|, |packed|."""
    out = np.zeros((len(rows), plan.packed_width(rows.shape[1])), np.float16)
    with np.errstate(over="ignore"):
        out[:, : rows.shape[1]] = rows
    back = out[:, : rows.shape[1]].astype(np.float32)
    return out, np.stack([np.linalg.norm(rows - back, axis=1), np.linalg.norm(back, axis=1)], axis=1)


RESCORE = {"KEEP": plan.MAX_NEIGHBOURS, "SCAN": 4, "RUN": RUN, "GROUP": GROUP, "BLOCK_D": 128, "ROW_D": 256}
"""Small, so that tests take every turn."""


class Resident:
    """What the chain keeps of a bank on the device, here in CPU tensors."""

    def __init__(self, rows: F32, block_n: int) -> None:
        packed, norms = packed_rows(rows)
        self.rows32 = torch.from_numpy(rows.copy())
        # What the last tile reads there must not be stored; the interpreter's maximum would pass over NaN.
        beyond = np.full((block_n, packed.shape[1]), 7, np.float16)
        beyond[1::2] = -7
        self.rows16 = torch.from_numpy(np.concatenate([packed, beyond]))
        lost, kept = norms.max(axis=0).tolist()
        self.view = BankView(self.rows32.data_ptr(), self.rows16.data_ptr(), len(rows), lost, kept)


def run_search(
    queries: F32,
    work: list[tuple[F32, NDArray[np.int32]]],
    neighbours: int = 1,
    blocks: tuple[int, int, int] = (32, 128, 32),
    programs: int = 3,
) -> tuple[F32, NDArray[np.int32]]:
    """Distances and rows (R, k) of query rows against banks, through pack, group_maxima and rescore."""
    block_q, block_n, block_k = blocks
    dim = queries.shape[1]
    width = plan.packed_width(dim)
    tokens = torch.from_numpy(queries.copy())
    packed, norms = torch.zeros((len(queries), width), dtype=torch.float16), torch.empty((len(queries), 2))
    launch(kernels.pack, (len(queries),), tokens, packed, norms, len(queries), dim, width, BLOCK=256)
    banks: dict[int, Resident] = {}
    for bank, _ in work:
        banks.setdefault(id(bank), Resident(bank, block_n))
    p = plan_search([(banks[id(b)].view, rows) for b, rows in work], block_q, block_n, programs, neighbours)
    assert len(p.items) <= plan.max_items(len(p.order), len(p.jobs), block_q, programs)
    order, job_of, jobs, bounds = (torch.from_numpy(a) for a in (p.order, p.job_of, p.jobs, p.bounds))
    maxima = torch.full((p.maxima,), float("nan"))
    launch(
        kernels.group_maxima, (programs,),
        packed, order, jobs, torch.from_numpy(p.items), torch.tensor([len(p.items)], dtype=torch.int32), maxima, width,
        BLOCK_Q=block_q, BLOCK_N=block_n, BLOCK_K=block_k, RUN=RUN, GROUP=GROUP,
        reached=[b.rows16 for b in banks.values()],
    )  # fmt: skip
    if packed.isfinite().all():
        known = {b.rows16.data_ptr(): b.rows16.numpy() for b in banks.values()}
        check_maxima(maxima.numpy(), packed.numpy(), p, known, block_n)
    distance = torch.full((len(queries), neighbours), 9.0)
    row = torch.full((len(queries), neighbours), -7, dtype=torch.int32)
    launch(
        kernels.rescore, (len(p.order),),
        tokens, norms, order, job_of, jobs, bounds, maxima, distance, row, dim, width, plan.accumulation_slack(dim),
        neighbours, BLOCK_N=block_n, **RESCORE, reached=[a for b in banks.values() for a in (b.rows32, b.rows16)],
    )  # fmt: skip
    return distance.numpy(), row.numpy()


def members(block_n: int) -> NDArray[np.int64]:
    """The rows of each group of a tile (groups, rows), one by one by the formula in docs/kernels.md."""
    return np.array(
        [
            [128 * run + 32 * j + 2 * t + i for j in range(4) for i in range(2)]
            for run in range(block_n // 128)
            for t in range(16)
        ]
    )


def check_maxima(
    maxima: F32, packed: NDArray[np.float16], p: SearchPlan, banks: Mapping[int, NDArray[np.float16]], block_n: int
) -> None:
    """Each is the largest of its scores up to float32 rounding. One that is too large raises the bar for all others, one that is
    too small keeps its own rows below it: either may hide the nearest row, and seldom does in a test's data."""
    for address, _, rows, first, slots, at in p.jobs.tolist():
        tiles = -(-rows // block_n)
        left = packed[p.order[first : first + slots]].astype(np.float64)
        scores = left @ banks[address][: tiles * block_n].astype(np.float64).T
        wanted = scores.reshape(slots, tiles, block_n)[:, :, members(block_n)].max(axis=3)
        fine, coarse = np.split(maxima[at : at + slots * maxima_per_query(rows, block_n)], [wanted.size])
        np.testing.assert_allclose(fine.reshape(wanted.shape), wanted, rtol=0, atol=2e-6 * max(1, np.abs(wanted).max()))
        coarse = coarse.reshape(slots, -1)
        assert np.isnan(coarse[:, tiles:]).all() and coarse.shape[1] % 4 == 0
        np.testing.assert_array_equal(coarse[:, :tiles], fine.reshape(wanted.shape).max(axis=2))


@pytest.mark.parametrize("block_n", [128, 256])
def test_every_row_is_in_one_group(block_n: int) -> None:
    """The kernel's own formula, by the interpreter's arithmetic, against the other two."""
    found = torch.full((block_n // GROUP, GROUP), -1, dtype=torch.int32)
    launch(list_members, (block_n // GROUP,), found, run=RUN, group=GROUP)
    np.testing.assert_array_equal(np.sort(found.numpy().ravel()), np.arange(block_n))
    np.testing.assert_array_equal(found.numpy(), members(block_n))
    np.testing.assert_array_equal(found.numpy(), members_of(block_n, RUN, GROUP))
    assert all(tile.block_n % RUN == 0 for tile in build.TILES.values())


@triton.jit
def list_members(out: Any, run: tl.constexpr, group: tl.constexpr) -> None:
    rows = kernels.member_of(tl.program_id(0), run, group)
    tl.store(out + tl.program_id(0) * group + tl.arange(0, group), rows)


@pytest.mark.parametrize("k", [1, 2, 5, plan.MAX_NEIGHBOURS])
def test_the_bound_says_which_groups_are_scored_again(k: int) -> None:
    """Maxima made up, far above all scores, so that one group is just within the bound and one just beyond; the latter holds a
    nearer row, which a kernel that keeps to the bound does not see. So with tiles. The last tile, which has rows beyond the last,
    does not raise the bound however large its maximum is."""
    rng = np.random.default_rng(k)
    dim, tiles, slack, queries, block_n = 70, 13, 0.4, 5, 128
    rows, width, a_tile = tiles * block_n - 23, plan.packed_width(dim), block_n // GROUP
    tokens = rng.standard_normal((queries, dim)).astype(np.float32)
    norms = np.stack([rng.uniform(0.01, 0.05, queries), rng.uniform(0.06, 0.2, queries)], axis=1).astype(np.float32)
    bounds = np.array([[0.3, 0.9], [0.7, 0.5]], np.float32)
    order, job_of = np.array([3, 0, 4, 1, 2], np.int32), np.array([0, 0, 0, 1, 1], np.int32)
    banks = [torch.from_numpy(rng.uniform(-0.01, 0.01, (rows, dim)).astype(np.float32)) for _ in range(queries)]
    fine = np.full((queries, tiles, a_tile), -5, np.float32)
    coarse = np.full((queries, -(-tiles // 4) * 4), -5, np.float32)
    maxima = np.empty((queries, maxima_per_query(rows, block_n)), np.float32)
    assert maxima.shape[1] == fine[0].size + coarse.shape[1]
    jobs = np.zeros((queries, plan.JOB_COLUMNS), np.int64)
    distances, winners = np.empty((queries, k), np.float32), np.empty((queries, k), np.int64)
    banks16 = []
    for slot, query in enumerate(order):
        bank, token = banks[slot].numpy(), tokens[query].astype(np.float64)
        lost, kept = norms[query].astype(np.float64)
        lost_bank, kept_bank = bounds[job_of[slot]].astype(np.float64)
        error = lost * (kept_bank + lost_bank) + kept * (lost_bank + kept_bank * slack)
        level = 40.0  # scores stay below 5: the best row found never rules out what the bound does not
        bar = level - 2.001 * error
        places = rng.permutation(tiles - 1)
        leaders, within, beyond = places[:k], places[k], places[k + 1]
        coarse[slot, leaders] = level + np.arange(k)[::-1]
        fine[slot, leaders, rng.integers(a_tile, size=k)] = coarse[slot, leaders]
        coarse[slot, within] = fine[slot, within, 1] = bar + 1e-3
        fine[slot, within, 2] = bar - 1e-3
        coarse[slot, beyond], fine[slot, beyond, 3] = bar - 1e-3, 100  # a tile that is not looked into
        coarse[slot, tiles - 1] = fine[slot, tiles - 1, 4] = 1000
        seen = [
            tile * block_n + members(block_n)[np.nonzero(fine[slot, tile] >= bar)[0]] for tile in (*leaders, within)
        ]
        seen = np.sort(
            np.append(np.concatenate([s.ravel() for s in seen]), (tiles - 1) * block_n + members(block_n)[4])
        )
        seen = seen[seen < rows]
        for tile, group, score in ((within, 1, 2.0), (within, 2, 3.0), (beyond, 3, 4.0), (tiles - 1, 4, 1.5)):
            chosen = tile * block_n + members(block_n)[group]
            bank[rng.choice(chosen[chosen < rows])] = score * token / (token @ token)
        half = np.zeros((tiles * block_n, width), np.float16)
        half[:rows, :dim] = bank
        banks16.append(torch.from_numpy(half))
        jobs[slot] = (banks16[-1].data_ptr(), banks[slot].data_ptr(), rows, slot, 1, slot * maxima.shape[1])
        maxima[slot] = np.concatenate([fine[slot].ravel(), coarse[slot]])
        score = bank[seen].astype(np.float64) @ token
        best = np.argsort(-score, kind="stable")[:k]
        distances[query], winners[query] = 1 - score[best], seen[best]
    numbers = np.arange(queries, dtype=np.int32)  # a job a slot, because each has a bank of its own here
    distance, row = torch.full((queries, k), 9.0), torch.full((queries, k), -7, dtype=torch.int32)
    inputs = map(torch.from_numpy, (norms, order, numbers, jobs, bounds[job_of], maxima))
    launch(
        kernels.rescore, (queries,), torch.from_numpy(tokens), *inputs, distance, row, dim, width, slack, k,
        BLOCK_N=block_n, **RESCORE, reached=banks + banks16,
    )  # fmt: skip
    np.testing.assert_array_equal(row.numpy(), winners)
    np.testing.assert_array_max_ulp(distance.numpy(), distances, maxulp=1)


@pytest.mark.parametrize("dim", [1, 63, 64, 97, 600])
def test_pack(dim: int) -> None:
    rows = unit(dim, 5, dim) * np.array([[1], [1e-3], [1e-7], [1], [0]], np.float32)
    wanted, norms = packed_rows(rows)
    found, found_norms = torch.full((7, wanted.shape[1]), 7, dtype=torch.float16), torch.empty((5, 2))
    launch(kernels.pack, (7,), torch.from_numpy(rows), found, found_norms, 5, dim, wanted.shape[1], BLOCK=256)
    np.testing.assert_array_equal(found[:5].numpy(), wanted)
    assert not found[5:].any()  # rows beyond
    np.testing.assert_allclose(found_norms.numpy(), norms, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("count", "rows", "dim"),
    [
        (1, 1, 1),
        (1, 2, 3),
        (3, 31, 97),
        (7, 32, 64),
        (9, 33, 65),
        (17, 640, 192),
        (5, 999, 384),
        slow("interpreter", 40, 130, 100),
    ],
)
def test_search_is_brute_force(count: int, rows: int, dim: int) -> None:
    queries, bank = unit(rows, count, dim), unit(dim + 1, rows, dim)
    distance, row = run_search(queries, [(bank, every(queries))])
    check_neighbours(queries, bank, distance, row)
    cpu = search.nearest(queries, bank)
    np.testing.assert_allclose(distance[:, 0], cpu.distance, rtol=0, atol=2e-7)
    same = row[:, 0] == cpu.row  # two rows within float32 rounding of each other may change places on the CPU
    assert same.mean() > 0.9
    np.testing.assert_array_max_ulp(distance[same, 0], cpu.distance[same], maxulp=1)


@pytest.mark.slow(group="interpreter")
def test_a_hundred_thousand_rows() -> None:
    queries, bank = unit(0, 4, 24), unit(1, 100_003, 24)
    distance, row = run_search(queries, [(bank, every(queries))], blocks=(16, 256, 64), programs=7)
    check_neighbours(queries, bank, distance, row)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    ("dim", "rows", "distinct", "k"),
    [
        (1, 1, 1, 1),
        (1, 40, 2, 3),
        (2, 33, 5, 8),
        (3, 70, 70, 2),
        (16, 129, 7, 8),
        (97, 100, 100, 5),
        (16, 64, 1, 1),
        (5, 3, 2, 3),
    ],
)
def test_ties_duplicates_and_several_neighbours(dim: int, rows: int, distinct: int, k: int, negative: bool) -> None:
    pool = unit(rows, min(distinct, rows), dim)
    bank = pool[np.random.default_rng(k).integers(0, len(pool), rows)]
    queries = unit(dim, 2, dim)
    if negative:  # what pads the last tile must not win over rows that all point away
        bank, queries = np.abs(bank), -np.abs(queries)
    distance, row = run_search(queries, [(bank, every(queries))], neighbours=k)
    check_neighbours(queries, bank, distance, row, k)


def test_close_rows_that_16_bits_cannot_tell_apart() -> None:
    rng = np.random.default_rng(3)
    query = unit(4, 1, 64)
    bank = np.repeat(query, 700, axis=0) + rng.standard_normal((700, 64)).astype(np.float32) * 1e-5
    bank = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32)
    scores16 = (bank.astype(np.float16).astype(np.float32) @ query.astype(np.float16).astype(np.float32).T).ravel()
    best = int(brute_force(query, bank)[1][0, 0])
    assert scores16.argmax() != best
    assert scores16.max() - scores16[best] > np.float32(2**-22)
    distance, row = run_search(query, [(bank, every(query))])
    check_neighbours(query, bank, distance, row)


def test_a_row_that_rounding_shortens_as_much_as_the_bound_allows_is_found() -> None:
    """Every element of the nearest row lies just below half way to the next of 16 bits, and is rounded down along the query. There
    is another row, of 16 bits, that is nearer than what is left of it."""
    rng = np.random.default_rng(0)
    sign = np.where(rng.random(1024) < 0.5, -1, 1).astype(np.float32)
    unit16 = np.float32(2**-15)  # of fp16 at 1/32
    query = sign[None] / np.float32(32)
    bank = unit(1, 300, 1024)
    bank[200] = sign * (np.float32(1 / 32) + np.float32(0.49) * unit16)
    bank[77] = sign * (np.float32(1 / 32) + np.where(np.arange(1024) < 256, unit16, np.float32(0)))
    packed, _ = packed_rows(bank)
    exact, seen = (r.astype(np.float64) @ query[0].astype(np.float64) for r in (bank, packed))
    assert exact.argmax() == 200 and seen.argmax() == 77
    assert exact[77] - seen[200] > 0.4 * np.linalg.norm(bank[200] - packed[200].astype(np.float32))
    distance, row = run_search(query, [(bank, every(query))])
    check_neighbours(query, bank, distance, row)


@pytest.mark.parametrize("k", [1, slow("interpreter", 8)])
def test_close_rows_that_float32_cannot_tell_apart(k: int) -> None:
    """Five queries, each with forty rows at angles that differ in float64 only."""
    rng = np.random.default_rng(k)
    queries = unit(4, 5, 1000)
    bank = np.repeat(queries, 40, axis=0)
    bank += rng.standard_normal(bank.shape).astype(np.float32) * 1e-6
    bank = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32)[rng.permutation(200)]
    scores = queries @ bank.T
    assert (scores.argmax(axis=1) != brute_force(queries, bank)[1][:, 0]).sum() >= 3
    distance, row = run_search(queries, [(bank, every(queries))], neighbours=k)
    check_neighbours(queries, bank, distance, row, k)


@pytest.mark.parametrize("k", [1, slow("interpreter", 8)])
def test_of_equal_rows_the_lowest_wins_though_float32_sees_them_apart(k: int) -> None:
    """One vector's numbers in other orders, against a query of equal ones: sums that float64 has exactly, and float32 has not."""
    rng = np.random.default_rng(k)
    query = np.full((1, 1024), 1 / 32, np.float32)
    numbers = np.rint(query[0] * rng.uniform(0.5, 1.5, 1024) * 2**25).astype(np.float32) * np.float32(2**-25)
    bank = np.stack([rng.permutation(numbers) for _ in range(200)])
    exact = bank.astype(np.float64) @ query[0].astype(np.float64)
    assert (exact == exact[0]).all() and len(np.unique(np.cumsum(bank * query, axis=1)[:, -1])) > 1
    _, row = run_search(query, [(bank, every(query))], neighbours=k)
    np.testing.assert_array_equal(row, [range(k)])


@pytest.mark.slow(group="interpreter")
def test_many_classes_and_views_in_one_launch() -> None:
    queries = unit(5, 30, 33)
    banks = [unit(6 + i, n, 33) for i, n in enumerate((1, 64, 65, 200, 7))]
    order = np.random.default_rng(0).permutation(30).astype(np.int32)
    parts = np.split(order, [1, 5, 6, 24, 28])  # the last part shares the fourth one's bank
    work = list(zip([*banks, banks[3]], parts, strict=True))
    distance, row = run_search(queries, work, programs=2)
    for bank, part in work:
        check_neighbours(queries[part], bank, distance[part], row[part])
    for bank, part in work[3:]:  # and each is what it is alone, in any tiling
        alone = run_search(queries, [(bank, part)], blocks=(16, 256, 64), programs=5)
        np.testing.assert_array_equal(alone[0][part], distance[part])
        np.testing.assert_array_equal(alone[1][part], row[part])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_a_broken_query_is_marked_and_spoils_no_other(value: float) -> None:
    queries, bank = unit(8, 6, 40), unit(9, 200, 40)
    queries[3, 2] = queries[3, 0] = value
    distance, row = run_search(queries, [(bank, every(queries))])
    good = np.arange(6) != 3
    assert np.isnan(distance[3]).all() and (row[3] == -1).all()
    check_neighbours(queries[good], bank, distance[good], row[good])


@pytest.mark.parametrize(
    ("rows", "k", "words"), [(0, 1, "no rows"), (5, 6, "1 to 5 neighbours"), (5, 0, "found 0"), (50, 9, "1 to 8")]
)
def test_search_refusals(rows: int, k: int, words: str) -> None:
    with pytest.raises(VisionADError, match=words):
        plan_search([(BankView(0, 0, rows, 0.0, 1.0), np.zeros(1, np.int32))], 128, 128, 1, k)


def banks_of(sizes: list[tuple[int, int]]) -> list[tuple[BankView, NDArray[np.int32]]]:
    """Work of (queries, bank rows) each."""
    ends = np.cumsum([queries for queries, _ in sizes])
    return [
        (BankView(16 * (i + 1), 16 * (i + 1), rows, 0.0, 1.0), np.arange(end - queries, end, dtype=np.int32))
        for i, (end, (queries, rows)) in enumerate(zip(ends, sizes, strict=True))
    ]


@settings(max_examples=200)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 40_000)), min_size=1, max_size=5),
    programs=st.integers(1, 300),
    block_q=st.sampled_from([16, 128]),
    block_n=st.sampled_from([128, 256]),
)
def test_items_are_all_tiles_once(sizes: list[tuple[int, int]], programs: int, block_q: int, block_n: int) -> None:
    p = plan_search(banks_of(sizes), block_q, block_n, programs)
    assert len(p.items) <= plan.max_items(len(p.order), len(p.jobs), block_q, programs)
    for job, (queries, rows) in enumerate(sizes):
        _, slots, begins, ends = p.items[p.items[:, 0] == job].T
        assert not (begins % block_n).any()
        first = p.jobs[job, 3]
        assert set(slots) == set(range(first, first + queries, block_q))
        for slot in set(slots):
            order = np.argsort(begins[slots == slot])
            begin, end = begins[slots == slot][order], ends[slots == slot][order]
            assert (begin[0], end[-1]) == (0, rows)
            assert (begin[1:] == end[:-1]).all()


@pytest.mark.parametrize(
    "sizes",
    [
        [(784, 1_000_000)],
        [(784, 500_000)],
        [(784 * 32, 4_000_000)],
        [(784, 4 * 4704)] * 3,
        [(784, 18_816)] * 16,
        [(784, 500_000), (784, 1000), (2000, 30_000)],
    ],
)
@pytest.mark.parametrize(("programs", "block_n"), [(132, 256), (116, 128), (148, 256)])
def test_programs_end_together(sizes: list[tuple[int, int]], programs: int, block_n: int) -> None:
    """The one with the most tiles, of those that take every ``programs``-th item, has hardly more than all have on average."""
    p = plan_search(banks_of(sizes), 128, block_n, programs)
    tiles = -(-(p.items[:, 3] - p.items[:, 2]) // block_n)
    loads = np.bincount(np.arange(len(tiles)) % programs, weights=tiles, minlength=programs)
    assert loads.mean() >= 0.93 * loads.max()


def test_bound_holds() -> None:
    """What the proof in docs/kernels.md rests on, where rounding is worst: |exact - 16-bit| stays below the bound, but
    not idly far."""
    rng = np.random.default_rng(1)
    for dim in (1, 3, 64, 1000):
        q, b = (unit(int(rng.integers(1 << 30)), 300, dim) for _ in range(2))
        q16, b16 = (x.astype(np.float16).astype(np.float64) for x in (q, b))
        exact = q.astype(np.float64) @ b.astype(np.float64).T
        approximate = (q16.astype(np.float32) @ b16.astype(np.float32).T).astype(np.float64)
        lost_q, kept_q = np.linalg.norm(q - q16, axis=1), np.linalg.norm(q16, axis=1)
        lost_b, kept_b = np.linalg.norm(b - b16, axis=1).max(), np.linalg.norm(b16, axis=1).max()
        bound = lost_q * (kept_b + lost_b) + kept_q * (lost_b + kept_b * plan.accumulation_slack(dim))
        error = np.abs(exact - approximate).max(axis=1)
        assert (error <= bound).all()
        assert bound.max() < 1.5e-3


def test_tables_have_the_columns_the_kernels_read() -> None:
    assert kernels.JOB_COLUMNS.value == plan.JOB_COLUMNS
    assert kernels.IMAGE_COLUMNS.value == plan.IMAGE_COLUMNS
    assert kernels.FRACTION_BITS.value == plan.FRACTION_BITS
    assert (kernels.VIEW_FLIP.value, kernels.VIEW_CLAMP.value) == (plan.VIEW_CODES["flip"], plan.VIEW_CODES["clamp"])


# --- preprocessing ---------------------------------------------------------------------------------------------------

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ALL: tuple[ViewName, ...] = ("original", "flip", "clamp")


def run_preprocess(
    images: list[NDArray[np.uint8]],
    spec: PreprocessSpec,
    views: tuple[ViewName, ...],
    block: int = 32,
    programs: int = 2,
) -> F32:
    """(images, views, 3, crop, crop) through resize_across and resize_down."""
    plans = [plan.ImagePlan.of(*p.shape[:2], 1 if p.ndim == 2 else p.shape[2], spec) for p in images]
    pixels = [torch.from_numpy(np.ascontiguousarray(p)) for p in images]
    tables = torch.from_numpy(np.concatenate([p.tables for p in plans]))
    for image, p in zip(images, plans, strict=True):
        assert len(p.tables) <= plan.table_size(*image.shape[:2], spec)
    columns, at, row = [], 0, 0
    for data, p in zip(pixels, plans, strict=True):
        columns.append(p.columns(data.data_ptr(), at, row * 3 * spec.crop))
        at, row = at + len(p.tables), row + p.rows
    across = torch.full((row * 3 * spec.crop + 1,), 77, dtype=torch.uint8)
    views_of_images = torch.full((len(images), len(views), 3, spec.crop, spec.crop), float("nan"))
    table = torch.from_numpy(np.array(columns, np.int64))
    launch(
        kernels.resize_across, (programs, len(images)), table, tables, across, spec.crop, BLOCK=block, reached=pixels
    )
    assert across[-1] == 77
    launch(
        kernels.resize_down, (spec.crop, len(images)),
        table, tables, across, torch.from_numpy(plan.level_table(spec)), torch.tensor([plan.VIEW_CODES[v] for v in views],
        dtype=torch.int32), len(views), views_of_images, spec.crop, BLOCK=block,
    )  # fmt: skip
    return views_of_images.numpy()


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [
        (1, 1, 16, 8),
        (2, 3, 17, 16),
        (13, 61, 24, 16),
        (48, 48, 24, 20),
        (97, 33, 25, 12),
        (80, 31, 16, 16),
        (28, 29, 40, 33),
    ],
)
def test_preprocess_is_bit_identical(height: int, width: int, resize: int, crop: int) -> None:
    spec = PreprocessSpec(resize=resize, crop=crop, mean=IMAGENET[0], std=IMAGENET[1])
    rgb = noise(height, width, height)
    wanted = preprocess.query_views(preprocess.prepare(rgb, spec), ALL)
    np.testing.assert_array_equal(run_preprocess([rgb], spec, ALL)[0], wanted)


@pytest.mark.slow(group="interpreter")
def test_a_image_as_wide_as_a_cameras_as_the_product_is_called() -> None:
    """5 megapixels are 2448 x 2048: its width, the product's blocks and programs, and a crop that is more than a block and not a
    multiple. Rows only repeat, and all 2048 take the interpreter minutes."""
    spec = PreprocessSpec(resize=300, crop=264, mean=IMAGENET[0], std=IMAGENET[1])
    rgb = noise(10, 2448)
    views: tuple[ViewName, ...] = ("original", "flip")
    block = build.variants(90)["resize_across"].constants["BLOCK"]
    assert block < spec.crop < 2 * block
    found = run_preprocess([rgb], spec, views, block, ROW_PROGRAMS)
    np.testing.assert_array_equal(found[0], preprocess.query_views(preprocess.prepare(rgb, spec), views))


def test_a_batch_of_different_images_and_greys() -> None:
    spec = PreprocessSpec(resize=20, crop=14, mean=IMAGENET[0], std=IMAGENET[1])
    images = [noise(50, 30), noise(7, 9, 1), noise(20, 20, 2)[:, :, 0], noise(33, 31, 3, 1)]
    colour = [np.repeat(p.reshape(*p.shape[:2], -1), 3 // (p.shape[2] if p.ndim == 3 else 1), axis=2) for p in images]
    views: tuple[ViewName, ...] = ("clamp", "flip")
    found = run_preprocess(images, spec, views)
    for one, rgb in zip(found, colour, strict=True):
        np.testing.assert_array_equal(one, preprocess.query_views(preprocess.prepare(rgb, spec), views))


@settings(max_examples=200)
@given(n_in=st.integers(1, 5000), n_out=st.integers(8, 600), data=st.data())
def test_taps_are_pillows(n_in: int, n_out: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, n_out - 1))
    end = data.draw(st.integers(begin + 1, min(n_out, begin + 9)))
    taps = plan.bilinear_taps(n_in, n_out, begin, end)
    for i, (first, weights) in enumerate(bilinear_weights(n_in, n_out)[begin:end]):
        assert taps.first[i] == first
        assert taps.weights[: len(weights), i].tolist() == weights
        assert not taps.weights[len(weights) :, i].any()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((21, 30, 3), np.uint8), "30 x 21"),
        (np.zeros((20, 31), np.uint8), "31 x 20"),
    ],
)
def test_image_refusals(image: NDArray[np.uint8], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        plan.check_image(image, 20, 30)


@pytest.mark.parametrize(("side", "dim", "rows"), [(6, 1, 1), (7, 97, 3), (13, 64, 2), slow("interpreter", 28, 33, 1)])
@pytest.mark.parametrize("alike", [False, True])
def test_rarity(side: int, dim: int, rows: int, alike: bool) -> None:
    tokens = unit(side, rows * side * side, dim).reshape(rows, -1, dim)
    if alike:  # distances around the floor
        tokens = tokens[:, :1] + np.linspace(0.05, 0.9, side * side, dtype=np.float32)[:, None] * tokens
        tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    distance = np.random.default_rng(1).random((rows, side * side), dtype=np.float32)
    found, variant = torch.from_numpy(distance.copy()), build.variants(90)["weigh_rarity"]
    grid = (-(-side * side // variant.constants["BLOCK_Q"]), rows)
    launch(kernels.weigh_rarity, grid, torch.from_numpy(tokens), found, side, dim, MIN_DISTANCE, **variant.constants)
    weights = np.stack([self_similarity_weight(t, side) for t in tokens])
    np.testing.assert_allclose(found.numpy(), distance * weights, rtol=5e-6)
    if dim > 1:
        assert np.ptp(weights) > 0.05


# --- map and score ---------------------------------------------------------------------------------------------------


def run_fuse(distances: F32, views: tuple[ViewName, ...], region: NDArray[np.uint8] | None = None) -> F32:
    """(images, views, side, side) → (images, 256, 256)."""
    count, side = len(distances), distances.shape[-1]
    low, part = plan.upsample_tables(side)
    size = MAP_SIZE
    inspected = np.ones((count, size, size), np.uint8) if region is None else region
    out = torch.full((count, size, size), float("nan"))
    launch(
        kernels.fuse_map, (size, count),
        torch.from_numpy(distances.copy()), torch.tensor([plan.VIEW_CODES[v] for v in views], dtype=torch.int32), len(views),
        torch.from_numpy(low), torch.from_numpy(part), torch.from_numpy(inspected), out, side, SIZE=size,
    )  # fmt: skip
    return out.numpy()


@pytest.mark.parametrize(
    ("side", "views", "count"),
    [
        (1, ("flip",), 1),
        (4, ALL, 2),
        slow("interpreter", 28, ALL, 1),
        slow("interpreter", 37, ("original", "clamp"), 1),
    ],
)
def test_map_is_bit_identical(side: int, views: tuple[ViewName, ...], count: int) -> None:
    distances = np.random.default_rng(side).random((count, len(views), side, side), dtype=np.float32) * 2
    found = run_fuse(distances, views)
    for one, own in zip(found, distances, strict=True):
        np.testing.assert_array_equal(one, upsample(fuse(dict(zip(views, own, strict=True)))))


def test_pixels_outside_the_region_are_zero() -> None:
    distances = np.random.default_rng(1).random((1, 3, 5, 5), dtype=np.float32)
    region = np.random.default_rng(2).integers(0, 2, (1, 256, 256), dtype=np.uint8)
    whole = upsample(fuse(dict(zip(ALL, distances[0], strict=True))))
    np.testing.assert_array_equal(run_fuse(distances, ALL, region)[0], np.where(region[0], whole, 0))


def run_score(anomaly_maps: F32, share: float = TOP_FRACTION) -> NDArray[np.float64]:
    """Score and edge of each map, float64 (maps, 2)."""
    found = torch.zeros((len(anomaly_maps), 2), dtype=torch.float64)
    launch(
        kernels.top_mean,
        (len(anomaly_maps),),
        torch.from_numpy(anomaly_maps.copy()),
        found,
        top_pixels(share),
        PIXELS=MAP_SIZE**2,
        BLOCK=8192,
    )
    return found.numpy()


@pytest.mark.parametrize("share", [1e-9, 0.002, TOP_FRACTION, 1.0])  # from one pixel to all of them
@pytest.mark.parametrize("kind", ["random", "few levels", "all equal", "zero", "around zero", "tiny", "peak"])
def test_score_and_edge_are_bit_identical(kind: str, share: float) -> None:
    rng = np.random.default_rng(5)
    one = rng.random((256, 256), dtype=np.float32)
    one = {
        "random": one * 3,
        "few levels": np.floor(one * 300) / np.float32(300),
        "all equal": np.full_like(one, 0.3),
        "zero": np.zeros_like(one),
        "around zero": one * np.float32(1e-7) - np.float32(0.99e-7),
        "tiny": one * np.float32(1e-40),
        "peak": np.where(one > 0.999, one, -one),
    }[kind].astype(np.float32)
    found = run_score(np.stack([one, one[::-1]]), share)
    assert found.tolist() == [list(top_k_mean(one, share))] * 2


@pytest.mark.parametrize("value", [np.nan, -np.nan])
def test_a_map_with_nan_has_no_score(value: float) -> None:
    one = np.random.default_rng(6).random((2, 256, 256), dtype=np.float32)
    one[0, 3, 4] = value
    found = run_score(one)
    assert np.isnan(found[0, 0]) and tuple(found[1]) == top_k_mean(one[1])


# --- what was built --------------------------------------------------------------------------------------------------

MANIFEST = read_manifest()


def compiler(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m visionad_export.kernels`` with a Triton that compiles."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "visionad_export.kernels", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_product_is_of_this_source() -> None:
    assert MANIFEST["source_sha256"] == build.source_digest(), "run `python -m visionad_export.kernels --build`"
    assert {t: set(k) for t, k in MANIFEST["targets"].items()} == {
        t: set(build.variants(cc)) for t, cc in build.TARGETS.items()
    }


@pytest.mark.parametrize("target", build.TARGETS)
def test_no_newer_driver_is_needed_than_is_said(target: str) -> None:
    """The ABI in a cubin's ELF header: 7 is CUDA 12's, 8 is CUDA 13's."""
    for _, code in read_target(target).values():
        if target.startswith("ptx"):
            found = re.search(rb"^\.version (\d+)\.(\d+)", code, re.MULTILINE)
            assert found is not None and tuple(map(int, found.groups())) <= (8, 8)
        else:
            assert code[8] == (7 if int(target[3:]) <= 90 else 8)


def disassembled(code: bytes, folder: Path) -> str:
    """The instructions of a cubin."""
    tool = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "nvdisasm"
    if not tool.exists():
        pytest.skip("this Triton brings no nvdisasm")
    cubin = folder / "one.cubin"
    cubin.write_bytes(code)
    return subprocess.run([tool, "-c", cubin], check=True, capture_output=True, text=True).stdout


def test_wgmma_is_not_waited_for_product_by_product(tmp_path: Path) -> None:
    """ptxas puts a wait after each where it cannot follow the accumulators, a branch beside them is enough for that, and says so in
    passing only. One barrier a step of the loop is as it should be."""
    listed = disassembled(read_target("sm_90")["group_maxima"][1], tmp_path)
    products = [line for line in listed.splitlines() if "HGMMA" in line]
    assert len(products) == 4 and sum("gsb0" in line for line in products) == 1


@pytest.mark.slow(group="cubins")
@pytest.mark.parametrize("target", [t for t, capability in build.TARGETS.items() if capability >= 90])
def test_no_absolute_value_lost_its_sign(target: str, tmp_path: Path) -> None:
    """Of max(|a|, |b|) ptxas 12.9 makes max(a, a, |b|) for sm_90, an instruction that takes one register twice. (H100. Older ones
    have no maximum of three.)"""
    for name, (_, code) in read_target(target).items():
        assert not re.findall(r"VIMNMX3\S* R\d+, (R\d+), \1,", disassembled(code, tmp_path)), name


@pytest.mark.parametrize("target", build.TARGETS)
def test_registers_shared_memory_and_spills(target: str) -> None:
    assert (build.PRODUCT / f"{target}.zip").stat().st_size < 1 << 20
    for name, record in MANIFEST["targets"][target].items():
        assert record["spill_bytes"] == 0, f"{target}/{name} spills registers"
        assert record["registers"] <= 255 and record["registers"] * record["threads"] <= 65536
        assert record["shared_bytes"] <= (build.SHARED_KIB[build.TARGETS[target]] - 1) * 1024
        assert record["per_multiprocessor"] >= 1
    search_kernel = MANIFEST["targets"][target]["group_maxima"]
    instruction = {"sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}.get(target, "mma.sync")
    assert search_kernel["tensor_cores"] == instruction
    assert search_kernel["per_multiprocessor"] == {"sm_80": 1, "sm_90": 1, "sm_100": 1}.get(target, 2)
    assert plan.PADDING % search_kernel["constants"]["BLOCK_K"] == 0


@pytest.mark.slow(group="cubins")
@pytest.mark.skipif(triton.__version__ != MANIFEST["triton"], reason=f"the product is Triton {MANIFEST['triton']}'s")
def test_building_again_gives_the_same_bytes() -> None:
    target = "sm_90"  # the group `cubins` of .ci/slow checks them all
    done = compiler("--check", "--target", target)
    assert done.returncode == 0, done.stderr
    assert f"{target:8} group_maxima" in done.stdout and "spilled" in done.stdout


def test_what_was_built_otherwise_is_told() -> None:
    found = {"sm_90": {"pack": build.Built(b"other", {"entry": "pack"})}}
    assert build.check(found) == ["sm_90/pack differs from what the source compiles to"]
    done = compiler("--check", "--target", "sm_75")
    assert done.returncode == 2 and "expected some of sm_80" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("newer", ["sm_103", "sm_121"])
def test_ptx_is_good_for_newer_gpus(newer: str, tmp_path: Path) -> None:
    assembler = triton.knobs.nvidia.ptxas_blackwell.path
    for name, (_, code) in read_target("ptx_89").items():
        assert code.count(b"\0") == 1 and code.endswith(b"\0")  # the driver takes a C string
        source = tmp_path / f"{name}.ptx"
        source.write_bytes(code[:-1])
        subprocess.run([assembler, f"--gpu-name={newer}", source, "-o", tmp_path / name], check=True)
