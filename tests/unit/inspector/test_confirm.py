"""Confirmed parts: one command is one version, and it keeps the scoring that the class was calibrated with."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from visionad_runtime import BankError, ImageError, Inspector
from visionad_runtime.bank.history import undo
from visionad_runtime.bank.store import Bank
from visionad_runtime.cli.main import run
from visionad_runtime.formats.manifest import ClassEntry
from visionad_runtime.teaching.calibrate import calibrate_class

from tests.data import part


@pytest.fixture
def bank(tiny_model: Path, tmp_path: Path) -> Path:
    """A bank with a class of three parts."""
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [part(number) for number in range(3)])
    return tmp_path / "bank"


def save(path: Path, number: int, defect: bool = False) -> Path:
    cv2.imwrite(str(path), part(number, defect=defect))
    return path


def entry_of(bank: Path) -> ClassEntry:
    return Bank.open(bank, lazy=True).classes["disc"].entry


def command(model: Path, bank: Path, *args: object) -> list[str]:
    return ["bank", "confirm", str(model), str(bank), *map(str, args), "--class", "disc"]


def test_one_undo_takes_a_remembered_defect_back(tiny_model: Path, bank: Path, tmp_path: Path) -> None:
    before, bad, mask = entry_of(bank), save(tmp_path / "bad.png", 5, defect=True), tmp_path / "mask.png"
    cv2.imwrite(str(mask), 255 * (np.abs(part(5, defect=True).astype(int) - part(5)).max(axis=2) > 20).astype(np.uint8))
    assert run(command(tiny_model, bank, bad, "--defect", "--remember", mask)) == 0
    after = entry_of(bank)
    assert after.defects is not None and after.confirmations is not None
    assert [one.sha256 for one in after.defective] == [after.defects[0].sha256] * 2
    undo(bank)
    assert entry_of(bank) == before


def test_one_undo_takes_an_enrolled_confirmation_back(tiny_model: Path, bank: Path, tmp_path: Path) -> None:
    before, image = entry_of(bank), save(tmp_path / "good.png", 7)
    assert run(command(tiny_model, bank, image, "--good", "--enroll")) == 0
    after = entry_of(bank)
    assert (len(after.images), len(after.confirmations or ())) == (4, 1)
    assert after.images[3].kept is not None
    assert after.calibration is not None and after.calibration.origins == ("leave-one-out",) * 4
    undo(bank)
    assert entry_of(bank) == before


def test_a_confirmed_defect_is_remembered_later_and_a_confirmed_good_part_is_not(
    tiny_model: Path, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good, mask = save(tmp_path / "bad.png", 5, defect=True), save(tmp_path / "good.png", 5), tmp_path / "mask.png"
    cv2.imwrite(str(mask), np.full(part(5).shape[:2], 255, np.uint8))
    assert run(command(tiny_model, bank, bad, "--defect")) == 0
    assert run(command(tiny_model, bank, good, "--good")) == 0
    capsys.readouterr()
    assert run(command(tiny_model, bank, bad, "--defect", "--remember", mask, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["counted"] == 0  # the good part before it counts
    before = entry_of(bank)
    assert (len(before.confirmations or ()), len(before.defects or ())) == (2, 1)
    assert run(command(tiny_model, bank, good, "--defect", "--remember", mask)) == 2
    assert entry_of(bank) == before


def test_what_cannot_be_enrolled_is_not_confirmed(tiny_model: Path, bank: Path, tmp_path: Path) -> None:
    before, image = Bank.open(bank, lazy=True).manifest, save(tmp_path / "good.png", 7)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with Inspector.open(tiny_model, bank, threads=1) as inspector:
        with pytest.raises(BankError, match="only good parts"):
            inspector.confirm_files("disc", [image], good=False, enroll=True)
        with pytest.raises(ImageError, match="broken"):
            inspector.confirm_files("disc", [image, tmp_path / "broken.png"], enroll=True)
    assert Bank.open(bank, lazy=True).manifest == before


@pytest.fixture
def flipped(tiny_model: Path, bank: Path, tmp_path: Path) -> Path:
    """The bank, with the class calibrated in the view flip from four held-out parts."""
    images = [save(tmp_path / f"held{number}.png", number) for number in range(10, 14)]
    calibrate = ["calibrate", str(tiny_model), str(bank), "--class", "disc", "--views", "flip", *map(str, images)]
    assert run([*calibrate, "--max-false-reject", "0.2", "--review-rate", "0"]) == 0
    return bank


@pytest.mark.parametrize("change", ["add", "confirm", "confirm and enroll", "remember", "roi"])
def test_a_change_keeps_the_scoring_that_the_class_was_calibrated_with(
    tiny_model: Path, flipped: Path, tmp_path: Path, change: str
) -> None:
    before, image = entry_of(flipped).calibration, save(tmp_path / "more.png", 20, defect=change == "remember")
    with Inspector.open(tiny_model, flipped, views="flip", threads=1) as line:
        expected = line.inspect(part(20), class_name="disc").score
    assert before is not None and before.views == ("flip",)
    if change == "add":
        assert run(["bank", "add", str(tiny_model), str(flipped), str(image), "--class", "disc"]) == 0
    elif change == "roi":
        roi = ["--roi", "a=10,10,60,60"]
        assert run(["bank", "roi", str(tiny_model), str(flipped), "--class", "disc", *roi]) == 0
    elif change == "remember":
        mask = tmp_path / "mask.png"
        cv2.imwrite(str(mask), np.full(part(5).shape[:2], 255, np.uint8))
        assert run(command(tiny_model, flipped, image, "--defect", "--remember", mask)) == 0
    else:
        enroll = ["--enroll"] if "enroll" in change else []
        assert run(command(tiny_model, flipped, image, "--good", *enroll)) == 0
    after = entry_of(flipped).calibration
    assert after is not None and after.views == ("flip",)
    assert (after.max_false_reject, after.review_rate) == (0.2, 0)
    if change not in ("remember", "roi"):
        assert set(before.scores) < set(after.scores)
    if change == "confirm":
        assert after.scores[-1] == pytest.approx(expected, abs=1e-6)
    with Inspector.open(tiny_model, flipped, views="flip", threads=1) as line:
        assert line.calibration_warnings() == []


def test_an_inspector_with_views_of_its_own_calibrates_for_them(tiny_model: Path, flipped: Path) -> None:
    with Inspector.open(tiny_model, flipped, views="original", threads=1) as inspector:
        inspector.enroll("disc", [part(30)])
        inspector.confirm("disc", [part(31)])
    after = entry_of(flipped).calibration
    assert after is not None and after.views == ("original",)
    assert after.origins == ("leave-one-out",) * 4 + ("confirmed",)


def test_a_part_that_is_scored_in_another_precision_does_not_count(
    tiny_model: Path, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_bf16(entry: ClassEntry) -> ClassEntry:
        assert entry.calibration is not None
        return entry.model_copy(update={"calibration": entry.calibration.model_copy(update={"precision": "bf16"})})

    Bank.open(bank, lazy=True).update("disc", "in bf16", lambda held: in_bf16(held.entry))
    before = entry_of(bank)
    assert run(command(tiny_model, bank, save(tmp_path / "good.png", 7), "--good")) == 0
    assert "do not count towards the promise: the threshold holds for scores in another" in capsys.readouterr().out
    after = entry_of(bank)
    assert (after.calibration, after.threshold) == (before.calibration, before.threshold)
    assert after.confirmations is not None and not after.confirmations[0].counted


def test_a_good_part_of_another_class_is_pointed_out(
    tiny_model: Path, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, disc = tmp_path / "grid.png", save(tmp_path / "disc.png", 8)
    bars = np.full(part(0).shape, 40, np.uint8)
    bars[::8] = bars[:, ::8] = 220
    cv2.imwrite(str(grid), bars)
    with Inspector.open(tiny_model, bank, threads=1) as inspector:
        inspector.enroll("grid", [np.ascontiguousarray(np.roll(bars, shift, axis=1)) for shift in (1, 2)])
    said = f"look at {grid}: it is nearer to grid"
    assert run(["calibrate", str(tiny_model), str(bank), "--class", "disc", str(grid), str(disc)]) == 0
    assert capsys.readouterr().err.count("look at") == 1
    assert run(command(tiny_model, bank, grid, disc, "--good")) == 0
    lines = capsys.readouterr().err
    assert said in lines and lines.count("look at") == 1
    with Inspector.open(tiny_model, bank, threads=1) as inspector:
        assert calibrate_class(inspector, "disc", [grid, disc]).notes == (said,)


def test_an_accepted_part_whose_verdict_is_anomalous_is_pointed_out(
    tiny_model: Path, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = save(tmp_path / "bad.png", 5, defect=True), save(tmp_path / "good.png", 1)
    cv2.imwrite(str(good), part(1) ^ 1)  # a support, but for its last bits
    capsys.readouterr()
    assert run(command(tiny_model, bank, bad, good, "--good", "--selection", "accepted")) == 0
    lines = capsys.readouterr().err
    assert f"look at {bad}: its verdict is anomalous, so it is none of the accepted parts" in lines
    assert lines.count("look at") == 1
