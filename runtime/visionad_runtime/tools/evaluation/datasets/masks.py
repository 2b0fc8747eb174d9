"""Ground truth of a sample: which pixels are defect."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....errors import ImageError
from ....images import decode
from ....preprocess import crop_offset, resize_square
from .base import DatasetError, Sample

Mask = NDArray[np.bool_]


def load_mask(sample: Sample, resize: int, crop: int, size: int = 256) -> Mask:
    """The mask a map is measured against (method, section 6): bool (size, size), True where defect.

    The union of the sample's masks or boxes at full size, as 0 or 255, resized to ``resize`` with Pillow's antialiased
    bilinear filter, cropped to the central ``crop``, brought to ``size`` by nearest neighbour; not 0 is defect.

    Raises:
        DatasetError: the sample is a defect without a mask, mask and image differ in size, or ``crop > resize``.
        ImageError: the image or a mask cannot be read.
    """
    if not 0 < crop <= resize:
        raise DatasetError(f"cannot crop {crop} out of {resize} pixels")
    if sample.label == 0:
        return np.zeros((size, size), np.bool_)
    if not sample.has_mask:
        raise DatasetError(f"{sample.path}: a defect ({sample.defect}) without a mask; it has image metrics only")
    full = Image.fromarray(full_mask(sample).astype(np.uint8) * np.uint8(255))
    resized = resize_square(full, resize)
    # torch's nearest: floor(i * crop / size), in float32
    source = (np.arange(size, dtype=np.float32) * np.float32(crop / size)).astype(np.intp)
    pick = crop_offset(resize, crop) + np.minimum(source, crop - 1)
    return np.asarray(resized[np.ix_(pick, pick)] > 0)


def full_mask(sample: Sample) -> Mask:
    """The union of a sample's masks or boxes, bool (H, W) of its image.

    Raises:
        DatasetError: mask and image differ in size, or a box reaches out of it.
        ImageError: one cannot be read.
    """
    try:
        with Image.open(sample.path) as image:  # reads the header only
            width, height = image.size
    except OSError as exc:
        raise ImageError(f"{sample.path}: cannot be read: {exc}") from None
    full = np.zeros((height, width), np.bool_)
    for path in sample.masks:
        raw = decode.load(path).max(axis=2)
        if raw.shape != full.shape:
            raise DatasetError(f"{path}: mask of {raw.shape[::-1]} pixels for an image of {(width, height)}")
        # Drawn masks are 255 on 0, some with soft edges (compression, scaling) that are not defect. In a label map
        # (VisA: 1, 2, …) nothing reaches half way, and every number but 0 is a kind of defect.
        full |= raw > (127 if raw.max() > 127 else 0)
    for box in sample.boxes:
        if box.right > width or box.bottom > height:
            raise DatasetError(f"{sample.path}: {box} reaches out of an image of {(width, height)} pixels")
        full[box.top : box.bottom, box.left : box.right] = True
    return full
