"""The image files of reports from the field, where they lie beside the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from visionad_runtime.errors import ImageError
from visionad_runtime.images.decode import load
from visionad_runtime.images.pixels import pixel_digest

pytestmark = pytest.mark.slow(group="real-data")


@pytest.fixture
def cases(shared: Path) -> Path:
    """The folder of the reports' files."""
    if not (shared / "cases").is_dir():
        pytest.skip(f"no files of reports at {shared / 'cases'}")
    return shared / "cases"


@pytest.mark.parametrize(
    ("one", "other", "depths"),
    [
        ("flower-rgb-planar-16.tif", "flower-rgb-contig-16.tif", (16, 16)),
        ("tiff_strip_planar_16bit_RGB.tiff", "tiff_tiled_planar_16bit_RGB.tiff", (16, 16)),
        ("grey16_miniswhite.tif", "grey8_miniswhite.tif", (16, None)),
        ("pal4rle.bmp", "pal4.bmp", (None, None)),
        ("png_ztxt_2MB.png", "thumb_marked.tif", (None, None)),
    ],
)
def test_two_files_of_one_image_are_one_array(
    cases: Path, one: str, other: str, depths: tuple[int | None, int | None]
) -> None:
    assert pixel_digest(load(cases / one, depths[0])) == pixel_digest(load(cases / other, depths[1]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jpeg_cut_with_eoi.jpg", "damaged or truncated image"),
        ("jpeg_hole512.jpg", "damaged or truncated image"),
        ("jpeg_lost_packet.jpg", "damaged or truncated image"),
        ("dscf0013.tif", "holds 2 frames"),
    ],
)
def test_damage_and_a_second_page_are_refused(cases: Path, name: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load(cases / name)


def test_exif_does_not_rotate(cases: Path) -> None:
    image = load(cases / "exif6.jpg")
    assert image.shape == (512, 330, 3) and image.dtype == np.uint8
