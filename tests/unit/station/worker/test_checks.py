"""Light and focus: statistics are those of NumPy, and limits tell a dim, glaring or blurred image from an enrolled one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime.station.worker.checks import LightLimits, image_statistics

from tests.data import part


@pytest.mark.parametrize("seed", range(20))
def test_statistics_are_those_of_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(side) for side in rng.integers(2, 257, 2))
    low, high = sorted(int(level) for level in rng.choice(257, 2, replace=False))
    gray = rng.integers(low, high, shape, dtype=np.uint8)
    levels = gray.astype(np.float64)
    energy = (np.diff(levels, axis=1) ** 2).mean() + (np.diff(levels, axis=0) ** 2).mean()
    dark, bright = np.percentile(gray, (1, 99))
    expected = (levels.mean(), dark, bright, (gray == 255).mean(), np.log(energy + 1))
    assert image_statistics(gray) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    color = np.repeat(gray[..., None], 3, axis=2)
    assert image_statistics(color) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_a_line_of_pixels_has_statistics_too(shape: tuple[int, int]) -> None:
    assert image_statistics(np.full(shape, 7, np.uint8)) == (7.0, 7.0, 7.0, 0.0, 0.0)


def test_a_large_image_is_thinned_and_stays_alike() -> None:
    small = part(1)
    large = np.repeat(np.repeat(small, 16, axis=0), 16, axis=1)
    assert image_statistics(large)[:3] == pytest.approx(image_statistics(small)[:3], abs=2)


def dim(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (image * 0.5).astype(np.uint8)


def glaring(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.clip(image.astype(np.int16) + 90, 0, 255).astype(np.uint8)


def blurred(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 4), np.uint8)


def test_limits_of_enrolled_images_tell_light_and_focus() -> None:
    limits = LightLimits([image_statistics(part(number)) for number in range(4)])
    assert [limits.problem(image_statistics(part(number))) for number in range(10, 20)] == [None] * 10
    said = [limits.problem(image_statistics(spoiled(part(10)))) for spoiled in (dim, glaring, blurred)]
    assert [str(text).split()[0] for text in said] == ["mean", "mean", "sharpness"]
    assert "expected" in str(said[0])
