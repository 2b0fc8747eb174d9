"""Evidence names the nearest good patch: by brute force over all supports, poses and cells."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.memory_bank import MemoryBank
from visionad_runtime.formats.manifest import ViewName
from visionad_runtime.formats.roi import make_spec, parse_roi
from visionad_runtime.pipeline.evidence import good_patch
from visionad_runtime.preprocess import apply_pose, apply_view, encoding_names, prepare
from visionad_runtime.result import Result
from visionad_runtime.scoring.regions import Geometry

from tests.data import part

POSES = ("r90", "r270", "e", "r180", "fv", "fh")
SIDE = 4
"""Patches along a side, in the tiny model."""


def image(seed: int, defect: bool = False) -> np.ndarray:
    """A part that no pose maps to itself, uint8 (96, 128, 3) BGR."""
    drawn = part(seed, defect)
    cv2.rectangle(drawn, (4, 4), (40, 14), (250, 20, 20), -1)
    return drawn


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Inspector:
    """An inspector with three supports of class ``disc`` and two of class ``grid``."""
    opened = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    opened.enroll("disc", [image(seed) for seed in range(3)])
    opened.enroll("grid", [part(seed, kind="grid") for seed in range(2)])
    return opened


def hottest_cells(result: Result) -> list[tuple[int, int]]:
    """Return row and column of each region's cell, from its peak."""
    cells = []
    for region in result.regions:
        u, v = region.peak
        assert np.float32(region.score) == result.anomaly_map[v, u]
        cells.append((math.floor((v + 0.5) * SIDE / 256), math.floor((u + 0.5) * SIDE / 256)))
    return cells


def brute_force(
    inspector: Inspector, view: ViewName, query: np.ndarray
) -> list[tuple[np.float32, int, str, tuple[int, int]]]:
    """Return distance, support, pose and cell of every good patch, in no meaningful order.

    The supports are encoded again here, pose by pose. A posed grid's cells are mapped back by posing their numbers.
    """
    assert inspector.bank is not None
    spec, numbers = inspector.manifest.identity.preprocess, np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    candidates = []
    for support in range(3):
        plain = prepare(image(support)[..., ::-1], spec)
        for pose in POSES:
            posed = apply_pose(apply_view(plain, view), pose)
            tokens = inspector.encode(np.ascontiguousarray(posed)[None]).patch[0]
            cells = apply_pose(apply_pose(numbers, "fv") if view == "flip" else numbers, pose).ravel()
            for token, cell in zip(tokens, cells.tolist(), strict=True):
                score = sum(float(a) * float(b) for a, b in zip(query, token, strict=True))
                candidates.append((np.float32(1 - score), support, pose, divmod(cell, SIDE)))
    return candidates


@pytest.mark.parametrize("views", [("original",), ("flip",), ("clamp",), ("original", "flip", "clamp")])
def test_the_named_patch_has_the_distance(inspector: Inspector, tiny_model: Path, views: tuple[ViewName, ...]) -> None:
    assert inspector.bank is not None
    with Inspector.open(tiny_model, inspector.bank.folder, views=views, threads=1) as other:
        rgb = image(7, defect=True)[..., ::-1]
        ((result, trace),) = other.trace_batch([rgb], "disc", evidence=True)
        assert trace is not None and result.regions and result.verdict != "ok"
        supports = other.bank.classes["disc"].entry.images  # type: ignore[union-attr]
        for region, (row, column) in zip(result.regions, hottest_cells(result), strict=True):
            found = region.evidence
            assert found is not None
            in_view = SIDE - 1 - row if views[0] == "flip" else row
            candidates = brute_force(other, views[0], trace.tokens.patch[0, in_view * SIDE + column])
            assert found.distance == pytest.approx(min(candidates)[0], abs=2e-6)
            assert np.float32(found.distance) == trace.distances[views[0]][in_view, column]  # the same bits
            # The named patch is one of the nearest, as far as float32 tells them apart.
            support = next(i for i, one in enumerate(supports) if one.sha256 == found.support)
            geometry = Geometry.of(128, 96, other.manifest.identity.preprocess)
            named = [
                distance
                for distance, index, pose, (y, x) in candidates
                if index == support
                and pose_from_support(pose, views[0]) == found.pose
                and box(geometry, y, x) == found.bbox
            ]
            assert len(named) == 1
            assert named[0] == pytest.approx(found.distance, abs=2e-6)
            assert found.cell == box(geometry, row, column)
            assert found.kept is not None and (other.bank.folder / "images" / found.kept).exists()  # type: ignore[union-attr]


def pose_from_support(pose: str, view: str) -> str:
    """Return the pose that maps a support to the image, for a bank's pose of a view: the view's flip is undone on both sides."""
    return {"r90": "r270", "r270": "r90"}.get(pose, pose) if view == "flip" else pose


def box(geometry: Geometry, row: int, column: int) -> tuple[int, int, int, int]:
    """Return the pixels of a cell by another way: the pixels whose area overlaps it."""
    (left, top), (right, bottom) = (
        geometry.to_original(x * 256 / SIDE, y * 256 / SIDE) for x, y in ((column, row), (column + 1, row + 1))
    )
    xs = [x for x in range(geometry.width) if x + 1 > left and x < right]
    ys = [y for y in range(geometry.height) if y + 1 > top and y < bottom]
    return xs[0], ys[0], len(xs), len(ys)


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("view", ["original", "flip", "clamp"])
def test_a_posed_support_is_traced_back(inspector: Inspector, pose: str, view: ViewName) -> None:
    """Rows of the bank that are exactly a posed support's are named with that pose and the cells that they came from."""
    assert inspector.bank is not None
    bank = inspector.bank.classes["disc"].rois[0]
    numbers = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    spec = inspector.manifest.identity.preprocess
    query = apply_view(apply_pose(prepare(image(1)[..., ::-1], spec), pose), view)
    tokens = inspector.encode(np.ascontiguousarray(query)[None]).patch[0]
    scores = tokens.astype(np.float64) @ bank.rows(view).T.astype(np.float64)
    for patch in range(SIDE * SIDE):
        found = good_patch(bank, view, int(scores[patch].argmax()))
        row, column = divmod(patch, SIDE)
        upright = (SIDE - 1 - row if view == "flip" else row, column)
        expected = divmod(int(apply_pose(numbers, pose)[upright]), SIDE)
        assert (found.support, found.pose, found.cell) == (1, pose, expected)


def test_every_row_has_one_place() -> None:
    views: tuple[ViewName, ...] = ("original", "flip", "clamp")
    blocks = encoding_names(views)
    bank = MemoryBank("a", "image", 2, blocks, np.zeros((len(blocks), 6, 9, 4), np.float32))
    for view in views:
        places = {good_patch(bank, view, row) for row in range(len(bank.rows(view)))}
        assert len(places) == len(bank.rows(view)) == 6 * 6 * 9
        assert {(p.support, p.tile) for p in places} == {(k, t) for k in range(3) for t in range(2)}
        assert {p.pose for p in places} == set(POSES)


def test_evidence_is_the_same_in_a_batch_and_changes_nothing_else(inspector: Inspector) -> None:
    images = [image(seed, defect=True) for seed in range(7, 11)]
    plain = inspector.inspect_batch(images, class_name="disc")
    together = inspector.inspect_batch(images, class_name="disc", evidence=True)
    assert [inspector.inspect(one, class_name="disc", evidence=True).regions for one in images] == [
        r.regions for r in together
    ]
    for one, other in zip(plain, together, strict=True):
        assert all(region.evidence is None for region in one.regions)
        assert all(region.evidence is not None for region in other.regions)
        without = []
        for result in (one, other):
            facts = {**result.to_dict("x"), "timings_ms": None}
            for region in facts["regions"]:
                region.pop("evidence")
            without.append(facts)
        assert without[0] == without[1]
        assert "evidence" in other.timings and "evidence" not in one.timings
    facts = together[0].to_dict("x")["regions"][0]["evidence"]
    assert set(facts) == {"support", "source", "bbox", "pose", "distance"}


def test_a_support_of_unknown_size_has_no_box(inspector: Inspector, tiny_model: Path) -> None:
    bank = inspector.bank
    assert bank is not None

    def sizes_forgotten(current):  # type: ignore[no-untyped-def]
        images = tuple(one.model_copy(update={"size": None}) for one in current.entry.images)
        return current.entry.model_copy(update={"images": images})

    bank.update("disc", "as an earlier release", sizes_forgotten)
    result = inspector.inspect(image(7, defect=True), class_name="disc", evidence=True)
    assert all(region.evidence is not None and region.evidence.bbox is None for region in result.regions)


def test_a_mix_up_is_told(inspector: Inspector) -> None:
    grid, disc = part(9, kind="grid"), image(9)
    assert inspector.inspect(grid, class_name="disc").class_mismatch == "grid"
    assert inspector.inspect(disc, class_name="grid").class_mismatch == "disc"
    assert inspector.inspect(grid, class_name="grid").class_mismatch is None
    assert inspector.inspect(grid).class_mismatch is None  # routed
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    assert inspector.inspect(noise, class_name="disc").class_mismatch in (None, "grid")


def test_the_mix_up_alarm_changes_no_verdict(inspector: Inspector, tiny_model: Path, tmp_path: Path) -> None:
    with Inspector.open(tiny_model, tmp_path / "alone", threads=1) as alone:
        alone.enroll("disc", [image(seed) for seed in range(3)])
        for one in (part(9, kind="grid"), image(7, defect=True), image(8)):
            here, there = inspector.inspect(one, class_name="disc"), alone.inspect(one, class_name="disc")
            assert there.class_mismatch is None  # one class: nothing to be nearer to
            assert (here.score, here.verdict, here.regions) == (there.score, there.verdict, there.regions)


def test_evidence_in_a_roi_is_that_of_crops(tiny_model: Path, tmp_path: Path) -> None:
    x, y, width, height = 30, 10, 80, 70

    def crop(one: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(one[y : y + height, x : x + width])

    supports = [image(seed) for seed in range(3)]
    spec = make_spec([parse_roi(f"middle={x},{y},{width},{height}")], (128, 96))
    with (
        Inspector.open(tiny_model, tmp_path / "whole", threads=1) as whole,
        Inspector.open(tiny_model, tmp_path / "cropped", threads=1) as cropped,
    ):
        whole.enroll("disc", supports, roi=spec)
        cropped.enroll("disc", [crop(one) for one in supports])
        found = whole.inspect(image(7, defect=True), class_name="disc", evidence=True).regions
        expected = cropped.inspect(crop(image(7, defect=True)), class_name="disc", evidence=True).regions
        shas = [
            [one.sha256 for one in bank.classes["disc"].entry.images] for bank in (whole.bank, cropped.bank) if bank
        ]
    assert found and len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.evidence is not None and other.evidence is not None
        assert (one.evidence.pose, one.evidence.distance) == (other.evidence.pose, other.evidence.distance)
        assert shas[0].index(one.evidence.support) == shas[1].index(other.evidence.support)
        for here, there in ((one.evidence.bbox, other.evidence.bbox), (one.evidence.cell, other.evidence.cell)):
            assert here is not None and there is not None
            assert here == (there[0] + x, there[1] + y, *there[2:])


def test_evidence_in_tiles_is_the_nearest_of_all_tiles(tiny_model: Path, tmp_path: Path) -> None:
    spec = make_spec([parse_roi("left=0,0,60,96@2x1"), parse_roi("right=60,0,68,96@1x2")], (128, 96))
    assert spec is not None
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [image(seed) for seed in range(3)], roi=spec)
        rgb = image(7, defect=True)[..., ::-1]
        ((result, trace),) = inspector.trace_batch([rgb], "disc", evidence=True)
        assert trace is not None and inspector.bank is not None
        rois = {rows.roi: rows for rows in inspector.bank.classes["disc"].rois}
    assert len({region.roi for region in result.regions}) == 2
    for region in result.regions:
        found, area = region.evidence, result.areas[region.area]
        assert found is not None and found.bbox is not None and area.roi == region.roi
        u, v = region.peak
        assert np.float32(region.score) == area.anomaly_map[v, u]
        row, column = math.floor((v + 0.5) * SIDE / 256), math.floor((u + 0.5) * SIDE / 256)
        tile = trace.tiles[region.area]
        token = tile.tokens.patch[0, row * SIDE + column]
        best = (rois[region.roi].rows("original").astype(np.float64) @ token.astype(np.float64)).max()
        assert found.distance == np.float32(found.distance) == tile.distances["original"][row, column]
        assert found.distance == pytest.approx(1 - best, abs=2e-6)
        x, y, width, height = area.box
        assert x <= found.cell[0] < x + width and y <= found.cell[1] < y + height
        named = next(roi for roi in spec.rois if roi.name == region.roi).box
        assert named[0] <= found.bbox[0] and found.bbox[0] + found.bbox[2] <= named[0] + named[2]
        assert named[1] <= found.bbox[1] and found.bbox[1] + found.bbox[3] <= named[1] + named[3]
