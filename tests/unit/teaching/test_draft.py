"""Drafts: a class is prepared beside the line's bank, and reaches it as one version or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank import history
from visionad_runtime.bank.adopt import ClassChangedError, adopt_class
from visionad_runtime.bank.store import Bank
from visionad_runtime.errors import BankError, ImageError, VisionADError
from visionad_runtime.formats.manifest import BankManifest, read_manifest
from visionad_runtime.formats.roi import RoiSpec, spec_from_json
from visionad_runtime.images.pixels import pixel_digest
from visionad_runtime.teaching.calibrate import calibrate_class
from visionad_runtime.teaching.draft import HIGHEST, MAX_PARTS, Draft, Flip
from visionad_runtime.teaching.draft_state import (
    BANK,
    DraftChangedError,
    NotReadyError,
    begin_draft,
    draft_folder,
    drafts_in,
    remove_draft,
)
from visionad_runtime.teaching.raster import KnownDefect, raster

from tests.data import part


def rgb(seed: int, defect: bool = False) -> np.ndarray:
    return np.ascontiguousarray(part(seed, defect)[..., ::-1])


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A line's bank with two classes."""
    folder = tmp_path_factory.mktemp("taught") / "bank"
    with Inspector.open(tiny_model, folder, threads=1) as inspector:
        inspector.enroll("disc", [part(seed) for seed in range(4)])
        inspector.enroll("grid", [part(seed, kind="grid") for seed in range(3)])
    return folder


@pytest.fixture
def live(taught: Path, tmp_path: Path) -> Path:
    return shutil.copytree(taught, tmp_path / "bank")


@pytest.fixture
def opened(tiny_model: Path, live: Path, tmp_path: Path) -> Iterator[Draft]:
    """A draft of the class disc."""
    folder = draft_folder(tmp_path / "drafts", "disc")
    begin_draft(folder, live, "disc", "setter 1")
    with Inspector.open(tiny_model, folder / BANK, threads=1) as inspector:
        yield Draft(folder, inspector)


def new_draft(model: Path, live: Path, folder: Path, name: str) -> tuple[Draft, Inspector]:
    begin_draft(draft_folder(folder, name), live, name, "setter 1")
    inspector = Inspector.open(model, draft_folder(folder, name) / BANK, threads=1)
    return Draft(draft_folder(folder, name), inspector), inspector


def test_parts_regions_and_threshold_reach_the_line_as_one_version(opened: Draft, live: Path) -> None:
    before = read_manifest(live, BankManifest)
    opened.add(rgb(10), "part 10", "setter 1")
    opened.set_regions(
        spec_from_json({"image_size": [128, 96], "rois": [{"name": "mid", "box": [20, 10, 80, 80]}]}), "setter 1"
    )
    assert read_manifest(live, BankManifest) == before
    for one in opened.facts()["parts"]:
        if one["stands_out"]:
            opened.decide(one["support"], "good", "setter 1")
    entry = opened.entry
    version = opened.go_live(live, "setter 1")
    after = read_manifest(live, BankManifest)
    assert after.version == version == before.version + 1
    assert after.classes["disc"] == entry and after.classes["grid"] == before.classes["grid"]
    assert entry is not None and len(entry.images) == 5 and entry.threshold is not None and entry.roi is not None
    history.verify(live)
    assert not opened.folder.exists()
    history.undo(live)
    assert read_manifest(live, BankManifest).classes["disc"] == before.classes["disc"]


def test_a_new_class_begins_empty(tiny_model: Path, live: Path, tmp_path: Path) -> None:
    draft, inspector = new_draft(tiny_model, live, tmp_path / "drafts", "new one")
    with inspector:
        assert draft.entry is None and draft.facts()["parts"] == [] and draft.facts()["is_new"]
        with pytest.raises(NotReadyError, match="no good part"):
            draft.go_live(live, "a")
        draft.add(rgb(20), "part 20", "a")
        assert draft.facts()["parts"][0]["score"] is None  # nothing to compare with
        with pytest.raises(NotReadyError, match="no threshold"):
            draft.go_live(live, "a")
        draft.add(rgb(21), "part 21", "a")
        assert [one["score"] is not None for one in draft.facts()["parts"]] == [True, True]
        draft.go_live(live, "a")
    assert sorted(read_manifest(live, BankManifest).classes) == ["disc", "grid", "new one"]


def test_a_part_that_stands_out_must_be_decided_on(opened: Draft, live: Path) -> None:
    odd = rgb(30)
    odd[30:70, 40:90] = (255, 0, 0)
    opened.add(odd, "part 30", "setter 1")
    (outlier,) = [one for one in opened.facts()["parts"] if one["stands_out"]]
    assert outlier["source"] == "part 30"
    with pytest.raises(NotReadyError) as caught:
        opened.go_live(live, "setter 1")
    assert caught.value.code == "undecided"
    with pytest.raises(VisionADError, match="a reason"):
        opened.decide(outlier["support"], "  ", "setter 1")
    opened.decide(outlier["support"], "another supplier", "setter 1")
    assert opened.facts()["parts"][-1]["decided"] == {"reason": "another supplier", "who": "setter 1"}
    opened.go_live(live, "setter 1")


def test_a_class_that_changed_meanwhile_is_not_overwritten(opened: Draft, live: Path, tiny_model: Path) -> None:
    with Inspector.open(tiny_model, live, threads=1) as inspector:
        version = inspector.enroll("disc", [part(50)])
    with pytest.raises(ClassChangedError) as caught:
        opened.go_live(live, "setter 1")
    assert caught.value.version == version == read_manifest(live, BankManifest).version
    assert opened.folder.exists()


def test_a_change_of_another_class_does_not_hinder(opened: Draft, live: Path, tiny_model: Path) -> None:
    with Inspector.open(tiny_model, live, threads=1) as inspector:
        inspector.enroll("grid", [part(50, kind="grid")])
    opened.add(rgb(10), "part 10", "setter 1")
    opened.go_live(live, "setter 1")
    assert {name: len(entry.images) for name, entry in read_manifest(live, BankManifest).classes.items()} == {
        "disc": 5, "grid": 4,
    }  # fmt: skip


def test_what_cannot_be_added(opened: Draft) -> None:
    with pytest.raises(BankError, match="enrolled already"):
        opened.add(rgb(0), "again", "a")
    with pytest.raises(ImageError, match=r"128x96 .* got 64x48"):
        opened.add(np.zeros((48, 64, 3), np.uint8), "small", "a")
    for seed in range(60, 60 + MAX_PARTS - 4):
        opened.add(rgb(seed), f"part {seed}", "a")
    with pytest.raises(BankError, match="at most 8"):
        opened.add(rgb(70), "ninth", "a")


def test_a_part_is_taken_out_and_the_last_one_too(tiny_model: Path, live: Path, tmp_path: Path) -> None:
    draft, inspector = new_draft(tiny_model, live, tmp_path / "drafts", "x")
    with inspector:
        draft.add(rgb(20), "part 20", "a")
        draft.add(rgb(21), "part 21", "a")
        for one in draft.facts()["parts"]:
            draft.remove(one["support"], "a")
        assert draft.facts()["parts"] == [] and draft.facts()["threshold"] is None
        with pytest.raises(BankError, match="has no part"):
            draft.remove("0" * 64, "a")


def test_collected_parts_give_the_threshold_of_calibrate(opened: Draft, tiny_model: Path, tmp_path: Path) -> None:
    """Scenario 13: 22 parts, 3 of them bad and struck out; the value is that of ``visionad calibrate`` on the other 19."""
    opened.collect(True, "setter 1")
    images = {seed: rgb(seed, defect=seed in (103, 110, 117)) for seed in range(100, 122)}
    for seed, image in images.items():
        opened.take(seed, f"SN-{seed}", "top", image)
    opened.take(200, "twice", "top", images[100])  # the same pixels count once
    opened.take(201, "dark", "top", None)
    assert len(opened.state.collected) == 22 and opened.state.without_image == 1
    with pytest.raises(NotReadyError) as caught:
        opened.use_threshold(0.05, "setter 1")
    assert caught.value.code == "not_looked"
    bad = {pixel_digest(images[seed]) for seed in (103, 110, 117)}
    assert bad <= {one.pixels for one in sorted(opened.state.collected, key=lambda one: -one.score)[:3]}
    with pytest.raises(VisionADError, match="a reason"):
        opened.look(next(iter(bad)), True, "", "setter 1")
    for pixels in bad:
        opened.look(pixels, True, "scratch", "setter 1")
        assert pixels not in opened.facts()["look_first"]
    counted = sorted((one for one in opened.state.collected if not one.struck), key=lambda one: -one.score)
    assert opened.facts()["look_first"] == [one.pixels for one in counted[:HIGHEST]]
    for one in sorted(opened.state.collected, key=lambda one: -one.score)[:8]:
        if not one.struck:
            opened.look(one.pixels, False, "", "setter 1")
    with pytest.raises(VisionADError, match="at least 99"):
        opened.use_threshold(0.01, "setter 1")
    opened.use_threshold(0.05, "setter 1")
    facts = opened.facts()
    assert facts["promise"]["normals"] == facts["counted"] == 19 and facts["promise"]["rate"] <= 0.05

    folder = tmp_path / "images"
    folder.mkdir()
    paths = []
    for seed, image in images.items():
        if seed not in (103, 110, 117):
            paths.append(folder / f"{seed}.png")
            cv2.imwrite(str(paths[-1]), image[..., ::-1])
    other = shutil.copytree(opened.folder / BANK, tmp_path / "other")
    adopt_class(tmp_path / "bank", other, "disc", "as the line has it")
    with Inspector.open(tiny_model, other, threads=1) as inspector:
        assert calibrate_class(inspector, "disc", paths, 0.05).threshold.value == facts["threshold"]


def test_another_part_drops_what_was_collected(opened: Draft) -> None:
    opened.collect(True, "a")
    opened.take(1, "", "top", rgb(100))
    opened.add(rgb(10), "part 10", "a")
    assert opened.state.collected == () and not opened.state.collecting and opened.state.why_ended
    assert not (opened.folder / "collected").exists()


def test_two_setters_and_a_draft_that_outlives_its_process(opened: Draft, tmp_path: Path) -> None:
    seen = opened.state.version
    opened.add(rgb(10), "part 10", "setter 2")
    with pytest.raises(DraftChangedError, match="changed by setter 2"):
        opened.check(seen)
    (found,) = drafts_in(tmp_path / "drafts")
    assert found == opened.state
    (opened.folder / "draft.json").write_text("{")
    assert list(drafts_in(tmp_path / "drafts")) == []


@pytest.mark.parametrize("name", [".", "..", "../..", "../bank", "..."])
def test_no_name_reaches_beyond_the_drafts(name: str, live: Path, tmp_path: Path) -> None:
    drafts = tmp_path / "drafts"
    begin_draft(draft_folder(drafts, "disc"), live, "disc", "setter 1")
    before = sorted(tmp_path.rglob("*"))
    assert draft_folder(drafts, name).parent == drafts and draft_folder(drafts, name).name not in (".", "..")
    if not name.strip("."):
        with pytest.raises(BankError, match="dots"):
            begin_draft(draft_folder(drafts, name), live, name, "setter 2")
    for folder in (drafts / ".", drafts / ".."):  # whatever a caller makes of a name
        with pytest.raises(VisionADError, match="expected the folder of a draft"):
            remove_draft(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_kept_parts_are_tried_with_the_scores_of_an_inspection(opened: Draft, tmp_path: Path, tiny_model: Path) -> None:
    """Scenario 14: what-if at five thresholds equals inspecting the stored images again."""
    folder = tmp_path / "archive"
    folder.mkdir()
    scores = {}
    with Inspector.open(tiny_model, opened.folder / BANK, threads=1) as inspector:
        for seed in range(100, 110):
            path = folder / f"{seed}.png"
            cv2.imwrite(str(path), part(seed, defect=seed % 3 == 0))
            scores[seed] = inspector.inspect(part(seed, defect=seed % 3 == 0), class_name="disc").score
            opened.try_on(seed, path, "ok" if seed % 2 else "anomalous", None if seed < 105 else seed % 3 != 0)
    for threshold in np.quantile(list(scores.values()), (0, 0.2, 0.5, 0.8, 1)):
        facts = opened.effect_facts(float(threshold))
        over = {seed for seed, score in scores.items() if score > threshold}
        assert facts["more"] == sorted(seed for seed in over if seed % 2)
        assert facts["fewer"] == sorted(seed for seed in scores if seed not in over and seed % 2 == 0)
        assert facts["good_rejected"] == len({105 + k for k in range(5) if (105 + k) % 3} & over)
        assert facts["bad_caught"] == len({105, 108} & over)
    with pytest.raises(ImageError):
        opened.try_on(1, folder / "missing.png", "ok", None)


def test_a_part_that_was_tried_is_as_bad_as_its_worst_image(opened: Draft) -> None:
    opened.effect = [
        Flip(1, 0.1, "ok", True), Flip(1, 0.9, "anomalous", True), Flip(1, 0.2, "unknown", True),  # three cameras
        Flip(2, 0.9, "ok", False), Flip(2, 0.1, "ok", False),
        Flip(3, 0.1, "review", None), Flip(3, 0.9, "ok", None),
    ]  # fmt: skip
    facts = opened.effect_facts(0.5)
    assert facts["tried"] == 3 and [one["score"] for one in facts["scores"]] == [0.9, 0.9, 0.9]
    assert [one["was"] for one in facts["scores"]] == ["anomalous", "ok", "review"]
    assert (facts["more"], facts["fewer"]) == ([2], [])
    assert (facts["good"], facts["good_rejected"], facts["bad"], facts["bad_caught"]) == (1, 1, 1, 1)
    assert opened.effect_facts(0.95)["fewer"] == [1] and opened.effect_facts(None)["more"] == []


def test_the_image_of_a_part_is_scored_without_itself(opened: Draft) -> None:
    for one in opened.facts()["parts"]:
        image, result = opened.image(one["support"])
        assert image.shape == (96, 128, 3) and result is not None and result.score == one["score"]
    with pytest.raises(VisionADError, match="has no part"):
        opened.image("0" * 64)


def test_an_older_version_of_a_class_is_brought_back_whole(live: Path, tiny_model: Path) -> None:
    before = read_manifest(live, BankManifest)
    with Inspector.open(tiny_model, live, threads=1) as inspector:
        inspector.enroll("disc", [part(50)])
        inspector.enroll("grid", [part(50, kind="grid")])
    manifest = adopt_class(live, live, "disc", "back", version=before.version)
    assert manifest.version == before.version + 3 and manifest.classes["disc"] == before.classes["disc"]
    assert len(manifest.classes["grid"].images) == 4
    history.verify(live)
    with pytest.raises(BankError, match="has no version 99"):
        adopt_class(live, live, "disc", "back", version=99)


def test_what_cannot_be_adopted(live: Path, opened: Draft, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="nothing"):
        adopt_class(opened.folder / BANK, live, "nothing", "x")
    with pytest.raises(BankError, match="enrolled already, as disc"):
        renamed = shutil.copytree(opened.folder / BANK, tmp_path / "renamed")
        text = (renamed / "manifest.json").read_text().replace('"disc": {', '"disk": {')
        (renamed / "manifest.json").write_text(text)
        adopt_class(renamed, live, "disk", "x")
    bank = Bank.open(opened.folder / BANK)
    (opened.folder / BANK / "supports" / f"{bank.classes['disc'].entry.images[0].tokens}.safetensors").write_bytes(b"x")
    before = (live / "manifest.json").read_bytes()
    with pytest.raises(BankError, match="damaged"):
        adopt_class(opened.folder / BANK, live, "disc", "x")
    assert (live / "manifest.json").read_bytes() == before


def test_the_raster_says_what_the_search_leaves_out(opened: Draft, tiny_model: Path) -> None:
    spec = spec_from_json(
        {"image_size": [128, 96], "rois": [{"name": "left", "polygon": [[0, 0], [60, 0], [60, 90], [0, 90]]}],
         "ignore": [[[0, 0], [30, 0], [30, 90], [0, 90]]]}
    )  # fmt: skip
    assert isinstance(spec, RoiSpec) and spec.rois[0].box == (0, 0, 61, 91)
    identity = read_manifest(opened.folder / BANK, BankManifest).identity
    found = raster("disc", spec, identity)
    (tile,) = found["tiles"]
    assert tile["side"] ** 2 == found["cells"] == len(tile["ignored"])
    assert found["inspected"] == tile["ignored"].count("0") and 0 < found["share"] < 0.5
    seen, ignored, beyond = (
        KnownDefect(i, f"SN-{i}", [(x, 30), (x + 8, 30), (x + 8, 40), (x, 40)]) for i, x in enumerate((40, 10, 124))
    )
    hidden = raster("disc", spec, identity, [seen, ignored, beyond])["hidden"]
    assert ignored._asdict() in hidden and seen._asdict() not in hidden and beyond._asdict() not in hidden
    opened.set_regions(spec, "a")
    layout = opened._inspector.layout_of("disc")
    assert layout is not None and layout.tiles[0].cells is not None
    assert "".join("1" if cell else "0" for cell in layout.tiles[0].cells.ravel()) == tile["ignored"]
    with pytest.raises(VisionADError, match="nothing is left"):
        raster(
            "disc",
            spec_from_json({"image_size": [128, 96], "ignore": [[[0, 0], [127, 0], [127, 95], [0, 95]]]}),
            identity,
        )
    with pytest.raises(VisionADError, match="regions of interest"):
        spec_from_json({"image_size": [128, 96], "rois": [{"name": "x", "box": [0, 0, 500, 10]}]})
    with pytest.raises(VisionADError, match="regions of interest"):
        spec_from_json({"image_size": [128, 96], "rois": [{"name": "x", "polygon": [["a", 0], [1, 1], [2, 2]]}]})
