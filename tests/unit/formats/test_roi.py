"""ROIs as text and on disk; their tiles."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.roi import MIN_SIDE, Roi, RoiSpec, bounding_box, make_spec, parse_roi, tile_counts


@pytest.mark.parametrize(
    ("text", "box", "polygon", "grid"),
    [
        ("label=120,40,600,400", (120, 40, 600, 400), None, (1, 1)),
        ("a-1_b=0,0,64,64@2x3", (0, 0, 64, 64), None, (2, 3)),
        (" x=1,2;30,2;30,40 ", (1, 2, 30, 39), ((1, 2), (30, 2), (30, 40)), (1, 1)),
        ("x=5,5;1,9;20,30;2,40@1X2", (1, 5, 20, 36), ((5, 5), (1, 9), (20, 30), (2, 40)), (1, 2)),
    ],
)
def test_text_and_back(
    text: str, box: tuple[int, ...], polygon: tuple[tuple[int, int], ...] | None, grid: tuple[int, int]
) -> None:
    roi = parse_roi(text)
    assert (roi.box, roi.polygon, roi.grid) == (box, polygon, grid)
    assert parse_roi(roi.text()) == roi


@pytest.mark.parametrize(
    "text", ["", "a", "a=", "a=1,2,3,4,5", "a=1.5,0,20,20", "a=1,2;3", "a=0,0,20,20@2", "a=b=0,0,9,9"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(VisionADError, match="expected"):
        parse_roi(text)


@given(
    st.integers(MIN_SIDE, 3000), st.integers(MIN_SIDE, 3000), st.integers(1, 16), st.integers(1, 16), st.floats(0, 0.5)
)
def test_tiles_cover_the_box_and_overlap(width: int, height: int, rows: int, columns: int, overlap: float) -> None:
    roi = Roi(name="a", box=(10, 20, width, height), grid=(rows, columns), overlap=overlap)
    tiles = roi.tiles
    assert len(tiles) == rows * columns and len({tile[2:] for tile in tiles}) == 1
    w, h = tiles[0][2:]
    xs, ys = sorted({tile[0] for tile in tiles}), sorted({tile[1] for tile in tiles})
    assert (xs[0], ys[0], xs[-1] + w, ys[-1] + h) == (10, 20, 10 + width, 20 + height)
    for starts, side in ((xs, w), (ys, h)):
        for a, b in itertools.pairwise(starts):
            assert a + side >= b, "a gap"
            assert a + side - b >= overlap * side - 1.5


def test_a_spec_is_checked_and_named() -> None:
    one, other = parse_roi("a=0,0,50,50"), parse_roi("b=10,10,20,20@2x1")
    spec = make_spec([one, other], (64, 64))
    assert spec is not None and spec.names == ("a", "b") and tile_counts(spec) == (1, 2)
    assert make_spec([], (64, 64)) is None and tile_counts(None) == (1,)
    masked = make_spec([], (64, 64), "0" * 64)
    assert masked is not None and masked.names == ("image",) and masked.tiles == (((0, 0, 64, 64),),)
    assert len({s.digest() for s in (spec, masked, make_spec([one], (64, 64)), make_spec([one], (65, 64))) if s}) == 4
    assert RoiSpec.model_validate_json(spec.model_dump_json()) == spec
    for rois, message in (([one, one], "not unique"), ([parse_roi("a=0,0,65,9")], "not inside the image of 64x64")):
        with pytest.raises(VisionADError, match=message):
            make_spec(rois, (64, 64))
    with pytest.raises(ValidationError, match="bounding box"):
        RoiSpec(image_size=(64, 64), rois=(Roi(name="a", box=(0, 0, 30, 30), polygon=((0, 0), (9, 0), (9, 9))),))
    assert bounding_box(((3, 4), (3, 4), (5, 9))) == (3, 4, 3, 6)
