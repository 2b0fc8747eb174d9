"""Cut tiles out of an image at full resolution, and fill what is not inspected. Pure functions of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..formats.roi import Box, RoiSpec
from . import decode, png
from .pixels import RGB8, copy_pixels, to_rgb

Ignored = NDArray[np.bool_]
"""bool (H, W): pixels that are not inspected."""


def read_mask(data: bytes, label: str, size: tuple[int, int]) -> Ignored:
    """Decode a mask of what is not inspected.

    Args:
        data: bytes of a PNG file.
        label: name of the mask in errors.
        size: expected width and height, those of the images.

    Returns:
        bool (H, W): pixels above 0 in any channel.

    Raises:
        ImageError: It is no PNG file, is damaged, or has another size.
    """
    if not data.startswith(png.SIGNATURE):
        raise ImageError(f"{label}: expected a PNG file as a mask of what is ignored; save it as 8-bit PNG")
    pixels = decode.decode(data, label)
    height, width = pixels.shape[:2]
    if (width, height) != size:
        raise ImageError(
            f"{label}: expected a mask of {size[0]}x{size[1]} pixels, as the images have, got {width}x{height}; draw it on one "
            "of the images"
        )
    return np.asarray(pixels.any(axis=2))


def read_new_mask(data: bytes, label: str, size: tuple[int, int]) -> Ignored:
    """Decode a mask that a person gives: :func:`read_mask`, which refuses a mask that ignores nothing.

    Raises:
        ImageError: As for :func:`read_mask`, or no pixel is above 0. Transparency does not count.
    """
    mask = read_mask(data, label, size)
    if not mask.any():
        raise ImageError(
            f"{label}: expected a mask with pixels above 0 where nothing is inspected, got one that is all black, so it ignores "
            "nothing; draw the area in white on black, not in the alpha channel, or leave the mask out"
        )
    return mask


def polygon_pixels(polygon: Sequence[tuple[int, int]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of a polygon, its outline included, as bool (H, W). Parts outside of the image are cut off.

    Args:
        polygon: corners (x, y).
        size: width and height of the image.
    """
    import cv2

    drawn = np.zeros((size[1], size[0]), np.uint8)
    cv2.fillPoly(drawn, [np.asarray(polygon, np.int32)], 1)  # integer corners: no rounding, the same on every machine
    return drawn.view(np.bool_)


def ignored_pixels(spec: RoiSpec, mask: Ignored | None) -> Ignored | None:
    """Return the pixels that no ROI inspects because they are to be ignored, or ``None`` if there are none.

    Args:
        spec: what is inspected.
        mask: bool (H, W) of ``spec.mask``.
    """
    parts = [polygon_pixels(polygon, spec.image_size) for polygon in spec.ignore]
    parts += [] if mask is None else [mask]
    ignored = np.logical_or.reduce(parts) if parts else None
    return ignored if ignored is not None and ignored.any() else None


def in_box(ignored: Ignored | None, box: Box, outline: NDArray[np.bool_] | None = None) -> Ignored | None:
    """Return the ignored pixels of a box, bool (h, w), or ``None`` if there are none.

    Args:
        ignored: those of the image.
        box: the box.
        outline: bool (H, W), pixels of the ROI's polygon; those outside of it are ignored too.
    """
    x, y, width, height = box
    rows, columns = slice(y, y + height), slice(x, x + width)
    part = np.zeros((height, width), np.bool_) if ignored is None else ignored[rows, columns].copy()
    if outline is not None:
        part |= ~outline[rows, columns]
    return part if part.any() else None


def fill(rgb: RGB8, ignored: Ignored | None, color: tuple[int, int, int]) -> RGB8:
    """Return an image with its ignored pixels in one color; the image itself if there are none.

    Args:
        rgb: uint8 (H, W, 3) RGB or (H, W) gray.
        ignored: bool (H, W).
        color: red, green, blue.
    """
    if ignored is None:
        return rgb
    if rgb.ndim == 2:
        filled = to_rgb(np.ascontiguousarray(rgb))
    else:
        copy_pixels(filled := np.empty(rgb.shape, np.uint8), rgb)
    filled[ignored] = color
    return filled


def cut(rgb: RGB8, box: Box) -> RGB8:
    """Return the pixels of a box. It is a view."""
    x, y, width, height = box
    return rgb[y : y + height, x : x + width]
