"""Evidence beside an overlay: for each region, the image's crop and the nearest good patch's crop of the kept support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..images.pixels import to_rgb
from ..preprocess import apply_pose
from ..scoring.regions import Evidence, Region
from .drawing import FAINT, INK, PANEL, font, shorten

Rgb = NDArray[np.uint8]
Box = tuple[int, int, int, int]

SupportReader = Callable[[Evidence], Rgb | None]
"""Evidence → its support, uint8 (H, W, 3) or (H, W); ``None`` if the bank keeps no copy, or it cannot be read."""

MAX_REGIONS = 4
"""Regions that are shown, the highest score first."""
SIDE = 168
"""Longer side of a crop, in pixels."""
CELLS = 5.0, 13.0
"""Smallest and largest side of a crop in cells. Between them it holds the whole region."""
_GAP, _LINE = 10, 22


def draw_evidence(image: Rgb, regions: Sequence[Region], read_support: SupportReader) -> Rgb | None:
    """Draw the evidence of the regions, one below the other.

    Left is the image around the region's hottest cell, right the support around the nearest good patch, at the same scale and
    turned as the image is. The cell and the patch are framed.

    Args:
        image: original image, uint8 (height, width, 3) RGB.
        regions: regions of the result; those without evidence are left out.
        read_support: reads a support.

    Returns:
        uint8 (h, w, 3) RGB, or ``None`` if there is no evidence.
    """
    shown = [(region, region.evidence) for region in regions if region.evidence is not None][:MAX_REGIONS]
    if not shown:
        return None
    rows = [_row(image, region, evidence, read_support(evidence)) for region, evidence in shown]
    width = 2 * SIDE + 3 * _GAP
    title = np.empty((_LINE + _GAP, width, 3), np.uint8)
    title[:] = PANEL
    drawing = Image.fromarray(title)
    pen = ImageDraw.Draw(drawing)
    for x, text in ((_GAP, "this image"), (2 * _GAP + SIDE, "nearest good patch")):
        pen.text((x, (_LINE + _GAP) / 2), text, fill=INK, font=font(15), anchor="lm")
    return np.concatenate([np.array(drawing, np.uint8), *rows])


def _row(image: Rgb, region: Region, evidence: Evidence, support: Rgb | None) -> Rgb:
    cells = _cells_shown(region, evidence.cell)
    width, height = _crop_size(evidence.cell)
    row = np.empty((height + _LINE + _GAP, 2 * SIDE + 3 * _GAP, 3), np.uint8)
    row[:] = PANEL
    row[:height, _GAP : _GAP + width] = _crop(image, evidence.cell, cells, "e", (width, height))
    left = 2 * _GAP + SIDE
    problem = None
    if evidence.bbox is None:
        problem = "size of the support not known"
    elif support is None:
        problem = "no copy in the bank" if evidence.kept is None else "copy in the bank not readable"
    else:
        rgb = to_rgb(support) if support.ndim == 2 else support
        row[:height, left : left + width] = _crop(rgb, evidence.bbox, cells, evidence.pose, (width, height))
    drawing = Image.fromarray(row)
    pen = ImageDraw.Draw(drawing)
    if problem is not None:
        pen.rectangle((left, 0, left + width - 1, height - 1), outline=FAINT)
        text = shorten(problem, font(12), width - 8)
        pen.text((left + width / 2, height / 2), text, fill=FAINT, font=font(12), anchor="mm")
    line = f"distance {evidence.distance:.4g}  pose {evidence.pose}  {PurePath(evidence.source).name}"
    text = shorten(line, font(13), row.shape[1] - 2 * _GAP)
    pen.text((_GAP, height + _LINE / 2), text, fill=INK, font=font(13), anchor="lm")
    return np.array(drawing, np.uint8)


def _cells_shown(region: Region, cell: Box) -> float:
    """Return the side of the crop in cells: the whole region around its cell, within :data:`CELLS`."""
    reach = []
    for axis in (0, 1):
        middle, step = cell[axis] + cell[axis + 2] / 2, cell[axis + 2]
        start, end = region.bbox[axis], region.bbox[axis] + region.bbox[axis + 2]
        reach.append(2 * max(middle - start, end - middle) / step + 1)
    return min(max(*reach, CELLS[0]), CELLS[1])


def _crop_size(cell: Box) -> tuple[int, int]:
    """Return width and height of a crop with the proportions of the image's cells."""
    _, _, width, height = cell
    scale = SIDE / max(width, height)
    return max(24, round(width * scale)), max(24, round(height * scale))


def _crop(image: Rgb, box: Box, cells: float, pose: str, size: tuple[int, int]) -> Rgb:
    """Return the surroundings of a cell, posed, at a size. Beyond the image's edges, its border is repeated.

    Args:
        image: uint8 (H, W, 3) RGB.
        box: x, y, width, height of the cell.
        cells: side of the crop in cells.
        pose: element of the square's symmetry group. It acts on the cells, which are square for the backbone.
        size: width and height of the result.
    """
    indices = []
    for start, length, limit in ((box[1], box[3], image.shape[0]), (box[0], box[2], image.shape[1])):
        reach, middle = cells * length / 2, start + length / 2
        indices.append(np.clip(np.arange(round(middle - reach), max(round(middle + reach), 1)), 0, limit - 1))
    crop = np.ascontiguousarray(image[np.ix_(*indices)])
    side = max(size)
    square = _resized(crop, (side, side))
    posed = np.moveaxis(apply_pose(np.moveaxis(square.astype(np.float32), -1, 0), pose), 0, -1)
    shown = _resized(np.ascontiguousarray(posed, np.uint8), size)
    (width, height), (half_x, half_y) = size, (size[0] / cells / 2, size[1] / cells / 2)
    begin, end = ((round(width / 2 + s * half_x), round(height / 2 + s * half_y)) for s in (-1, 1))
    for color, thickness in (((15, 15, 15), 3), ((255, 255, 255), 1)):
        cv2.rectangle(shown, begin, end, color, thickness)
    return shown


def _resized(image: Rgb, size: tuple[int, int]) -> Rgb:
    if (image.shape[1], image.shape[0]) == size:
        return image
    shrinks = image.shape[1] > size[0] or image.shape[0] > size[1]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8)
