"""A command that changes a threshold says the new promise, and what it dropped. The tolerated rates stay."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.store import Bank
from visionad_runtime.cli.main import run
from visionad_runtime.scoring.conformal import promise_in_words

from tests.data import part


@pytest.fixture
def bank(tiny_model: Path, tmp_path: Path) -> Path:
    """A bank with a class of four supports and two held-out images, with rates that are not the default."""
    held_out = [tmp_path / f"{number}.png" for number in (10, 11)]
    for number, path in zip((10, 11), held_out, strict=True):
        cv2.imwrite(str(path), part(number))
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [part(number) for number in range(4)])
    calibrate = ["calibrate", str(tiny_model), str(tmp_path / "bank"), "--class", "disc", "--review-rate", "0"]
    assert run([*calibrate, *map(str, held_out), "--max-false-reject", "0.4"]) == 0
    return tmp_path / "bank"


@pytest.mark.parametrize("change", ["remove", "roi", "rebuild"])
def test_the_new_promise_is_said(
    tiny_model: Path, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    first = Bank.open(bank, lazy=True).classes["disc"].entry.images[0].sha256
    capsys.readouterr()
    if change == "remove":
        assert run(["bank", "remove", str(bank), "--class", "disc", "--image", first]) == 0
    elif change == "roi":
        assert run(["bank", "roi", str(tiny_model), str(bank), "--class", "disc", "--roi", "a=10,10,60,60"]) == 0
    else:
        assert run(["bank", "rebuild", str(tiny_model), str(bank), str(tmp_path / "new")]) == 0
        bank = tmp_path / "new"
    record = Bank.open(bank, lazy=True).classes["disc"].entry.calibration
    assert record is not None and record.normals == (3 if change == "remove" else 4)
    assert (record.max_false_reject, record.review_rate) == (0.4, 0)
    said = capsys.readouterr()
    assert promise_in_words(record.normals, 0.4) in said.out
    assert "scores of 2 held-out or confirmed parts were dropped: they do not hold any more" in said.err
