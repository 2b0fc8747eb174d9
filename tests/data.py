"""Synthetic parts, random rows and small helpers that many tests share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
SHARED = Path(os.environ.get("VISIONAD_SHARED", ROOT.parent / "shared"))
"""Real images and weights, where there are any."""


def cpu_session(path: str | Path) -> Any:
    """ONNX Runtime for a stand-in of another engine, which a test may open a hundred times of one file."""
    found = Path(path).stat()
    return _cpu_session(str(path), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=2)
def _cpu_session(path: str, *_: int) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def part(seed: int, defect: bool = False, kind: str = "disc") -> NDArray[np.uint8]:
    """A synthetic part, uint8 (96, 128, 3) BGR: a disc or a grid on a noisy ground, with a scratch if ``defect``."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 90, (96, 128, 3), dtype=np.uint8)
    if kind == "disc":
        cv2.circle(image, (64 + int(rng.integers(-3, 4)), 48), 30, (200, 180, 160), -1)
    else:
        for x in range(0, 128, 16):
            cv2.line(image, (x, 0), (x, 95), (20, 220, 40), 3)
    if defect:
        cv2.line(image, (50, 40), (80, 60), (0, 0, 255), 4)
    return image


def unit(seed: int, rows: int, dim: int) -> NDArray[np.float32]:
    """Random unit rows, float32 (rows, dim)."""
    x = np.random.default_rng(seed).standard_normal((rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def normed(x: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return ``x`` with rows of length 1, float32."""
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def near_ties(seed: int, rows: int, dim: int, scale: float = 1e-7) -> NDArray[np.float32]:
    """Rows that float32 scores cannot tell apart, and exact repeats among them."""
    rng = np.random.default_rng(seed)
    x = unit(seed, 1, dim) + scale * rng.standard_normal((max(1, rows // 2), dim))
    return normed(x)[rng.integers(0, len(x), rows)]


def patches(seed: int, rows: int, dim: int) -> NDArray[np.float32]:
    """As tokens are: a large common part with outlying dimensions, clusters, and little of each row's own."""
    rng = np.random.default_rng(seed)
    common = 0.1 * rng.standard_normal(dim) + 2 * (rng.random(dim) < 0.02)
    kinds_of_patch = rng.standard_normal((10, dim)) / dim**0.5
    own = 0.2 * rng.standard_normal((rows, dim)) / dim**0.5
    return normed(common + kinds_of_patch[rng.integers(0, 10, rows)] + own)


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    """An image of noise, uint8 (height, width, channels)."""
    rng = np.random.default_rng(seed)
    if seed % 2:  # black and white: the widest sums
        return rng.integers(0, 2, (height, width, channels), dtype=np.uint8) * np.uint8(255)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def slow(group: str, *values: Any) -> ParameterSet:
    """Return a parameter of a test, or several that go together, which only the slow tests of ``group`` take."""
    return pytest.param(*values, marks=pytest.mark.slow(group=group))


def in_threads(*work: Callable[[], None]) -> None:
    """All at once; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
