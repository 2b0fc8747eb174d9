"""Changes of `benchmarks/image_changes.py` against their definitions, and what `benchmarks/robustness.py` counts."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest

from tests.data import ROOT

SHAPES = [(7, 11, 3), (12, 5)]


def load(name: str) -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def changes() -> Any:
    return load("image_changes")


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [0.8, 1.1, 1.25])
def test_gain_is_rounded_and_cut(changes: Any, shape: tuple[int, ...], factor: float) -> None:
    rgb = image(*shape)
    changed = changes.gain(rgb, factor)
    assert changed.dtype == np.uint8
    assert changed.ravel().tolist() == [min(255, round(float(np.float32(v) * np.float32(factor)))) for v in rgb.ravel()]


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_grows_evenly_from_left_to_right(changes: Any, shape: tuple[int, ...]) -> None:
    changed = changes.gradient(np.full(shape, 100, np.uint8), 0.2)
    width = shape[1]
    for column in range(width):
        assert set(changed[:, column].ravel().tolist()) == {round(80 + 40 * column / (width - 1))}
    assert changed[0, 0].max() == 80 and changed[0, -1].max() == 120


def test_blur_is_a_gaussian_of_a_share_of_the_longer_side(changes: Any) -> None:
    rgb = np.zeros((41, 60), np.uint8)
    rgb[20, 30] = 255
    share, sigma = 0.025, 1.5
    rows, columns = np.arange(41) - 20, np.arange(60) - 30
    expected = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * sigma**2))
    assert np.abs(changes.blur(rgb, share) - 255 * expected / expected.sum()).max() < 1
    assert changes.blur(rgb, share)[20, 30] == pytest.approx(255 / (2 * np.pi * sigma**2), abs=1)
    flat = np.full((9, 8, 3), 77, np.uint8)
    assert np.array_equal(changes.blur(flat, 0.2), flat)  # the border darkens nothing


@pytest.mark.parametrize("shape", SHAPES)
def test_shift_repeats_the_left_border(changes: Any, shape: tuple[int, ...]) -> None:
    rgb = image(*shape)
    pixels = round(0.4 * shape[1])
    changed = changes.shift(rgb, 0.4)
    assert pixels >= 2 and changed.shape == rgb.shape
    for column in range(shape[1]):
        assert np.array_equal(changed[:, column], rgb[:, max(0, column - pixels)])


def test_turn_is_about_the_middle(changes: Any) -> None:
    rgb = image(9, 9, 3)
    assert np.array_equal(changes.turn(rgb, 90), np.rot90(rgb))
    assert np.array_equal(changes.turn(rgb, 0), rgb)
    flat = np.full((8, 13), 200, np.uint8)
    assert np.array_equal(changes.turn(flat, 2), flat)


def test_every_change_but_the_first_changes_an_image_and_none_its_input(changes: Any) -> None:
    rgb = image(400, 300, 3)
    before = rgb.copy()
    same = [name for name, change in changes.CHANGES.items() if np.array_equal(change(rgb), before)]
    assert same == ["unchanged"] and np.array_equal(rgb, before)
    assert len({change(rgb).tobytes() for change in changes.CHANGES.values()}) == len(changes.CHANGES)


def test_figures_are_counted_by_label() -> None:
    pytest.importorskip("timm", reason="exporting takes the export extra")
    labels, scores = [0, 0, 0, 1, 1], [0.1, 0.2, 0.5, 0.4, 0.6]
    found = load("robustness").figures(
        scores, [False, True, True, False, True], [True, False, False, True, True], labels
    )
    assert found == {
        "good": 3, "false rejects": 2, "light alarms": 1, "defects": 2, "caught": 1, "image_auroc": pytest.approx(5 / 6)
    }  # fmt: skip
