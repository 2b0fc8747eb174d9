"""Thresholds follow the supports: from the second on, kept when one is added, computed anew when one is removed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.history import undo
from visionad_runtime.bank.store import Bank
from visionad_runtime.errors import BankError, VisionADError
from visionad_runtime.pipeline import calibration
from visionad_runtime.pipeline.calibration import recalibrate, recorded_scores
from visionad_runtime.pipeline.leave_one_out import leave_one_out
from visionad_runtime.result import _verdict
from visionad_runtime.teaching.calibrate import calibrate_class

from tests.data import part


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Inspector:
    return Inspector.open(tiny_model, tmp_path / "bank", threads=1)


def teach(inspector: Inspector, *numbers: int) -> None:
    inspector.enroll("disc", [part(number) for number in numbers])


def entry_of(inspector: Inspector):  # type: ignore[no-untyped-def]
    assert inspector.bank is not None
    return inspector.bank.classes["disc"].entry


def test_after_one_part_everything_is_for_review(inspector: Inspector) -> None:
    teach(inspector, 0)
    for image in (part(0), part(1), part(5, defect=True)):
        result = inspector.inspect(image, class_name="disc")
        assert (result.verdict, result.threshold, result.p_value, result.promise) == ("review", None, None, None)
        assert result.regions  # where to look


@pytest.mark.parametrize("count", [2, 4, 8])
def test_n_supports_promise_one_in_n_plus_one(inspector: Inspector, count: int) -> None:
    teach(inspector, *range(count))
    entry = entry_of(inspector)
    assert inspector.bank is not None
    scores = leave_one_out(inspector.bank.classes["disc"], inspector.scoring)
    assert entry.threshold == max(s.score for s in scores)
    assert entry.review_threshold is None
    assert entry.calibration.origins == ("leave-one-out",) * count
    result = inspector.inspect(part(30), class_name="disc")
    assert result.promise is not None
    assert (result.promise.guaranteed, result.promise.normals) == (pytest.approx(1 / (count + 1)), count)
    at_least = sum(s.score >= result.score for s in scores)
    assert result.p_value == (1 + at_least) / (count + 1)
    assert inspector.inspect(part(5, defect=True), class_name="disc").verdict == "anomalous"


def test_a_leave_one_out_score_is_that_of_an_inspection_without_the_support(
    inspector: Inspector, tiny_model: Path, tmp_path: Path
) -> None:
    teach(inspector, 0, 1, 2)
    other = Inspector.open(tiny_model, tmp_path / "other", threads=1)
    other.enroll("disc", [part(0), part(2)])
    expected = other.inspect(part(1), class_name="disc").score
    assert inspector.bank is not None
    (one,) = leave_one_out(inspector.bank.classes["disc"], inspector.scoring, [1])
    assert one.score == pytest.approx(expected, abs=1e-6)


def test_confirmed_parts_tighten_the_promise(inspector: Inspector) -> None:
    teach(inspector, 0, 1, 2, 3)
    before = entry_of(inspector)
    inspector.confirm("disc", [part(number) for number in range(10, 25)])
    entry = entry_of(inspector)
    assert entry.calibration.normals == 19
    assert entry.calibration.guaranteed_false_reject == pytest.approx(0.05)
    assert entry.images == before.images
    assert [c.counted for c in entry.confirmations] == [True] * 15
    scores = [inspector.inspect(part(number), class_name="disc").score for number in range(10, 25)]
    assert entry.calibration.scores[4:] == tuple(scores)
    assert inspector.bank is not None
    undo(inspector.bank.folder)
    inspector.refresh()
    assert entry_of(inspector).calibration == before.calibration


def test_accepted_parts_alone_do_not_count(inspector: Inspector) -> None:
    teach(inspector, 0, 1, 2, 3)
    before = entry_of(inspector)
    inspector.confirm("disc", [part(10)], selection="accepted")
    inspector.confirm("disc", [part(11, defect=True)], good=False)
    entry = entry_of(inspector)
    assert (entry.threshold, entry.calibration) == (before.threshold, before.calibration)
    assert [(c.good, c.selection, c.counted) for c in entry.confirmations] == [
        (True, "accepted", False),
        (False, "all", False),
    ]


def test_no_part_counts_twice(inspector: Inspector) -> None:
    teach(inspector, 0, 1)
    inspector.confirm("disc", [part(10)])
    with pytest.raises(BankError, match="was confirmed before"):
        inspector.confirm("disc", [part(10)])
    with pytest.raises(BankError, match="enrolled already"):
        inspector.confirm("disc", [part(0)])
    assert entry_of(inspector).calibration.normals == 3


def test_confirming_a_class_of_one_support_gives_it_a_threshold(inspector: Inspector) -> None:
    teach(inspector, 0)
    inspector.confirm("disc", [part(10), part(11)])
    assert entry_of(inspector).calibration.origins == ("confirmed", "confirmed")


def test_scores_of_others_are_kept_when_a_support_is_added_and_dropped_when_one_is_removed(
    inspector: Inspector,
) -> None:
    teach(inspector, 0, 1, 2)
    inspector.confirm("disc", [part(10), part(11)])
    kept = [s for s in recorded_scores(entry_of(inspector)) if s.origin == "confirmed"]
    teach(inspector, 3)
    scores = recorded_scores(entry_of(inspector))
    assert [s for s in scores if s.origin == "confirmed"] == kept
    assert len(scores) == 4 + 2
    for score, number in zip(kept, (10, 11), strict=True):  # why they may be kept: scores only shrink
        assert inspector.inspect(part(number), class_name="disc").score <= score.score
    assert inspector.bank is not None
    bank = Bank.open(inspector.bank.folder, lazy=True)
    bank.remove("disc", entry_of(inspector).images[0].sha256, calibrate=recalibrate)
    inspector.refresh()
    entry = entry_of(inspector)
    assert {s.origin for s in recorded_scores(entry)} == {"leave-one-out"}
    assert [one.counted for one in entry.confirmations] == [False, False]
    expected = leave_one_out(inspector.bank.classes["disc"], inspector.scoring)
    assert entry.threshold == max(s.score for s in expected)


def test_a_large_class_keeps_its_thresholds(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_AUTOMATIC", 3)
    teach(inspector, 0, 1, 2)
    before = entry_of(inspector)
    teach(inspector, 3)
    entry = entry_of(inspector)
    assert (entry.threshold, entry.calibration) == (before.threshold, before.calibration)
    teach(inspector, 4)
    assert inspector.bank is not None
    bank = Bank.open(inspector.bank.folder, lazy=True)
    bank.remove("disc", entry.images[0].sha256, calibrate=recalibrate)
    inspector.refresh()
    assert entry_of(inspector).threshold is None  # it would take minutes; until then nothing passes
    assert inspector.inspect(part(0), class_name="disc").verdict == "review"
    calibrate_class(inspector, "disc")
    assert entry_of(inspector).calibration.normals == 4


def test_many_supports_at_once_are_calibrated_with_some_of_them(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MAX_AUTOMATIC", 3)
    teach(inspector, *range(6))
    assert entry_of(inspector).calibration.normals == 3


def test_two_limits_where_there_are_enough_scores(inspector: Inspector) -> None:
    teach(inspector, 0, 1, 2, 3)
    inspector.confirm("disc", [part(number) for number in range(10, 45)])
    entry = entry_of(inspector)
    scores = sorted(entry.calibration.scores)
    assert entry.threshold == scores[-1] and entry.review_threshold == scores[38 - 1]  # ceil(40 * 0.95) = 38 of 39
    between = float(np.mean([entry.threshold, entry.review_threshold]))
    for score, verdict in ((entry.review_threshold, "ok"), (between, "review"), (entry.threshold, "review")):
        assert _verdict(score, entry) == verdict


def test_calibrate_without_images_does_what_the_supports_allow(inspector: Inspector) -> None:
    teach(inspector, 0, 1, 2)
    automatic = entry_of(inspector)
    result = calibrate_class(inspector, "disc")
    assert entry_of(inspector).threshold == automatic.threshold == result.threshold.value
    assert not entry_of(inspector).calibration.automatic
    with pytest.raises(VisionADError, match="takes at least 99 good images"):
        calibrate_class(inspector, "disc", max_false_reject=0.01)


def test_a_threshold_of_another_scoring_is_not_built_on(inspector: Inspector, tiny_model: Path) -> None:
    teach(inspector, 0, 1, 2)
    assert inspector.bank is not None
    one_view = Inspector.open(tiny_model, inspector.bank.folder, threads=1, views=["original"])
    one_view.confirm("disc", [part(10)])
    record = entry_of(one_view).calibration
    assert record.views == ("original",)
    assert record.origins == ("leave-one-out",) * 3 + ("confirmed",)
    assert json.loads(json.dumps(record.model_dump(mode="json")))["automatic"] is True
