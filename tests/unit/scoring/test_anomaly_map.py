"""Maps against torch, the score against its definition, regions against the places where they were put."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionad_runtime.formats.manifest import PreprocessSpec, ViewName
from visionad_runtime.preprocess import VIEWS, resize_crop
from visionad_runtime.scoring import anomaly_map, regions
from visionad_runtime.scoring.anomaly_map import MAP_SIZE
from visionad_runtime.scoring.regions import Geometry, Region

F32 = NDArray[np.float32]


def spec_of(resize: int, crop: int) -> PreprocessSpec:
    return PreprocessSpec(resize=resize, crop=crop, mean=(0, 0, 0), std=(1, 1, 1))


def geometry_of(width: int, height: int, resize: int = 448, crop: int = 392) -> Geometry:
    return Geometry.of(width, height, spec_of(resize, crop))


TOP = 655
ONE_TO_ONE = geometry_of(MAP_SIZE, MAP_SIZE, MAP_SIZE, MAP_SIZE)
"""An image in which map pixels are image pixels."""


def cold() -> F32:
    return np.zeros((MAP_SIZE, MAP_SIZE), np.float32)


def noise(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def labels_of(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Connected areas (8 neighbours), by scipy."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    return ndimage.label(mask, structure=np.ones((3, 3)))  # type: ignore[no-any-return]


# --- fuse, upsample, score -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [o for n in (1, 2, 3) for o in itertools.permutations(VIEWS, n)])
@pytest.mark.parametrize("side", [1, 2, 28])
def test_fuse_adds_and_flips_back(views: tuple[ViewName, ...], side: int) -> None:
    grids = {view: noise(i, side, side) for i, view in enumerate(VIEWS) if view in views}
    before = {view: grid.copy() for view, grid in grids.items()}
    fused = anomaly_map.fuse({view: grids[view] for view in views})
    wanted = sum(np.flipud(grids[v]) if v == "flip" else grids[v] for v in views)
    assert fused.dtype == np.float32 and fused.flags.c_contiguous
    np.testing.assert_allclose(fused, wanted, rtol=0, atol=1e-6)
    fused += 1  # the caller's own grids must not be what came back
    for view, grid in grids.items():
        np.testing.assert_array_equal(grid, before[view])


@pytest.mark.parametrize("side", [1, 2, 3, 7, 24, 28, 37, 256, 300])
@pytest.mark.parametrize(
    ("size", "tolerance", "note"),
    [
        (256, 1e-6, "the method's: a power of two, so places between cells are exact"),
        (392, 1e-4, "others: torch rounds the places once (fused multiply-add), numpy twice"),
        (5, 1e-4, "down, without antialiasing"),
    ],
)
def test_upsample_is_torchs(side: int, size: int, tolerance: float, note: str) -> None:
    torch = pytest.importorskip("torch", reason="upsampling is defined by torch")
    grid = noise(side, side, side) * 6
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(grid)[None, None], size=(size, size), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    found = anomaly_map.upsample(grid, size)
    assert found.dtype == np.float32 and found.shape == (size, size)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def test_upsample_takes_a_read_only_and_a_reversed_grid() -> None:
    grid = noise(0, 28, 28)
    reversed_grid = grid[::-1]
    reversed_grid.flags.writeable = False
    np.testing.assert_array_equal(anomaly_map.upsample(reversed_grid), anomaly_map.upsample(reversed_grid.copy()))


def literal_score(anomaly_map: F32) -> float:
    return float(np.mean(np.sort(anomaly_map, axis=None)[::-1][:655], dtype=np.float64))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([1, 2, 5, 300, 2**24]), scale=st.sampled_from([1e-6, 1, 6])
)
def test_score_is_the_mean_of_the_655_largest(seed: int, levels: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    field = (rng.integers(0, levels, (MAP_SIZE, MAP_SIZE)) * (scale / levels)).astype(
        np.float32
    )  # few levels: many ties
    before = field.copy()
    score = anomaly_map.image_score(field)
    assert isinstance(score, float)
    assert score == pytest.approx(literal_score(field), rel=1e-12)
    assert anomaly_map.image_score(rng.permutation(field.ravel()).reshape(field.shape)) == score
    np.testing.assert_array_equal(field, before)


def test_score_counts_655_pixels() -> None:
    field = cold()
    field.flat[:TOP] = 1
    assert anomaly_map.image_score(field) == 1
    field.flat[0] = 0
    assert anomaly_map.image_score(field) == 654 / 655
    field.flat[:2000] = 1
    assert anomaly_map.image_score(field) == 1


@pytest.mark.parametrize("share, count", [(0.002, 131), (1.0, 65536), (1e-9, 1)])
def test_the_share_of_the_map_that_makes_the_score(share: float, count: int) -> None:
    field = noise(3, MAP_SIZE, MAP_SIZE)
    assert anomaly_map.top_pixels(share) == count
    assert anomaly_map.image_score(field, share) == pytest.approx(
        np.sort(field.ravel())[-count:].astype(np.float64).mean(), rel=1e-12
    )
    mean, edge = anomaly_map.top_k_mean(field, share)
    assert (mean, edge) == (anomaly_map.image_score(field, share), np.sort(field.ravel())[-count])
    found = regions.regions(field, ONE_TO_ONE, edge, inclusive=True)
    assert max(r.score for r in found) == field.max()
    assert count == 65536 or sum(r.score for r in found) > 0


# --- regions: where --------------------------------------------------------------------------------------------------


def map_of(image: NDArray[np.uint8], spec: PreprocessSpec) -> F32:
    """What a perfect detector of white would make of an image: the input it gets, averaged to 256 × 256."""
    grey = resize_crop(image, spec)[:, :, 0].astype(np.float32) / 255
    return cv2.resize(grey, (MAP_SIZE, MAP_SIZE), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("width", "height", "resize", "crop", "note"),
    [
        (448, 448, 448, 392, "as large as the input"),
        (640, 480, 448, 392, "wide"),
        (500, 1900, 448, 392, "tall"),
        (2448, 2048, 448, 384, "large"),
        (2448, 2048, 448, 448, "large, no crop"),
        (700, 300, 256, 256, "no crop, map pixels are input pixels"),
        (300, 300, 255, 224, "odd margin"),
        (120, 90, 448, 392, "smaller than the map"),
    ],
)
@pytest.mark.parametrize(("left", "top"), [(0.15, 0.15), (0.6, 0.2), (0.3, 0.7), (0.45, 0.5)])
def test_a_defect_is_found_where_it_lies(
    width: int, height: int, resize: int, crop: int, note: str, left: float, top: float
) -> None:
    x, y, w, h = int(left * width), int(top * height), int(0.2 * width), int(0.1 * height)
    image = np.zeros((height, width, 3), np.uint8)
    image[y : y + h, x : x + w] = 255
    field = map_of(image, spec_of(resize, crop))
    (region,) = regions.regions(field, geometry_of(width, height, resize, crop), 0.5)
    across, down = width * crop / resize / MAP_SIZE, height * crop / resize / MAP_SIZE  # a map pixel, in image pixels
    bx, by, bw, bh = region.bbox
    assert abs(bx - x) <= across + 1 and abs(bx + bw - x - w) <= across + 1
    assert abs(by - y) <= down + 1 and abs(by + bh - y - h) <= down + 1
    assert region.score == field.max()


@pytest.mark.parametrize(
    ("width", "height", "resize", "crop"),
    [(100, 50, 64, 64), (97, 211, 448, 392), (1, 1, 448, 392), (9, 5000, 255, 224)],
)
def test_the_whole_map_is_the_crop_and_no_more(width: int, height: int, resize: int, crop: int) -> None:
    (region,) = regions.regions(cold() + 1, geometry_of(width, height, resize, crop), 0.5)
    cut = round((resize - crop) / 2)
    x, y, w, h = region.bbox
    assert (x, y) == (cut * width // resize, cut * height // resize)
    assert x + w == max(x + 1, -(-(cut + crop) * width // resize))  # rounded outwards
    assert y + h == max(y + 1, -(-(cut + crop) * height // resize))


@pytest.mark.parametrize(("u", "v"), [(0, 0), (255, 0), (0, 255), (255, 255), (7, 200)])
def test_one_map_pixel_is_a_region_with_an_area(u: int, v: int) -> None:
    field = cold()
    field[v, u] = 1
    (small,) = regions.regions(field, ONE_TO_ONE, 0.5)
    assert small.bbox == (u, v, 1, 1) and set(small.polygon) == {(u, v)}
    (large,) = regions.regions(field, geometry_of(2560, 5120, MAP_SIZE, MAP_SIZE), 0.5)
    assert large.bbox == (10 * u, 20 * v, 10, 20)
    assert cv2.contourArea(np.array(large.polygon, np.int32)) == 9 * 19


def test_geometry_maps_corners_to_the_crops_corners() -> None:
    geometry = geometry_of(896, 448, 448, 392)
    assert geometry.to_original(0, 0) == (56, 28)
    assert geometry.to_original(256, 256) == (840, 420)
    assert geometry.to_original(128, 128) == (448, 224)


# --- regions: which --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.sampled_from([1, 2, 5, 28, 90, 256]),
    quantile=st.sampled_from([0.02, 0.3, 0.5, 0.9, 0.99, 0.9999]),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    spec=st.sampled_from([(448, 392), (448, 448), (255, 224), (256, 256)]),
)
def test_every_area_is_one_region_inside_the_image(
    seed: int, side: int, quantile: float, width: int, height: int, spec: tuple[int, int]
) -> None:
    field = anomaly_map.upsample(noise(seed, side, side))
    level = float(np.quantile(field, quantile))
    labels, count = labels_of(field > level)
    geometry = geometry_of(width, height, *spec)
    found = regions.regions(field, geometry, level)
    assert sorted(r.score for r in found) == sorted(float(field[labels == i].max()) for i in range(1, count + 1))
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    for region in found:
        x, y, w, h = region.bbox
        assert 0 <= x < x + w <= width and 0 <= y < y + h <= height
        assert len(region.polygon) >= 3
        for px, py in region.polygon:
            assert 0 <= px < width and 0 <= py < height
            assert x - 1 <= px <= x + w and y - 1 <= py <= y + h


def literal_regions(hot: NDArray[np.bool_], field: F32, geometry: Geometry) -> list[Region]:
    """One area at a time, by scipy's labels."""
    labels, count = labels_of(hot)
    size, found = (geometry.width, geometry.height), []
    for i in range(1, count + 1):
        v, u = np.nonzero(labels == i)
        low = [math.floor(at) for at in geometry.to_original(float(u.min()), float(v.min()))]
        high = [math.ceil(at) for at in geometry.to_original(u.max() + 1.0, v.max() + 1.0)]
        w, h = (max(1, min(end, limit) - start) for start, end, limit in zip(low, high, size, strict=True))
        x, y = low
        (outline,), _ = cv2.findContours((labels == i).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        middles = [geometry.to_original(a + 0.5, b + 0.5) for a, b in outline[:, 0].tolist()]
        polygon = tuple((min(int(a), size[0] - 1), min(int(b), size[1] - 1)) for a, b in middles)
        if len(polygon) < 3:
            right, bottom = min(x + w, size[0]) - 1, min(y + h, size[1]) - 1
            polygon = (x, y), (right, y), (right, bottom), (x, bottom)
        first = int(field[v, u].argmax())  # in reading order; a value that is no number counts as the largest
        found.append(
            Region((x, y, w, h), float(field[labels == i].max()), polygon, peak=(int(u[first]), int(v[first])))
        )
    return found


def hill(u: int, v: int) -> F32:
    down, across = np.mgrid[:MAP_SIZE, :MAP_SIZE]
    return np.exp(-((across - u) ** 2 + (down - v) ** 2) / 500).astype(np.float32)


def wild() -> F32:
    """A noisy map in which some values are no numbers."""
    field = anomaly_map.upsample(noise(5, 60, 60))
    field[noise(6, MAP_SIZE, MAP_SIZE) < 0.01] = np.nan
    return field


FIELDS = {
    "smooth": hill(90, 120) + anomaly_map.upsample(noise(1, 28, 28)) / 10,
    "in a corner": hill(0, 255) + hill(255, 0),
    "noisy": anomaly_map.upsample(noise(2, 90, 90)),
    "every pixel its own": noise(3, MAP_SIZE, MAP_SIZE),
    "plateaus": np.floor(anomaly_map.upsample(noise(4, 40, 40)) * 6) / np.float32(6),
    "along the border": np.pad(noise(7, 252, 252) / 2, 2, constant_values=0.9),
    "not all numbers": wild(),
}


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 0.999, 1.0])  # from all of the map to nothing, or its highest only
@pytest.mark.parametrize("kind", FIELDS)
def test_regions_are_the_areas_one_by_one(kind: str, share: float, inclusive: bool) -> None:
    field = FIELDS[kind].astype(np.float32)
    level = float(np.nanquantile(field, share, method="lower"))
    hot = field >= level if inclusive else field > level
    geometry = geometry_of(1000, 70)
    if not hot.any():
        assert regions.regions(field, geometry, level, inclusive=inclusive) == ()
    if labels_of(hot)[1] > 400:
        hot[:, 40:] = False  # the literal way takes its time
        field[:, 40:] = -1
    wanted = literal_regions(hot, field, geometry)
    found = regions.regions(field, geometry, level, inclusive=inclusive)
    assert Counter(found) == Counter(wanted)
    assert [(-r.score, r.bbox) for r in found] == sorted((-r.score, r.bbox) for r in found)


def test_bboxes_are_those_of_the_areas() -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    field = anomaly_map.upsample(noise(3, 40, 40))
    labels, count = labels_of(field > 0.7)
    assert count > 20
    wanted = {(c.start, r.start, c.stop - c.start, r.stop - r.start) for r, c in ndimage.find_objects(labels)}
    assert {r.bbox for r in regions.regions(field, ONE_TO_ONE, 0.7)} == wanted


def test_polygons_follow_the_outline() -> None:
    field = cold()
    cv2.circle(field, (100, 120), 40, 1.0, -1)
    field[200:231, 30:81] = 2
    square, disc = regions.regions(field, ONE_TO_ONE, 0.5)
    assert set(square.polygon) == {(30, 200), (80, 200), (80, 230), (30, 230)}
    painted = cold()
    cv2.fillPoly(painted, [np.array(disc.polygon, np.int32)], 1.0)
    np.testing.assert_array_equal(painted[:200] > 0, field[:200] > 0)


def rings(*radii: int) -> F32:
    """Square outlines around the centre, the outer the hotter."""
    field = cold()
    for radius in radii:
        cv2.rectangle(field, (128 - radius, 128 - radius), (128 + radius, 128 + radius), 1 + radius / 100, 3)
    return field


@pytest.mark.parametrize(
    ("radii", "note"),
    [((100, 50), "a ring in a ring"), ((100, 70, 40, 10), "three deep"), ((100, 2), "a dot in a ring")],
)
def test_areas_inside_holes_are_found(radii: tuple[int, ...], note: str) -> None:
    found = regions.regions(rings(*radii), ONE_TO_ONE, 0.5)
    assert [r.score for r in found] == pytest.approx([1 + r / 100 for r in radii])
    assert [r.bbox[2] for r in found] == sorted((r.bbox[2] for r in found), reverse=True)


def test_a_regions_score_is_its_own_not_its_neighbours() -> None:
    field = cold()
    field[10:60, 10:12] = field[58:60, 10:60] = 1  # an L, and in its corner's box something hotter
    field[20:30, 30:40] = 5
    hot, angle = regions.regions(field, ONE_TO_ONE, 0.5)
    assert (hot.score, hot.bbox) == (5, (30, 20, 10, 10))
    assert (angle.score, angle.bbox) == (1, (10, 10, 50, 50))


def test_diagonal_neighbours_are_one_area() -> None:
    field = cold()
    field[np.arange(50, 60), np.arange(50, 60)] = 1
    (region,) = regions.regions(field, ONE_TO_ONE, 0.5)
    assert region.bbox == (50, 50, 10, 10)


def test_equal_scores_have_a_fixed_order() -> None:
    field = cold()
    for u, v in ((200, 3), (9, 90), (9, 20), (100, 200)):
        field[v, u] = 1
    assert [r.bbox[:2] for r in regions.regions(field, ONE_TO_ONE, 0.5)] == [(9, 20), (9, 90), (100, 200), (200, 3)]


def test_only_pixels_above_the_level_count() -> None:
    field = cold() + np.float32(0.25)
    field[5, 5] = 0.75
    assert regions.regions(field, ONE_TO_ONE, 0.75) == ()
    assert [r.bbox for r in regions.regions(field, ONE_TO_ONE, 0.5)] == [(5, 5, 1, 1)]


def test_from_the_edge_on_exactly_the_655_score_pixels_count() -> None:
    places = [(u, v) for v in range(0, MAP_SIZE, 2) for u in range(0, MAP_SIZE, 2)]  # no two touch
    order = np.random.default_rng(0).permutation(len(places))
    field = cold()
    for rank, i in enumerate(order):
        field[places[i][1], places[i][0]] = 1 + rank / len(places)
    mean, edge = anomaly_map.top_k_mean(field)
    found = regions.regions(field, ONE_TO_ONE, edge, inclusive=True)
    hottest = [places[i] for i in order[::-1][:TOP]]
    assert [r.bbox for r in found] == [(u, v, 1, 1) for u, v in hottest]
    assert np.mean([r.score for r in found]) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_a_constant_map(value: float) -> None:
    field = cold() + np.float32(value)
    assert anomaly_map.top_k_mean(field) == (value, value)
    assert regions.regions(field, ONE_TO_ONE, value) == ()
    whole = regions.regions(field, ONE_TO_ONE, value, inclusive=True)  # every pixel ties with the 655th
    assert [(r.bbox, r.score) for r in whole] == [((0, 0, 256, 256), value)]


@pytest.mark.parametrize(("level", "inclusive"), [(1.0, True), (0.5, False)])
def test_a_image_of_one_pixel(level: float, inclusive: bool) -> None:
    field = cold()
    field[40:90, 40:90] = field[200:240, 100:180] = 1
    found = regions.regions(field, geometry_of(1, 1), level, inclusive=inclusive)
    assert len(found) == 2
    assert all(r.bbox == (0, 0, 1, 1) and set(r.polygon) == {(0, 0)} for r in found)


def test_regions_are_plain_numbers_and_leave_the_map_alone() -> None:
    field = anomaly_map.upsample(noise(5, 28, 28))
    field.flags.writeable = False
    found = regions.regions(field, geometry_of(640, 480), 0.6)
    assert found and all(isinstance(r, Region) for r in found)
    for region in found:  # they go into JSON as they are
        assert type(region.score) is float
        assert {type(v) for v in region.bbox} == {type(v) for point in region.polygon for v in point} == {int}
