"""What regions of interest really inspect: a patch is judged whole, so the raster counts, not the line that was drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bank.layout import Layout
from ..formats.manifest import FeatureIdentity
from ..formats.roi import RoiSpec
from ..preprocess import crop_offset


def raster(name: str, roi: RoiSpec, identity: FeatureIdentity) -> dict[str, Any]:
    """Return the patches that regions leave to be scored.

    Args:
        name: the class, for messages.
        roi: the regions.
        identity: of the model.

    Returns:
        ``tiles``: each with ``name``, ``box`` (x, y, width, height), ``crop`` (the same of its center crop, which the patches
        cover), ``side`` and ``ignored``, a text of side x side signs, row by row, ``1`` for a patch that is not scored; ``cells``
        and ``inspected``: numbers of patches; ``share``: of the image's area that is inspected, 0 to 1; ``digest`` of the regions.

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
    }  # fmt: skip
