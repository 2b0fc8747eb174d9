"""Evidence of a verdict: for each region, the good patch that is nearest to its hottest cell.

A row of the bank belongs to a pose, a support, a tile and a cell of the posed support. The pose's inverse gives the cell in the
support as it was given, and the geometry of the preprocessing gives the cell's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bank.memory_bank import MemoryBank
from ..formats.manifest import ClassEntry, PreprocessSpec, SupportImage, ViewName
from ..formats.roi import Box
from ..preprocess import SQUARE, apply_pose, view_slice
from ..scoring.anomaly_map import MAP_SIZE
from ..scoring.regions import Evidence, Geometry, Region
from ..search import nearest

F32 = NDArray[np.float32]


class GoodPatch(NamedTuple):
    """A row of a bank, as a place in a support.

    Attributes:
        support: index of the support.
        tile: index of the tile.
        cell: row and column of the patch in the tile as it was given, not posed.
        pose: element of the square's symmetry group that turns the tile as the image is.
    """

    support: int
    tile: int
    cell: tuple[int, int]
    pose: str


def good_patch(bank: MemoryBank, view: ViewName, row: int) -> GoodPatch:
    """Return the place of a row of :meth:`MemoryBank.rows`.

    Args:
        bank: the rows.
        view: view that the row was found in.
        row: number of the row, 0 to 6·K·T·P - 1.
    """
    patches = bank.features.shape[2]
    posed, patch = divmod(row, patches)
    index, slot = divmod(posed, bank.features.shape[1])
    encoding = bank.blocks[view_slice(bank.blocks, view)][index].removeprefix("clamp/")
    cells = _cells(patches)
    posed_cells = apply_pose(cells, encoding)
    cell = int(posed_cells.ravel()[patch])
    # In the view `flip` the image is flipped too: undo that, and the pose is the one from the support to the image.
    turned = posed_cells[::-1] if view == "flip" else posed_cells
    pose = next(name for name in SQUARE if np.array_equal(apply_pose(cells, name), turned))
    support, tile = divmod(slot, bank.tiles)
    return GoodPatch(support, tile, divmod(cell, len(cells)), pose)


def with_evidence(
    regions: Sequence[Region],
    tokens: F32,
    view: ViewName,
    bank: MemoryBank,
    entry: ClassEntry,
    geometry: Geometry,
    spec: PreprocessSpec,
    *,
    threads: int | None = None,
) -> tuple[Region, ...]:
    """Return the regions of one anomaly map with their evidence. Only the regions' hottest cells are searched.

    Args:
        regions: regions of the map.
        tokens: float32 (P, D), unit rows, patch tokens of the image in the view.
        view: first view of the scoring.
        bank: rows that the image was compared with.
        entry: entry of the class.
        geometry: of the image, or of the tile that the map is of.
        spec: how images are preprocessed.
        threads: maximum number of threads (default: all CPUs). No bit of the result depends on it.

    Raises:
        VisionADError: There are NaN or Inf among the tokens or rows.
    """
    if not regions:
        return ()
    side = math.isqrt(len(tokens))
    cells = [_cell_of(region.peak, side) for region in regions]
    patches = [((side - 1 - row) if view == "flip" else row) * side + column for row, column in cells]
    found = nearest(tokens[patches], bank.rows(view), threads=threads)
    explained = []
    for region, cell, distance, row in zip(regions, cells, found.distance, found.row, strict=True):
        patch = good_patch(bank, view, int(row))
        support = entry.images[patch.support]
        place = _tile_box(entry, bank, support, patch.tile)
        evidence = Evidence(
            support=support.sha256,
            source=support.source,
            bbox=None if place is None else _box(patch.cell, side, Geometry.of(*place[2:], spec, *place[:2])),
            pose=patch.pose,
            distance=float(distance),
            cell=_box(cell, side, geometry),
            kept=support.kept,
            bit_depth=support.bit_depth,
        )
        explained.append(replace(region, evidence=evidence))
    return tuple(explained)


def _cells(patches: int) -> F32:
    """Return the numbers of a square grid's cells, float32 (side, side), exact up to 2**24."""
    side = math.isqrt(patches)
    return np.arange(patches, dtype=np.float32).reshape(side, side)


def _cell_of(peak: tuple[int, int], side: int) -> tuple[int, int]:
    """Return row and column of the cell under the center of a map pixel."""
    column, row = ((2 * place + 1) * side // (2 * MAP_SIZE) for place in peak)
    return row, column


def _tile_box(entry: ClassEntry, bank: MemoryBank, support: SupportImage, tile: int) -> Box | None:
    """Return the pixels of a support that a tile covers, or ``None`` if its size is not known."""
    if entry.roi is not None:
        return entry.roi.tiles[entry.roi.names.index(bank.roi)][tile]
    return None if support.size is None else (0, 0, *support.size)


def _box(cell: tuple[int, int], side: int, geometry: Geometry) -> Box:
    """Return the pixels that a cell touches: x, y, width, height in the original image."""
    row, column = cell
    step = MAP_SIZE / side
    left, top = geometry.to_tile(column * step, row * step)
    right, bottom = geometry.to_tile((column + 1) * step, (row + 1) * step)
    x, y = math.floor(left), math.floor(top)
    x_end, y_end = (min(math.ceil(end), size) for end, size in ((right, geometry.width), (bottom, geometry.height)))
    return x + geometry.left, y + geometry.top, max(1, x_end - x), max(1, y_end - y)
