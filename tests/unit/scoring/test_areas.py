"""Tiles put together: regions across seams, one map of the whole image, and patches that do not count."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime.formats.manifest import PreprocessSpec
from visionad_runtime.preprocess import covered_cells, crop_offset
from visionad_runtime.scoring.areas import Area, area_regions, assembled_map, worst_area
from visionad_runtime.scoring.regions import Geometry

F32 = NDArray[np.float32]
WHOLE = PreprocessSpec(resize=256, crop=256, mean=(0, 0, 0), std=(1, 1, 1))


def area(roi: str, box: tuple[int, int, int, int], spots: dict[tuple[int, int, int, int], float]) -> Area:
    """An area whose map is hot in boxes (x, y, width, height) of the image."""
    shown = np.zeros((256, 256), np.float32)
    for (x, y, w, h), value in spots.items():
        u0, v0 = round((x - box[0]) * 256 / box[2]), round((y - box[1]) * 256 / box[3])
        u1, v1 = round((x + w - box[0]) * 256 / box[2]), round((y + h - box[1]) * 256 / box[3])
        shown[max(0, v0) : v1, max(0, u0) : u1] = value
    geometry = Geometry.of(box[2], box[3], WHOLE, box[0], box[1])
    return Area(roi, roi, box, shown, float(shown.max()), 0.0, geometry)


def test_regions_of_neighboring_tiles_are_merged() -> None:
    left, right = (0, 0, 256, 256), (200, 0, 256, 256)
    seam = (210, 50, 40, 20)
    areas = [
        area("a", left, {seam: 1.0, (10, 10, 20, 20): 0.5}),
        area("a", right, {seam: 2.0, (400, 100, 30, 30): 3.0}),
    ]
    found = area_regions(areas, 0.1)
    assert [(r.bbox, r.score) for r in found] == [((400, 100, 30, 30), 3.0), (seam, 2.0), ((10, 10, 20, 20), 0.5)]
    assert {r.roi for r in found} == {"a"}
    other = area_regions([areas[0], area("b", right, {seam: 2.0})], 0.1)
    assert [r.roi for r in other] == ["b", "a", "a"]  # two ROIs may look at the same place
    assert worst_area(areas) == 1 and worst_area([areas[0], areas[0]]) == 0


def test_two_regions_that_one_of_the_next_tile_joins_become_one() -> None:
    areas = [
        area("a", (0, 0, 256, 256), {(210, 20, 40, 10): 1.0, (210, 60, 40, 10): 1.5}),
        area("a", (200, 0, 256, 256), {(240, 10, 10, 80): 1.2}),
    ]
    (one,) = area_regions(areas, 0.1)
    assert (one.bbox, one.score) == ((210, 10, 40, 80), 1.5)
    x, y = np.array(one.polygon).T
    assert (x.min(), y.min()) == (210, 10) and x.max() in (248, 249) and y.max() in (88, 89)


def test_one_map_of_the_whole_image() -> None:
    rng = np.random.default_rng(0)
    one = area("a", (0, 0, 512, 256), {})
    one.anomaly_map[:] = rng.random((256, 256), np.float32)
    whole = Geometry.of(512, 256, WHOLE)
    assert np.allclose(assembled_map([one], whole), one.anomaly_map, atol=1e-5)
    cropped = PreprocessSpec(resize=256, crop=192, mean=(0, 0, 0), std=(1, 1, 1))
    inner = Geometry.of(512, 256, cropped)
    left, right = area("a", (0, 0, 256, 256), {}), area("a", (256, 0, 256, 256), {})
    left.anomaly_map[:], right.anomaly_map[:] = 1, 2
    assembled = assembled_map([left, right], inner)
    assert (assembled[:, :128] == 1).all() and (assembled[:, 128:] == 2).all()
    assert (assembled_map([right], inner)[:, :128] == 0).all()
    both = area("b", (0, 0, 512, 256), {})
    both.anomaly_map[:] = 1.5
    assert (assembled_map([left, both, right], inner)[:, :128] == 1.5).all()


@pytest.mark.parametrize(("resize", "crop", "grid"), [(64, 64, 4), (64, 48, 3), (65, 48, 4), (64, 64, 7)])
@pytest.mark.parametrize("shape", [(96, 128), (40, 333), (8, 8)])
def test_cells_are_ignored_if_more_than_half_of_their_pixels_are(
    resize: int, crop: int, grid: int, shape: tuple[int, int]
) -> None:
    """Against a fine raster of each cell."""
    spec = PreprocessSpec(resize=resize, crop=crop, mean=(0, 0, 0), std=(1, 1, 1))
    ignored = np.random.default_rng(1).random(shape) < 0.5
    ignored[: shape[0] // 3] = True
    found, offset, fine = covered_cells(ignored, spec, grid), crop_offset(resize, crop), 400
    steps = (np.arange(grid * fine) + 0.5) / fine * crop / grid + offset
    rows, columns = ((steps * size / resize).astype(int) for size in shape)
    share = ignored[np.ix_(rows, columns)].reshape(grid, fine, grid, fine).mean(axis=(1, 3))
    clear = np.abs(share - 0.5) > 0.01
    assert (found[clear] == (share > 0.5)[clear]).all() and clear.any()


def test_half_of_a_cell_is_not_more_than_half() -> None:
    spec = PreprocessSpec(resize=64, crop=64, mean=(0, 0, 0), std=(1, 1, 1))
    ignored = np.zeros((40, 40), np.bool_)
    ignored[:, :5] = True
    assert not covered_cells(ignored, spec, 4).any()
    ignored[0, 5] = True
    assert covered_cells(ignored, spec, 4)[0, 0] and covered_cells(ignored, spec, 4).sum() == 1
