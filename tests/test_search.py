"""Exact search against float64 brute force and faiss, with ties, tiles, and banks that lie on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionad_runtime import search
from visionad_runtime.errors import VisionADError

F32 = NDArray[np.float32]
TOLERANCE = 1e-6


def unit(seed: int, rows: int, dim: int) -> F32:
    x = np.random.default_rng(seed).standard_normal((rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def check(queries: F32, bank: F32, found: search.Neighbours) -> None:
    scores = queries.astype(np.float64) @ bank.astype(np.float64).T
    assert found.distance.dtype == np.float32 and found.row.dtype == np.int64
    assert found.distance.shape == found.row.shape == (len(queries),)
    np.testing.assert_allclose(found.distance, 1 - scores.max(axis=1), rtol=0, atol=TOLERANCE)
    # the row is the one that the distance belongs to, not merely some row
    np.testing.assert_allclose(1 - scores[np.arange(len(queries)), found.row], found.distance, rtol=0, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(
    dim=st.sampled_from([1, 3, 97, 192, 384]),
    rows=st.sampled_from([1, 2, 7, 64, 1000]),
    count=st.sampled_from([1, 2, 5, 49]),
    tile=st.sampled_from([1, 3, 7, 8, 64, 999, 8192]),
    distinct=st.integers(1, 1000),
    seed=st.integers(0, 2**32 - 1),
)
def test_against_brute_force(dim: int, rows: int, count: int, tile: int, distinct: int, seed: int) -> None:
    pool = unit(seed, min(distinct, rows), dim)
    bank = pool[np.random.default_rng(seed).integers(0, len(pool), rows)]  # duplicates, unless distinct is large
    queries = unit(seed + 1, count, dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "TILE_ROWS", max(tile, rows // 50))
        check(queries, bank, search.nearest(queries, bank))


@pytest.mark.parametrize(("rows", "tile"), [(100, 100), (101, 100), (200, 100), (250, 100), (99, 100), (100, 1)])
def test_the_nearest_row_is_found_wherever_it_lies(rows: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "TILE_ROWS", tile)
    bank = unit(0, rows, 16)
    found = search.nearest(bank, bank)
    assert found.row.tolist() == list(range(rows))
    np.testing.assert_allclose(found.distance, 0, atol=TOLERANCE)


def test_beyond_one_tile_of_the_real_size() -> None:
    bank = unit(2, search.TILE_ROWS + 500, 16)
    queries = unit(3, 20, 16)
    queries[:5] = bank[-5:]
    found = search.nearest(queries, bank)
    check(queries, bank, found)
    assert found.row[:5].tolist() == list(range(len(bank) - 5, len(bank)))


@pytest.mark.parametrize("dim", [1, 3, 97, 192, 384])
@pytest.mark.parametrize("count", [1, 3, 196])
def test_repeated_rows_change_no_distance(dim: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, queries = unit(4, 5, dim), unit(5, count, dim)
    wanted = search.nearest(queries, pool)
    for tile in (8192, 17, 3):  # equal rows in one tile, and in several
        monkeypatch.setattr(search, "TILE_ROWS", tile)
        for rows in (8, 61, 203):
            found = search.nearest(queries, np.resize(pool, (rows, dim)))
            np.testing.assert_array_equal(found.distance, wanted.distance)
            # which of the repeats is open: the product's edges may round them an ulp apart
            np.testing.assert_array_equal(np.resize(pool, (rows, dim))[found.row], pool[wanted.row])


@pytest.mark.parametrize("dim", [1, 3, 97, 192])
@pytest.mark.parametrize("count", [1, 2, 60])
@pytest.mark.parametrize("tile", [8192, 17, 3, 1])
def test_equal_scores_give_the_lowest_row(dim: int, count: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "TILE_ROWS", tile)
    rng = np.random.default_rng(dim)
    bank = np.eye(dim, dtype=np.float32)[rng.integers(0, dim, 205)]  # one-hot: every product is exact
    queries = np.eye(dim, dtype=np.float32)[rng.integers(0, dim, count)]
    scores = queries @ bank.T
    found = search.nearest(queries, bank)
    assert found.row.tolist() == [int(np.flatnonzero(s == s.max())[0]) for s in scores]
    np.testing.assert_array_equal(found.distance, 1 - scores.max(axis=1))


def test_results_do_not_depend_on_tiles_or_on_the_other_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = unit(6, 700, 192), unit(7, 60, 192)
    best = np.sort(queries.astype(np.float64) @ bank.astype(np.float64).T, axis=1)
    queries = queries[best[:, -1] - best[:, -2] > 1e-5]  # two rows closer than float32 sees may change places
    assert len(queries) > 50
    whole = search.nearest(queries, bank)
    for tile in (1, 2, 13, 349, 699, 700):
        monkeypatch.setattr(search, "TILE_ROWS", tile)
        found = search.nearest(queries, bank)
        np.testing.assert_array_equal(found.row, whole.row)
        np.testing.assert_array_equal(found.distance, whole.distance)
    for i in range(len(queries)):
        alone = search.nearest(queries[i : i + 1], bank)
        assert alone.row[0] == whole.row[i] and abs(float(alone.distance[0] - whole.distance[i])) <= 1e-7


@pytest.mark.parametrize(("dim", "rows"), [(3, 7), (97, 1000), (192, 3000), (384, 1000)])
def test_against_faiss(dim: int, rows: int) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    bank, queries = unit(8, rows, dim), unit(9, 200, dim)
    index = faiss.IndexFlatIP(dim)
    index.add(bank)
    cosine, row = index.search(queries, 2)
    found = search.nearest(queries, bank)
    np.testing.assert_allclose(found.distance, 1 - cosine[:, 0], rtol=0, atol=TOLERANCE)
    clear = cosine[:, 0] - cosine[:, 1] > TOLERANCE
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.row[clear], row[clear, 0])


@pytest.mark.parametrize("dim", [1, 3, 192, 1024])
def test_distance_to_itself_and_to_its_opposite(dim: int) -> None:
    bank = unit(10, 40, dim)
    np.testing.assert_allclose(search.nearest(bank, bank).distance, 0, atol=TOLERANCE)
    np.testing.assert_allclose(search.nearest(-bank[:1], bank[:1]).distance, 2, atol=TOLERANCE)


def test_bank_on_disk_and_read_only(tmp_path: Path) -> None:
    bank, queries = unit(11, 300, 24), unit(12, 9, 24)
    wanted = search.nearest(queries, bank)
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    frozen_bank, frozen_queries = bank.copy(), queries.copy()
    frozen_bank.flags.writeable = frozen_queries.flags.writeable = False
    for one in (mapped, frozen_bank, np.asfortranarray(bank), np.repeat(bank, 2, axis=0)[::2]):
        found = search.nearest(frozen_queries, one)
        np.testing.assert_array_equal(found.row, wanted.row)
        np.testing.assert_allclose(found.distance, wanted.distance, rtol=0, atol=1e-7)
        assert type(found.distance) is np.ndarray


def test_no_queries_have_no_neighbours() -> None:
    found = search.nearest(np.empty((0, 8), np.float32), unit(13, 5, 8))
    assert found.distance.shape == found.row.shape == (0,)


def with_value(value: float) -> F32:
    queries = unit(14, 6, 8)
    queries[3, 2] = value
    return queries


@pytest.mark.parametrize(
    ("queries", "bank", "words"),
    [
        (unit(0, 3, 8), np.empty((0, 8), np.float32), "no rows"),
        (unit(0, 3, 8), unit(1, 4, 9), r"found \(3, 8\) and \(4, 9\)"),
        (unit(0, 3, 8), unit(1, 4, 8)[0], r"found \(3, 8\) and \(8,\)"),
        (unit(0, 3, 8)[0], unit(1, 4, 8), r"found \(8,\) and \(4, 8\)"),
        (unit(0, 4, 8).reshape(2, 2, 8), unit(1, 4, 8), "wanted"),
        (with_value(np.nan), unit(1, 4, 8), "NaN or Inf"),
        (with_value(np.inf), unit(1, 4, 8), "NaN or Inf"),
        (with_value(-np.inf), unit(1, 4, 8), "NaN or Inf"),
    ],
)
def test_refusals(queries: F32, bank: F32, words: str) -> None:
    with pytest.raises(VisionADError, match=words):
        search.nearest(queries, bank)
