"""Statistics by shift and recipe: every number is that of a plain count over the records."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime.scoring.intervals import clopper_pearson
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.records.statistics import shift_statistics
from visionad_runtime.station.settings import Shifts
from visionad_runtime.station.sink import Outcome

BERLIN = Shifts(zone="Europe/Berlin")


def outcome(number: int, hour: str, evaluation: int, reason: str = "none", recipe: int = 1, **more: Any) -> Outcome:
    time_utc = f"2026-11-30T{hour}:00.000+00:00"
    return Outcome(
        number, time_utc, number, f"SN-{number}", recipe, evaluation, reason, 0.2, 0.5, float(number), 1,
        more.pop("cameras", {}), **more,
    )  # fmt: skip


def regions(*boxes: tuple[int, int, int, int], roi: str | None = None) -> dict[str, Any]:
    named = {} if roi is None else {"roi": roi}
    return {"verdict": "anomalous", "regions": [{"bbox": list(box), "score": 1.0, **named} for box in boxes]}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    records = Records(tmp_path / "records.sqlite")
    records.complete(
        [
            outcome(1, "04:59", 1),  # 05:59 in Berlin: still the night shift
            outcome(2, "05:00", 1),
            outcome(3, "05:10", 2, "anomalous", cameras={"top": regions((0, 0, 10, 10), (130, 10, 4, 4))}),
            outcome(
                4, "05:11", 2, "anomalous", cameras={"top": regions((2, 4, 10, 10)), "side": regions((0, 0, 9, 9), roi="seal")}
            ),
            outcome(5, "05:12", 3, "review", recipe=2),
            outcome(6, "05:13", 3, "deadline", recipe=2),
            outcome(7, "12:59", 3, "camera", recipe=2, cameras={"top": {"error": "gone"}}),
            outcome(8, "13:00", 1),  # 14:00: the late shift
            outcome(9, "06:00", 3, "internal", alarms=("interrupted",)),
        ]
    )  # fmt: skip
    records.add_late(replace(outcome(6, "05:13", 1), latency_ms=900))
    return records


def of(records: Records, first: str = "2026-11-29", last: str = "2026-12-02") -> dict[str, Any]:
    start, end = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (first, last))
    return {one.shift.name: one for one in shift_statistics(records, BERLIN, start, end)}


def test_counts_by_shift_and_recipe(records: Records) -> None:
    shifts = of(records)
    assert list(shifts) == ["2026-11-29 22:00", "2026-11-30 06:00", "2026-11-30 14:00"]
    early = shifts["2026-11-30 06:00"]
    assert list(early.recipes) == [1, 2]
    one, two, total = early.recipes[1], early.recipes[2], early.total
    assert (one.parts, one.ok, one.anomalous, one.review, one.late) == (4, 1, 2, 0, 0)
    assert (two.parts, two.ok, two.anomalous, two.review, two.late) == (3, 0, 0, 1, 1)
    assert dict(two.not_decidable) == {"deadline": 1, "camera": 1} and dict(one.not_decidable) == {"internal": 1}
    assert total.parts == 7 and total.ok + total.anomalous + total.review + total.not_decidable.total() == 7
    assert shifts["2026-11-29 22:00"].total.parts == shifts["2026-11-30 14:00"].total.parts == 1


def test_latency_is_by_nearest_rank_and_leaves_interrupted_parts_out(records: Records) -> None:
    latency = of(records)["2026-11-30 06:00"].total.latency
    assert latency == (4.0, 7.0, 7.0, 7.0)  # of 2, 3, 4, 5, 6, 7; part 9 was never judged


def test_regions_are_counted_by_roi_or_cell(records: Records) -> None:
    assert of(records)["2026-11-30 06:00"].total.pareto() == [
        ("top x 0-127 y 0-127", 2),
        ("side seal", 1),
        ("top x 128-255 y 0-127", 1),
    ]


def test_missed_triggers_and_lost_frames_are_counted_in_their_shift(records: Records) -> None:
    with records._changing() as db:
        for hour, code, text in (
            ("05:00", "trigger-missed", "trigger 3 'a' was missed: the station is busy"),
            ("05:30", "frames-lost", "12 frames were lost: nobody looked at their parts; reject them"),
            ("13:29", "frames-lost", "1 frame was lost: nobody looked at its part; reject it"),
            ("13:30", "trigger-missed", "trigger 4 'b' was missed: the station is busy"),
            ("05:31", "overrun", "result 3 was not acknowledged in 2 s"),
        ):
            time_utc = f"2026-11-30T{hour}:00.000+00:00"
            db.execute("INSERT INTO events (time_utc, code, text) VALUES (?, ?, ?)", (time_utc, code, text))
    missed = {name: one.missed for name, one in of(records).items()}
    assert missed == {"2026-11-29 22:00": 0, "2026-11-30 06:00": 13, "2026-11-30 14:00": 2}


def test_false_rejects_come_from_reviews_alone(records: Records) -> None:
    share = of(records)["2026-11-30 06:00"].total.false_rejects
    assert share == (0, 0, 0.0, 1.0)  # nobody looked: nothing is known
    records.add_review(3, "anna", True)
    records.add_review(4, "anna", True)
    records.add_review(4, "ben", False)
    records.add_review(2, "anna", False)
    records.add_review(8, "anna", True)  # another shift
    total = of(records)["2026-11-30 06:00"].total
    assert total.false_rejects == (1, 2, *clopper_pearson(1, 2))
    assert total.missed_defects == (1, 1, *clopper_pearson(1, 1))


def test_a_shift_is_cut_to_the_asked_time(records: Records) -> None:
    start, end = (datetime.fromisoformat(f"2026-11-30T{hour}:00+00:00") for hour in ("05:10", "05:12"))
    (one,) = shift_statistics(records, BERLIN, start, end)
    assert one.total.parts == 2 and (one.shift.start, one.shift.end) == (start, end)


def test_many_parts_are_counted_page_by_page(tmp_path: Path) -> None:
    records = Records(tmp_path / "r.sqlite")
    records.complete([outcome(number, "10:00", 1 + number % 2, "anomalous") for number in range(1, 2502)])
    records.add_review(2501, "anna", True)
    total = of(records)["2026-11-30 06:00"].total
    assert (total.parts, total.ok, total.anomalous, total.false_rejects.reviewed) == (2501, 1250, 1251, 1)
    assert json.loads(json.dumps(total.to_dict()))["latency_ms"]["p99"] == 2476
