"""RGB image → input of the backbone: resize, crop, normalize; the three views, and the poses of support images.

Method, sections 1 and 3. The resize calls Pillow (fixed-point bilinear with antialiasing, horizontally, then vertically), so it is
bit-identical to the reference by construction. ``docs/reference/formats.md`` and ``tests/oracles.py`` define its arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._threads import parallel_for
from .formats.manifest import PreprocessSpec, ViewName
from .images.pixels import copy_pixels

F32 = NDArray[np.float32]

STRIP_PIXELS = 1 << 18
"""Number of pixels resized at a time."""

VIEWS: tuple[ViewName, ...] = ("original", "flip", "clamp")

# The eight elements of the square's symmetry group. A name is read from right to left: `r90fv` flips vertically, then rotates by
# 90 degrees counter-clockwise. In this order the six poses of each view are contiguous: `original` has the first six, `flip` (flip
# vertically, then each pose) the last six. So 8 encodings serve both views' 12.
SQUARE = ("r90", "r270", "e", "r180", "fv", "fh", "r90fv", "r270fv")
"""The eight elements of the square's symmetry group."""
_POSES = SQUARE[:6]
_QUARTER_TURNS = {"r90": 1, "r180": 2, "r270": 3}


def crop_offset(resize: int, crop: int) -> int:
    """Return the pixels cut at the top and left of the resized image (torchvision's rule: round half to even)."""
    return round((resize - crop) / 2)


def resize_square(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Resize to (side, side) with Pillow's bilinear filter, horizontally, then vertically.

    Each pass is a call of its own, because a single call of Pillow 12.2 or later resizes tall images vertically first, with another
    result.
    """
    across = image.resize((side, image.height), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((side, side), Image.Resampling.BILINEAR))


def resize_crop(rgb: NDArray[np.uint8], spec: PreprocessSpec, threads: int = 1) -> NDArray[np.uint8]:
    """Resize and center-crop an image, bit-identical to Pillow.

    The horizontal pass treats each row by itself, so threads share the rows, in strips that fit a CPU's cache. The vertical pass
    treats each column by itself, so only the crop's columns are computed.

    Args:
        rgb: uint8 (H, W, 3) RGB or (H, W) gray, of any size.
        spec: sizes.
        threads: maximum number of threads. The result does not depend on it.

    Returns:
        uint8 (crop, crop, 3).
    """
    offset, side, height = crop_offset(spec.resize, spec.crop), spec.resize, len(rgb)
    across = np.empty((height, spec.crop, *rgb.shape[2:]), np.uint8)

    def strip(rows: slice) -> None:
        pixels = rgb[rows]
        if not pixels.flags.c_contiguous:
            copy_pixels(pixels := np.empty(pixels.shape, np.uint8), rgb[rows])
        image = Image.fromarray(pixels)
        across[rows] = np.asarray(image.resize((side, image.height), Image.Resampling.BILINEAR))[
            :, offset : offset + spec.crop
        ]

    step = -(-height // max(1, min(height, height * rgb.shape[1] // STRIP_PIXELS)))
    parallel_for(strip, [slice(row, min(row + step, height)) for row in range(0, height, step)], threads)
    down = np.asarray(Image.fromarray(across).resize((spec.crop, side), Image.Resampling.BILINEAR))
    cropped = down[offset : offset + spec.crop]
    return np.broadcast_to(cropped[:, :, None], (*cropped.shape, 3)) if cropped.ndim == 2 else cropped


def covered_cells(ignored: NDArray[np.bool_], spec: PreprocessSpec, grid: int) -> NDArray[np.bool_]:
    """Return the patches of an image that lie on ignored pixels by more than half of their area.

    Args:
        ignored: bool (H, W), pixels of the image.
        spec: sizes; a patch lies on the image as it does after resize and center crop.
        grid: patches along a side.

    Returns:
        bool (grid, grid), row by row from the top.
    """
    down, across = (_cell_shares(size, spec, grid) for size in ignored.shape)
    covered = down @ ignored.astype(np.float64) @ across.T
    return np.asarray(covered > 0.5 + 1e-9)  # half is not more than half, in whatever order a machine sums


def _cell_shares(size: int, spec: PreprocessSpec, grid: int) -> NDArray[np.float64]:
    """Return each pixel's share of a patch's extent along one axis, float64 (grid, size); rows sum to 1."""
    offset = crop_offset(spec.resize, spec.crop)
    edges = (np.arange(grid + 1) * (spec.crop / grid) + offset) * (size / spec.resize)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(size, dtype=np.float64)[None]
    shares: NDArray[np.float64] = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None) / (
        high - low
    )
    return shares


def normalise(cropped: NDArray[np.uint8], spec: PreprocessSpec) -> F32:
    """Normalize an image: ``(x / 255 - mean) / std`` in float32, by one table look-up per byte.

    Args:
        cropped: uint8 (crop, crop, 3) RGB.
        spec: mean and standard deviation per channel.

    Returns:
        float32 (3, crop, crop).
    """
    levels = np.arange(256, dtype=np.float32)[None, :] / np.float32(255)
    mean, std = (np.asarray(v, np.float32)[:, None] for v in (spec.mean, spec.std))
    table = (levels - mean) / std
    return np.stack([table[c][cropped[:, :, c]] for c in range(3)])


def prepare(rgb: NDArray[np.uint8], spec: PreprocessSpec, threads: int = 1) -> F32:
    """Resize, crop and normalize an image (method, section 1).

    Args:
        rgb: uint8 (H, W, 3) RGB or (H, W) gray, of any size.
        spec: sizes, mean and standard deviation.
        threads: maximum number of threads. The result does not depend on it.

    Returns:
        float32 (3, crop, crop).
    """
    return normalise(resize_crop(rgb, spec, threads), spec)


def apply_pose(image: F32, pose: str) -> F32:
    """Apply an element of the square's symmetry group to (…, H, W). Rotations are counter-clockwise, as in NumPy and torch."""
    if pose.endswith("fv") and pose != "fv":
        return apply_pose(apply_pose(image, "fv"), pose[:-2])
    if pose == "e":
        return image
    if pose == "fv":
        return image[..., ::-1, :]
    if pose == "fh":
        return image[..., ::-1]
    return np.rot90(image, _QUARTER_TURNS[pose], axes=(-2, -1))


def apply_view(image: F32, view: ViewName) -> F32:
    """Return a view of a normalized image (3, H, W): the image, its vertical flip, or the image with negative values set to 0."""
    if view == "flip":
        return apply_pose(image, "fv")
    if view == "clamp":
        return np.maximum(image, np.float32(0))
    return image


def query_views(image: F32, views: Sequence[ViewName]) -> F32:
    """Return the views of an image (3, H, W) as (V, 3, H, W), in the given order."""
    return np.stack([apply_view(image, v) for v in views])


def encoding_names(views: Sequence[ViewName]) -> tuple[str, ...]:
    """Return the names of the unique encodings that a bank with these views holds: 14 for all views, 6 for one view."""
    square: tuple[str, ...] = ()
    if "original" in views and "flip" in views:
        square = SQUARE
    elif "original" in views:
        square = SQUARE[:6]
    elif "flip" in views:
        square = SQUARE[2:]
    return square + (tuple(f"clamp/{p}" for p in _POSES) if "clamp" in views else ())


def view_slice(encodings: Sequence[str], view: ViewName) -> slice:
    """Return where the six poses of a view lie. They are contiguous, so a view's bank is a slice, not a copy.

    Args:
        encodings: names of a bank's encodings, as :func:`encoding_names` returns them.
        view: the view.

    Raises:
        ValueError: The encodings lack poses of this view.
    """
    first = {"original": "r90", "flip": "e", "clamp": "clamp/r90"}[view]
    start = list(encodings).index(first)
    if len(encodings) < start + len(_POSES) or (view == "flip" and "r270fv" not in encodings):
        raise ValueError(f"encodings {', '.join(encodings)} lack poses of the view {view}")
    return slice(start, start + len(_POSES))


def unrotated_index(encodings: Sequence[str], view: ViewName) -> int:
    """Return the index of a view's encoding in the identity pose. Routing uses its class token."""
    return list(encodings).index({"original": "e", "flip": "fv", "clamp": "clamp/e"}[view])


def support_encodings(image: F32, encodings: Sequence[str]) -> F32:
    """Return the backbone's inputs for a support image: all poses and views, each once.

    Args:
        image: float32 (3, H, W), normalized.
        encodings: names, as :func:`encoding_names` returns them.

    Returns:
        float32 (B, 3, H, W).
    """
    clamped = apply_view(image, "clamp")
    return np.stack(
        [apply_pose(clamped if name.startswith("clamp/") else image, name.removeprefix("clamp/")) for name in encodings]
    )
