"""Regions of the anomaly map in pixels of the original image, and the value range of a heatmap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..formats.manifest import PreprocessSpec
from ..formats.roi import WHOLE_IMAGE
from ..preprocess import crop_offset
from .anomaly_map import MAP_SIZE

F32 = NDArray[np.float32]

Coordinate = TypeVar("Coordinate", float, NDArray[np.float64])
"""A number or an array."""


@dataclass(frozen=True)
class Geometry:
    """Position of the 256 × 256 map in the original image. Edges outside the center crop are not inspected.

    Attributes:
        width: of the original image, or of the tile that was cut out of it, in pixels.
        height: of the same, in pixels.
        resize: side of the resized image.
        crop: side of the center crop, which the map covers.
        offset: pixels cut at the top and left of the resized image.
        left: of the tile in the original image, in pixels.
        top: of the same.
    """

    width: int
    height: int
    resize: int
    crop: int
    offset: int
    left: int = 0
    top: int = 0

    @classmethod
    def of(cls, width: int, height: int, spec: PreprocessSpec, left: int = 0, top: int = 0) -> Geometry:
        """Return the geometry of an image of ``width`` × ``height`` pixels, or of a tile at ``left``, ``top``."""
        return cls(width, height, spec.resize, spec.crop, crop_offset(spec.resize, spec.crop), left, top)

    def to_original(self, u: Coordinate, v: Coordinate) -> tuple[Coordinate, Coordinate]:
        """Convert map coordinates to coordinates of the original image.

        Args:
            u: to the right, 0 to 256 between the outer edges of the map's pixels.
            v: down, in the same way.

        Returns:
            x from 0 to the width, y from 0 to the height, between the outer edges of the image's pixels. For a tile, ``left``
            and ``top`` are added.
        """
        x, y = self.to_tile(u, v)
        return x + self.left, y + self.top

    def to_tile(self, u: Coordinate, v: Coordinate) -> tuple[Coordinate, Coordinate]:
        """Convert map coordinates to coordinates of the tile, as :meth:`to_original` does to those of the image."""
        x = (u / MAP_SIZE * self.crop + self.offset) * self.width / self.resize
        y = (v / MAP_SIZE * self.crop + self.offset) * self.height / self.resize
        return x, y


@dataclass(frozen=True)
class Evidence:
    """The good patch that is nearest to the hottest cell of a region. The cell's distance rests on it.

    Attributes:
        support: sha256 of the support image.
        source: where the support came from.
        bbox: x, y, width, height of the good patch in pixels of the support; ``None`` if the bank does not know the support's
            size, as for supports that an earlier release enrolled.
        pose: element of the square's symmetry group that turns the support as the image is (``preprocess.apply_pose``).
        distance: cosine distance of both patches in the first view, float32, unweighted.
        cell: x, y, width, height of the region's hottest cell in pixels of the original image.
        kept: name of the support's copy in the bank's folder ``images``; ``None`` if no copy is kept.
        bit_depth: of that file, as stated.
    """

    support: str
    source: str
    bbox: tuple[int, int, int, int] | None
    pose: str
    distance: float
    cell: tuple[int, int, int, int]
    kept: str | None
    bit_depth: int | None

    def to_dict(self) -> dict[str, object]:
        """Return the object that ``predict --json`` prints."""
        return {
            "support": self.support,
            "source": self.source,
            "bbox": None if self.bbox is None else list(self.bbox),
            "pose": self.pose,
            "distance": self.distance,
        }


@dataclass(frozen=True)
class Region:
    """A connected anomalous area.

    Attributes:
        bbox: x, y, width, height in pixels of the original image.
        score: largest map value in the area.
        polygon: outline, (x, y) points in pixels of the original image.
        roi: name of the region of interest that it lies in; ``image`` for a class without ROIs.
        area: index of its area in ``Result.areas``; of a region that tiles share, the one with the highest value.
        peak: column and row of the pixel of that area's map that has this value; of several, the first in reading order.
        evidence: the nearest good patch, if it was asked for.
    """

    bbox: tuple[int, int, int, int]
    score: float
    polygon: tuple[tuple[int, int], ...]
    roi: str = WHOLE_IMAGE
    area: int = 0
    peak: tuple[int, int] = (0, 0)
    evidence: Evidence | None = None


def regions(anomaly_map: F32, geometry: Geometry, level: float, *, inclusive: bool = False) -> tuple[Region, ...]:
    """Return the connected areas (8 neighbors) above a level, highest score first.

    Args:
        anomaly_map: float32 (256, 256).
        geometry: geometry of the image.
        level: the level: the threshold of a calibrated class. Without one, the cutoff of
            :func:`~visionad_runtime.scoring.anomaly_map.top_k_mean`: the regions then show where the score comes from, not that it
            is too high.
        inclusive: whether pixels that equal the level count too.
    """
    import cv2

    mask = anomaly_map >= level if inclusive else anomaly_map > level
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    # Work on the bounding box only: defects are small, and every anomalous verdict waits for this function.
    box = slice(top, top + height), slice(left, left + width)
    mask, values = mask[box], anomaly_map[box]
    if not mask.size:
        return ()
    mask_bytes = mask.view(np.uint8)
    # CCOMP's top level holds the outer contour of every area, also of one inside another's hole, which EXTERNAL omits.
    contours, tree = cv2.findContours(mask_bytes, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    outer = [c[:, 0] for c, parent in zip(contours, tree[0, :, 3].tolist(), strict=True) if parent < 0]
    count, labels = cv2.connectedComponents(mask_bytes, connectivity=8)
    peaks = np.full(count, -np.inf, np.float32)
    inside = np.flatnonzero(mask)
    labels_inside, values_inside = labels.ravel()[inside].astype(np.intp), values.ravel()[inside]
    np.maximum.at(peaks, labels_inside, values_inside)
    is_peak = (values_inside == peaks[labels_inside]) | np.isnan(values_inside)
    first = np.full(count, mask.size, np.intp)
    np.minimum.at(first, labels_inside[is_peak], inside[is_peak])
    # The points of all areas are handled in one array, because there may be dozens of areas.
    points = np.concatenate(outer)
    ends = list(accumulate(map(len, outer)))
    starts = [0, *ends[:-1]]
    u, v = points[starts].T
    areas_of_starts = labels[v - top, u - left]
    scores = peaks[areas_of_starts].tolist()
    rows, columns = np.divmod(first[areas_of_starts], width)
    places = zip((columns + left).tolist(), (rows + top).tolist(), strict=True)
    us, vs = points.T.tolist()
    axes = _axes(geometry)
    areas = [
        _region(us[i:j], vs[i:j], score, place, *axes)
        for i, j, score, place in zip(starts, ends, scores, places, strict=True)
    ]
    return tuple(sorted(areas, key=lambda area: (-area.score, area.bbox)))


class _Axis(NamedTuple):
    """Pixels of the original image along one axis, by map pixel.

    Attributes:
        first: first pixel that it touches.
        end: last pixel that it touches, plus one.
        middle: pixel under its center.
    """

    first: list[int]
    end: list[int]
    middle: list[int]


@lru_cache(maxsize=64)
def _axes(geometry: Geometry) -> tuple[_Axis, _Axis]:
    """Return the horizontal and the vertical axis. Images of one camera share them."""
    positions = np.arange(MAP_SIZE, dtype=np.float64)
    axes = []
    for start, end, middle, size, shift in zip(
        *(geometry.to_tile(position, position) for position in (positions, positions + 1.0, positions + 0.5)),
        (geometry.width, geometry.height),
        (geometry.left, geometry.top),
        strict=True,
    ):
        ends, middles = np.minimum(size, np.ceil(end)), np.minimum(middle, size - 1)
        # The tile's place is added to whole pixels, so a tile has the same regions as an image of its own.
        axes.append(_Axis(*((pixels.astype(np.int64) + shift).tolist() for pixels in (np.floor(start), ends, middles))))
    across, down = axes
    return across, down


def _region(us: list[int], vs: list[int], score: float, peak: tuple[int, int], across: _Axis, down: _Axis) -> Region:
    """Return the region within an outline of map pixels ``us`` (right) and ``vs`` (down)."""
    x, y = across.first[min(us)], down.first[min(vs)]
    right, bottom = max(x + 1, across.end[max(us)]), max(y + 1, down.end[max(vs)])
    polygon = tuple(zip(map(across.middle.__getitem__, us), map(down.middle.__getitem__, vs), strict=True))
    if len(polygon) < 3:  # one or two map pixels: use the box, so that the polygon has an area
        polygon = (x, y), (right - 1, y), (right - 1, bottom - 1), (x, bottom - 1)
    return Region((x, y, right - x, bottom - y), score, polygon, peak=peak)


def heatmap_range(normal_level: float, threshold: float) -> tuple[float, float]:
    """Return the lowest and the highest value of a heatmap.

    Args:
        normal_level: usual value of a good image's map, which becomes the lowest value.
        threshold: threshold of the class, which becomes the middle.
    """
    return normal_level, max(2 * threshold - normal_level, normal_level + 1e-3)
