"""Shifts in a time zone: on days of 23 and 25 hours, and where clocks skip a start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from visionad_runtime.station.records.shifts import shift_of, shifts_between
from visionad_runtime.station.settings import Shifts

BERLIN = Shifts(zone="Europe/Berlin", start=("06:00", "14:00", "22:00"))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "name"),
    [
        ("2026-11-30T05:00:00", "2026-11-30 06:00"),  # winter: UTC + 1
        ("2026-11-30T04:59:59.999", "2026-11-29 22:00"),
        ("2026-11-30T23:30:00", "2026-11-30 22:00"),  # after local midnight, still the shift of the day before
        ("2026-07-01T04:00:00", "2026-07-01 06:00"),  # summer: UTC + 2
        ("2026-07-01T03:59:59", "2026-06-30 22:00"),
    ],
)
def test_the_shift_of_a_moment(moment: str, name: str) -> None:
    shift = shift_of(BERLIN, utc(moment))
    assert shift.name == name and shift.start <= utc(moment) < shift.end


@pytest.mark.parametrize(
    ("day", "hours", "lengths"),
    [
        ("2026-03-28", 23, {"2026-03-28 22:00": 7}),  # clocks skip 02:00 to 03:00 in the night to 29 March
        ("2026-10-24", 25, {"2026-10-24 22:00": 9}),  # clocks are put back in the night to 25 October
        ("2026-06-10", 24, {"2026-06-10 22:00": 8}),
    ],
)
def test_days_of_23_and_25_hours(day: str, hours: int, lengths: dict[str, int]) -> None:
    first = shift_of(BERLIN, utc(f"{day}T12:30:00"))
    shifts = list(shifts_between(BERLIN, first.start, first.start + timedelta(days=1)))[:3]
    found = {shift.name: (shift.end - shift.start) / timedelta(hours=1) for shift in shifts}
    assert lengths.items() <= found.items() and sum(found.values()) == hours
    assert all(a.end == b.start for a, b in pairwise(shifts))


def test_a_start_that_clocks_skip_is_at_the_end_of_the_gap() -> None:
    settings = Shifts(zone="Europe/Berlin", start=("02:30", "03:00", "14:00"))
    assert shift_of(settings, utc("2026-03-29T01:00:00")).name == "2026-03-29 03:00"
    assert shift_of(settings, utc("2026-03-29T00:59:59")).name == "2026-03-28 14:00"
    alone = Shifts(zone="Europe/Berlin", start=("02:30",))
    shift = shift_of(alone, utc("2026-03-29T01:00:00"))
    assert (shift.name, shift.start) == ("2026-03-29 02:30", utc("2026-03-29T01:00:00"))


def test_a_start_that_comes_twice_counts_once() -> None:
    settings = Shifts(zone="Europe/Berlin", start=("02:30",))
    names = [s.name for s in shifts_between(settings, utc("2026-10-24T12:00:00"), utc("2026-10-26T12:00:00"))]
    assert names == ["2026-10-24 02:30", "2026-10-25 02:30", "2026-10-26 02:30"]


def test_every_moment_of_a_year_lies_in_one_shift() -> None:
    for zone in ("Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "UTC"):  # half an hour; a day that was skipped
        settings = Shifts(zone=zone, start=("06:00", "18:00"))
        shifts = list(shifts_between(settings, utc("2011-06-01T00:00:00"), utc("2012-06-01T00:00:00")))
        assert all(a.end == b.start and a.start < a.end for a, b in pairwise(shifts))
        assert len({shift.name for shift in shifts}) == len(shifts)


def test_one_shift_a_day() -> None:
    settings = Shifts(start=("00:00",))
    assert shift_of(settings, utc("2026-11-30T00:00:00")).name == "2026-11-30 00:00"
