"""Supports are judged by their pixels, carry their bit depth, and come from files of any name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from visionad_runtime import BankError, ImageError, Inspector
from visionad_runtime.bank.supports import depth_warnings
from visionad_runtime.cli.main import run
from visionad_runtime.teaching.calibrate import calibrate_class

from tests.data import part


def write(path: Path, seed: int, bits: int = 8) -> Path:
    image = part(seed)
    assert cv2.imwrite(str(path), image if bits == 8 else image.astype(np.uint16) << (bits - 8))
    return path


def test_the_same_pixels_are_enrolled_once(tiny_model: Path, tmp_path: Path) -> None:
    png, bmp = write(tmp_path / "a.png", 1), write(tmp_path / "a.bmp", 1)
    with Inspector.open(tiny_model, tmp_path / "bank") as inspector:
        with pytest.raises(ImageError, match=r"a\.bmp and .*a\.png are the same image"):
            inspector.enroll_files("gear", [png, bmp])
        inspector.enroll_files("gear", [png])
        for name in ("gear", "Gear", "A+B"):
            for enroll in (
                lambda name: inspector.enroll_files(name, [bmp]),
                lambda name: inspector.enroll(name, [part(1)]),
            ):
                with pytest.raises(BankError, match="is enrolled already, as gear"):
                    enroll(name)
        assert inspector.bank is not None and list(inspector.bank.classes) == ["gear"]


def test_a_support_in_another_format_is_left_out_of_its_own_score(
    tiny_model: Path, tmp_path: Path, good: list[Path]
) -> None:
    bmp = write(tmp_path / "copy.bmp", 0)  # the pixels of good[0]
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll_files("disc", good[:2])
        direct = calibrate_class(inspector, "disc", good, 0.25)
        copied = calibrate_class(inspector, "disc", [bmp, *good[1:]], 0.25)
        assert copied.record.scores == direct.record.scores and copied.record.method == direct.record.method
        with pytest.raises(Exception, match="are the same image"):
            calibrate_class(inspector, "disc", [*good[1:], write(tmp_path / "again.bmp", 3)], 0.25)
        inspector.enroll_files("other", [write(tmp_path / "other.png", 9)])
        for taken in (tmp_path / "other.png", write(tmp_path / "other.bmp", 9)):
            with pytest.raises(BankError, match=r"other\.\w+ is enrolled already, as other"):
                calibrate_class(inspector, "disc", [*good, taken], 0.25)


def test_the_only_support_in_another_format_is_passed_over(tiny_model: Path, tmp_path: Path, good: list[Path]) -> None:
    bmp = write(tmp_path / "copy.bmp", 0)
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll_files("disc", good[:1])
        done = calibrate_class(inspector, "disc", [bmp, *good[1:]], 0.25)
        assert (done.skipped, done.record.normals) == ((str(bmp),), 3)
        assert done.record.sources == tuple(str(path.absolute()) for path in good[1:])


def test_the_bit_depth_travels_with_the_bank(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [str(write(tmp_path / f"{i}.png", i, 12)) for i in range(5)]
    common = [str(tiny_model), str(tmp_path / "bank"), "--class", "gear"]
    assert run(["bank", "add", *common, *parts[:2], "--bit-depth", "12"]) == 0
    assert run(["calibrate", *common, *parts[2:], "--bit-depth", "12", "--max-false-reject", "0.4"]) == 0
    assert run(["predict", *common, parts[4], "--bit-depth", "12", "--json"]) == 0
    assert "bit depth" not in capsys.readouterr().err
    manifest = json.loads((tmp_path / "bank" / "manifest.json").read_text())["classes"]["gear"]
    assert [image["bit_depth"] for image in manifest["images"]] == [12, 12]
    assert manifest["calibration"]["bit_depth"] == 12
    for command in ("predict", "calibrate", "bank add"):
        extra = ["--max-false-reject", "0.4"] if command == "calibrate" else []
        files = [str(write(tmp_path / "new.png", 7, 12))] if command == "bank add" else parts[2:]
        assert run([*command.split(), *common, *files, "--bit-depth", "16", *extra]) == 0
        err = capsys.readouterr().err
        assert err.count("class gear: enrolled or calibrated with a bit depth of 12, got 16") == 1
    with Inspector.open(tiny_model, tmp_path / "bank") as inspector:
        classes = inspector.require_class("gear").classes
        assert len(depth_warnings(classes, None, 12)) == 1  # both depths by now
        assert depth_warnings(classes, "bolt", 12) == depth_warnings(classes, None, None) == []


def test_files_of_any_name_are_enrolled_and_calibrated(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        data = cv2.imencode(".png", part(i))[1].tobytes()
        (folder / os.fsdecode(b"M\xfcller_%d\n.png" % i)).write_bytes(data)
    common = [str(tiny_model), str(tmp_path / "bank"), "--class", "gear", str(folder)]
    assert run(["bank", "add", *common]) == 0
    assert run(["calibrate", *common, "--max-false-reject", "0.4"]) == 0
    assert run(["bank", "info", str(tmp_path / "bank"), "--json"]) == 0
    info = json.loads(capsys.readouterr().out.splitlines()[-1])["classes"]["gear"]
    sources = [str(folder / f"M\\xfcller_{i}\n.png") for i in range(4)]
    assert [image["source"] for image in info["images"]] == info["calibration"]["sources"] == sources


def test_banks_of_earlier_releases_open_and_grow(tiny_model: Path, tmp_path: Path, good: list[Path]) -> None:
    bank = tmp_path / "bank"
    with Inspector.open(tiny_model, bank) as inspector:
        inspector.enroll_files("disc", good[:2])
    manifest = json.loads((bank / "manifest.json").read_text())
    for image in manifest["classes"]["disc"]["images"]:
        for added in ("pixels", "kept", "size"):
            del image[added]
        assert set(image) == {"sha256", "source", "tokens"}
    (bank / "manifest.json").write_text(json.dumps(manifest))
    with Inspector.open(tiny_model, bank) as inspector:
        with pytest.raises(BankError, match="as disc"):
            inspector.enroll_files("other", good[:1])
        inspector.enroll_files("disc", good[2:])
