from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from visionad_runtime.formats.manifest import PreprocessSpec
from visionad_runtime.scoring.regions import Geometry, Region
from visionad_runtime.visualization.overlay import (
    LONGEST_SIDE,
    SHORTEST_LONG_SIDE,
    contact_sheet,
    draw_overlay,
    heatmap,
    save_overlay,
)


def geometry_of(width: int, height: int, resize: int = 448, crop: int = 384) -> Geometry:
    return Geometry.of(width, height, PreprocessSpec(resize=resize, crop=crop, mean=(0, 0, 0), std=(1, 1, 1)))


def region(*polygon: tuple[int, int]) -> Region:
    return Region((0, 0, 1, 1), 1.0, polygon)


def plain(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 120, dtype=np.uint8)


def cold() -> np.ndarray:
    return np.zeros((256, 256), dtype=np.float32)


def draw(
    image: np.ndarray, anomaly_map: np.ndarray, geometry: Geometry, regions: list[Region] | None = None
) -> np.ndarray:
    return draw_overlay(image, anomaly_map, geometry, regions or [], "ok", 0.1, 0.5, "bolt", (0.0, 1.0), caption=False)


def test_heat_has_a_fixed_scale() -> None:
    alone = heatmap(np.full((256, 256), 0.2, dtype=np.float32), (0.0, 1.0))
    mixed = np.full((256, 256), 0.2, dtype=np.float32)
    mixed[0, 0] = 50.0  # a hot cell elsewhere changes nothing
    np.testing.assert_array_equal(heatmap(mixed, (0.0, 1.0))[1:], alone[1:])
    assert (alone == alone[0, 0]).all()
    assert (heatmap(mixed, (0.0, 100.0))[5, 5] != alone[5, 5]).any()


@pytest.mark.parametrize("value", [1.0, 7.0, np.inf, np.nan])
def test_heat_clips_beyond_the_scale_and_shows_what_is_not_a_number(value: float) -> None:
    field = cold()
    field[3, 4] = value
    coloured = heatmap(field, (0.0, 1.0))
    assert coloured.shape == (256, 256, 3) and coloured.dtype == np.uint8
    np.testing.assert_array_equal(coloured[3, 4], heatmap(np.ones((1, 1), dtype=np.float32), (0.0, 1.0))[0, 0])


def test_heat_survives_a_scale_without_length() -> None:
    assert heatmap(np.ones((4, 4), dtype=np.float32), (1.0, 1.0)).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("width", "height", "resize", "crop"),
    [
        (448, 448, 448, 384),
        (512, 512, 448, 384),
        (900, 600, 448, 392),  # the whole image is squeezed into a square
        (300, 1000, 256, 224),
        (640, 480, 224, 224),  # no crop
        (500, 500, 255, 224),  # an odd margin: the crop is not quite central
    ],
)
@pytest.mark.parametrize(("u", "v"), [(128, 128), (30, 200), (245, 12)])
def test_a_hot_cell_lands_at_its_place_in_the_original(
    width: int, height: int, resize: int, crop: int, u: int, v: int
) -> None:
    field = cold()
    field[v - 3 : v + 4, u - 3 : u + 4] = 1.0
    change = np.abs(
        draw(plain(height, width), field, geometry_of(width, height, resize, crop)).astype(float)
        - draw(plain(height, width), cold(), geometry_of(width, height, resize, crop))
    ).sum(axis=2)
    rows, columns = np.nonzero(change > change.max() / 2)
    x = ((u + 0.5) / 256 * crop + round((resize - crop) / 2)) * width / resize - 0.5
    y = ((v + 0.5) / 256 * crop + round((resize - crop) / 2)) * height / resize - 0.5
    assert abs(columns.mean() - x) < 0.75 and abs(rows.mean() - y) < 0.75


def test_normal_areas_stay_clear_and_heat_stays_inside_the_crop() -> None:
    inside = draw(plain(448, 448), cold(), geometry_of(448, 448))
    np.testing.assert_array_equal(inside[80:-80, 80:-80], plain(448, 448)[80:-80, 80:-80])
    hot = draw(plain(448, 448), np.ones((256, 256), dtype=np.float32), geometry_of(448, 448))
    np.testing.assert_array_equal(hot[:30], inside[:30])
    assert (hot[100, 100] != inside[100, 100]).any()


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 300), (300, 1), (16, 16), (3, 5000), (255, 257), (480, 640), (3000, 2000)]
)
@pytest.mark.parametrize(
    "class_name", [None, "bolt", "a very long name, much longer than any strip could ever hold " * 3]
)
def test_any_size_of_image(height: int, width: int, class_name: str | None) -> None:
    triangle = region((0, 0), (width - 1, 0), (width - 1, height - 1))
    geometry = geometry_of(width, height)
    for caption in (True, False):
        drawn = draw_overlay(
            plain(height, width),
            cold(),
            geometry,
            [triangle],
            "unknown",
            0.1,
            None,
            class_name,
            (0, 1),
            caption=caption,
        )
        assert drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[2] == 3
        longest = max(drawn.shape[:2])
        assert SHORTEST_LONG_SIDE <= longest <= LONGEST_SIDE + 80  # the strip comes on top


def test_verdicts_have_their_colours_and_regions_an_outline() -> None:
    captions = [
        draw_overlay(plain(300, 300), cold(), geometry_of(300, 300), [], verdict, 0.1, 0.5, "bolt", (0, 1))
        for verdict in ("ok", "anomalous", "review", "unknown")
    ]
    green, red, amber, gray = (strip[300, 150].astype(int) for strip in captions)
    assert green.argmax() == 1 and red.argmax() == 0 and amber[0] > amber[1] > amber[2]
    assert np.ptp(gray) < 24  # no color: nothing was decided
    outlined = draw(plain(448, 448), cold(), geometry_of(448, 448), [region((100, 100), (200, 100), (200, 200))])
    assert (outlined[100, 150] > 220).all() and (outlined[150, 200] > 220).all()


def test_input_is_left_alone() -> None:
    image = plain(400, 400)
    draw(image, np.ones((256, 256), dtype=np.float32), geometry_of(400, 400), [region((1, 1), (90, 1), (90, 90))])
    np.testing.assert_array_equal(image, plain(400, 400))


def test_save_overlay_writes_the_same_image(tmp_path: Path) -> None:
    geometry = geometry_of(300, 300)
    result = SimpleNamespace(
        anomaly_map=cold(), geometry=geometry, regions=(), verdict="ok", score=0.1, threshold=0.5, class_name="bolt",
        map_scale=(0.0, 1.0), areas=(), class_mismatch=None,
    )  # fmt: skip
    save_overlay(tmp_path / "new" / "a.png", plain(300, 300), result)  # type: ignore[arg-type]
    wanted = draw_overlay(plain(300, 300), cold(), geometry, [], "ok", 0.1, 0.5, "bolt", (0, 1))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), wanted)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_sheet_holds_tiles_of_any_size(count: int) -> None:
    tiles = [plain(10 + 300 * k, 700 - 100 * k) for k in range(count)]
    page = contact_sheet(tiles, columns=3, title="parts <b>& more" * 20)
    assert page.dtype == np.uint8 and page.shape[2] == 3
    assert sum((page == 120).all(axis=2).ravel()) >= 100 * count
