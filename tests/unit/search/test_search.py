"""Exact search against float64 brute force and faiss: ties, near-ties, tiles, threads, banks that lie on disk.

Every native build that this CPU can run, and NumPy in its place; ``test_search_native.py`` runs those for Arm and Windows.
"""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionad_runtime import _threads as workers
from visionad_runtime import search
from visionad_runtime.errors import VisionADError
from visionad_runtime.search import IndexState, PrunedIndex, native, numpy_search, pruning
from visionad_runtime.search.numpy_search import as_contiguous, error_bound
from visionad_runtime.search.pruning import are_orthonormal, orthonormalized

from tests.data import near_ties, normed, patches, unit

F32 = NDArray[np.float32]
CODES = {"numpy": None, **{name: native.Library(name) for name in native.supported_builds()}}


def pruned(rows: F32) -> F32 | PrunedIndex:
    """With good components or with bad ones; plain where it is too narrow for any."""
    dim = rows.shape[1]
    library = next((library for library in CODES.values() if library), None)
    if library is None or dim < 17:
        return rows
    width = 8 * min(4, (dim - 9) // 8)
    made = np.linalg.svd(rows[:500], full_matrices=False)[2].T[:, : width - 1] if len(rows) % 3 else np.empty((dim, 0))
    components = np.zeros((dim, width))
    more = np.random.default_rng(len(rows)).standard_normal((dim, width - 1 - made.shape[1]))
    components[:, :-1] = orthonormalized(np.concatenate([made.astype(np.float64), more], axis=1))
    return PrunedIndex(as_contiguous(rows), components, library, 2)


Bank = Callable[[F32], F32 | PrunedIndex]
KINDS: dict[str, Bank] = {"plain": lambda rows: rows, "pruned": pruned}
WAYS = [(kind, code) for kind in KINDS for code in CODES]


def use(code: str, patch: pytest.MonkeyPatch) -> None:
    """Search by one build, or by NumPy."""
    patch.setattr(native, "native_library", lambda: (CODES[code], ()))


@pytest.fixture(params=WAYS, ids=["-".join(way) for way in WAYS])
def bank_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bank:
    """How a bank is held, searched in every way."""
    kind, code = request.param
    use(code, monkeypatch)
    return KINDS[kind]


def oracle(queries: F32, bank: F32, k: int = 1) -> tuple[F32, NDArray[np.int64]]:
    """The k smallest distances by float64 scores, each pair's sum in the fixed order, and the lowest rows that have them."""
    wide = bank.astype(np.float64)
    scores = np.stack([in_order(query.astype(np.float64) * wide) for query in queries])
    row = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return (1 - np.take_along_axis(scores, row, axis=1)).astype(np.float32), row


def in_order(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of each row: every eighth number by itself, then these eight in pairs."""
    part = [
        sum((products[:, i] for i in range(first, products.shape[1], 8)), np.zeros(len(products))) for first in range(8)
    ]
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]))


def check(found: search.SearchResult, queries: F32, bank: F32, k: int = 1) -> None:
    distance, row = oracle(queries, bank, k)
    shape = (len(queries),) if k == 1 else (len(queries), k)
    assert found.distance.dtype == np.float32 and found.row.dtype == np.int64
    np.testing.assert_array_equal(found.row, row.reshape(shape))
    np.testing.assert_array_equal(found.distance, distance.reshape(shape))


@given(
    way=st.sampled_from(WAYS),
    make=st.sampled_from([unit, near_ties, patches]),
    dim=st.sampled_from([1, 3, 97, 192, 384]),
    rows=st.sampled_from([1, 2, 7, 64, 1000]),
    count=st.sampled_from([1, 2, 5, 49]),
    tile=st.sampled_from([1, 3, 7, 8, 64, 999, 8192]),
    distinct=st.integers(1, 1000),
    k=st.sampled_from([1, 1, 2, 9]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_against_brute_force(
    way: tuple[str, str], make: Callable[[int, int, int], F32], dim: int, rows: int, count: int, tile: int, distinct: int,
    k: int, threads: int, seed: int,
) -> None:  # fmt: skip
    pool = make(seed, min(distinct, rows), dim)
    bank = pool[np.random.default_rng(seed).integers(0, len(pool), rows)]  # duplicates, unless distinct is large
    queries = np.concatenate([unit(seed + 1, count, dim), bank[:2], near_ties(seed, 2, dim)])
    with pytest.MonkeyPatch.context() as patch:
        use(way[1], patch)
        patch.setattr(numpy_search, "TILE_ROWS", max(tile, rows // 20))
        patch.setattr(native, "ROW_CHUNK", max(tile, rows // 20))
        patch.setattr(native, "MIN_CHUNK_ROWS", 5)
        patch.setattr(search, "MIN_WORK_PER_THREAD", 1)
        k = min(k, rows)
        check(search.nearest(queries, KINDS[way[0]](bank), k, threads=threads), queries, bank, k)


@pytest.mark.parametrize("make", [unit, patches, near_ties])
@pytest.mark.parametrize(("count", "rows", "dim", "k"), [(300, 4704, 256, 1), (7, 100_000, 97, 1), (60, 9000, 384, 5)])
def test_real_sizes(
    bank_of: Bank, make: Callable[[int, int, int], F32], count: int, rows: int, dim: int, k: int
) -> None:
    """Beyond one tile of every kind, by float64 matrix product: it can err by an ulp, so equal scores are compared."""
    bank, queries = make(1, rows, dim), make(2, count, dim)
    queries[:3] = bank[-3:]
    found = search.nearest(queries, bank_of(bank), k)
    scores = queries.astype(np.float64) @ bank.astype(np.float64).T
    best = -np.sort(-np.partition(scores, -k, axis=1)[:, -k:], axis=1)
    rows_of = found.row.reshape(count, k)
    np.testing.assert_allclose(np.take_along_axis(scores, rows_of, axis=1), best, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.distance.reshape(count, k), 1 - best, rtol=0, atol=1e-7)
    twin = np.argmax((bank == bank[rows_of[:, :1]][0]).all(axis=1))  # the first of the rows like the first query's
    assert rows_of[0, 0] == twin


def test_threads_tiles_and_company_change_no_bit(bank_of: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = np.concatenate([patches(6, 700, 192), near_ties(6, 700, 192)]), patches(7, 60, 192)
    whole = search.nearest(queries, bank_of(bank), 3, threads=1)
    monkeypatch.setattr(search, "MIN_WORK_PER_THREAD", 1)
    for tile in (1, 13, 349, 1399, 1400):
        monkeypatch.setattr(numpy_search, "TILE_ROWS", tile)
        monkeypatch.setattr(native, "ROW_CHUNK", tile)
        for threads in (1, 2, 5):
            found = search.nearest(queries, bank_of(bank), 3, threads=threads)
            np.testing.assert_array_equal(found.row, whole.row)
            np.testing.assert_array_equal(found.distance, whole.distance)
    monkeypatch.setattr(numpy_search, "QUERY_BATCH", 7)
    found = search.nearest(queries, bank_of(bank), 3)
    np.testing.assert_array_equal(found.row, whole.row)
    for i in range(0, len(queries), 7):
        alone = search.nearest(queries[i : i + 1], bank_of(bank), 3)
        np.testing.assert_array_equal(alone.row[0], whole.row[i])
        np.testing.assert_array_equal(alone.distance[0], whole.distance[i])


def test_memory_does_not_grow_with_queries(bank_of: Bank) -> None:
    """A crop of 1022 has 5329 of them."""
    bank, queries = bank_of(patches(1, 4096, 16)), patches(2, 4096, 16)
    peaks = []
    for count in (1024, 4096):
        search.nearest(queries[:count], bank, threads=1)  # what is kept
        tracemalloc.start()
        search.nearest(queries[:count], bank, threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 3072 * 64


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_bank_of_repeats_stays_cheap(way: tuple[str, str], k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat images can give one token thousands of times; candidates must not be scored one by one then."""
    bank, queries = np.repeat(patches(8, 2, 64), 10_000, axis=0), patches(9, 200, 64)
    use(way[1], monkeypatch)
    scored = 0
    nearest, exact_numpy = native.Library.nearest, numpy_search.exact_scores

    def count(pairs: int) -> None:
        nonlocal scored
        scored += pairs

    def counted(*args: Any) -> native.NativeResult:
        found = nearest(*args)
        count(found.rescored)
        return found

    monkeypatch.setattr(native.Library, "nearest", counted)
    monkeypatch.setattr(numpy_search, "exact_scores", lambda *args: (count(len(args[2])), exact_numpy(*args))[1])
    found = search.nearest(queries, KINDS[way[0]](bank), k)
    monkeypatch.undo()
    check(found, queries, bank, k)
    assert len(queries) * k <= scored < len(queries) * len(bank) / 50


def test_error_bound_of_float32_scores_holds_and_is_needed() -> None:
    """Not only not violated: a search that took the float32 winner would be wrong on these rows."""
    bank, queries = near_ties(3, 3000, 384), near_ties(4, 50, 384, 1e-2)
    scores = queries @ bank.T
    true = queries.astype(np.float64) @ bank.astype(np.float64).T
    assert 0 < np.abs(scores - true).max() < error_bound(384)
    assert (scores.argmax(axis=1) != oracle(queries, bank)[1][:, 0]).any()


@pytest.mark.parametrize(("dim", "rows"), [(3, 7), (97, 1000), (192, 3000), (384, 1000)])
def test_against_faiss(dim: int, rows: int) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    bank, queries = unit(8, rows, dim), unit(9, 200, dim)
    index = faiss.IndexFlatIP(dim)
    index.add(bank)
    cosine, row = index.search(queries, 2)
    found = search.nearest(queries, bank)
    np.testing.assert_allclose(found.distance, 1 - cosine[:, 0], rtol=0, atol=1e-6)
    clear = cosine[:, 0] - cosine[:, 1] > 1e-6
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.row[clear], row[clear, 0])


@pytest.mark.parametrize("dim", [1, 3, 192, 1024])
def test_distance_to_itself_and_to_its_opposite(bank_of: Bank, dim: int) -> None:
    bank = unit(10, 40, dim)
    np.testing.assert_allclose(search.nearest(bank, bank_of(bank)).distance, 0, atol=1e-6)
    np.testing.assert_allclose(search.nearest(-bank[:1], bank_of(bank[:1])).distance, 2, atol=1e-6)


def test_bank_on_disk_and_read_only(bank_of: Bank, tmp_path: Path) -> None:
    bank, queries = unit(11, 300, 24), unit(12, 9, 24)
    wanted = search.nearest(queries, bank)
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    shifted = np.frombuffer(b"\0" + bank.tobytes(), np.uint8)[1:].view(np.float32).reshape(bank.shape)
    assert not shifted.flags.aligned
    frozen_bank, frozen_queries = bank.copy(), queries.copy()
    frozen_bank.flags.writeable = frozen_queries.flags.writeable = False
    for one in (mapped, frozen_bank, np.asfortranarray(bank), np.repeat(bank, 2, axis=0)[::2], shifted):
        found = search.nearest(np.asfortranarray(frozen_queries), bank_of(one))
        np.testing.assert_array_equal(found.row, wanted.row)
        np.testing.assert_array_equal(found.distance, wanted.distance)
        assert type(found.distance) is np.ndarray


def test_no_queries_have_no_neighbours(bank_of: Bank) -> None:
    for k in (1, 3):
        found = search.nearest(np.empty((0, 8), np.float32), bank_of(unit(13, 5, 8)), k)
        assert found.distance.shape == found.row.shape == ((0,) if k == 1 else (0, 3))


def with_value(value: float) -> F32:
    queries = unit(14, 6, 8)
    queries[3, 2] = value
    return queries


@pytest.mark.parametrize(
    ("queries", "bank", "words"),
    [
        (unit(0, 3, 8), np.empty((0, 8), np.float32), "no rows"),
        (unit(0, 3, 8), unit(1, 4, 9), r"got float32 \(3, 8\) and float32 \(4, 9\)"),
        (unit(0, 3, 8), unit(1, 4, 8)[0], r"got float32 \(3, 8\) and float32 \(8,\)"),
        (unit(0, 3, 8)[0], unit(1, 4, 8), r"got float32 \(8,\) and float32 \(4, 8\)"),
        (unit(0, 4, 8).reshape(2, 2, 8), unit(1, 4, 8), "expected"),
        (unit(0, 3, 8).astype(np.float64), unit(1, 4, 8), "got float64"),
        (unit(0, 3, 8), unit(1, 4, 8).astype(np.float16), "float16"),
        (with_value(np.nan), unit(1, 4, 8), "NaN or Inf among the patch tokens"),
        (with_value(np.inf), unit(1, 4, 8), "NaN or Inf among the patch tokens"),
        (with_value(-np.inf), unit(1, 4, 8), "NaN or Inf among the patch tokens"),
        (unit(0, 3, 8), with_value(np.nan), "NaN or Inf among the bank rows"),
        (unit(0, 3, 8), with_value(np.inf), "NaN or Inf among the bank rows"),
        (unit(0, 3, 8), with_value(-np.inf), "NaN or Inf among the bank rows"),
        (unit(0, 1, 8), with_value(-np.inf)[3:], "NaN or Inf among the bank rows"),
    ],
)
@pytest.mark.parametrize("code", CODES)
def test_refusals(code: str, queries: F32, bank: F32, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(code, monkeypatch)
    for k in (1, 2):
        with pytest.raises(VisionADError, match=words):
            search.nearest(queries, bank, k)


@pytest.mark.parametrize("k", [0, 5, -1])
def test_more_neighbours_than_rows(k: int) -> None:
    with pytest.raises(VisionADError, match=f"expected {k} neighbors, got 4 bank rows; k is 1 to 4"):
        search.nearest(unit(0, 3, 8), unit(1, 4, 8), k)


needs_code = pytest.mark.skipif(len(CODES) == 1, reason="no build of the search runs on this CPU and system")


@pytest.mark.parametrize("code", list(CODES)[1:])
@pytest.mark.parametrize("make", [unit, patches, near_ties])
@pytest.mark.parametrize(("dim", "width"), [(17, 8), (97, 16), (384, 64), (1024, 128)])
def test_products_of_projections_are_upper_bounds(
    make: Callable[[int, int, int], F32], dim: int, width: int, code: str
) -> None:
    """Less than them by no more than the search allows for, whether the rows lie along the components or not; and NumPy's sums."""
    library = CODES[code]
    rows, queries = make(1, 300, dim), np.concatenate([make(2, 29, dim), unit(3, 10, dim)])
    for seed in (None, 0):
        components = np.zeros((dim, width))
        made = (
            rows[: width - 1].T
            if seed is None and make is unit
            else np.random.default_rng(0).standard_normal((dim, width - 1))
        )
        components[:, :-1] = orthonormalized(made.astype(np.float64))
        projections, asked = (library.project(x, components, 2) for x in (rows, queries))
        product = asked @ projections.T
        true = queries.astype(np.float64) @ rows.astype(np.float64).T
        assert (product >= true - error_bound(dim)).all()
        np.testing.assert_allclose(projections[:, :-1], rows @ components[:, :-1], rtol=0, atol=1e-6)
        left = np.linalg.norm(rows - rows @ components @ components.T, axis=1)
        assert (projections[:, -1] >= left).all() and (projections[:, -1] <= left + 4e-6).all()
    for count in (1, 2, 3, 4, 5, 300):
        np.testing.assert_array_equal(library.project(rows[:count], components, 3), projections[:count])
    plain = library.product(rows, np.ascontiguousarray(queries[:32].T, np.float64), 2)
    np.testing.assert_allclose(plain, true[:32].T, rtol=0, atol=1e-7)


def alike(found: search.SearchResult, wanted: search.SearchResult) -> None:
    np.testing.assert_array_equal(found.row, wanted.row)
    np.testing.assert_array_equal(found.distance, wanted.distance)


def along_few(seed: int, rows: int, dim: int) -> F32:
    """Rows near twelve directions, the same for every seed."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 12)) @ np.random.default_rng(0).standard_normal((12, dim))
    return normed(x + 0.3 * rng.standard_normal((rows, dim)))


@needs_code
def test_an_index_is_built_where_it_rules_most_rows_out() -> None:
    queries, rows = along_few(5, 700, 256), along_few(6, 5000, 256)
    bank = search.build_index(rows, queries)
    assert isinstance(bank, PrunedIndex) and bank.rows is rows
    width = bank.components.shape[1]
    assert width in pruning.PROJECTION_WIDTHS and bank.projections.shape == (5000, width)
    assert bank.nbytes == 4 * 5000 * width + 8 * 256 * width
    library = native.native_library()[0]
    assert library is not None
    asked = library.project(queries, bank.components, 1)
    found = library.nearest(queries, rows, 1, error_bound(256), 1, (asked, bank.projections))
    assert found.rescored < len(queries) * len(rows) / 20
    for k in (1, 3):
        alike(search.nearest(queries, bank, k), search.nearest(queries, rows, k))
    # No index is built in vain: rows that lie along no directions, few rows, narrow ones.
    for plain, like in (
        (unit(1, 5000, 256), unit(2, 700, 256)),
        (rows[:2000], queries),
        (np.ascontiguousarray(rows[:, :20]), queries[:, :20]),
        (rows, queries[:0]),
    ):
        assert search.build_index(plain, like) is plain
    assert pruning.fit_components(rows, queries, 1, library, 1) is not None
    assert pruning.fit_components(rows, queries, 0.01, library, 1) is None


@needs_code
def test_components_that_rule_nothing_out_cost_little() -> None:
    """Then each group of queries is searched without after a while, with the same result, and pairs are not scored one by one."""
    rows, queries = unit(1, 6000, 128), unit(2, 300, 128)
    bank = pruned(rows)
    assert isinstance(bank, PrunedIndex)
    library = native.native_library()[0]
    assert library is not None
    asked = library.project(queries, bank.components, 1)
    for threads in (1, 3):
        found = library.nearest(queries, rows, 1, error_bound(128), threads, (asked, bank.projections))
        assert found.rescored < len(queries) * len(rows) / 20
        np.testing.assert_array_equal(found.row, numpy_search.search_numpy(queries, rows, 1)[1])


@needs_code
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_index_of_broken_rows_is_refused(value: float) -> None:
    rows, queries = along_few(5, 2100, 64), along_few(6, 50, 64)
    bank = search.build_index(rows, queries)
    broken_rows, broken_queries = rows.copy(), queries.copy()
    broken_rows[-1, -1] = broken_queries[-1, -1] = value
    with pytest.raises(VisionADError, match="NaN or Inf among the bank rows"):
        search.build_index(broken_rows, queries)
    with pytest.raises(VisionADError, match="NaN or Inf among the patch tokens"):
        search.build_index(rows, broken_queries)
    assert isinstance(bank, PrunedIndex)
    with pytest.raises(VisionADError, match="NaN or Inf among the patch tokens"):
        search.nearest(broken_queries, bank)


@needs_code
@pytest.mark.parametrize("dim", [64, 1024])
def test_rows_that_are_all_alike_have_components(dim: int) -> None:
    """Flat images; and rows that lie along one coordinate."""
    library = native.native_library()[0]
    assert library is not None
    for row in (unit(1, 1, dim), np.eye(dim, dtype=np.float32)[:1]):
        rows = np.repeat(row, 2500, axis=0)
        components = pruning.principal_components(rows[:2048], 48, library, 2)
        assert are_orthonormal(components)
        assert abs(float(row[0] @ components[:, 0])) > 1 - 1e-6
        queries = np.concatenate([unit(2, 50, dim), row, -row])
        alike(search.nearest(queries, search.build_index(rows, queries)), search.nearest(queries, rows))
    assert are_orthonormal(orthonormalized(np.zeros((20, 3))))
    assert not are_orthonormal(orthonormalized(np.zeros((20, 3))) * (1 + 1e-11))


class DeviceThread:
    """Stands for a bank."""


@needs_code
def test_an_index_is_built_from_the_second_request_on_and_goes_with_its_bank() -> None:
    queries, rows = along_few(5, 50, 128), along_few(6, 2100, 128)
    index, owner, other = search.SearchIndex(), DeviceThread(), DeviceThread()
    assert index.state(owner, "original") is IndexState.NOT_REQUESTED
    done = threading.Event()
    workers.submit_background(lambda: done.wait(60))
    for state in (IndexState.REQUESTED, IndexState.BUILDING, IndexState.BUILDING):
        assert index.index_for(owner, "original", rows, queries) is rows
        assert index.state(owner, "original") is state
    assert index.index_for(owner, "flip", rows, queries) is rows
    assert index.index_for(other, "original", rows, queries) is rows
    done.set()
    workers.drain_background()
    built = index.index_for(owner, "original", rows, queries)
    assert index.state(owner, "original") is IndexState.READY and isinstance(built, PrunedIndex) and built.rows is rows
    assert index.index_for(owner, "original", rows, queries) is built
    assert index.state(owner, "flip") is index.state(other, "original") is IndexState.REQUESTED
    held = weakref.ref(built)
    del built, owner
    gc.collect()
    assert held() is None


def test_a_small_bank_gets_no_index() -> None:
    queries, rows = along_few(5, 50, 128), along_few(6, 2000, 128)
    index, owner = search.SearchIndex(), DeviceThread()
    assert all(index.index_for(owner, "original", rows, queries) is rows for _ in range(3))
    assert index.state(owner, "original") is IndexState.NOT_REQUESTED


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_without_an_index_the_rows_are_searched(value: float) -> None:
    """Broken rows, which the search reports, and rows that no components help with."""
    rows, queries = unit(1, 2100, 64), unit(2, 40, 64)
    rows[-1, -1] = value
    index, owner = search.SearchIndex(), DeviceThread()
    for _ in range(3):
        assert index.index_for(owner, "original", rows, queries) is rows
        workers.drain_background()
    assert index.state(owner, "original") is IndexState.READY
