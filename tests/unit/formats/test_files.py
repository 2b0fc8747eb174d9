"""Files that are written whole or not at all, whatever their names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from visionad_runtime import VisionADError
from visionad_runtime.formats.files import MAX_NAME_BYTES, atomic_write, atomic_write_together, fit_name
from visionad_runtime.formats.manifest import SupportImage
from visionad_runtime.formats.plain_text import plain

NAMES = [
    "a.png",
    "検" * 83 + "ab.png",
    "x" * 251 + ".png",
    "new\nline.png",
    os.fsdecode(b"M\xfcller.png"),
    "é" * 125 + "a.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_length_and_bytes_are_written(tmp_path: Path, name: str) -> None:
    atomic_write(tmp_path / name, b"1")
    atomic_write(tmp_path / name, b"2")
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == b"2"


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(VisionADError, match="cannot write"):
        atomic_write(tmp_path / "a.png", b"1")
    with pytest.raises(VisionADError, match="cannot write"):
        atomic_write(tmp_path / ("x" * 256), b"1")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("stem", ["a", "検" * 85, "x" * 255, "ü" * 200, os.fsdecode(b"\xff" * 255)])
def test_a_name_is_made_to_fit(stem: str) -> None:
    name = fit_name(stem, ".bmp.png")
    assert len(os.fsencode(name)) <= MAX_NAME_BYTES and name.endswith(".bmp.png")
    assert (name == stem + ".bmp.png") == (len(os.fsencode(stem)) <= MAX_NAME_BYTES - 8)
    assert name != fit_name(stem + "y", ".bmp.png")


def test_sources_of_any_bytes_are_text() -> None:
    assert plain("Müller.png") == "Müller.png"
    assert plain(os.fsdecode(b"M\xfcller.png")) == "M\\xfcller.png"
    assert plain("\ud800") == "\\ud800"
    record = SupportImage(sha256="0", source=os.fsdecode(b"\xff"))
    assert SupportImage.model_validate_json(record.model_dump_json()) == record
    assert record.model_dump() == {"sha256": "0", "source": "\\xff"}  # as earlier releases wrote it


@pytest.mark.parametrize("full", [1, 2])
def test_of_files_that_belong_together_none_is_changed_if_one_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: int
) -> None:
    page, report = tmp_path / "page.html", tmp_path / "report.json"
    synced, fsync = [], os.fsync

    def no_space(fd: int) -> None:
        synced.append(fd)
        if len(synced) == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    with monkeypatch.context() as context, pytest.raises(VisionADError, match=r"No space left.*nothing was changed"):
        context.setattr(os, "fsync", no_space)
        atomic_write_together({page: b"page", report: b"report"})
    assert list(tmp_path.iterdir()) == []
    atomic_write_together({page: b"page", report: b"report"})
    assert (page.read_bytes(), report.read_bytes()) == (b"page", b"report")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_last_of_files_that_belong_together_never_stands_alone(tmp_path: Path) -> None:
    page, report = tmp_path / "page.html", tmp_path / "report.json"
    page.mkdir()
    with pytest.raises(VisionADError, match=r"cannot write .*page\.html"):
        atomic_write_together({page: b"page", report: b"report"})
    assert list(tmp_path.iterdir()) == [page]
