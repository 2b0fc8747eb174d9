"""Tiles of one image, put together: the worst one, regions of all of them, one map of the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats.roi import Box
from .anomaly_map import MAP_SIZE
from .regions import F32, Geometry, Region, regions


@dataclass(frozen=True, eq=False)
class Area:
    """An inspected part of an image: a tile of a ROI, or the whole image.

    Attributes:
        roi: name of the ROI, or ``image``.
        name: its own name: the ROI's, with row and column if it has several tiles.
        box: x, y, width, height in pixels of the original image.
        anomaly_map: float32 (256, 256).
        score: of the map.
        cutoff: smallest pixel of the map that counts for the score.
        geometry: maps ``anomaly_map`` to the original image.
        ignored: bool (height, width), pixels of the box that are not inspected; ``None`` for none.
    """

    roi: str
    name: str
    box: Box
    anomaly_map: F32
    score: float
    cutoff: float
    geometry: Geometry
    ignored: NDArray[np.bool_] | None = None


def worst_area(areas: Sequence[Area]) -> int:
    """Return the index of the area with the highest score, the first one of equals."""
    return max(range(len(areas)), key=lambda i: (areas[i].score, -i))


def area_regions(areas: Sequence[Area], level: float, *, inclusive: bool = False) -> tuple[Region, ...]:
    """Return the regions above a level in all areas, highest score first.

    Regions of different tiles of one ROI whose boxes overlap are one region: its box and its polygon (their convex hull) hold all
    of them, and its score is the highest.

    Args:
        areas: of one image.
        level: as for :func:`~visionad_runtime.scoring.regions.regions`.
        inclusive: as there.
    """
    by_roi: dict[str, list[_FromTiles]] = {}
    for i, area in enumerate(areas):
        by_roi.setdefault(area.roi, []).extend(
            _FromTiles(frozenset([i]), replace(region, roi=area.roi, area=i))
            for region in regions(area.anomaly_map, area.geometry, level, inclusive=inclusive)
        )
    merged = [region for group in by_roi.values() for region in _merged(group)]
    return tuple(sorted(merged, key=lambda region: (-region.score, region.bbox)))


class _FromTiles(NamedTuple):
    tiles: frozenset[int]
    region: Region


def _merged(group: Sequence[_FromTiles]) -> list[Region]:
    """Merge regions of different tiles whose boxes overlap, until none do."""
    waiting, done = list(group), list[_FromTiles]()
    while waiting:
        one = waiting.pop(0)
        for i, other in enumerate(done):
            if one.tiles != other.tiles and _overlap(one.region.bbox, other.region.bbox):
                del done[i]
                waiting.insert(0, _FromTiles(one.tiles | other.tiles, _union(other.region, one.region)))
                break
        else:
            done.append(one)
    return [one.region for one in done]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _union(a: Region, b: Region) -> Region:
    import cv2

    x, y = min(a.bbox[0], b.bbox[0]), min(a.bbox[1], b.bbox[1])
    right = max(a.bbox[0] + a.bbox[2], b.bbox[0] + b.bbox[2])
    bottom = max(a.bbox[1] + a.bbox[3], b.bbox[1] + b.bbox[3])
    hull = cv2.convexHull(np.array([*a.polygon, *b.polygon], np.int32))[:, 0].tolist()
    polygon = tuple((int(u), int(v)) for u, v in hull)
    hotter = b if b.score > a.score else a
    return replace(hotter, bbox=(x, y, right - x, bottom - y), polygon=polygon)


def assembled_map(areas: Sequence[Area], geometry: Geometry) -> F32:
    """Return one map of the whole image: bilinear in each tile, the largest value where tiles overlap, 0 where none lies.

    Args:
        areas: of one image.
        geometry: of the map to make.

    Returns:
        float32 (256, 256).
    """
    import cv2

    whole = np.zeros((MAP_SIZE, MAP_SIZE), np.float32)
    centers = np.arange(MAP_SIZE, dtype=np.float64) + 0.5
    x, y = geometry.to_original(centers, centers)
    for area in areas:
        u = _map_positions(x - area.geometry.left, area.geometry.width, area.geometry)
        v = _map_positions(y - area.geometry.top, area.geometry.height, area.geometry)
        inside = ((v >= 0) & (v <= MAP_SIZE))[:, None] & ((u >= 0) & (u <= MAP_SIZE))[None]
        across, down = np.meshgrid((u - 0.5).astype(np.float32), (v - 0.5).astype(np.float32))
        values = cv2.remap(area.anomaly_map, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        np.maximum(whole, np.where(inside, values, np.float32(0)), out=whole)
    return whole


def _map_positions(positions: NDArray[np.float64], size: int, geometry: Geometry) -> NDArray[np.float64]:
    """Return where positions along one axis of a tile lie on its map, 0 to 256."""
    return (positions * geometry.resize / size - geometry.offset) / geometry.crop * MAP_SIZE
