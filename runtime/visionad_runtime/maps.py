"""Patch distances → anomaly map → score → regions in the original picture (method, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .artefacts import PreprocessSpec, ViewName
from .preprocess import crop_offset

MAP_SIZE = 256
TOP_SHARE = 0.01
"""The paper's share of the map's pixels that make the image score: the 655 largest."""

F32 = NDArray[np.float32]


Coordinate = TypeVar("Coordinate", float, NDArray[np.float64])
"""One, or an array of them."""


@dataclass(frozen=True)
class Geometry:
    """Where the 256 × 256 map lies in the original picture. The centre crop drops the edges: they are not inspected."""

    width: int
    height: int
    resize: int
    crop: int
    offset: int

    @classmethod
    def of(cls, width: int, height: int, spec: PreprocessSpec) -> Geometry:
        """Geometry of a picture of ``width`` × ``height`` pixels."""
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


def fuse(distances: Mapping[ViewName, F32]) -> F32:
    """Add the views' (side, side) distance maps; the ``flip`` map is flipped back first. Range 0..2·V."""
    total: F32 | None = None
    for view, grid in distances.items():
        grid = grid[::-1] if view == "flip" else grid
        total = grid.astype(np.float32) if total is None else total + grid
    assert total is not None
    return np.ascontiguousarray(total)


def upsample(grid: F32, size: int = MAP_SIZE) -> F32:
    """Bilinear upsampling (side, side) → (size, size), ``align_corners=False``, as ``torch.nn.functional.interpolate``."""
    side = len(grid)
    at = np.maximum(
        (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(side / size) - np.float32(0.5), 0
    )
    low = at.astype(np.int64)
    high = np.minimum(low + 1, side - 1)
    part = (at - low).astype(np.float32)
    rest = np.float32(1) - part
    across = grid[:, low] * rest + grid[:, high] * part
    out: F32 = across[low] * rest[:, None] + across[high] * part[:, None]
    return out


def top_pixels(share: float = TOP_SHARE) -> int:
    """How many pixels make the score: ``int(share · 256 · 256)``, at least one."""
    return max(1, int(share * MAP_SIZE * MAP_SIZE))


def image_score(anomaly_map: F32, share: float = TOP_SHARE) -> float:
    """Mean of the largest pixels (:func:`top_pixels`), summed in float64 from the sorted values: one value on any machine."""
    count = top_pixels(share)
    top = np.sort(np.partition(anomaly_map.ravel(), -count)[-count:])
    return float(top.astype(np.float64).mean())


def regions(anomaly_map: F32, geometry: Geometry, level: float | None, share: float = TOP_SHARE) -> tuple[Region, ...]:
    """Connected areas (8 neighbours) of the map, highest first.

    Args:
        level: pixels above it count (a calibrated class passes its threshold). ``None``, when nothing is calibrated: the pixels
            that make the score count, so the regions say where the score comes from, not that it is too high.
        share: of the pixels that make the score.
    """
    import cv2

    if level is None:
        flat = anomaly_map.ravel()
        mask = anomaly_map >= np.partition(flat, -top_pixels(share))[-top_pixels(share)]
    else:
        mask = anomaly_map > level
    spots = mask.astype(np.uint8)
    # CCOMP's top level holds every area's outer edge, also of an area inside another one's hole (EXTERNAL loses those)
    contours, tree = cv2.findContours(spots, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = [c[:, 0] for c, node in zip(contours, tree[0], strict=True) if node[3] < 0] if contours else []
    if not outer:
        return ()
    # All areas at once: this is a part of every verdict's time, and there may be dozens.
    points = np.concatenate(outer)
    ends = np.cumsum([len(c) for c in outer])
    starts = ends - [len(c) for c in outer]
    count, labels = cv2.connectedComponents(spots, connectivity=8)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, labels[mask], anomaly_map[mask])
    scores = peaks[labels[points[starts, 1], points[starts, 0]]]
    low = np.floor(geometry.to_original(*np.minimum.reduceat(points, starts).T.astype(np.float64))).astype(np.int64)
    high = np.ceil(geometry.to_original(*np.maximum.reduceat(points, starts).T + 1.0)).astype(np.int64)
    size = np.array([[geometry.width], [geometry.height]])
    extent = np.maximum(1, np.minimum(size, high) - low)
    edge = np.stack(geometry.to_original(*(points.T + 0.5))).astype(np.int64)
    boxes, edges = np.concatenate([low, extent]).T.tolist(), np.minimum(edge, size - 1).T.tolist()
    found: list[Region] = []
    for (x, y, w, h), start, end, score in zip(boxes, starts.tolist(), ends.tolist(), scores.tolist(), strict=True):
        polygon = [(px, py) for px, py in edges[start:end]]
        if len(polygon) < 3:  # one or two map pixels: a polygon with an area all the same
            right, bottom = min(x + w, geometry.width) - 1, min(y + h, geometry.height) - 1
            polygon = [(x, y), (right, y), (right, bottom), (x, bottom)]
        found.append(Region((x, y, w, h), score, tuple(polygon)))
    return tuple(sorted(found, key=lambda r: (-r.score, r.bbox)))


def colour_scale(usual: float, middle: float) -> tuple[float, float]:
    """Coldest and hottest value of a heat map: a good picture's ``usual`` level looks cold, and ``middle``, where verdicts part, is
    half way."""
    return usual, max(2 * middle - usual, usual + 1e-3)
