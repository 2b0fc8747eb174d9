"""What is inspected of a class's images, ready to use: tiles, the pixels that are filled, and the patches that do not count.

A tile is cut at full resolution before it is resized. Ignored pixels are filled with the mean color of the model's training images
*before* the resize, so nothing that is painted there changes any bit of a result. Distances of patches that lie mostly on them are
0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BankError, ImageError
from ..formats.files import sha256_bytes
from ..formats.manifest import FeatureIdentity
from ..formats.roi import Box, Roi, RoiSpec
from ..images import crops
from ..images.pixels import RGB8
from ..preprocess import covered_cells

MASKS = "masks"
"""Folder in a bank with masks of areas that are not inspected: ``SHA256.png``."""


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of an image that is inspected as an image of its own.

    Attributes:
        roi: name of its ROI, or ``image``.
        name: its own: the ROI's, and row and column from 1 if there are several, such as ``label-r1c2``.
        box: x, y, width, height in pixels of the original image.
        ignored: bool (height, width), pixels that are not inspected; ``None`` for none.
        cells: bool (side, side), patches whose distance is 0; ``None`` for none.
    """

    roi: str
    name: str
    box: Box
    ignored: crops.Ignored | None
    cells: NDArray[np.bool_] | None


class Layout:
    """What is inspected of a class's images. Immutable.

    Attributes:
        class_name: the class.
        spec: the regions.
        mask: PNG file of ``spec.mask``.
        color: red, green, blue of filled pixels.
        ignored: bool (H, W), pixels of the image that are ignored, without those outside of polygons; ``None`` for none.
        rois: tiles of each ROI, in the order of ``spec``.
    """

    def __init__(self, class_name: str, spec: RoiSpec, identity: FeatureIdentity, mask: bytes | None = None) -> None:
        """Compute tiles and masks once.

        Args:
            class_name: the class, for messages.
            spec: the regions.
            identity: of the model: its image size, mean color and patch grid.
            mask: PNG file of ``spec.mask``.

        Raises:
            ImageError: The mask is no PNG file or has another size than the images.
            BankError: The mask is not the one of ``spec``, or nothing is left to inspect.
        """
        self.class_name, self.spec, self.mask = class_name, spec, mask
        mean = identity.preprocess.mean
        self.color = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255))
        pixels = None
        if spec.mask is not None:
            if mask is None or sha256_bytes(mask) != spec.mask:
                raise BankError(
                    f"class {class_name!r}: expected the mask with sha256 {spec.mask[:12]}, got "
                    f"{'none' if mask is None else 'another file'}; give the PNG file that the ROIs were made with"
                )
            pixels = crops.read_mask(mask, f"mask of class {class_name!r}", spec.image_size)
        self.ignored = crops.ignored_pixels(spec, pixels)
        self.rois = tuple(self._tiles(roi, identity) for roi in spec.regions)
        for tiles in self.rois:
            if all(tile.cells is not None and tile.cells.all() for tile in tiles):
                raise BankError(
                    f"class {class_name!r}: all of {tiles[0].roi} is ignored, so nothing is left to inspect; ignore less or move "
                    "the ROI"
                )

    def _tiles(self, roi: Roi, identity: FeatureIdentity) -> tuple[Tile, ...]:
        outline = None if roi.polygon is None else crops.polygon_pixels(roi.polygon, self.spec.image_size)
        columns, tiles = roi.grid[1], []
        for i, box in enumerate(roi.tiles):
            ignored = crops.in_box(self.ignored, box, outline)
            cells = None if ignored is None else covered_cells(ignored, identity.preprocess, identity.grid)
            name = roi.name if roi.grid == (1, 1) else f"{roi.name}-r{i // columns + 1}c{i % columns + 1}"
            tiles.append(Tile(roi.name, name, box, ignored, cells if cells is not None and cells.any() else None))
        return tuple(tiles)

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Tiles of all ROIs."""
        return tuple(tile for tiles in self.rois for tile in tiles)

    def fits(self, rgb: RGB8) -> bool:
        """Return whether an image has the size that the ROIs were drawn on."""
        return (rgb.shape[1], rgb.shape[0]) == self.spec.image_size

    def check(self, rgb: RGB8) -> None:
        """Check the size of an image.

        Raises:
            ImageError: It is not the one that the ROIs were drawn on.
        """
        if not self.fits(rgb):
            height, width = rgb.shape[:2]
            expected = "{}x{}".format(*self.spec.image_size)
            raise ImageError(
                f"expected {expected} pixels, as the ROIs of class {self.class_name!r} were drawn on, got {width}x{height}; draw "
                "them again with `visionad bank roi`"
            )

    def cut(self, rgb: RGB8) -> list[RGB8]:
        """Return the pixels of each tile, ignored ones filled.

        Args:
            rgb: uint8 (H, W, 3) RGB or (H, W) gray.

        Raises:
            ImageError: The image has another size.
        """
        self.check(rgb)
        return [crops.fill(crops.cut(rgb, tile.box), tile.ignored, self.color) for tile in self.tiles]

    def whole(self, rgb: RGB8) -> RGB8:
        """Return the image with what is ignored filled, as routing looks at it. What lies outside of ROIs stays.

        Raises:
            ImageError: The image has another size.
        """
        self.check(rgb)
        return crops.fill(rgb, self.ignored, self.color)


def read_layout(folder: Path, class_name: str, spec: RoiSpec, identity: FeatureIdentity) -> Layout:
    """Return the layout of a class in a bank folder.

    Args:
        folder: folder of the bank.
        class_name: the class.
        spec: its ROIs.
        identity: of the model.

    Raises:
        BankError: The mask is missing or damaged.
    """
    mask = None
    if spec.mask is not None:
        path = folder / MASKS / f"{spec.mask}.png"
        remedy = f"restore it from a backup, or give it again with `visionad bank roi --class {class_name!r} --ignore`"
        try:
            mask = path.read_bytes()
        except OSError as exc:
            raise BankError(f"class {class_name!r}: {path} cannot be read: {exc.strerror}; {remedy}") from None
        if sha256_bytes(mask) != spec.mask:
            raise BankError(f"class {class_name!r}: {path} is damaged (its sha256 is not its name); {remedy}")
    try:
        return Layout(class_name, spec, identity, mask)
    except ImageError as exc:
        raise BankError(str(exc)) from None


def cells_of(layout: Layout | None, roi: int, tile: int) -> NDArray[np.bool_] | None:
    """Return the patches of a tile whose distance is 0, bool (side, side), or ``None`` for none."""
    return None if layout is None else layout.rois[roi][tile].cells


def new_layout(
    class_name: str, spec: RoiSpec | None, identity: FeatureIdentity, mask: bytes | None = None
) -> Layout | None:
    """Return the layout of a class that is to be made; ``None`` for whole images.

    Raises:
        ImageError: As for :class:`Layout`, or the mask ignores nothing.
        BankError: As for :class:`Layout`.
    """
    if spec is None:
        return None
    layout = Layout(class_name, spec, identity, mask)
    if spec.mask is not None and mask is not None:
        crops.read_new_mask(mask, f"mask of class {class_name!r}", spec.image_size)
    return layout
