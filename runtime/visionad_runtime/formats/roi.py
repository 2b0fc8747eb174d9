"""What of an image is inspected: regions of interest (ROIs), their tiles, and areas to ignore. Stored with a class in the bank."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from ..errors import VisionADError
from .strict import Strict

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels of the original image."""
Polygon = Annotated[tuple[tuple[int, int], ...], Field(min_length=3)]
"""Corners (x, y) in pixels of the original image, three or more. Pixels on the outline belong to it."""

WHOLE_IMAGE = "image"
"""Name of the region of a class without ROIs. No ROI may have it."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"
TILE_OVERLAP = 0.2
"""Share of a tile's side that it has in common with the next tile. A defect on a seam lies whole in one of them."""
MAX_TILES = 16
"""Tiles along one side of a ROI."""
MIN_SIDE = 8
"""Pixels. A smaller ROI or tile holds less than one patch of any model."""


class Roi(Strict):
    """A region of interest: a box that is cropped at full resolution before it is resized.

    Attributes:
        name: unique within the class.
        box: of the region; the bounding box of ``polygon`` if there is one.
        polygon: outline. What lies in the box and outside of it is ignored.
        grid: rows and columns of overlapping tiles, each resized by itself. All tiles share one memory bank.
        overlap: share of a tile's side that neighbors have in common.
    """

    name: str = Field(pattern=NAME_PATTERN)
    box: Box
    polygon: Polygon | None = None
    grid: tuple[Annotated[int, Field(ge=1, le=MAX_TILES)], Annotated[int, Field(ge=1, le=MAX_TILES)]] = (1, 1)
    overlap: float = Field(default=TILE_OVERLAP, ge=0, le=0.5)

    def text(self) -> str:
        """Return the ROI as :func:`parse_roi` takes it."""
        corners = ";".join(f"{x},{y}" for x, y in self.polygon or ())
        tiles = "" if self.grid == (1, 1) else f"@{self.grid[0]}x{self.grid[1]}"
        return f"{self.name}={corners or ','.join(map(str, self.box))}{tiles}"

    @property
    def tiles(self) -> tuple[Box, ...]:
        """Boxes of the tiles, row by row; the box itself without a grid."""
        x, y, width, height = self.box
        rows, columns = self.grid
        return tuple(
            (x + left, y + top, tile_width, tile_height)
            for top, tile_height in _spans(height, rows, self.overlap)
            for left, tile_width in _spans(width, columns, self.overlap)
        )


class RoiSpec(Strict):
    """What is inspected of a class's images.

    Attributes:
        image_size: width and height of the images, in pixels. Images of another size are refused.
        rois: regions of interest; none for the whole image.
        ignore: polygons that are not inspected.
        mask: sha256 of a mask PNG in the bank's folder ``masks``, whose pixels above 0 are not inspected.
    """

    image_size: tuple[Annotated[int, Field(ge=MIN_SIDE)], Annotated[int, Field(ge=MIN_SIDE)]]
    rois: tuple[Roi, ...] = ()
    ignore: tuple[Polygon, ...] = ()
    mask: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> RoiSpec:
        names = [roi.name for roi in self.rois]
        if len(set(names)) != len(names):
            raise ValueError(f"the ROI names {', '.join(names)} are not unique")
        width, height = self.image_size
        for roi in self.rois:
            x, y, w, h = roi.box
            if roi.name == WHOLE_IMAGE:
                raise ValueError(f"the ROI name {WHOLE_IMAGE!r} stands for the whole image; choose another")
            if roi.polygon is not None and roi.box != bounding_box(roi.polygon):
                raise ValueError(f"ROI {roi.name}: the box {x},{y},{w},{h} is not the bounding box of the polygon")
            if min(x, y) < 0 or x + w > width or y + h > height:
                raise ValueError(
                    f"ROI {roi.name}: the box {x},{y},{w},{h} is not inside the image of {width}x{height} pixels"
                )
            if min(min(tile[2:]) for tile in roi.tiles) < MIN_SIDE:
                raise ValueError(
                    f"ROI {roi.name}: expected {MIN_SIDE} or more pixels along each side of a tile, got {w}x{h} in "
                    f"{roi.grid[0]}x{roi.grid[1]} tiles"
                )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the regions; :data:`WHOLE_IMAGE` alone without ROIs."""
        return tuple(roi.name for roi in self.rois) or (WHOLE_IMAGE,)

    @property
    def regions(self) -> tuple[Roi, ...]:
        """The regions; the whole image without ROIs."""
        return self.rois or (Roi(name=WHOLE_IMAGE, box=(0, 0, *self.image_size)),)

    @property
    def tiles(self) -> tuple[tuple[Box, ...], ...]:
        """Boxes of the tiles of each region."""
        return tuple(roi.tiles for roi in self.rois) or (((0, 0, *self.image_size),),)

    def digest(self) -> str:
        """Return the sha256 of the canonical JSON. A threshold holds for one digest."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


_BOX = r"-?\d+,-?\d+,-?\d+,-?\d+"
_POINTS = r"-?\d+,-?\d+(?:;-?\d+,-?\d+)*"
_TEXT = re.compile(
    rf"(?P<name>[^=]*)=(?:(?P<box>{_BOX})|(?P<polygon>{_POINTS}))(?:@(?P<rows>\d+)[xX](?P<columns>\d+))?"
)


def parse_roi(text: str) -> Roi:
    """Parse a ROI as the command line takes it.

    Args:
        text: ``NAME=X,Y,W,H`` for a box, or ``NAME=X,Y;X,Y;X,Y`` with three or more corners for a polygon, in pixels of the
            original image; ``@RxC`` at its end cuts it into rows and columns of tiles.

    Raises:
        VisionADError: The text has another form, or a value is out of range.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise VisionADError(
            f"--roi {text}: expected NAME=X,Y,W,H for a box or NAME=X,Y;X,Y;X,Y for a polygon, in whole pixels, and @RxC behind "
            "it for tiles, such as label=120,40,600,400@1x3"
        )
    polygon: tuple[tuple[int, int], ...] | None = None
    if match["box"] is not None:
        x, y, width, height = map(int, match["box"].split(","))
    else:
        corners = [tuple(map(int, corner.split(","))) for corner in match["polygon"].split(";")]
        polygon = tuple((x, y) for x, y in corners)
        if len(polygon) < 3:
            raise VisionADError(
                f"--roi {text}: expected a box NAME=X,Y,W,H or a polygon of three or more corners, got {len(polygon)}"
            )
        x, y, width, height = bounding_box(polygon)
    grid = (int(match["rows"] or 1), int(match["columns"] or 1))
    name = match["name"]
    if not re.fullmatch(NAME_PATTERN, name):
        raise VisionADError(
            f"--roi {text}: expected a name of 1 to 40 letters, digits, - and _, got {name!r}; it names the ROI in results"
        )
    if not all(1 <= count <= MAX_TILES for count in grid):
        raise VisionADError(
            f"--roi {text}: expected 1 to {MAX_TILES} rows and columns of tiles, got {grid[0]}x{grid[1]}"
        )
    return Roi(name=name, box=(x, y, width, height), polygon=polygon, grid=grid)


def make_spec(rois: Sequence[Roi], image_size: tuple[int, int], mask: str | None = None) -> RoiSpec | None:
    """Return what is inspected of images of a size; ``None`` if that is all of it.

    Args:
        rois: regions of interest; none for the whole image.
        image_size: width and height of the images, in pixels.
        mask: sha256 of a mask PNG whose pixels above 0 are not inspected.

    Raises:
        VisionADError: A ROI does not lie in the image, a tile is too small, or names are not unique.
    """
    if not rois and mask is None:
        return None
    try:
        return RoiSpec(image_size=image_size, rois=tuple(rois), mask=mask)
    except ValidationError as exc:
        reason = exc.errors()[0]["msg"].removeprefix("Value error, ")
        raise VisionADError(f"regions of interest: {reason}") from None


def spec_from_json(facts: Mapping[str, Any]) -> RoiSpec:
    """Return what is inspected, as a page or a program writes it: a ROI with a polygon may leave out its box.

    Args:
        facts: fields of :class:`RoiSpec`.

    Raises:
        VisionADError: A field is missing or unknown, or a ROI does not fit.
    """
    try:
        rois = [
            {**roi, "box": bounding_box([(int(x), int(y)) for x, y in roi["polygon"]])} if roi.get("polygon") else roi
            for roi in facts.get("rois") or ()
        ]
        return RoiSpec.model_validate({**facts, "rois": rois})
    except ValidationError as exc:
        first = exc.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise VisionADError(f"regions of interest: {f'{place}: ' if place else ''}{reason}") from None
    except (TypeError, ValueError, AttributeError) as exc:
        raise VisionADError(f"regions of interest: expected corners as pairs of whole numbers ({exc})") from None


def bounding_box(polygon: Sequence[tuple[int, int]]) -> Box:
    """Return the smallest box that holds all pixels of a polygon, those on its outline included."""
    xs, ys = zip(*polygon, strict=True)
    return min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1


def tile_counts(spec: RoiSpec | None) -> tuple[int, ...]:
    """Return the number of tiles of each region; one region of one tile without a specification."""
    return (1,) if spec is None else tuple(map(len, spec.tiles))


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Return start and length of ``count`` equal spans that cover a length and overlap."""
    side = math.ceil(length / (count - (count - 1) * overlap))
    return [(round(i * (length - side) / max(1, count - 1)), side) for i in range(count)]
