"""The torch-free choice of support images against torch, the published fixture and fixed vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from visionad_runtime.errors import VisionADError
from visionad_runtime.teaching.sampling import sample_support, sample_support_paths

from tests.data import SHARED

# Images in train/good of MVTec-AD, whose names are their numbers.
MVTEC = {
    "carpet": 280, "grid": 264, "leather": 245, "tile": 230, "wood": 247, "bottle": 209, "cable": 224, "capsule": 219,
    "hazelnut": 391, "metal_nut": 220, "pill": 267, "screw": 320, "toothbrush": 60, "transistor": 213, "zipper": 240,
}  # fmt: skip
# VisA: good images for training, and all good images (the names' range; some are for testing).
VISA = {
    "candle": (900, 1000), "capsules": (542, 602), "cashew": (450, 500), "chewinggum": (453, 503), "fryum": (450, 500),
    "macaroni1": (900, 1000), "macaroni2": (900, 1000), "pcb1": (904, 1004), "pcb2": (901, 1001), "pcb3": (905, 1006),
    "pcb4": (904, 1005), "pipe_fryum": (450, 500),
}  # fmt: skip


def published() -> dict[str, dict[str, dict[str, list[str]]]]:
    path = SHARED / "docs" / "support_sets.json"
    if not path.is_file():
        pytest.skip(f"no {path}; set VISIONAD_SHARED")
    content: dict[str, dict[str, dict[str, list[str]]]] = json.loads(path.read_text("utf-8"))
    return content


@pytest.mark.parametrize(
    ("n", "seed", "expected"),
    [
        (280, 114514, [251, 155, 82, 209, 30, 161, 119, 93]),
        (209, 1, [181, 41, 54, 44, 160, 106, 13, 91]),
        (904, 0, [677, 640, 725, 751, 731, 248, 227, 232]),
        (30000, 7, [15721, 10954, 8823, 25533, 3647, 28454, 13246, 3517]),
        (3, 0, [2, 1, 0]),
        (100, 1099511627783, [21, 0, 3, 48]),
        (100, -1, [76, 52, 54, 86]),
    ],
)
def test_fixed_vectors(n: int, seed: int, expected: list[int]) -> None:
    """Drawn with torch 2.14; they hold where neither torch nor the fixture is at hand."""
    assert sample_support(n, len(expected), seed) == expected


def test_equals_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    wide = [2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1, -1, -5, -(2**63)]
    cases = [(n, seed) for n in (1, 2, 3, 8, 60, 209, 391, 904) for seed in [*range(201), 999, 114514, *wide]]
    cases += [(n, seed) for n in (29_999, 30_000, 100_000) for seed in (0, 7, 2**40 + 7)]
    for n, seed in cases:
        generator = torch.Generator().manual_seed(seed)
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        expected = torch.randperm(n, generator=generator)[:8].tolist()
        assert sample_support(n, min(8, n), seed) == expected, (n, seed)


def test_equals_published_mvtec() -> None:
    for seed, classes in published()["mvtec"].items():
        assert set(classes) == set(MVTEC)
        for name, files in classes.items():
            assert [f"{i:03d}.png" for i in sample_support(MVTEC[name], 8, int(seed))] == files, (seed, name)


def test_equals_published_visa() -> None:
    """Which good images VisA tests on is not in the fixture, but our indices must rank its names without a conflict."""
    sets = published()["visa"]
    for name, (train, total) in VISA.items():
        number_of: dict[int, int] = {}
        for seed, classes in sets.items():
            for index, file in zip(sample_support(train, 8, int(seed)), classes[name], strict=True):
                assert number_of.setdefault(index, int(Path(file).stem)) == int(Path(file).stem), (seed, name)
        ranked = [number_of[index] for index in sorted(number_of)]
        assert len(ranked) > 60
        assert ranked == sorted(set(ranked)), name
        assert all(index <= number <= index + total - train for index, number in number_of.items()), name


@settings(deadline=None)
@given(n=st.integers(1, 300), seed=st.integers(-(2**63), 2**64 - 1), data=st.data())
def test_nested_and_distinct(n: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    everything = sample_support(n, n, seed)
    assert sorted(everything) == list(range(n))
    assert sample_support(n, k, seed) == everything[:k]


@pytest.mark.parametrize(
    ("n", "k", "seed"),
    [(0, 1, 0), (5, 0, 0), (5, 6, 0), (5, -1, 0), (2**32, 1, 0), (5, 1, 2**64), (5, 1, -(2**63) - 1)],
)
def test_out_of_range(n: int, k: int, seed: int) -> None:
    with pytest.raises(VisionADError, match="support"):
        sample_support(n, k, seed)


def test_paths_are_sorted_by_file_name() -> None:
    paths = [Path("b/000.png"), Path("a/002.png"), Path("c/001.png")]
    by_name = [Path("b/000.png"), Path("c/001.png"), Path("a/002.png")]
    assert sample_support_paths(paths, 2, None) == by_name[:2]
    assert sample_support_paths(paths, 3, 4) == [by_name[i] for i in sample_support(3, 3, 4)]
    for seed in (None, 0):
        for k in (0, 4):
            with pytest.raises(VisionADError, match=f"expected {k} shots"):
                sample_support_paths(paths, k, seed)
