"""The teaching process's answers: a damaged draft is put aside, and what cannot be done has a word for the page."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import BankManifest, read_manifest
from visionad_runtime.station.settings import read_station
from visionad_runtime.station.teacher.teacher import Teacher

from tests.data import part
from tests.stations import teach, write_station


@pytest.fixture
def teacher(tiny_model: Path, tmp_path: Path) -> Iterator[Teacher]:
    teach(tiny_model, tmp_path / "bank")
    path = write_station(tmp_path, tiny_model, "  top: {kind: folder, path: images}", "  - {kind: tcp, port: 5020}")
    found = Teacher(multiprocessing.Pipe()[0], read_station(path))
    yield found
    found.close()


def test_a_damaged_draft_is_put_aside_with_its_images(teacher: Teacher, tmp_path: Path) -> None:
    facts = teacher.do_begin("disc", "setter 1")
    teacher.do_add("disc", facts["version"], np.ascontiguousarray(part(20)[..., ::-1]), "part 20", "setter 1")
    state = tmp_path / "drafts" / "disc" / "draft.json"
    teacher.close()
    teacher._inspector = teacher._draft = None
    state.write_text("{")
    assert teacher._answer("facts", ["disc"])[1] == "input"
    facts = teacher.do_begin("disc", "setter 1")
    assert facts["version"] == 1 and len(facts["parts"]) == 4
    (aside,) = (tmp_path / "drafts").glob("disc.damaged-*")
    assert len(list((aside / "bank" / "images").iterdir())) == 5


def test_what_cannot_be_done_has_a_code(teacher: Teacher) -> None:
    assert teacher._answer("facts", ["nothing"])[1] == "no_draft"
    teacher.do_begin("new", "setter 1")
    assert teacher._answer("raster", ["new", None])[1] == "no_parts"
    assert teacher._answer("live", ["new", 1, "setter 1"])[1] == "no_parts"
    code, _, values = teacher._answer("collect", ["new", 7, True, "setter 2"])[1:]
    assert (code, values) == ("changed", {"who": "setter 1", "version": 1})
    assert teacher._answer("raster", ["new", {"image_size": [128, 96], "rois": [{"name": "x"}]}])[1] == "input"


def test_a_part_is_enrolled_in_the_lines_bank_as_one_version(teacher: Teacher, tmp_path: Path) -> None:
    before = live(tmp_path)
    draft = teacher.do_begin("disc", "setter 1")
    for number, name in ((30, "disc"), (31, "new"), (32, "new")):
        rgb = np.ascontiguousarray(part(number)[..., ::-1])
        version = live(tmp_path).version
        assert teacher.do_enroll(name, rgb, f"file {number}.png") == {"version": version + 1, "class": name}
        assert live(tmp_path).version == version + 1
        if number == 31:
            teacher._close_draft()  # the next one has a model to itself
    after = live(tmp_path)
    assert len(after.classes["disc"].images) == len(before.classes["disc"].images) + 1
    assert [image.source for image in after.classes["new"].images] == ["file 31.png", "file 32.png"]
    assert len(teacher.do_facts("disc")["parts"]) == len(draft["parts"])  # the draft is as it was
    assert teacher._answer("enroll", ["new", rgb, "again"])[1] == "input"


def test_a_draft_that_cannot_be_opened_leaves_no_model(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a part for the line's bank would go into the draft's."""
    teacher.do_begin("disc", "setter 1")
    teacher._close_draft()

    def broken(*_: object) -> None:
        raise VisionADError("it is damaged")

    monkeypatch.setattr("visionad_runtime.station.teacher.teacher.Draft", broken)
    assert teacher._answer("facts", ["disc"])[1:3] == ("input", "it is damaged")
    assert teacher._inspector is None


def live(folder: Path) -> BankManifest:
    return read_manifest(folder / "bank", BankManifest)
