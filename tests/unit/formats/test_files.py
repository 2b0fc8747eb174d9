"""Files that are written whole or not at all, whatever their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from visionad_runtime import VisionADError
from visionad_runtime.formats.files import MAX_NAME_BYTES, atomic_write, fit_name
from visionad_runtime.formats.manifest import SupportImage, path_text

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
    assert path_text("Müller.png") == "Müller.png"
    assert path_text(os.fsdecode(b"M\xfcller.png")) == "M\\xfcller.png"
    assert path_text("\ud800") == "\\ud800"
    record = SupportImage(sha256="0", source=os.fsdecode(b"\xff"))
    assert SupportImage.model_validate_json(record.model_dump_json()) == record
    assert record.model_dump() == {"sha256": "0", "source": "\\xff"}  # as earlier releases wrote it
