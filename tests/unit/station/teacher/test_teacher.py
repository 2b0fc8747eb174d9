"""The teaching process's answers: a damaged draft is put aside, and what cannot be done has a word for the page."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import BankManifest, read_manifest
from visionad_runtime.station.settings import read_station
from visionad_runtime.station.teacher.teacher import Teacher
from visionad_runtime.teaching.draft_state import drafts_in

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
    version = teacher.do_add("new", 1, np.ascontiguousarray(part(20)[..., ::-1]), "part 20", "setter 1")["version"]
    for size in ([128, 95], [64, 48], [2**30, 2**30]):  # of another camera
        for command, values in (
            ("raster", ["new", {"image_size": size}]),
            ("regions", ["new", version, {"image_size": size}, "a"]),
        ):
            _, code, message, _ = teacher._answer(command, values)
            assert code == "input" and f"128x96 pixels, got {size[0]}x{size[1]}" in message


def forget(teacher: Teacher) -> None:
    """Let go of the open draft, as a new process does."""
    teacher.close()
    teacher._inspector = teacher._draft = None


@pytest.mark.parametrize("what", ["draft.json", "bank/manifest.json", "bank/supports", "bank/images", "bank"])
def test_a_damaged_draft_can_be_begun_anew_and_discarded(teacher: Teacher, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "drafts" / "disc"

    def damage() -> None:
        forget(teacher)
        for path in [folder / what] if (folder / what).is_file() else sorted((folder / what).rglob("*")):
            if path.is_file():
                path.write_bytes(b"{") if what != "bank" else path.unlink()

    version = teacher.do_begin("disc", "setter 1")["version"]
    damage()
    facts, code, *_ = teacher._answer("begin", ["disc", "setter 2"])
    assert not code and facts["version"] == 1 and facts["who"] == "setter 2" and len(facts["parts"]) == 4
    assert len(list((tmp_path / "drafts").glob("disc.damaged-*"))) == 1
    assert [one.who for one in drafts_in(tmp_path / "drafts")] == ["setter 2"]
    damage()
    if what != "draft.json":
        assert teacher._answer("discard", ["disc", version + 7])[1] == "changed"
    assert teacher._answer("discard", ["disc", version]) == ({"class": "disc"}, "", "", {})
    assert not folder.exists()
    assert teacher._answer("discard", ["disc", version])[1] == "no_draft"
    assert [entry.name for entry in (tmp_path / "drafts").iterdir() if "damaged" not in entry.name] == []


def test_a_damaged_bank_of_the_line_costs_no_draft(teacher: Teacher, tmp_path: Path) -> None:
    teacher.do_begin("disc", "setter 1")
    forget(teacher)
    (tmp_path / "bank" / "manifest.json").write_text("{")
    assert teacher._answer("begin", ["disc", "setter 1"])[1] == "input"
    assert [entry.name for entry in (tmp_path / "drafts").iterdir()] == ["disc"]


@pytest.mark.parametrize("name", [".", "..", "../..", "..."])
def test_no_class_name_reaches_beyond_the_drafts(teacher: Teacher, tmp_path: Path, name: str) -> None:
    teacher.do_begin("disc", "setter 1")
    before = sorted(tmp_path.rglob("*"))
    for command, values in (("begin", [name, "setter 2"]), ("discard", [name, 1]), ("facts", [name])):
        if command != "begin" or not name.strip("."):
            assert teacher._answer(command, values)[1] in ("input", "no_draft")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_change_of_the_lines_class_ends_collecting(teacher: Teacher, tmp_path: Path) -> None:
    version = teacher.do_begin("disc", "setter 1")["version"]
    teacher.do_begin("other", "setter 2")
    version = teacher.do_collect("disc", version, True, "setter 1")["version"]
    in_force = read_manifest(tmp_path / "bank", BankManifest).version

    def take(part_number: int, bank_version: int) -> tuple[int, str]:
        rgb = np.ascontiguousarray(part(part_number)[..., ::-1])
        teacher.do_take("disc", part_number, "", "top", rgb, bank_version)
        state = next(one for one in drafts_in(tmp_path / "drafts") if one.class_name == "disc")
        return len(state.collected), state.why_ended

    assert take(100, in_force) == (1, "")
    settings = teacher._settings
    with Inspector.open(settings.model, settings.bank, threads=1) as inspector:
        other = inspector.enroll("grid", [part(1, kind="grid")])
        assert take(101, other) == (2, "")  # another class
        changed = inspector.enroll("disc", [part(50)])
    assert take(102, other) == (3, "")  # the line has not loaded it yet
    assert take(103, changed) == (3, "the line's class was changed")


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
    assert teacher._answer("enroll", ["new", rgb, "again"])[1] == "not_enrolled"


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
