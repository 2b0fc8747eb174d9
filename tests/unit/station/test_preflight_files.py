"""Files and folders of a station that cannot work are said before it starts, and nothing of them is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from visionad_runtime.station.preflight_files import file_problems
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.settings import read_station

from tests.stations import write_images, write_station

FOLDER = "  top: {kind: folder, path: images%s}"
ARRIVALS = "  top: {kind: arrivals, path: in, journal: j.jsonl%s}"
TCP = "  - {kind: tcp, port: 5020}"
FILES = "  - {kind: files, folder: %s}"


def problems(folder: Path, cameras: str, sinks: str = TCP, more: str = "") -> list[str]:
    """Return what is wrong with the files of a station whose folders ``images``, ``empty`` and ``in``, and file ``note`` exist."""
    write_images(folder / "images")
    for name in ("empty", "in", "bank"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "note").write_text("x")
    return file_problems(read_station(write_station(folder, Path("model"), cameras, sinks, more)))


@pytest.mark.parametrize(
    ("cameras", "sinks", "more", "problem"),
    [
        (FOLDER % "", TCP, "log: records.sqlite", "log and records are one file"),
        (FOLDER % "", TCP, "records: ./images/../station.yaml", "records and the station file are one file"),
        (ARRIVALS % "" + "\n  side: {kind: arrivals, path: empty, journal: ./j.jsonl}", TCP, "",
         "the journal of camera side and the journal of camera top are one file"),
        (ARRIVALS.replace("j.jsonl", "records.sqlite") % "", TCP, "", "the journal of camera top and records are one file"),
        (ARRIVALS.replace("j.jsonl", "empty") % "", TCP, "", "the journal of camera top: "),
        (FOLDER % "", TCP, "log: empty", "empty is a folder; name a file"),
        (FOLDER % "", FILES % "note", "", "sink files: "),
        (FOLDER % "", FILES % "station.yaml", "", "is the station file; name a folder"),
        (FOLDER % "", FILES % "res" + "\n" + FILES % "./res", "", "sinks files and files-2 write the same files"),
        (FOLDER % "", FILES % "res" + "\n" + FILES % "res, format: jsonl", "", ""),
        (FOLDER.replace("images", "nosuch") % "", TCP, "", "is missing; make it"),
        (FOLDER.replace("images", "note") % "", TCP, "", "note is a file; name a folder of images"),
        (FOLDER.replace("images", "empty") % "", TCP, "", "empty holds no image"),
        (FOLDER % "", TCP, "trigger: free", "with `trigger: free` it gives no image; set its interval_ms"),
        (FOLDER % "", TCP, "trigger: hardware", "with `trigger: hardware` it gives no image; set its interval_ms"),
        (FOLDER % ", interval_ms: 100", TCP, "trigger: free", ""),
        (ARRIVALS.replace("in,", "note,") % "", TCP, "", "note is a file; name the folder in which images arrive"),
        (ARRIVALS.replace("in,", "nosuch,") % "", TCP, "", ""),
        (ARRIVALS % "", TCP, "archive: {folder: in/a}", "the archive, "),
        (ARRIVALS % "", TCP, "archive: {folder: in}", "lies in the folder of camera top"),
        (ARRIVALS % ", exclude: [a]", TCP, "archive: {folder: in/a/b}", ""),
        (ARRIVALS % "", TCP, "archive: {folder: in/.a/b}", ""),
        (ARRIVALS % "", TCP, "archive: {folder: inside}", ""),
        (ARRIVALS % "", FILES % "in/res", "", "the folder of sink files, "),
        (FOLDER % "", TCP, "archive: {folder: bank/images}", "lies in the bank; choose a folder elsewhere"),
        (FOLDER % "", FILES % "bank", "", "lies in the bank; choose a folder elsewhere"),
        (FOLDER % "", TCP, "records: empty", "is a folder; name a file"),
        (FOLDER % "", TCP, "records: nosuch/records.sqlite", ""),
    ],
)  # fmt: skip
def test_files_and_folders(tmp_path: Path, cameras: str, sinks: str, more: str, problem: str) -> None:
    found = problems(tmp_path, cameras, sinks, more)
    assert len(found) == bool(problem) and all(problem in line for line in found), found


def test_a_folder_that_stands_for_a_camera_needs_no_interval(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    cameras = "  top: {kind: gige, address: 10.0.0.7, simulate: images}"
    path = write_station(tmp_path, Path("model"), cameras, TCP, "trigger: hardware")
    assert file_problems(read_station(path, simulate=True)) == []


def _sound(path: Path) -> None:
    records = Records(path)
    for number in range(400):
        records.note("code", f"{number} " + "x" * 200)
    records.close()


def _changed(path: Path, start: int, data: bytes) -> None:
    _sound(path)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE parts (id INTEGER, foo TEXT)")


def _newer(path: Path) -> None:
    _sound(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (_sound, ""),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(b"garbage" * 1000), "file is not a database"),
        (lambda path: _changed(path, 8192, b"\xa5" * 40960), "cannot be read: "),
        (lambda path: (_sound(path), path.write_bytes(path.read_bytes()[:20000])), "cannot be read: "),
        (_foreign, "is a database, but not of a station"),
        (_newer, "expected schema 2 or older, got 99"),
    ],
)  # fmt: skip
def test_records(tmp_path: Path, write: Callable[[Path], object], problem: str) -> None:
    path = tmp_path / "records.sqlite"
    write(path)
    before = path.read_bytes()
    found = problems(tmp_path, FOLDER % "")
    assert len(found) == bool(problem) and all(problem in line for line in found), found
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.glob("records.sqlite*")] == ["records.sqlite"]


def test_records_that_another_process_writes_are_sound(tmp_path: Path) -> None:
    _sound(tmp_path / "records.sqlite")
    running = Records(tmp_path / "records.sqlite")
    running.note("code", "not in the file itself yet")
    assert (tmp_path / "records.sqlite-wal").stat().st_size
    assert problems(tmp_path, FOLDER % "") == []
    running.close()
