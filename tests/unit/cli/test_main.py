"""What every command does about its surroundings."""

from __future__ import annotations

from pathlib import Path

import pytest
from visionad_runtime import Inspector
from visionad_runtime.cli.main import run

from tests.data import part

GONE = "visionad: the working folder was deleted; go to one that exists, and run again\n"


@pytest.fixture
def adrift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder; the working folder, which lay in it, is deleted."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    try:
        folder.rmdir()
    except OSError:
        pytest.skip("this system keeps the folder that a process works in")
    return tmp_path


def test_a_deleted_working_folder_is_named_by_batch(
    tiny_model: Path, adrift: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="batch runs take the batch extra")
    bank, image = adrift / "bank", adrift / "a.png"
    with Inspector.open(tiny_model, bank, threads=1) as inspector:
        inspector.enroll("disc", [part(100)])
    image.write_bytes(b"no image")
    for model, out in (("model", adrift / "out"), (tiny_model, "out")):
        assert run(["batch", str(model), str(bank), str(image), "--out", str(out), "--workers", "1"]) == 2
        assert capsys.readouterr().err == GONE
    whole = ["batch", str(tiny_model), str(bank), str(image), "--out", str(adrift / "out"), "--workers", "1"]
    assert run(whole) == 0  # nothing here is relative


def test_a_deleted_working_folder_is_named_by_pull(adrift: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography", reason="signatures take the fleet extra")
    assert run(["keygen", "--out", str(adrift)]) == 0
    assert run(["model", "pull", f"{adrift}/store/tiny", "--pub", str(adrift / "visionad.pub")]) == 2
    assert capsys.readouterr().err == GONE
