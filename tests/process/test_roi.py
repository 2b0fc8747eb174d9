"""ROIs through the commands: bank add, roi, rebuild, predict, watch, serve, eval, parity."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionad_runtime import ImageError, Inspector
from visionad_runtime.cli.main import run
from visionad_runtime.formats.roi import make_spec

from tests.data import part

BOX = (30, 14, 70, 66)
ROI = "middle={},{},{},{}".format(*BOX)


def write(path: Path, image: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def crop(image: Any) -> Any:
    x, y, w, h = BOX
    return image[y : y + h, x : x + w]


def said(capsys: pytest.CaptureFixture[str], *args: object) -> list[dict[str, Any]]:
    """Run a command and return its lines of JSON."""
    capsys.readouterr()
    assert run([str(arg) for arg in args]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def failed(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    capsys.readouterr()
    assert run([str(arg) for arg in args]) == 2
    return capsys.readouterr().err


def test_add_predict_roi_and_rebuild(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bank, disc = tmp_path / "bank", ["--class", "disc"]
    cut = [write(tmp_path / "cut" / path.name, crop(cv2.imread(str(path)))) for path in good]
    assert run(["bank", "add", str(tiny_model), str(bank), *map(str, good), *disc, "--roi", ROI, "--keep", "5"]) == 0
    assert run(["bank", "add", str(tiny_model), str(tmp_path / "cropped"), *map(str, cut), *disc]) == 0
    assert json.loads((bank / "manifest.json").read_text())["keep"] == 5
    query = write(tmp_path / "query.png", part(9, defect=True))
    small = write(tmp_path / "small.png", crop(part(9, defect=True)))
    (found,) = said(capsys, "predict", tiny_model, bank, query, *disc, "--json")
    (wanted,) = said(capsys, "predict", tiny_model, tmp_path / "cropped", small, *disc, "--json")
    assert (found["score"], found["threshold"]) == (wanted["score"], wanted["threshold"])
    assert [r["roi"] for r in found["regions"]] == ["middle"] * len(wanted["regions"])
    assert found["regions"][0]["bbox"][0] == wanted["regions"][0]["bbox"][0] + BOX[0]
    (shown,) = said(capsys, "bank", "roi", tiny_model, bank, *disc, "--json")
    assert shown["roi"]["rois"][0]["box"] == list(BOX) and shown["bank_version"] == 1

    error = failed(capsys, "bank", "add", tiny_model, bank, query, *disc, "--roi", "other=0,0,64,64")
    assert "class 'disc' has other ROIs; `visionad bank roi`" in error

    # changed: as if enrolled so
    for path in good[1:]:
        path.unlink()  # the bank's own copies are encoded
    assert run(["bank", "roi", str(tiny_model), str(bank), *disc, "--roi", "all=0,0,128,96@1x2"]) == 0
    assert "4 images encoded anew" in capsys.readouterr().out
    for i, path in enumerate(good):
        write(path, part(i))
    tiles = tmp_path / "tiles"
    assert run(["bank", "add", str(tiny_model), str(tiles), *map(str, good), *disc, "--roi", "all=0,0,128,96@1x2"]) == 0
    (one,) = said(capsys, "predict", tiny_model, bank, query, *disc, "--json")
    (other,) = said(capsys, "predict", tiny_model, tiles, query, *disc, "--json")
    kept = ("score", "threshold", "p_value", "regions", "bank", "verdict")
    assert [one[key] for key in kept] == [other[key] for key in kept]

    # rebuilt: the same bank
    copy = tmp_path / "copy"
    assert run(["bank", "rebuild", str(tiny_model), str(bank), str(copy)]) == 0
    (again,) = said(capsys, "predict", tiny_model, copy, query, *disc, "--json")
    assert [again[key] for key in kept] == [one[key] for key in kept]
    images = json.loads((copy / "manifest.json").read_text())["classes"]["disc"]["images"]
    assert images == json.loads((bank / "manifest.json").read_text())["classes"]["disc"]["images"]
    assert "expected a new or empty folder" in failed(capsys, "bank", "rebuild", tiny_model, bank, copy)

    assert run(["bank", "undo", str(bank)]) == 0
    (back,) = said(capsys, "predict", tiny_model, bank, query, *disc, "--json")
    assert (back["score"], back["bank"]) == (found["score"], found["bank"])
    assert run(["bank", "roi", str(tiny_model), str(bank), *disc, "--whole"]) == 0
    assert said(capsys, "bank", "roi", tiny_model, bank, *disc, "--json")[0]["roi"] is None


def test_a_mask_is_kept_and_can_be_changed(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bank, disc = tmp_path / "bank", ["--class", "disc"]
    mask = np.zeros((96, 128), np.uint8)
    cv2.circle(mask, (64, 48), 24, 1, -1)
    file = write(tmp_path / "mask.png", mask)
    assert run(["bank", "add", str(tiny_model), str(bank), *map(str, good), *disc, "--ignore", str(file)]) == 0
    file.unlink()
    query = write(tmp_path / "query.png", part(9))
    painted = part(9)
    painted[mask > 0] = 255
    other = write(tmp_path / "painted.png", painted)
    a, b = said(capsys, "predict", tiny_model, bank, query, other, "--json")
    assert {**a, "image": 0, "timings_ms": 0} == {**b, "image": 0, "timings_ms": 0}
    assert run(["bank", "info", str(bank)]) == 0
    assert "ignored: masks/" in capsys.readouterr().out
    assert run(["bank", "verify", str(bank)]) == 0
    copy = tmp_path / "copy"
    assert run(["bank", "rebuild", str(tiny_model), str(bank), str(copy), "--views", "original"]) == 0
    assert len(list((copy / "masks").iterdir())) == 1
    smaller = write(tmp_path / "smaller.png", mask[:90])
    error = failed(capsys, "bank", "roi", tiny_model, bank, *disc, "--ignore", smaller)
    assert "expected a mask of 128x96 pixels" in error and "got 128x90" in error
    error = failed(capsys, "bank", "roi", tiny_model, bank, *disc, "--ignore", write(tmp_path / "m.bmp", mask))
    assert "expected a PNG file" in error
    next((bank / "masks").iterdir()).unlink()
    assert "cannot be read" in failed(capsys, "bank", "verify", bank)


def test_images_that_are_not_kept_are_named(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bank, disc = tmp_path / "bank", ["--class", "disc"]
    assert run(["bank", "add", str(tiny_model), str(bank), *map(str, good), *disc, "--no-images"]) == 0
    assert not (bank / "images").exists()
    assert run(["bank", "roi", str(tiny_model), str(bank), *disc, "--roi", ROI]) == 0  # from where they were
    good[1].unlink()
    write(good[2], part(77))
    for command in (["bank", "roi", tiny_model, bank, *disc, "--whole"], ["bank", "rebuild", tiny_model, bank, "new"]):
        error = failed(capsys, *command)
        assert f"2 of 4 images are neither kept in the bank nor unchanged at their place: {good[1]}, {good[2]}" in error
    assert said(capsys, "bank", "roi", tiny_model, bank, *disc, "--json")[0]["bank_version"] == 2
    with Inspector.open(tiny_model, bank) as inspector:
        inspector.enroll("array", [part(20), part(21)])
    assert run(["bank", "roi", str(tiny_model), str(bank), "--class", "array", "--roi", ROI]) == 0


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ("a=1,2,3", "expected NAME=X,Y,W,H"),
        ("a=1,2;3,4", "three or more corners, got 2"),
        ("a=0,0,200,90", "the box 0,0,200,90 is not inside the image of 128x96 pixels"),
        ("a=-1,0,20,90", "is not inside the image"),
        ("a=0,0,7,90", "expected 8 or more pixels along each side of a tile, got 7x90 in 1x1 tiles"),
        ("a=0,0,90,90@0x2", "expected 1 to 16 rows and columns of tiles, got 0x2"),
        ("a=0,0,90,90@16x16", "expected 8 or more pixels"),
        ("image=0,0,90,90", "stands for the whole image"),
        ("b c=0,0,90,90", "expected a name of 1 to 40 letters"),
        ("=0,0,90,90", "expected a name"),
    ],
)
def test_a_wrong_roi_says_what_was_expected(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str], roi: str, message: str
) -> None:
    bank = tmp_path / "bank"
    error = failed(capsys, "bank", "add", tiny_model, bank, *good, "--class", "disc", "--roi", roi)
    assert message in error and error.count("\n") == 1
    assert not (bank / "manifest.json").exists()
    twice = ["--roi", "a=0,0,90,90", "--roi", "a=0,0,80,90"]
    assert "are not unique" in failed(capsys, "bank", "add", tiny_model, bank, *good, "--class", "disc", *twice)


def test_maps_and_overlays_show_every_tile(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(tiny_model), str(tmp_path / "bank"), "--class", "disc"]
    rois = ["--roi", "top=0,0,128,40@1x2", "--roi", "low=10,50;110,50;60,95"]
    assert run(["bank", "add", *common, *map(str, good), *rois]) == 0
    query = write(tmp_path / "query.png", part(9, defect=True))
    out = ["--maps", str(tmp_path / "maps"), "--overlays", str(tmp_path / "overlays")]
    assert run(["predict", *common, str(query), *out]) == 0
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["query.low.npy", "query.top-r1c1.npy", "query.top-r1c2.npy"]
    with Inspector.open(tiny_model, tmp_path / "bank") as inspector:
        result = inspector.inspect(part(9, defect=True), class_name="disc")
    for area in result.areas:
        assert np.array_equal(np.load(tmp_path / "maps" / f"query.{area.name}.npy"), area.anomaly_map)
    drawn = cv2.imread(str(tmp_path / "overlays" / "query.png"))
    image = part(9, defect=True)
    at = 92, 14  # in the polygon's box, outside of it; the image is drawn twice as large, centered in a wider panel
    dark = drawn[2 * at[0] + 1, 2 * at[1] + 1 + (drawn.shape[1] - 256) // 2] / image[at]
    assert (dark < 0.75).all()


def untimed(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in ("image", "timings_ms")}


def test_watch_and_serve_inspect_the_same(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fastapi")
    from visionad_runtime.web import http, service

    from tests.process.test_serve import ask
    from tests.process.test_watch import Running

    bank, folder, mask = tmp_path / "bank", tmp_path / "in", np.zeros((96, 128), np.uint8)
    mask[:30] = 255
    rois = ["--roi", "all=0,0,128,90@1x2", "--ignore", str(write(tmp_path / "mask.png", mask))]
    assert run(["bank", "add", str(tiny_model), str(bank), *map(str, good), "--class", "disc", *rois]) == 0
    query = write(tmp_path / "query.png", part(9, defect=True))
    small = write(tmp_path / "small.png", part(9)[:90])
    (wanted,) = said(capsys, "predict", tiny_model, bank, query, "--json")
    assert wanted["regions"] and {region["roi"] for region in wanted["regions"]} == {"all"}

    folder.mkdir()
    running = Running(tiny_model, bank, folder, "--json", "--overlays", tmp_path / "overlays")
    try:
        running.err.readline()
        write(folder / "query.png", part(9, defect=True))
        assert untimed(json.loads(running.out.readline())) == untimed(wanted)
        write(folder / "small.png", part(9)[:90])
        assert "expected 128x96 pixels" in json.loads(running.out.readline())["error"]
    finally:
        running.end(signal.SIGTERM)
    assert [path.name for path in (tmp_path / "overlays").iterdir()] == ["query.png"]

    with Inspector.open(tiny_model, bank) as inspector:
        line = service.InspectionService(inspector)
        app = http.make_app(line)
        answer = ask(app, "POST", "/inspect", query.read_bytes())
        assert answer.status == 200 and untimed(answer.json) == untimed(wanted)
        refused = ask(app, "POST", "/inspect", small.read_bytes())
        assert refused.status == 400 and "expected 128x96 pixels" in refused.json["error"]
        new = write(tmp_path / "new.png", part(31))
        assert ask(app, "POST", "/classes/disc", new.read_bytes()).status == 201
        assert inspector.bank is not None and inspector.bank.classes["disc"].rois[0].features.shape[1] == 10
        line.close()


def test_parity_compares_every_tile(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    bank, mask = tmp_path / "bank", np.zeros((96, 128), np.uint8)
    mask[:40, :70] = 255
    rois = ["--roi", "all=0,0,128,90@1x2", "--roi", "low=10,50;110,50;60,95"]
    rois += ["--ignore", str(write(tmp_path / "mask.png", mask))]
    common = [str(tiny_model), str(bank)]
    assert run(["bank", "add", *common, *map(str, good), "--class", "disc", *rois]) == 0
    grids = [str(write(tmp_path / f"g{i}.png", part(i, kind="grid"))) for i in range(2)]
    assert run(["bank", "add", *common, *grids, "--class", "grid"]) == 0
    query = write(tmp_path / "query.png", part(9, defect=True))
    (report,) = said(capsys, "parity", *common, query, grids[0], good[1], "--json")
    assert report["pass"] is True and report["images"] == 3
    assert set(report["bank_features"].values()) == {"encoded by the reference"}
    assert report["stages"]["preprocess"]["max_abs"] == 0
    assert all(stage["max_rel"] <= 1e-4 for stage in report["stages"].values())
    good[0].unlink()
    (report,) = said(capsys, "parity", *common, query, "--json")
    assert report["pass"] is True and report["bank_features"]["disc"].startswith("as stored")


def test_eval_inspects_the_roi(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((96, 128), np.uint8)
    cv2.line(mask, (50, 40), (80, 60), 255, 4)
    for name, cut in (("whole", lambda image: image), ("cut", crop)):
        root = tmp_path / name / "disc"
        for i in range(3):
            write(root / "train" / "good" / f"{i}.png", cut(part(i)))
            write(root / "test" / "good" / f"{i}.png", cut(part(i + 10)))
            write(root / "test" / "scratch" / f"{i}.png", cut(part(i + 20, defect=True)))
            write(root / "ground_truth" / "scratch" / f"{i}_mask.png", cut(mask))
    reports = {}
    for name, roi in (("whole", ["--roi", ROI]), ("cut", [])):
        out = tmp_path / f"{name}.json"
        options = ["--dataset", "mvtec", "--root", str(tmp_path / name), "--shots", "2", "--json", str(out), *roi]
        assert run(["eval", str(tiny_model), *options]) == 0
        reports[name] = json.loads(out.read_text())
    whole, cut_out = (reports[name]["results"][0] for name in ("whole", "cut"))
    assert reports["whole"]["roi"] == [ROI] and "roi" not in reports["cut"]
    assert whole["image_auroc"] == cut_out["image_auroc"] and whole["image_f1max"] == cut_out["image_f1max"]
    assert 0.5 < whole["pixel_auroc"] <= 1
    error = failed(
        capsys, "eval", tiny_model, "--dataset", "mvtec", "--root", tmp_path / "whole", "--shots", "2", "--roi", ROI,
        "--engine", "reference",
    )  # fmt: skip
    assert "the reference inspects whole images" in error


@pytest.mark.parametrize("exists", [False, True])
def test_a_rebuild_that_fails_leaves_nothing(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    bank, copy = tmp_path / "bank", tmp_path / "copy"
    for name, path in (("one", good[0]), ("two", good[1])):
        assert run(["bank", "add", str(tiny_model), str(bank), str(path), "--class", name]) == 0
    kept = json.loads((bank / "manifest.json").read_text())["classes"]["two"]["images"][0]["kept"]
    whole = (bank / "images" / kept).read_bytes()
    (bank / "images" / kept).write_bytes(whole[: len(whole) // 2])  # the second class, when the first one is written
    if exists:
        copy.mkdir()
    assert "damaged" in failed(capsys, "bank", "rebuild", tiny_model, bank, copy)
    assert list(copy.iterdir()) == [] if exists else not copy.exists()
    (bank / "images" / kept).write_bytes(whole)
    assert run(["bank", "rebuild", str(tiny_model), str(bank), str(copy)]) == 0


@pytest.mark.parametrize("kind", ["black", "alpha"])
def test_a_mask_that_ignores_nothing_is_refused(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    bank, disc, mask = tmp_path / "bank", ["--class", "disc"], np.zeros((96, 128, 4), np.uint8)
    mask[:, 80:, 3] = 255
    file = write(tmp_path / "mask.png", mask if kind == "alpha" else mask[:, :, 0])
    error = failed(capsys, "bank", "add", tiny_model, bank, *good, *disc, "--ignore", file)
    assert "all black, so it ignores nothing" in error and not bank.exists()
    assert run(["bank", "add", str(tiny_model), str(bank), *map(str, good), *disc]) == 0
    assert "ignores nothing" in failed(capsys, "bank", "roi", tiny_model, bank, *disc, "--ignore", file)
    data = file.read_bytes()
    with Inspector.open(tiny_model, bank, threads=1) as inspector, pytest.raises(ImageError, match="ignores nothing"):
        inspector.layout_of("new", make_spec([], (128, 96), hashlib.sha256(data).hexdigest()), data)
