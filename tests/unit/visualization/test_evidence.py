"""The evidence panel: what is shown beside an overlay, in which pose, and what it says where nothing can be shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from visionad_runtime import Inspector
from visionad_runtime.bank.supports import read_kept
from visionad_runtime.cli.main import run
from visionad_runtime.preprocess import apply_pose
from visionad_runtime.scoring.regions import Evidence, Region
from visionad_runtime.visualization import evidence as drawn
from visionad_runtime.visualization.overlay import overlay_png

from tests.data import part

EVIDENCE = Evidence("0" * 64, "/supports/good.png", (48, 32, 16, 16), "e", 0.25, (48, 32, 16, 16), "0.png", None)
REGION = Region((44, 30, 24, 20), 0.5, ((44, 30), (60, 30), (60, 50)), evidence=EVIDENCE)


def noise(seed: int, height: int = 128, width: int = 128) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def crops(panel: NDArray[np.uint8]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return the image's crop and the support's, without frames' neighborhood."""
    top, gap = 32, 10
    rows = slice(top + 2, top + drawn.SIDE - 2)
    left = panel[rows, gap + 2 : gap + drawn.SIDE - 2]
    right = panel[rows, 2 * gap + drawn.SIDE + 2 : 2 * gap + 2 * drawn.SIDE - 2]
    return left.astype(np.int16), right.astype(np.int16)


@pytest.mark.parametrize("pose", ["e", "r90", "r180", "r270", "fv", "fh"])
def test_the_support_is_turned_as_the_image_is(pose: str) -> None:
    """The image is the posed support, so both crops must be equal, whatever the pose."""
    support = noise(3)
    image = np.ascontiguousarray(np.moveaxis(apply_pose(np.moveaxis(support, -1, 0).astype(np.float32), pose), 0, -1))
    numbers = np.zeros((128, 128), np.float32)
    numbers[32:48, 48:64] = 1
    ys, xs = np.nonzero(apply_pose(numbers, pose))
    cell = (int(xs.min()), int(ys.min()), 16, 16)
    region = replace(REGION, bbox=cell, evidence=replace(EVIDENCE, pose=pose, cell=cell))
    panel = drawn.draw_evidence(image.astype(np.uint8), [region], lambda _: support)
    assert panel is not None
    left, right = crops(panel)
    assert np.abs(left - right).max() <= 2
    other = "fh" if pose != "fh" else "r90"
    wrong = replace(region, evidence=replace(EVIDENCE, pose=other, cell=cell))
    panel = drawn.draw_evidence(image.astype(np.uint8), [wrong], lambda _: support)
    assert panel is not None
    left, right = crops(panel)
    assert np.abs(left - right).max() > 20


@pytest.mark.parametrize(
    ("evidence", "support"),
    [
        (replace(EVIDENCE, kept=None), None),
        (EVIDENCE, None),
        (replace(EVIDENCE, bbox=None), noise(1)),
    ],
    ids=["not kept", "not readable", "size not known"],
)
def test_a_support_that_cannot_be_shown(evidence: Evidence, support: NDArray[np.uint8] | None) -> None:
    panel = drawn.draw_evidence(noise(2), [replace(REGION, evidence=evidence)], lambda _: support)
    shown = drawn.draw_evidence(noise(2), [REGION], lambda _: noise(1))
    assert panel is not None and shown is not None and panel.shape == shown.shape
    left, right = crops(panel)
    assert (left == crops(shown)[0]).all()
    assert right.mean() < 60  # a dark panel with a line of text


def test_regions_at_the_edge_and_of_any_size() -> None:
    for box in ((0, 0, 16, 16), (112, 112, 16, 16), (0, 0, 1, 1), (0, 0, 128, 128)):
        region = replace(REGION, bbox=(0, 0, 128, 128), evidence=replace(EVIDENCE, cell=box, bbox=box))
        assert drawn.draw_evidence(noise(2), [region] * 9, lambda _: noise(1)) is not None
        gray = cv2.cvtColor(noise(1), cv2.COLOR_RGB2GRAY)
        assert drawn.draw_evidence(noise(2), [region], lambda _, gray=gray: np.asarray(gray, np.uint8)) is not None
    assert drawn.draw_evidence(noise(2), [replace(REGION, evidence=None)], lambda _: None) is None


def test_the_overlay_of_predict(
    tiny_model: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank, bad = tmp_path / "bank", tmp_path / "bad.png"
    cv2.imwrite(str(bad), part(7, defect=True))
    assert run(["bank", "add", str(tiny_model), str(bank), "--class", "disc", *map(str, good)]) == 0
    common = ["predict", str(tiny_model), str(bank), str(bad), "--class", "disc", "--overlays"]
    assert run([*common, str(tmp_path / "plain")]) == 0
    assert run([*common, str(tmp_path / "with"), "--evidence"]) == 0
    plain, shown = (np.array(Image.open(tmp_path / name / "bad.png")) for name in ("plain", "with"))
    assert shown.shape[1] > plain.shape[1]
    assert (shown[: len(plain), : plain.shape[1]] == plain).all()


def test_the_overlay_tells_a_mix_up(tiny_model: Path, tmp_path: Path) -> None:
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [part(0), part(1)])
        inspector.enroll("grid", [part(0, kind="grid"), part(1, kind="grid")])
        bgr = part(9, kind="grid")
        result = inspector.inspect(bgr, class_name="disc")
    assert result.class_mismatch == "grid"
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    assert overlay_png(rgb, result) != overlay_png(rgb, replace(result, class_mismatch=None))


def test_kept_supports_are_read(tiny_model: Path, tmp_path: Path) -> None:
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [part(0), part(1)])
        result = inspector.inspect(part(7, defect=True), class_name="disc", evidence=True)
    found = result.regions[0].evidence
    assert found is not None
    pixels = read_kept(tmp_path / "bank", found.kept, None)
    assert pixels is not None and any((pixels == part(seed)[..., ::-1]).all() for seed in (0, 1))
    assert read_kept(tmp_path / "bank", None, None) is None
    (tmp_path / "bank" / "images" / str(found.kept)).unlink()
    assert read_kept(tmp_path / "bank", found.kept, None) is None
