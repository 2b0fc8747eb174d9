"""Thumbnails for a page: scaled, with the true defect outlined, as JPEG."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_TRUTH_COLOR = (255, 61, 190)


def thumbnail(pixels: Rgb, side: int) -> Rgb:
    """Scale an image down until its longest side is at most ``side``; never up."""
    height, width = pixels.shape[:2]
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def jpeg(pixels: Rgb, side: int) -> bytes:
    """Encode a thumbnail as JPEG; its longest side is at most ``side``."""
    stream = io.BytesIO()
    Image.fromarray(thumbnail(pixels, side)).save(stream, "JPEG", quality=85, optimize=True)
    return stream.getvalue()


def draw_ground_truth(pixels: Rgb, mask: Mask | None, side: int) -> Rgb:
    """Draw the outline of the true defect on a thumbnail. The line lies a little outside, so that it hides nothing.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        mask: bool (h, w) of any size, over the whole image; ``None`` draws nothing.
        side: longest side of the thumbnail.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    thumb = thumbnail(pixels, side).copy()
    if mask is None or not mask.any():
        return thumb
    height, width = thumb.shape[:2]
    coverage = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    grown = cv2.dilate((np.asarray(coverage) > 0).astype(np.uint8), np.ones((7, 7), dtype=np.uint8))
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    cv2.drawContours(thumb, contours, -1, _TRUTH_COLOR, 1, cv2.LINE_AA)
    return thumb
