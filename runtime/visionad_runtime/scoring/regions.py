"""Regions of the anomaly map in the original image's pixels, and the range of values that a heatmap shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..formats.manifest import PreprocessSpec
from ..preprocess import crop_offset
from .anomaly_map import MAP_SIZE

F32 = NDArray[np.float32]

Coordinate = TypeVar("Coordinate", float, NDArray[np.float64])
"""One, or an array of them."""


@dataclass(frozen=True)
class Geometry:
    """Where the 256 × 256 map lies in the original image. The centre crop drops the edges: they are not inspected."""

    width: int
    height: int
    resize: int
    crop: int
    offset: int

    @classmethod
    def of(cls, width: int, height: int, spec: PreprocessSpec) -> Geometry:
        """Return the geometry of an image of ``width`` × ``height`` pixels."""
        return cls(width, height, spec.resize, spec.crop, crop_offset(spec.resize, spec.crop))

    def to_original(self, u: Coordinate, v: Coordinate) -> tuple[Coordinate, Coordinate]:
        """Map coordinates (u right, v down, 0..256 at the pixel edges) → original pixel coordinates (edges 0..W, 0..H)."""
        x = (u / MAP_SIZE * self.crop + self.offset) * self.width / self.resize
        y = (v / MAP_SIZE * self.crop + self.offset) * self.height / self.resize
        return x, y


@dataclass(frozen=True)
class Region:
    """A connected anomalous area. ``bbox`` x, y, w, h and ``polygon`` in original pixels; ``score`` its largest map value."""

    bbox: tuple[int, int, int, int]
    score: float
    polygon: tuple[tuple[int, int], ...]


def regions(anomaly_map: F32, geometry: Geometry, level: float, *, reached: bool = False) -> tuple[Region, ...]:
    """Return the connected areas (8 neighbours) of the map, highest first.

    Args:
        anomaly_map: float32 (256, 256).
        geometry: of the image that the map is of.
        level: pixels above it count: a calibrated class passes its threshold.
        reached: pixels that equal it count too. Where nothing is calibrated, ``level`` is the cutoff of
            :func:`~visionad_runtime.scoring.anomaly_map.top_k_mean`, so the regions say where the score comes from, not that it
            is too high.
    """
    import cv2

    hot = anomaly_map >= level if reached else anomaly_map > level
    left, top, width, height = cv2.boundingRect(hot.view(np.uint8))
    # A defect is small, and this is a part of every verdict's time: nothing but the box of what counts is looked at.
    box = slice(top, top + height), slice(left, left + width)
    hot, field = hot[box], anomaly_map[box]
    if not hot.size:
        return ()
    spots = hot.view(np.uint8)
    # CCOMP's top level holds every area's outer edge, also of an area inside another one's hole (EXTERNAL loses those)
    contours, tree = cv2.findContours(spots, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    outer = [c[:, 0] for c, parent in zip(contours, tree[0, :, 3].tolist(), strict=True) if parent < 0]
    count, labels = cv2.connectedComponents(spots, connectivity=8)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, labels[hot].astype(np.intp), field[hot])
    # All areas' points at once: there may be dozens.
    points = np.concatenate(outer)
    ends = list(accumulate(map(len, outer)))
    starts = [0, *ends[:-1]]
    u, v = points[starts].T
    scores = peaks[labels[v - top, u - left]].tolist()
    us, vs = points.T.tolist()
    axes = _axes(geometry)
    found = [_region(us[i:j], vs[i:j], score, *axes) for i, j, score in zip(starts, ends, scores, strict=True)]
    return tuple(sorted(found, key=lambda r: (-r.score, r.bbox)))


class _Axis(NamedTuple):
    """Original pixels along one side, by map pixel: the one that it begins in, the end of those it touches, the one under its
    middle."""

    first: list[int]
    end: list[int]
    middle: list[int]


@lru_cache(maxsize=64)
def _axes(geometry: Geometry) -> tuple[_Axis, _Axis]:
    """Across and down. Parts before one camera all have the same."""
    at = np.arange(MAP_SIZE, dtype=np.float64)
    found = []
    for start, end, middle, size in zip(
        *(geometry.to_original(edge, edge) for edge in (at, at + 1.0, at + 0.5)),
        (geometry.width, geometry.height),
        strict=True,
    ):
        ends, middles = np.minimum(size, np.ceil(end)), np.minimum(middle, size - 1)
        found.append(_Axis(*(along.astype(np.int64).tolist() for along in (np.floor(start), ends, middles))))
    across, down = found
    return across, down


def _region(us: list[int], vs: list[int], score: float, across: _Axis, down: _Axis) -> Region:
    """The area within an outline, whose points lie at map pixels ``us`` (right) and ``vs`` (down)."""
    x, y = across.first[min(us)], down.first[min(vs)]
    right, bottom = max(x + 1, across.end[max(us)]), max(y + 1, down.end[max(vs)])
    polygon = tuple(zip(map(across.middle.__getitem__, us), map(down.middle.__getitem__, vs), strict=True))
    if len(polygon) < 3:  # one or two map pixels: a polygon with an area all the same
        polygon = (x, y), (right - 1, y), (right - 1, bottom - 1), (x, bottom - 1)
    return Region((x, y, right - x, bottom - y), score, polygon)


def heatmap_range(normal_level: float, threshold: float) -> tuple[float, float]:
    """Return the coldest and the hottest value of a heatmap.

    Args:
        normal_level: usual value of a good image's map; it looks cold.
        threshold: where verdicts part; it lies half way.
    """
    return normal_level, max(2 * threshold - normal_level, normal_level + 1e-3)
