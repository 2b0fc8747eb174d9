"""uint8 pixels, as the runtime holds them: RGB or grey."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 150_000_000
"""Larger images are refused before they are unpacked (a decompression bomb, or a scanner's raw sheet)."""

RGB8 = NDArray[np.uint8]
"""(H, W, 3) RGB; or (H, W) grey where a caller gave that: the same result for a third of the bytes to resize or to upload. Of a
caller's array it is a view, whose pixels are brought in order by :func:`copy_pixels` where they are needed."""


def copy_pixels(to: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> None:
    """Copy (some rows of) an image to C-contiguous memory. Where channels are turned around, as BGR's are, by OpenCV: numpy takes
    50 times as long."""
    if pixels.ndim == 3 and pixels.strides[2] == -1:
        import cv2

        cv2.cvtColor(pixels[:, :, ::-1], cv2.COLOR_BGR2RGB, dst=to)
    else:
        np.copyto(to, pixels)


def to_rgb(pixels: NDArray[np.uint8]) -> RGB8:
    """Grey (H, W), BGR or BGRA as (H, W, 3)."""
    import cv2

    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    how = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[channels]
    return np.asarray(cv2.cvtColor(pixels, how), np.uint8)


def pixel_digest(rgb: RGB8) -> str:
    """Digest of an image's pixels: equal for files that decode to the same pixels, however they are stored.

    Args:
        rgb: uint8 (H, W, 3) RGB, or (H, W) grey, which has the digest of its RGB form. Any strides.

    Returns:
        sha256 over shape, dtype and pixels in rows, hexadecimal.
    """
    pixels = np.ascontiguousarray(to_rgb(rgb) if rgb.ndim == 2 else rgb)
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}\n".encode())
    digest.update(pixels.data)
    return digest.hexdigest()
