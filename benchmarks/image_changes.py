"""Changes of an image by its light, focus and place, which ``robustness.py`` and ``exchangeability.py`` make."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]


def gain(rgb: RGB, factor: float) -> RGB:
    """Multiply all gray levels by a factor. Levels above 255 are cut."""
    return _rounded(rgb * np.float32(factor))


def gradient(rgb: RGB, share: float) -> RGB:
    """Multiply the columns by factors that grow evenly from ``1 - share`` at the left to ``1 + share`` at the right."""
    factors = np.linspace(1 - share, 1 + share, rgb.shape[1], dtype=np.float32)
    return _rounded(rgb * (factors if rgb.ndim == 2 else factors[:, None]))


def blur(rgb: RGB, share: float) -> RGB:
    """Blur by a Gaussian whose sigma is a share of the longer side."""
    sigma = share * max(rgb.shape[:2])
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.uint8)


def shift(rgb: RGB, share: float) -> RGB:
    """Shift to the right by a share of the width, in whole pixels. The left border is repeated."""
    pixels = round(share * rgb.shape[1])
    padding = [(0, 0), (pixels, 0), (0, 0)][: rgb.ndim]
    return np.pad(rgb, padding, "edge")[:, : rgb.shape[1]]


def turn(rgb: RGB, degrees: float) -> RGB:
    """Turn counterclockwise about the middle. The border is repeated."""
    height, width = rgb.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(rgb, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _rounded(levels: NDArray[np.float32]) -> RGB:
    return np.rint(levels).clip(0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[RGB], RGB]] = {
    "unchanged": lambda rgb: rgb,
    "light × 0.8": partial(gain, factor=0.8),
    "light × 0.9": partial(gain, factor=0.9),
    "light × 1.1": partial(gain, factor=1.1),
    "light × 1.25": partial(gain, factor=1.25),
    "light from -20 % left to +20 % right": partial(gradient, share=0.2),
    "blur, 0.15 % of the longer side": partial(blur, share=0.0015),
    "blur, 0.3 % of the longer side": partial(blur, share=0.003),
    "shift by 2 % of the width": partial(shift, share=0.02),
    "shift by 5 % of the width": partial(shift, share=0.05),
    "turn by 2 degrees": partial(turn, degrees=2),
}
"""What is measured: title in the tables → what is done to an image, uint8 (H, W, 3) or (H, W)."""
