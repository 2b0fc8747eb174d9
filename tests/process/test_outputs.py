"""No output of a command costs the user another file."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from visionad_runtime.cli.main import run

from tests.data import part
from tests.stations import teach


def failed(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run a command that must fail in one line; return the line."""
    capsys.readouterr()
    assert run([str(arg) for arg in args]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, said
    return said.err


@pytest.fixture
def filled_bank(tiny_model: Path, tmp_path: Path) -> Path:
    teach(tiny_model, tmp_path / "filled")
    return tmp_path / "filled"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    from visionad_runtime.station.records.records import Records

    path = tmp_path / "records.sqlite"
    Records(path).close()
    return path


def test_a_report_replaces_no_records_and_no_other_report(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = records.read_bytes()
    command = ["report", records, "--from", "2026-11-01", "--to", "2026-11-02"]
    assert "did not write" in failed(capsys, *command, "--csv", records)
    assert "name the same file" in failed(capsys, *command, "--csv", tmp_path / "r", "--html", tmp_path / "r")
    assert "got a folder" in failed(capsys, *command, "--csv", tmp_path)
    assert records.read_bytes() == before and not (tmp_path / "r").exists()
    for _ in range(2):  # its own file is written anew
        assert run([str(arg) for arg in (*command, "--csv", tmp_path / "new" / "r.csv")]) == 0
    with sqlite3.connect(records) as database:
        assert database.execute("SELECT count(*) FROM parts").fetchone() == (0,)


def test_a_result_goes_into_no_model_or_bank_folder(
    records: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tiny_model / "manifest.json").read_bytes()
    command = ["report", records, "--from", "2026-11-01", "--csv"]
    for name in ("manifest.json", "new.csv"):
        assert "would lie in a model folder" in failed(capsys, *command, tiny_model / name)
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "manifest.json").write_text(json.dumps({"format": "visionad-bank"}))
    assert "would lie in a bank folder" in failed(capsys, *command, tmp_path / "bank" / "r.csv")
    assert (tiny_model / "manifest.json").read_bytes() == before and not (tiny_model / "new.csv").exists()


def test_an_overlay_replaces_no_image_beside_the_inspected_one(
    tiny_model: Path, filled_bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    cv2.imwrite(str(mixed / "p.jpg"), part(30))
    cv2.imwrite(str(mixed / "p.png"), part(31))
    before = (mixed / "p.png").read_bytes()
    arguments = ["predict", tiny_model, filled_bank, mixed / "p.jpg", "--class", "disc", "--overlays"]
    assert "lies beside the images to inspect" in failed(capsys, *arguments, mixed)
    assert (mixed / "p.png").read_bytes() == before
    for _ in range(2):  # an overlay of before is written anew
        assert run([str(arg) for arg in (*arguments, tmp_path / "overlays")]) == 0


def test_keys_are_written_both_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    from visionad_runtime.errors import VisionADError
    from visionad_runtime.fleet.store import minisign

    real, written = minisign.atomic_write, []

    def full(path: Path, data: bytes, private: bool = False) -> None:
        if written:
            raise VisionADError(f"cannot write {path}: No space left on device")
        written.append(path)
        real(path, data, private)

    secret, public = tmp_path / "visionad.key", tmp_path / "visionad.pub"
    monkeypatch.setattr(minisign, "atomic_write", full)
    with pytest.raises(VisionADError, match=r"cannot write .*visionad\.pub: No space left"):
        minisign.generate(secret, public)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    minisign.generate(secret, public)
    assert os.name == "nt" or secret.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_an_output_file_that_may_not_grow_is_said_in_one_line(filled_bank: Path, tmp_path: Path) -> None:
    import resource

    code = "from visionad_runtime.cli.entry import main; main()"
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", code, "bank", "info", str(filled_bank)], stdout=out, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)),
        )  # fmt: skip
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and "could not be written: File too large" in done.stderr
    )


def test_a_score_that_is_no_number_is_no_record(
    tiny_model: Path, filled_bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "j.jsonl"
    line = '{"image": "a.png", "verdict": "ok", "class": "disc", "bank_version": 1, "score": NaN}\n'
    journal.write_text(line * 30)
    assert run(["replay", str(tiny_model), str(filled_bank), str(journal), "--json"]) == 1
    said = capsys.readouterr()
    assert "NaN" not in said.out and said.err.count("is no record") == 10
