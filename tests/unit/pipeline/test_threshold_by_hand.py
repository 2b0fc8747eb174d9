"""A threshold by hand: it decides, it promises nothing, and it holds as long as scores can only shrink."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.store import Bank
from visionad_runtime.cli.main import run
from visionad_runtime.errors import BankError, VisionADError
from visionad_runtime.formats.manifest import ClassEntry
from visionad_runtime.pipeline.calibration import calibrated_again, type_threshold
from visionad_runtime.teaching.calibrate import calibrate_class
from visionad_runtime.tools.qualification.qualify import calibrated_entry

from tests.data import part


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Inspector:
    """A class of four parts."""
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll("disc", [part(number) for number in range(4)])
    return inspector


def entry_of(inspector: Inspector) -> ClassEntry:
    assert inspector.bank is not None
    return inspector.bank.classes["disc"].entry


def set_by_hand(inspector: Inspector, value: float) -> None:
    assert inspector.bank is not None
    inspector.bank.update("disc", "by hand", lambda held: type_threshold(held.entry, value, "anna", "scratches"))


def test_it_decides_and_promises_nothing(inspector: Inspector) -> None:
    good = inspector.inspect(part(9), class_name="disc")
    before = inspector.bank.snapshot.digest  # type: ignore[union-attr]
    for value, verdict in ((good.score * 1.01, "ok"), (good.score, "ok"), (math.nextafter(good.score, 0), "anomalous")):
        set_by_hand(inspector, value)
        result = inspector.inspect(part(9), class_name="disc")
        assert (result.verdict, result.threshold, result.promise, result.score) == (verdict, value, None, good.score)
        assert result.p_value == good.p_value
        assert entry_of(inspector).review_threshold is None
    assert inspector.bank.snapshot.digest != before  # type: ignore[union-attr]


def test_it_survives_the_disk_and_more_supports_and_not_fewer(inspector: Inspector, tmp_path: Path) -> None:
    calibrated = entry_of(inspector)
    set_by_hand(inspector, 0.123)
    inspector.enroll("disc", [part(20)])
    inspector.confirm("disc", [part(21)], good=True)
    entry = Bank.open(tmp_path / "bank").classes["disc"].entry
    assert (entry.threshold, entry.by_hand.who, entry.by_hand.reason) == (0.123, "anna", "scratches")  # type: ignore[union-attr]
    assert entry.calibration.normals == 6 and entry.promising is None  # type: ignore[union-attr]
    assert entry.map_scale is not None and sum(entry.map_scale) / 2 == pytest.approx(0.123)
    assert calibrated.images[0].sha256 == entry.images[0].sha256
    assert inspector.bank is not None
    inspector.bank.remove("disc", entry.images[4].sha256, calibrate=inspector.automatic_calibration())
    assert entry_of(inspector).by_hand is None and entry_of(inspector).threshold == calibrated.threshold


def test_calibrate_replaces_it_and_it_can_be_taken_back(inspector: Inspector) -> None:
    calibrated = entry_of(inspector)
    set_by_hand(inspector, 0.123)
    assert inspector.bank is not None
    inspector.bank.update("disc", "back", lambda held: calibrated_again(held.entry))
    entry = entry_of(inspector)
    assert entry.promising is not None and calibrated.calibration is not None
    assert entry.promising.model_copy(update={"created": ""}) == calibrated.calibration.model_copy(
        update={"created": ""}
    )
    assert (entry.threshold, entry.map_scale) == (calibrated.threshold, calibrated.map_scale)
    set_by_hand(inspector, 0.123)
    calibrate_class(inspector, "disc", [])
    assert entry_of(inspector).by_hand is None and entry_of(inspector).threshold == calibrated.threshold


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_no_such_threshold(inspector: Inspector, value: float) -> None:
    with pytest.raises(VisionADError, match="expected a positive number"):
        type_threshold(entry_of(inspector), value, "anna", "why")


def test_what_is_refused(inspector: Inspector) -> None:
    with pytest.raises(VisionADError, match="reason"):
        type_threshold(entry_of(inspector), 0.2, "anna", "  ")
    with pytest.raises(BankError, match="nothing to take back"):
        calibrated_again(entry_of(inspector))
    inspector.enroll("grid", [part(1, kind="grid")])
    assert inspector.bank is not None
    with pytest.raises(BankError, match="no score of a good part"):
        type_threshold(inspector.bank.classes["grid"].entry, 0.2, "anna", "why")
    set_by_hand(inspector, 0.2)
    with pytest.raises(VisionADError, match="typed by anna and promises nothing"):
        calibrated_entry(inspector, "disc")


def test_the_command(inspector: Inspector, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank, calibrated = tmp_path / "bank", entry_of(inspector).threshold

    def told(*arguments: object) -> tuple[int, str, str]:
        status = run(["bank", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    _, out, _ = told("threshold", bank, "--class", "disc", "--set", "0.2", "--reason", "deep scratches passed")
    assert "threshold 0.2000, bank version 2" in out and "by hand, no guarantee" in out
    assert "(deep scratches passed)" in told("info", bank)[1]
    assert told("threshold", bank, "--class", "disc", "--set", "0.2", "--reason", "no \udcff utf-8")[0] == 0
    assert r"(no \xff utf-8)" in told("info", bank)[1]
    assert told("undo", bank)[0] == 0
    _, out, _ = told("threshold", bank, "--class", "disc", "--calibrated", "--json")
    assert json.loads(out) == {
        "class": "disc", "threshold": calibrated, "review_threshold": None, "by_hand": None, "bank_version": 5,
    }  # fmt: skip
    for wrong, says in (
        (["--set", "0.2"], "expected a reason"),
        (["--set", "nan", "--reason", "x"], "expected a positive number"),
        (["--set", "1e308", "--reason", "x"], "expected a positive number"),
        (["--calibrated"], "nothing to take back"),
        ([], "expected --set SCORE or --calibrated"),
        (["--set", "1", "--calibrated"], "expected --set SCORE or --calibrated"),
    ):
        status, _, problem = told("threshold", bank, "--class", "disc", *wrong)
        assert status == 2 and says in problem and problem.count("\n") == 1
    assert Bank.open(bank).manifest.version == 5


def test_a_command_that_takes_it_away_says_so(
    inspector: Inspector, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = str(tmp_path / "bank")
    for change in (
        ["remove", bank, "--class", "disc", "--image", entry_of(inspector).images[0].sha256],
        ["roi", str(tiny_model), bank, "--class", "disc", "--roi", "mid=20,10,80,80"],
    ):
        assert run(["bank", "threshold", bank, "--class", "disc", "--set", "0.25", "--reason", "scratches"]) == 0
        capsys.readouterr()
        assert run(["bank", *change]) == 0
        said = capsys.readouterr().err
        assert "the threshold 0.25 by hand" in said and "(scratches) does not hold any more" in said
    assert run(["bank", "roi", str(tiny_model), bank, "--class", "disc", "--whole"]) == 0
    assert "by hand" not in capsys.readouterr().err
