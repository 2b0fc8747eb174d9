"""A part that a person found defective is no good part, wherever its image lies and however it is stored."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from visionad_runtime import BankError, Inspector
from visionad_runtime.cli.main import run
from visionad_runtime.formats.manifest import ClassEntry
from visionad_runtime.pipeline.calibration import recalibrate, recorded_scores, without_defective
from visionad_runtime.teaching.calibrate import calibrate_class
from visionad_runtime.teaching.remember import remember_file

from tests.data import part


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Inspector:
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll("disc", [part(number) for number in range(3)])
    return inspector


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three good parts and, last, a defective one."""
    return [save(tmp_path / f"{number}.png", number, number == 12) for number in (10, 11, 13, 12)]


def save(path: Path, number: int, defect: bool = False) -> Path:
    cv2.imwrite(str(path), part(number, defect=defect))
    return path


def entry_of(inspector: Inspector) -> ClassEntry:
    assert inspector.bank is not None
    return inspector.bank.classes["disc"].entry


@pytest.mark.parametrize("how", ["confirmed", "remembered"])
def test_it_is_not_taken_as_good_afterwards(inspector: Inspector, images: list[Path], tmp_path: Path, how: str) -> None:
    bad, copy = images[-1], save(tmp_path / "copy.bmp", 12, defect=True)
    if how == "confirmed":
        inspector.confirm_files("disc", [bad], good=False)
    else:
        mask = 255 * (np.abs(part(12, defect=True).astype(int) - part(12)).max(axis=2) > 20).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "mask.png"), mask)
        remember_file(inspector, "disc", bad, tmp_path / "mask.png")
    before = entry_of(inspector)
    for again in (bad, copy):
        with pytest.raises(BankError, match="is recorded as defective"):
            calibrate_class(inspector, "disc", [*images[:3], again])
        with pytest.raises(BankError, match="is recorded as defective"):
            inspector.enroll_files("disc", [again])
        with pytest.raises(BankError, match="was confirmed before"):
            inspector.confirm_files("disc", [again])
    assert entry_of(inspector) == before
    calibrate_class(inspector, "disc", images[:3])  # the others are taken


def test_a_remembered_defect_of_an_older_bank_is_not_taken_as_good(inspector: Inspector, images: list[Path]) -> None:
    inspector.confirm_files("disc", images[-1:], good=False)
    entry = entry_of(inspector)
    assert entry.confirmations is not None and entry.defective == entry.confirmations
    counted = entry.confirmations[0].model_copy(update={"pixels": None})
    assert inspector.bank is not None
    inspector.bank.update("disc", "older", lambda held: held.entry.model_copy(update={"confirmations": (counted,)}))
    with pytest.raises(BankError, match="is recorded as defective"):
        inspector.enroll_files("disc", images[-1:])


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_the_score_that_it_gave_as_a_good_part_is_dropped_and_said(
    inspector: Inspector,
    images: list[Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    calibrate_class(inspector, "disc", images[:3])
    expected = entry_of(inspector)
    calibrate_class(inspector, "disc", images)
    assert entry_of(inspector).threshold > expected.threshold  # type: ignore[operator]
    bad = save(tmp_path / f"again{suffix}", 12, defect=True)
    confirm = ["bank", "confirm", str(tiny_model), str(tmp_path / "bank"), str(bad), "--class", "disc", "--defect"]
    assert run(confirm) == 0
    assert "scores of 1 held-out or confirmed parts were dropped: they were found defective" in capsys.readouterr().err
    inspector.refresh()
    entry = entry_of(inspector)
    assert (entry.threshold, len(recorded_scores(entry))) == (expected.threshold, 3)
    calibrate_class(inspector, "disc")
    assert len(recorded_scores(entry_of(inspector))) == 3 + 3  # supports count too now


def test_a_score_that_an_older_bank_holds_is_dropped_by_the_next_change(
    inspector: Inspector, images: list[Path]
) -> None:
    calibrate_class(inspector, "disc", images)
    counted = entry_of(inspector)
    inspector.confirm_files("disc", images[-1:], good=False)
    older = counted.model_copy(update={"confirmations": entry_of(inspector).confirmations})
    assert len(recorded_scores(older)) == 3
    assert without_defective(older).threshold == entry_of(inspector).threshold
    assert without_defective(counted) is counted
    held = inspector.bank.classes["disc"].with_entry(older)  # type: ignore[union-attr]
    changed = recalibrate(held, older)
    assert changed.calibration is not None and changed.calibration.normals == 3 + 3


def test_without_another_score_there_is_no_threshold(inspector: Inspector, images: list[Path]) -> None:
    calibrate_class(inspector, "disc", images[-1:])
    inspector.confirm_files("disc", images[-1:], good=False)
    assert (entry_of(inspector).threshold, entry_of(inspector).calibration) == (None, None)
