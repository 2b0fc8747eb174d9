"""Where defects are painted: inspected areas, the part in them, regions; and the extent and contrast of a defect under a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ...formats.manifest import PreprocessSpec
from ...formats.roi import Box
from ...images.pixels import RGB8, to_rgb
from ...scoring.anomaly_map import MAP_SIZE
from ...scoring.regions import Geometry
from .defects import KINDS, Defect, Kind

Mask = NDArray[np.bool_]

GRID = 3
"""Regions of an image: rows and columns."""
SIZES = 6
"""Sizes of painted defects."""
SMALLEST, LARGEST = 1 / 56, 1 / 6
"""Sizes as shares of the shorter side of what is inspected."""
CONTRASTS = (0.1, 0.2, 0.4)
MIN_SHARE = 0.05
"""Share of a region that the part must cover."""
PLAIN = 12.0
"""Largest spread of gray levels, 5th to 95th percentile, of a border that counts as background."""


class Specimen(NamedTuple):
    """A defect to paint, and on which image.

    Attributes:
        image: index of the good image.
        row: row of its region.
        column: column of its region.
        level: index of its size among the painted ones.
        defect: the defect.
    """

    image: int
    row: int
    column: int
    level: int
    defect: Defect


class Extent(NamedTuple):
    """What a mask says of a defect.

    Attributes:
        size: longest side of the smallest rotated box around the largest connected area, in pixels.
        contrast: difference of the mean color inside and in a ring around, as a share of the full range.
    """

    size: float
    contrast: float


def inspected_pixels(shape: tuple[int, ...], tiles: Sequence[tuple[Box, Mask | None]], spec: PreprocessSpec) -> Mask:
    """Return the pixels of an image that are inspected, bool (H, W).

    Args:
        shape: of the image, height and width first.
        tiles: box of each inspected tile in pixels, and the pixels of the box that are ignored, bool, or ``None``.
        spec: how a tile is preprocessed. What its center crop leaves out is not inspected.
    """
    mask = np.zeros(shape[:2], np.bool_)
    for (x, y, width, height), ignored in tiles:
        geometry = Geometry.of(width, height, spec, x, y)
        left, top = geometry.to_original(0.0, 0.0)
        right, bottom = geometry.to_original(float(MAP_SIZE), float(MAP_SIZE))
        inside = np.zeros(shape[:2], np.bool_)
        inside[round(top) : round(bottom), round(left) : round(right)] = True
        if ignored is not None:
            inside[y : y + height, x : x + width] &= ~ignored
        mask |= inside
    return mask


def part_pixels(rgb: RGB8) -> Mask:
    """Return the pixels of the part, bool (H, W): what differs from a plain background that surrounds it.

    Without a plain border, or if what differs covers less than 5 % or more than 95 % of the image, all pixels are the part's.

    Args:
        rgb: uint8 (H, W, 3) RGB or (H, W) gray.
    """
    color = (to_rgb(rgb) if rgb.ndim == 2 else rgb).astype(np.int16)
    everything = np.ones(rgb.shape[:2], np.bool_)
    edge = max(1, min(rgb.shape[:2]) // 50)
    border = np.concatenate(
        [color[:edge].reshape(-1, 3), color[-edge:].reshape(-1, 3), color[:, :edge].reshape(-1, 3),
         color[:, -edge:].reshape(-1, 3)]
    )  # fmt: skip
    low, high = np.percentile(border, (5, 95), axis=0)
    if float((high - low).max()) > PLAIN:
        return everything
    differs = np.abs(color - np.median(border, axis=0)).max(axis=2) > PLAIN
    count = differs.astype(np.uint8)
    contours, _ = cv2.findContours(count, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros_like(count)
    cv2.drawContours(filled, contours, -1, 1, -1)
    part = np.asarray(cv2.morphologyEx(filled, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))) > 0
    return part if 0.05 <= part.mean() <= 0.95 else everything


def shorter_side(mask: Mask) -> int:
    """Return the shorter side of the box around a mask's pixels, at least one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return min(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1


def size_levels(side: float) -> list[float]:
    """Return the sizes of painted defects in pixels, ascending, where the shorter side of what is inspected has ``side``."""
    return [float(size) for size in np.geomspace(max(3.0, side * SMALLEST), max(6.0, side * LARGEST), SIZES)]


def regions(mask: Mask) -> dict[tuple[int, int], NDArray[np.int64]]:
    """Cut what can be painted into a grid of regions.

    Args:
        mask: bool (H, W), pixels that are inspected and the part's.

    Returns:
        Row and column → int64 (n, 2), y and x of its pixels. Regions that hold next to nothing are left out.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    found: dict[tuple[int, int], NDArray[np.int64]] = {}
    if not len(rows):
        return found
    ys = np.linspace(rows[0], rows[-1] + 1, GRID + 1).round().astype(int)
    xs = np.linspace(columns[0], columns[-1] + 1, GRID + 1).round().astype(int)
    for r in range(GRID):
        for c in range(GRID):
            part = mask[ys[r] : ys[r + 1], xs[c] : xs[c + 1]]
            if part.size and part.mean() >= MIN_SHARE:
                found[r, c] = np.argwhere(part) + np.array([ys[r], xs[c]])
    return found


def plan(
    masks: Sequence[Mask], sides: Sequence[float], count: int, seed: int, kinds: Sequence[Kind] = KINDS
) -> list[Specimen]:
    """Choose the defects to paint: every kind in every region in every size and contrast, as far as ``count`` allows.

    Places are drawn independently. A shorter plan is the start of a longer one, so raising ``count`` reuses what was inspected.

    Args:
        masks: what can be painted of each good image, bool (H, W).
        sides: shorter side of what is inspected of each, which sizes of defects follow.
        count: number of defects, or fewer if there are not as many combinations; each combination occurs once per good image.
        seed: of the draws.
        kinds: kinds of defects.
    """
    levels, by_image = [size_levels(side) for side in sides], [regions(mask) for mask in masks]
    places = sorted({place for found in by_image for place in found})
    combinations = [
        (kind, place, level, contrast)
        for kind in kinds
        for place in places
        for level in range(SIZES)
        for contrast in CONTRASTS
    ]
    specimens: list[Specimen] = []
    rng = np.random.default_rng([seed, 20])
    while combinations and len(specimens) < count:
        round_number = len(specimens) // len(combinations)
        if round_number >= len(masks):
            break
        for index in rng.permutation(len(combinations))[: count - len(specimens)]:
            kind, place, level, contrast = combinations[index]
            own = np.random.default_rng([seed, round_number, int(index)])
            images = [i for i, found in enumerate(by_image) if place in found]
            image = images[int(own.integers(len(images)))]
            y, x = by_image[image][place][int(own.integers(len(by_image[image][place])))]
            drawn = int(own.integers(2**31))
            specimens.append(
                Specimen(
                    image,
                    place[0],
                    place[1],
                    level,
                    Defect(kind, float(x), float(y), levels[image][level], contrast, drawn),
                )
            )
    return specimens


def extent(rgb: RGB8, mask: Mask) -> Extent | None:
    """Measure a defect under a mask; ``None`` for an empty mask.

    Args:
        rgb: uint8 (H, W, 3) RGB or (H, W) gray.
        mask: bool (H, W).
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    largest = labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    points = np.argwhere(largest)[:, ::-1].astype(np.float32)
    sides = cv2.minAreaRect(points)[1]
    size = max(sides) + 1
    around = max(3, round(size / 8)) | 1
    grown = np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((2 * around + 1,) * 2, np.uint8))) > 0
    ring = grown & ~mask
    color = (to_rgb(rgb) if rgb.ndim == 2 else rgb).astype(np.float32)
    if not ring.any():
        return Extent(float(size), 1 / 255)
    difference = float(np.abs(color[largest].mean(axis=0) - color[ring].mean(axis=0)).mean())
    return Extent(float(size), max(1.0, difference) / 255)
