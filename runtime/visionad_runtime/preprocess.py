"""RGB image → what the backbone eats: resize, crop, normalise; the three views and the poses of support images.

Method, sections 1 and 3. The resize *is* Pillow's (fixed-point bilinear with antialiasing; across, then down), so it is
bit-identical to the reference by construction; ``docs/formats.md`` and ``tests/oracles.py`` spell out its arithmetic for others.
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
"""Of an image that are resized at a time."""

VIEWS: tuple[ViewName, ...] = ("original", "flip", "clamp")

# The eight elements of the square's symmetry group. A name is read as a product: `r90fv` flips vertically, then rotates by
# 90 degrees counter-clockwise. The order makes both views' six poses a contiguous run: `original` the first six,
# `flip` (flip vertically, then each pose) the last six. So 8 encodings serve 12 blocks.
_SQUARE = ("r90", "r270", "e", "r180", "fv", "fh", "r90fv", "r270fv")
_POSES = _SQUARE[:6]
_TURNS = {"r90": 1, "r180": 2, "r270": 3}


def crop_offset(resize: int, crop: int) -> int:
    """Pixels cut at the top and left of the resized image (torchvision's rule: half to even)."""
    return round((resize - crop) / 2)


def resize_square(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Pillow's bilinear resize to (side, side), across, then down.

    One pass a call: from Pillow 12.2 on, a single call takes tall images down first, then across, which is another function.
    """
    across = image.resize((side, image.height), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((side, side), Image.Resampling.BILINEAR))


def resize_crop(rgb: NDArray[np.uint8], spec: PreprocessSpec, threads: int = 1) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB or (H, W) grey of any size → uint8 (crop, crop, 3), bit-identical to Pillow's resize and centre crop.

    As :func:`resize_square`, where each row goes across by itself, and each column down: so threads share the rows, in strips that
    stay in a core's cache, and only the crop's columns go down.
    """
    at, side, height = crop_offset(spec.resize, spec.crop), spec.resize, len(rgb)
    across = np.empty((height, spec.crop, *rgb.shape[2:]), np.uint8)

    def strip(rows: slice) -> None:
        pixels = rgb[rows]
        if not pixels.flags.c_contiguous:
            copy_pixels(pixels := np.empty(pixels.shape, np.uint8), rgb[rows])
        image = Image.fromarray(pixels)
        across[rows] = np.asarray(image.resize((side, image.height), Image.Resampling.BILINEAR))[:, at : at + spec.crop]

    step = -(-height // max(1, min(height, height * rgb.shape[1] // STRIP_PIXELS)))
    parallel_for(strip, [slice(row, min(row + step, height)) for row in range(0, height, step)], threads)
    down = np.asarray(Image.fromarray(across).resize((spec.crop, side), Image.Resampling.BILINEAR))
    cropped = down[at : at + spec.crop]
    return np.broadcast_to(cropped[:, :, None], (*cropped.shape, 3)) if cropped.ndim == 2 else cropped


def normalise(cropped: NDArray[np.uint8], spec: PreprocessSpec) -> F32:
    """uint8 (crop, crop, 3) → float32 (3, crop, crop), ``(x / 255 - mean) / std`` in float32, one table look-up a byte."""
    levels = np.arange(256, dtype=np.float32)[None, :] / np.float32(255)
    mean, std = (np.asarray(v, np.float32)[:, None] for v in (spec.mean, spec.std))
    table = (levels - mean) / std
    return np.stack([table[c][cropped[:, :, c]] for c in range(3)])


def prepare(rgb: NDArray[np.uint8], spec: PreprocessSpec, threads: int = 1) -> F32:
    """The whole of section 1: uint8 (H, W, 3) RGB, or (H, W) grey → float32 (3, crop, crop), normalised. The same whatever the
    number of threads."""
    return normalise(resize_crop(rgb, spec, threads), spec)


def apply_pose(image: F32, pose: str) -> F32:
    """One element of the square's group on (…, H, W); ``rot90`` is counter-clockwise as in numpy and torch."""
    if pose.endswith("fv") and pose != "fv":
        return apply_pose(apply_pose(image, "fv"), pose[:-2])
    if pose == "e":
        return image
    if pose == "fv":
        return image[..., ::-1, :]
    if pose == "fh":
        return image[..., ::-1]
    return np.rot90(image, _TURNS[pose], axes=(-2, -1))


def apply_view(image: F32, view: ViewName) -> F32:
    """A view of a normalised image (3, H, W): itself, flipped vertically, or clamped at 0 from below."""
    if view == "flip":
        return apply_pose(image, "fv")
    if view == "clamp":
        return np.maximum(image, np.float32(0))
    return image


def query_views(image: F32, views: Sequence[ViewName]) -> F32:
    """(3, H, W) → (V, 3, H, W), one row a view, in the given order."""
    return np.stack([apply_view(image, v) for v in views])


def bank_blocks(views: Sequence[ViewName]) -> tuple[str, ...]:
    """Names of the unique encodings a bank with these views needs: 14 for all three, 6 for one view alone."""
    square: tuple[str, ...] = ()
    if "original" in views and "flip" in views:
        square = _SQUARE
    elif "original" in views:
        square = _SQUARE[:6]
    elif "flip" in views:
        square = _SQUARE[2:]
    return square + (tuple(f"clamp/{p}" for p in _POSES) if "clamp" in views else ())


def view_blocks(blocks: Sequence[str], view: ViewName) -> slice:
    """Which run of ``blocks`` makes up the six poses of ``view``. It is contiguous, so a view's bank is a slice, not a copy.

    Raises:
        ValueError: the blocks are not those of a bank with this view.
    """
    first = {"original": "r90", "flip": "e", "clamp": "clamp/r90"}[view]
    start = list(blocks).index(first)
    if len(blocks) < start + len(_POSES) or (view == "flip" and "r270fv" not in blocks):
        raise ValueError(f"blocks {', '.join(blocks)} lack poses of the view {view}")
    return slice(start, start + len(_POSES))


def upright_block(blocks: Sequence[str], view: ViewName) -> int:
    """Index of the encoding that is ``view`` of the unturned image (its class token is the class's own)."""
    return list(blocks).index({"original": "e", "flip": "fv", "clamp": "clamp/e"}[view])


def support_encodings(image: F32, blocks: Sequence[str]) -> F32:
    """Normalised support image (3, H, W) → (B, 3, H, W), the unique encodings named by ``blocks``."""
    clamped = apply_view(image, "clamp")
    return np.stack(
        [apply_pose(clamped if b.startswith("clamp/") else image, b.removeprefix("clamp/")) for b in blocks]
    )
