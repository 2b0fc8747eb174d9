"""Regions of interest: what is inspected is exactly what crops of the images would give."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime import BankError, ImageError, Inspector
from visionad_runtime.formats.roi import Roi, RoiSpec, make_spec, parse_roi
from visionad_runtime.result import Result
from visionad_runtime.teaching.calibrate import calibrate_class

from tests.data import part

Image = NDArray[np.uint8]
SIZE = (128, 96)
BOX = (30, 14, 70, 66)


def crop(image: Image, box: tuple[int, int, int, int] = BOX) -> Image:
    x, y, w, h = box
    return np.ascontiguousarray(image[y : y + h, x : x + w])


def png(mask: Image) -> bytes:
    return cv2.imencode(".png", mask)[1].tobytes()


def masked(mask: Image, *rois: str) -> dict[str, Any]:
    """Return the arguments of ``enroll`` for ROIs and a mask."""
    file = png(mask)
    spec = make_spec([parse_roi(roi) for roi in rois], SIZE, hashlib.sha256(file).hexdigest())
    return {"roi": spec, "mask": file}


def spec(*rois: str) -> RoiSpec:
    made = make_spec([parse_roi(roi) for roi in rois], SIZE)
    assert made is not None
    return made


@pytest.fixture
def opened(tiny_model: Path, tmp_path: Path) -> Iterator[Any]:
    """Open inspectors with banks of their own."""
    inspectors = []

    def open_bank(name: str) -> Inspector:
        inspectors.append(Inspector.open(tiny_model, tmp_path / name, threads=1))
        return inspectors[-1]

    yield open_bank
    for inspector in inspectors:
        inspector.close()


def same(found: Result, wanted: Result) -> None:
    assert (found.score, found.threshold, found.verdict) == (wanted.score, wanted.threshold, wanted.verdict)
    assert found.p_value == wanted.p_value
    assert found.anomaly_map.tobytes() == wanted.anomaly_map.tobytes()


def test_a_box_is_bit_for_bit_a_bank_of_crops(opened: Any) -> None:
    whole, cropped = opened("whole"), opened("cropped")
    whole.enroll("disc", [part(i) for i in range(4)], roi=spec("middle={},{},{},{}".format(*BOX)))
    cropped.enroll("disc", [crop(part(i)) for i in range(4)])
    assert whole.bank.classes["disc"].entry.calibration.scores == cropped.bank.classes["disc"].entry.calibration.scores
    for gray in (False, True):
        image = part(9, defect=True)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if gray else image
        found, wanted = whole.inspect(image, class_name="disc"), cropped.inspect(crop(image), class_name="disc")
        same(found, wanted)
        assert found.regions and len(found.regions) == len(wanted.regions)
        for one, other in zip(found.regions, wanted.regions, strict=True):
            x, y, w, h = other.bbox
            assert one.bbox == (x + BOX[0], y + BOX[1], w, h) and one.score == other.score
            assert one.polygon == tuple((u + BOX[0], v + BOX[1]) for u, v in other.polygon)
            assert (one.roi, other.roi) == ("middle", "image")
        (area,) = found.areas
        assert (area.roi, area.name, area.box) == ("middle", "middle", BOX)


def test_the_verdict_is_that_of_the_worst_roi(opened: Any) -> None:
    boxes = {"left": (0, 0, 60, 96), "right": (64, 10, 64, 80)}
    rois = [f"{name}={','.join(map(str, box))}" for name, box in boxes.items()]
    both = opened("both")
    both.enroll("disc", [part(i) for i in range(3)], roi=spec(*rois))
    image = part(9, defect=True)
    found = both.inspect(image, class_name="disc")
    scores = {}
    for name, box in boxes.items():
        alone = opened(name)
        alone.enroll("disc", [crop(part(i), box) for i in range(3)])
        scores[name] = alone.inspect(crop(image, box), class_name="disc")
    worst = max(scores, key=lambda name: scores[name].score)
    assert found.score == scores[worst].score
    assert found.anomaly_map.tobytes() == scores[worst].anomaly_map.tobytes()
    assert {area.name: area.score for area in found.areas} == {name: one.score for name, one in scores.items()}
    x, y, w, h = boxes[worst]
    assert (found.geometry.left, found.geometry.top, found.geometry.width, found.geometry.height) == (x, y, w, h)
    assert found.to_dict("x")["regions"][0]["roi"] in boxes


def test_tiles_share_one_bank_and_regions_across_a_seam_are_one(opened: Any) -> None:
    inspector = opened("tiles")
    inspector.enroll("disc", [part(i) for i in range(3)], roi=spec("all=0,0,128,96@1x2"))
    bank = inspector.bank.classes["disc"]
    (rows,) = bank.rois
    assert rows.tiles == 2 and rows.features.shape[1] == 6
    boxes = [area.box for area in inspector.inspect(part(9), class_name="disc").areas]
    assert boxes == list(spec("all=0,0,128,96@1x2").tiles[0]) and boxes[0][0] + boxes[0][2] > boxes[1][0]
    image = part(9)
    cv2.rectangle(image, (54, 40), (74, 60), (0, 0, 255), -1)  # on the seam
    found = inspector.inspect(image, class_name="disc")
    assert found.verdict == "anomalous"
    assert [area.name for area in found.areas] == ["all-r1c1", "all-r1c2"]
    assert found.score == max(area.score for area in found.areas)
    hot = [r for r in found.regions if r.bbox[0] < 64 < r.bbox[0] + r.bbox[2]]
    assert len(hot) == 1 and hot[0].roi == "all"
    for one in found.regions:
        for other in found.regions:
            ax, ay, aw, ah = one.bbox
            bx, by, bw, bh = other.bbox
            if one is not other and ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah:
                pytest.fail(f"{one.bbox} and {other.bbox} overlap")
    again = inspector.inspect_batch([part(8), image, part(9)], class_name="disc")[1]
    same(again, found)


def paint(image: Image, mask: Image, seed: int) -> Image:
    noise = np.random.default_rng(seed).integers(0, 256, image.shape, dtype=np.uint8)
    return np.where(mask[..., None] > 0, noise, image)


def shape_of(kind: str) -> Image:
    mask = np.zeros((96, 128), np.uint8)
    if kind == "circle":
        cv2.circle(mask, (64, 48), 22, 255, -1)
    else:
        mask[:, 70:] = 1
    return mask


@pytest.mark.parametrize("kind", ["circle", "half"])
@pytest.mark.parametrize("rois", [(), ("a=10,10,100,80",), ("a=0,0,100,96@2x2", "b=20,20,100,70")])
@pytest.mark.parametrize("class_name", ["disc", None])
def test_what_is_painted_under_the_mask_changes_no_bit(
    opened: Any, kind: str, rois: tuple[str, ...], class_name: str | None
) -> None:
    mask = shape_of(kind)
    clean, painted = opened("clean"), opened("painted")
    clean.enroll("disc", [part(i) for i in range(3)], **masked(mask, *rois))
    painted.enroll("disc", [paint(part(i), mask, i) for i in range(3)], **masked(mask, *rois))
    before, after = (one.bank.classes["disc"] for one in (clean, painted))
    assert before.entry.calibration.scores == after.entry.calibration.scores
    for a, b in zip(before.supports, after.supports, strict=True):
        assert a.class_tokens.tobytes() == b.class_tokens.tobytes()
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a.rois, b.rois, strict=True))
    image = part(9, defect=True)
    results = [one.inspect(paint(image, mask, 50), class_name=class_name) for one in (clean, painted)]
    results.append(clean.inspect(image, class_name=class_name))
    for found in results[1:]:
        same(found, results[0])
        assert found.regions == results[0].regions
        assert found.class_margin == results[0].class_margin and found.class_source == results[0].class_source


def test_patches_under_the_mask_count_zero(opened: Any) -> None:
    inspector = opened("bank")
    mask = np.zeros((96, 128), np.uint8)
    mask[:, 64:] = 255
    inspector.enroll("disc", [part(i) for i in range(2)], **masked(mask))
    ((result, trace),) = inspector.trace_batch([part(9, defect=True)], "disc")
    assert trace is not None
    cells = inspector.bank.classes["disc"].layout.tiles[0].cells
    assert cells[:, 2:].all() and not cells[:, :2].any()  # a 4 x 4 grid over a centered crop
    for view, grid in trace.distances.items():
        shown = grid[::-1] if view == "flip" else grid
        assert (shown[cells] == 0).all() and (shown[~cells] > 0).any(), view
    assert (result.anomaly_map[:, -64:] == 0).all() and result.anomaly_map[:, :64].max() > 0


def test_flipped_views_are_masked_the_right_way_up(opened: Any) -> None:
    inspector = opened("bank")
    mask = np.zeros((96, 128), np.uint8)
    mask[:48] = 255
    inspector.enroll("disc", [part(i) for i in range(2)], **masked(mask))
    result = inspector.inspect(part(9, defect=True), class_name="disc")
    assert (result.anomaly_map[:64] == 0).all() and result.anomaly_map[-64:].max() > 0


def test_a_polygon_is_a_box_with_its_outside_ignored(opened: Any) -> None:
    polygon, mask = opened("polygon"), opened("mask")
    corners = np.array([(20, 10), (100, 10), (100, 80)], np.int32)
    outside = np.ones((96, 128), np.uint8)
    cv2.fillPoly(outside, [corners], 0)
    polygon.enroll("disc", [part(i) for i in range(3)], roi=spec("corner=20,10;100,10;100,80"))
    mask.enroll("disc", [part(i) for i in range(3)], **masked(outside, "corner=20,10,81,71"))
    image = part(9, defect=True)
    found = polygon.inspect(image, class_name="disc")
    assert found.areas[0].box == (20, 10, 81, 71)
    same(found, mask.inspect(image, class_name="disc"))
    same(polygon.inspect(paint(image, outside, 3), class_name="disc"), found)
    ignored = RoiSpec(
        image_size=SIZE,
        rois=(Roi(name="corner", box=(20, 10, 81, 71)),),
        ignore=(((0, 0), (60, 0), (60, 95), (0, 95)),),
    )
    other = opened("ignore")
    other.enroll("disc", [part(i) for i in range(3)], roi=ignored)
    left = np.zeros((96, 128), np.uint8)
    left[:, :61] = 1
    same(other.inspect(paint(image, left, 4), class_name="disc"), other.inspect(image, class_name="disc"))


def test_an_image_of_another_size_is_an_error_of_that_image(opened: Any, tmp_path: Path) -> None:
    inspector = opened("bank")
    with pytest.raises(
        ImageError, match="expected 128x96 pixels, as the ROIs of class 'disc' were drawn on, got 64x96"
    ):
        inspector.enroll("disc", [part(0)[:, :64]], roi=spec("a=0,0,60,60"))
    inspector.enroll("disc", [part(0), part(1)], roi=spec("a=0,0,60,60"))
    with pytest.raises(ImageError, match=r"got 128x90; draw them again with `visionad bank roi`"):
        inspector.inspect(part(2)[:90], class_name="disc")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), part(i + 2)[: 90 if i == 1 else 96])
    for batch in (1, 3):
        files = list(inspector.inspect_files(paths, class_name="disc", batch=batch))
        assert [one.error is None for one in files] == [True, False, True]
        assert str(files[1].error).startswith(f"{paths[1]}: expected 128x96 pixels")
        same(files[2].result, inspector.inspect(part(4), class_name="disc"))
    with pytest.raises(BankError, match="has other ROIs"):
        inspector.enroll("disc", [part(5)], roi=spec("a=0,0,61,60"))
    assert inspector.enroll("disc", [part(5)], roi=spec("a=0,0,60,60")) == 2


def test_a_mixed_bank_routes_on_the_whole_image(opened: Any) -> None:
    mixed, plain = opened("mixed"), opened("plain")
    mixed.enroll("disc", [part(i) for i in range(2)], roi=spec("a=20,10,90,80@1x2"))
    mixed.enroll("grid", [part(i, kind="grid") for i in range(2)])
    for inspector in (plain,):
        inspector.enroll("disc", [part(i) for i in range(2)])
        inspector.enroll("grid", [part(i, kind="grid") for i in range(2)])
    images = [part(7), part(8, kind="grid"), part(9, defect=True)]
    for one, other in zip(mixed.inspect_batch(images), plain.inspect_batch(images), strict=True):
        assert (one.class_name, one.class_source) == (other.class_name, other.class_source)
        assert one.class_margin == other.class_margin
        if one.class_name == "grid":
            same(one, other)
            assert one.regions == other.regions
    routed, given = mixed.inspect(images[2]), mixed.inspect(images[2], class_name="disc")
    same(routed, given)
    assert mixed.inspect_batch(images, class_name="grid")[1].score == mixed.inspect(images[1]).score


def test_a_support_is_scored_as_its_inspection_without_it(opened: Any, tmp_path: Path) -> None:
    inspector = opened("bank")
    images = [part(i) for i in range(4)]
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image)
    inspector.enroll_files("disc", paths, **masked(shape_of("circle"), "a=0,0,100,96@2x2", "b=20,20,100,70"))
    calibration = inspector.bank.classes["disc"].entry.calibration
    for k, image in enumerate(images):
        rgb = image[:, :, ::-1]
        ((alone, _),) = inspector.trace_batch([rgb], "disc", leave_out=k, trace=False)
        assert alone.score == pytest.approx(calibration.scores[k], abs=1e-6)
    result = calibrate_class(inspector, "disc", paths, 0.25)
    assert result.record.scores == pytest.approx(calibration.scores, abs=1e-6)


def test_a_threshold_holds_for_one_layout(opened: Any, tmp_path: Path) -> None:
    inspector = opened("bank")
    inspector.enroll("disc", [part(i) for i in range(3)], **masked(shape_of("circle")))
    bank = inspector.bank
    before = bank.manifest.content_digest()
    entry = bank.classes["disc"].entry
    assert entry.roi is not None and (bank.folder / "masks" / f"{entry.roi.mask}.png").is_file()
    reopened = opened("bank")
    same(
        reopened.inspect(part(9, defect=True), class_name="disc"),
        inspector.inspect(part(9, defect=True), class_name="disc"),
    )
    assert reopened.bank.manifest.content_digest() == before
    mask = bank.folder / "masks" / f"{entry.roi.mask}.png"
    mask.write_bytes(mask.read_bytes() + b"x")
    with pytest.raises(BankError, match="is damaged"):
        opened("bank")
    mask.unlink()
    with pytest.raises(BankError, match="cannot be read"):
        opened("bank")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roi": spec("a=0,0,60,60"), "mask": None}, None),
        (masked(np.full((96, 128), 255, np.uint8)), "nothing is left to inspect"),
        (masked(np.zeros((90, 128), np.uint8)), "expected a mask of 128x96 pixels"),
        ({**masked(shape_of("half")), "mask": b"GIF89a"}, "expected the mask with sha256"),
        ({**masked(shape_of("half")), "mask": None}, "got none"),
    ],
)
def test_what_cannot_be_inspected_is_refused_before_anything_is_stored(
    opened: Any, arguments: dict[str, Any], message: str | None
) -> None:
    inspector = opened("bank")
    if message is None:
        inspector.enroll("disc", [part(0)], **arguments)
        return
    with pytest.raises((BankError, ImageError), match=message):
        inspector.enroll("disc", [part(0)], **arguments)
    assert not inspector.bank.classes
