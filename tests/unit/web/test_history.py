"""Parts of the records as pages and exports show them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the page needs the extra page")

from visionad_runtime.station.records.records import Records
from visionad_runtime.station.records.statistics import shift_statistics
from visionad_runtime.station.settings import Shifts
from visionad_runtime.web.station.history import Filter, History

from tests.fakes.line import outcome

NOW = datetime.now(UTC)
START, END = NOW - timedelta(hours=1), NOW + timedelta(hours=1)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(tmp_path / "records.sqlite")
    yield opened
    opened.close()


def test_the_counts_of_the_shift_are_those_of_the_statistics(records: Records) -> None:
    """Missed and late parts too: the cycle's own counts begin at its start, and an acknowledged fault clears them."""
    parts = [outcome(number, part) for number, part in enumerate(("a", "b", "bad", "odd", "bad"), 1)]
    records.complete([*parts, replace(outcome(6), time_utc="2020-01-01T00:00:00.000+00:00")])
    records.add_late(parts[3])
    records.note("trigger-missed", "trigger 7 'x' was missed: the station is busy")
    records.note("frames-lost", "12 frames were lost")
    records.note("late", "the result of part 4 came after its deadline, and was offered to nobody")
    counts = History(records.path).counts(START.isoformat(timespec="milliseconds"))
    assert counts == {"ok": 2, "reject": 2, "undecided": 1, "late": 1, "missed": 13}
    shifts = list(shift_statistics(records, Shifts(), START, END))
    assert sum(one.missed for one in shifts) == counts["missed"]
    assert sum(one.total.late for one in shifts) == counts["late"]


@pytest.mark.parametrize(("separator", "score"), [(",", "0.2"), (";", "0,2")])
def test_numbers_of_an_export_are_read_by_the_spreadsheet_that_expects_its_separator(
    records: Records, separator: str, score: str
) -> None:
    records.complete([outcome(1, "0.5")])
    text = b"".join(History(records.path).csv(Filter(), separator)).decode("utf-8-sig")
    (row,) = csv.DictReader(io.StringIO(text), delimiter=separator)
    assert (row["score"], row["part"], row["id"]) == (score, "0.5", "1")
    assert row["latency_ms"] == "12.5".replace(".", score[1])
