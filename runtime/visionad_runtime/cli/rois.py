"""Regions of interest on the command line: their options, and what these mean for images of a size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..formats.roi import Roi, RoiSpec

RoiOption = Annotated[
    list[str] | None,
    typer.Option(
        "--roi",
        metavar="NAME=X,Y,W,H[@RxC]",
        help="inspect this box only, or a polygon NAME=X,Y;X,Y;X,Y, in pixels; @RxC cuts it into tiles; may be repeated",
    ),
]
IgnoreOption = Annotated[
    Path | None,
    typer.Option(
        "--ignore", metavar="MASK.png", help="do not inspect where this mask, as large as the images, is above 0"
    ),
]


def parse_rois(texts: Sequence[str] | None) -> list[Roi]:
    """Parse the values of ``--roi``. Errors are those of :func:`~visionad_runtime.formats.roi.parse_roi`."""
    from ..formats.roi import parse_roi

    return [parse_roi(text) for text in texts or ()]


def read_spec(rois: Sequence[Roi], ignore: Path | None, size: tuple[int, int]) -> tuple[RoiSpec | None, bytes | None]:
    """Return what is inspected, and the mask's file.

    Args:
        rois: regions.
        ignore: mask file.
        size: width and height of the images.

    Raises:
        VisionADError: A ROI does not lie in the image, or the mask cannot be read.
        ImageError: The mask has another size, ignores nothing, or is no PNG file.
    """
    from ..formats.files import sha256_bytes
    from ..formats.roi import make_spec
    from ..images.crops import read_new_mask
    from ..images.decode import read_bytes

    if ignore is None:
        return make_spec(rois, size), None
    mask = read_bytes(ignore)
    read_new_mask(mask, f"--ignore {ignore}", size)
    return make_spec(rois, size, sha256_bytes(mask)), mask


def describe(spec: RoiSpec | None) -> list[str]:
    """Return what is inspected as lines."""
    if spec is None:
        return ["whole images"]
    lines = [f"images of {spec.image_size[0]}x{spec.image_size[1]} pixels"]
    lines += [f"--roi {roi.text()}" for roi in spec.rois]
    if not spec.rois:
        lines.append("the whole image")
    lines += [f"ignored: {';'.join(f'{x},{y}' for x, y in polygon)}" for polygon in spec.ignore]
    lines += [f"ignored: masks/{spec.mask}.png"] if spec.mask is not None else []
    return lines
