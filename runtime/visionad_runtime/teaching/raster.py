"""What regions of interest really inspect: a patch is judged whole, so the raster counts, not the line that was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..bank.layout import Layout
from ..formats.manifest import FeatureIdentity
from ..formats.roi import RoiSpec
from ..preprocess import crop_offset

SEEN = 0.5
"""Share of a known defect's area that must be inspected; below it counts as hidden."""


class KnownDefect(NamedTuple):
    """A part that a person called bad, and where it differs most.

    Attributes:
        part: number of its record.
        name: the part's id; may be empty.
        polygon: corners in pixels of its image.
    """

    part: int
    name: str
    polygon: Sequence[tuple[int, int]]


def raster(name: str, roi: RoiSpec, identity: FeatureIdentity, defects: Sequence[KnownDefect] = ()) -> dict[str, Any]:
    """Return the patches that regions leave to be scored.

    Args:
        name: the class, for messages.
        roi: the regions.
        identity: of the model.
        defects: known defects. Those beyond the image are of another camera, and are passed over.

    Returns:
        ``tiles``: each with ``name``, ``box`` (x, y, width, height), ``crop`` (the same of its center crop, which the patches
        cover), ``side`` and ``ignored``, a text of side x side signs, row by row, ``1`` for a patch that is not scored; ``cells``
        and ``inspected``: numbers of patches; ``share``: of the image's area that is inspected, 0 to 1; ``digest`` of the regions;
        ``hidden``: known defects of which less than :data:`SEEN` is inspected, each with ``part``, ``name`` and ``polygon``.

    Raises:
        VisionADError: Nothing is left to inspect.
    """
    layout, grid, spec = Layout(name, roi, identity), identity.grid, identity.preprocess
    tiles, total, inspected = [], 0, 0
    covered = np.zeros((roi.image_size[1], roi.image_size[0]), np.bool_)
    for tile in layout.tiles:
        cells = np.zeros((grid, grid), np.bool_) if tile.cells is None else tile.cells
        total += cells.size
        inspected += int((~cells).sum())
        x, y, width, height = tile.box
        offset = crop_offset(spec.resize, spec.crop) / spec.resize
        inner = (
            x + offset * width,
            y + offset * height,
            width * spec.crop / spec.resize,
            height * spec.crop / spec.resize,
        )
        left, top, across, down = (round(value) for value in inner)
        rows, columns = np.arange(down) * grid // down, np.arange(across) * grid // across
        covered[top : top + down, left : left + across] |= ~cells[np.ix_(rows, columns)]
        text = "".join("1" if cell else "0" for cell in cells.ravel())
        tiles.append({"name": tile.name, "box": list(tile.box), "crop": list(inner), "side": grid, "ignored": text})
    return {
        "tiles": tiles, "cells": total, "inspected": inspected, "share": float(covered.mean()), "digest": roi.digest(),
        "hidden": [one._asdict() for one in defects if _is_hidden(one, covered)],
    }  # fmt: skip


def _is_hidden(defect: KnownDefect, covered: NDArray[np.bool_]) -> bool:
    corners = np.array(defect.polygon, np.int32).reshape(-1, 2)
    if not len(corners) or (corners < 0).any() or (corners >= covered.shape[::-1]).any():
        return False
    area = cv2.fillPoly(np.zeros(covered.shape, np.uint8), [corners], 1).astype(np.bool_)
    return float(covered[area].mean()) < SEEN
