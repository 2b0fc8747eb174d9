"""``visionad predict`` on folders as they are: one thing that fails never stops the others, and stderr says what did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from visionad_runtime.cli.main import run

from tests.data import part


@pytest.fixture
def common(tiny_model: Path, good: list[Path], tmp_path: Path) -> list[str]:
    """Model and bank."""
    assert run(["bank", "add", str(tiny_model), str(tmp_path / "bank"), "--class", "disc", *map(str, good[:2])]) == 0
    return [str(tiny_model), str(tmp_path / "bank")]


def drop(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", part(seed))[1].tobytes())


def test_overlays_that_cannot_be_written_cost_no_verdict(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, overlays = tmp_path / "in", tmp_path / "overlays"
    names = ["a.png", "検査画像" * 20 + ".png", "x" * 251 + ".png", "z.png"]
    for i, name in enumerate(names):
        drop(folder / name, i)
    (overlays / "a.png").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    capsys.readouterr()
    assert run(["predict", *common, str(folder), "--overlays", str(overlays), "--json"]) == 2
    out, err = capsys.readouterr()
    assert [Path(json.loads(line)["image"]).name for line in out.splitlines()] == sorted(names)
    assert err.count("could not be written") == 2 and "1 maps or overlays could not be written" in err
    assert {p.name for p in overlays.iterdir() if p.is_file()} == {*names} - {"a.png"}


@pytest.mark.parametrize("as_json", [True, False])
def test_status_2_comes_with_a_line_on_stderr(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    folder = tmp_path / "in"
    drop(folder / "a.png", 1)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:200])
    os.mkfifo(folder / "c.png")
    (folder / "d.png").symlink_to("nowhere")
    capsys.readouterr()
    assert run(["predict", *common, str(folder), str(tmp_path / "none"), *["--json"][: int(as_json)]]) == 2
    out, err = capsys.readouterr()
    assert "4 of 5 inputs have no result" in err.splitlines()[-1]
    assert len(out.splitlines()) == (5 if as_json else 2)


def test_names_of_any_bytes_are_one_line_each(common: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = [b"M\xfcller.png", b"new\nline.png", "sep\u2028.png".encode(), b"tab\t.png", b"bell\x07\x7f.png"]
    for i, name in enumerate(names):
        drop(folder / os.fsdecode(name), i)
    command = [sys.executable, "-c", "from visionad_runtime.cli.entry import main; main()", "predict", *common]
    for option in ([], ["--json"]):
        done = subprocess.run([*command, str(folder), *option], capture_output=True, check=True, timeout=120)
        lines = done.stdout.decode("utf-8").splitlines()
        assert len(lines) == len(names) + (not option)
        if option:
            assert sorted(os.fsencode(Path(json.loads(line)["image"]).name) for line in lines) == sorted(names)


def test_what_is_left_out_is_said(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    for name in ("a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_SM.png", "done/b.png"):
        drop(folder / name, 1)
    (folder / "c.heic").touch()
    (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    capsys.readouterr()
    assert run(["predict", *common, str(folder), "--json", "--exclude", "done", "--exclude", "*_raw.*"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == [str(folder / "a.png")]
    passed = "1 of another ending (.heic), 1 system folder (@eaDir), 1 linked folder (link), 1 excluded (done)"
    assert f"folder {folder}: passed over {passed}" in err
