"""Regions of interest for the reference: the same tiles, cut with Pillow from the image file, and ignored patches at 0."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from visionad_ref.method import Route, fuse, image_score, upsample
from visionad_runtime.bank.layout import Layout, Tile
from visionad_runtime.images.crops import Ignored

from visionad_ref import ClassBank, ImageSource, Reference, RefResult


class ReferenceClass(NamedTuple):
    """A class for the reference.

    Attributes:
        rois: Bank of each ROI; one of whole images for a class without ROIs.
        routing: Bank whose class tokens are those of whole images.
        layout: What is inspected; ``None`` for whole images.
    """

    rois: tuple[ClassBank, ...]
    routing: ClassBank
    layout: Layout | None = None


class Piece(NamedTuple):
    """A part of an image that is compared by itself.

    Attributes:
        label: Name in the report.
        image: Its pixels for the reference.
        roi: Index of its ROI.
        tile: Its place; ``None`` for the whole image.
    """

    label: str
    image: ImageSource
    roi: int = 0
    tile: Tile | None = None


def pieces_of(label: str, source: ImageSource, layout: Layout | None) -> list[Piece]:
    """Return the parts of an image that are inspected, in the order of ``Result.areas``."""
    if layout is None:
        return [Piece(label, source)]
    image = _opened(source)
    return [
        Piece(f"{label} ({tile.name})", _cut(image, tile, layout.color), roi, tile)
        for roi, tiles in enumerate(layout.rois)
        for tile in tiles
    ]


def enroll_tiles(reference: Reference, sources: list[ImageSource], layout: Layout) -> ReferenceClass:
    """Encode the supports of a class with ROIs."""
    images = [_opened(source) for source in sources]
    rois = tuple(
        reference.enroll([_cut(image, tile, layout.color) for image in images for tile in tiles])
        for tiles in layout.rois
    )
    return ReferenceClass(
        rois, reference.enroll([_filled(image, layout.ignored, layout.color) for image in images]), layout
    )


def route_image(reference: Reference, source: ImageSource, classes: dict[str, ReferenceClass]) -> Route:
    """Find the class of an image: on the whole image, then with what is ignored of that class filled."""
    banks = {name: held.routing for name, held in classes.items()}
    route = reference.route(source, banks)
    layout = classes[route.nearest].layout
    if layout is None or layout.ignored is None:
        return route
    image = _opened(source)
    if image.size != layout.spec.image_size:
        return route
    return reference.route(_filled(image, layout.ignored, layout.color), banks)


def inspect_piece(reference: Reference, piece: Piece, bank: ClassBank) -> RefResult:
    """Inspect a part of an image, with ignored patches at 0."""
    result = reference.inspect(piece.image, bank)
    if piece.tile is None or piece.tile.cells is None:
        return result
    cells = torch.from_numpy(piece.tile.cells)
    grids = {
        view: torch.from_numpy(grid).masked_fill(cells.flip(0) if view == "flip" else cells, 0.0)
        for view, grid in result.distances.items()
    }
    anomaly_map = upsample(fuse(grids))
    return replace(
        result,
        score=image_score(anomaly_map, reference.top_fraction),
        anomaly_map=anomaly_map.numpy(),
        distances={view: grid.numpy() for view, grid in grids.items()},
    )


def _opened(source: ImageSource) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    with Image.open(source) as opened:
        opened.load()
        deep = opened.mode.startswith(("I", "F"))  # the reference refuses it, with its own message
        return opened.copy() if deep or opened.mode in ("L", "RGB") else opened.convert("RGB")


def _cut(image: Image.Image, tile: Tile, color: tuple[int, int, int]) -> Image.Image:
    x, y, width, height = tile.box
    return _filled(image.crop((x, y, x + width, y + height)), tile.ignored, color)


def _filled(image: Image.Image, ignored: Ignored | None, color: tuple[int, int, int]) -> Image.Image:
    if ignored is None:
        return image
    filled = image.convert("RGB")
    filled.paste(color, mask=Image.fromarray(ignored.astype(np.uint8) * 255))
    return filled
