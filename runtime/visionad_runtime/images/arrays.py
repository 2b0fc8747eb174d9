"""Arrays that callers give -> uint8 pixels in the runtime's form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from .pixels import MAX_PIXELS, RGB8


def from_arrays(images: Sequence[NDArray[np.uint8]], colour: str) -> list[RGB8]:
    """:func:`from_array` for each.

    Raises:
        ImageError: as there; or one image was given, whose rows would be taken for images.
    """
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] in (1, 3):
        raise ImageError(f"images: expected a list of images, got one of shape {images.shape}; put it into a list")
    return [from_array(image, colour) for image in images]


def from_array(image: NDArray[np.uint8], colour: str) -> RGB8:
    """Check a caller's array and see it as RGB, or as (H, W) if it is grey. Nothing is copied.

    Args:
        image: uint8 (H, W, 3) in ``colour`` order, or (H, W) or (H, W, 1) grey.
        colour: ``"bgr"`` (as OpenCV gives it) or ``"rgb"``.

    Raises:
        ImageError: another dtype or shape (values are never rescaled by guess), or no pixels.
    """
    if colour not in ("bgr", "rgb"):
        raise ImageError(f"colour: expected 'bgr' or 'rgb', got {colour!r}")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        found = getattr(image, "dtype", type(image).__name__)
        raise ImageError(f"image: expected a uint8 array (values 0..255), got {found}; convert it explicitly")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or image.size == 0:
        raise ImageError(f"image: expected shape (H, W, 3) or (H, W) with pixels, got {image.shape}")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise ImageError(
            f"image: {image.shape[1]} x {image.shape[0]} is more than {MAX_PIXELS // 1_000_000} million pixels"
        )
    return image[:, :, ::-1] if image.ndim == 3 and colour == "bgr" else image
