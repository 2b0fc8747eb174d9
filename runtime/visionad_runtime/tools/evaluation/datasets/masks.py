"""Ground truth of a sample: its defective pixels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....errors import ImageError
from ....images import decode
from ....preprocess import crop_offset, resize_square
from .base import DatasetError, Sample

Mask = NDArray[np.bool_]


class Region(NamedTuple):
    """One mask or box of a sample.

    Attributes:
        value: pixel value of the mask, which may name the kind of defect; 255 for a box.
        mask: bool (H, W), the size of the image.
        source: file of the mask, or of the image that has the box.
    """

    value: int
    mask: Mask
    source: Path


class Truth(NamedTuple):
    """Ground truth at the size of the image.

    Attributes:
        height: of the image.
        width: of the image.
        regions: one for each mask or box that is not empty; none in a good image.
    """

    height: int
    width: int
    regions: tuple[Region, ...]

    def union(self) -> Mask:
        """Return all defective pixels, bool (H, W)."""
        full = np.zeros((self.height, self.width), np.bool_)
        for region in self.regions:
            full |= region.mask
        return full


def load_mask(sample: Sample, resize: int, crop: int, size: int = 256) -> Mask:
    """Return the mask that a map is compared with (method, section 6).

    The union of the masks or boxes at full size, as 0 or 255, is resized to ``resize`` with Pillow's antialiased bilinear filter,
    cropped to the central ``crop``, and scaled to ``size`` by nearest neighbor. Every value but 0 is defect.

    Args:
        sample: the image.
        resize: side of the resized image.
        crop: side of the center crop, at most ``resize``.
        size: side of the mask.

    Returns:
        bool (size, size), True where defect.

    Raises:
        DatasetError: the sample is a defect without a mask or whose masks mark nothing, mask and image differ in size, or
            ``crop > resize``.
        ImageError: the image or a mask cannot be read.
    """
    if not 0 < crop <= resize:
        raise DatasetError(f"expected a crop of 1 to {resize} pixels, got {crop}")
    if sample.label == 0:
        return np.zeros((size, size), np.bool_)
    if not sample.has_mask:
        raise DatasetError(
            f"{sample.path}: expected a mask for the defect ({sample.defect}); without one it has image metrics only"
        )
    full = Image.fromarray(full_mask(sample).astype(np.uint8) * np.uint8(255))
    resized = resize_square(full, resize)
    # torch's nearest mode: floor(i * crop / size), in float32
    source = (np.arange(size, dtype=np.float32) * np.float32(crop / size)).astype(np.intp)
    indices = crop_offset(resize, crop) + np.minimum(source, crop - 1)
    return np.asarray(resized[np.ix_(indices, indices)] > 0)


def full_mask(sample: Sample) -> Mask:
    """Return the union of a sample's masks or boxes.

    Returns:
        bool (H, W), the size of the image.

    Raises:
        DatasetError: mask and image differ in size, the masks mark nothing, or a box exceeds the image.
        ImageError: the image or a mask cannot be read.
    """
    return read_truth(sample).union()


def read_truth(sample: Sample) -> Truth:
    """Return the masks or boxes of a sample, each by itself.

    Raises:
        DatasetError: mask and image differ in size, the masks mark nothing, or a box exceeds the image.
        ImageError: the image or a mask cannot be read.
    """
    width, height = image_size(sample.path)
    regions = []
    for path in sample.masks:
        raw = decode.load(path).max(axis=2)
        if raw.shape != (height, width):
            raise DatasetError(
                f"{path}: expected a mask of {(width, height)} pixels, the size of its image, got {raw.shape[::-1]}"
            )
        # Drawn masks are 255 on 0. Soft edges of compression and scaling are no defect. In a label map (VisA: 1, 2, …) no value
        # exceeds 127, and every value but 0 is a defect.
        highest = int(raw.max())
        if highest:
            regions.append(Region(highest, raw > (127 if highest > 127 else 0), path))
    if sample.masks and not regions:
        raise DatasetError(
            f"mask {sample.masks[0]} marks nothing (black), but {sample.path} is a defect ({sample.defect}); mark it there"
        )
    for box in sample.boxes:
        if box.right > width or box.bottom > height:
            raise DatasetError(f"{sample.path}: expected a box inside the image of {(width, height)} pixels, got {box}")
        inside = np.zeros((height, width), np.bool_)
        inside[box.top : box.bottom, box.left : box.right] = True
        regions.append(Region(255, inside, sample.path))
    return Truth(height, width, tuple(regions))


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file. Only its header is read.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as exc:
        raise ImageError(f"{path}: cannot be read: {exc}") from None
