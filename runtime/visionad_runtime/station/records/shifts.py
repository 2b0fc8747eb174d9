"""Shifts in a named time zone: which shift a moment lies in, also on days of 23 and 25 hours."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from typing import NamedTuple
from zoneinfo import ZoneInfo

from ..settings import Shifts

YEARS = range(1970, 9000)
"""Years of which shifts are known. The calendar's own ends are not far from where it cannot be converted any more."""


class Shift(NamedTuple):
    """One shift.

    Attributes:
        name: local date and time of its start, such as ``2026-11-30 06:00``.
        start: UTC, included.
        end: UTC, not included: the start of the next shift.
    """

    name: str
    start: datetime
    end: datetime


def shift_of(settings: Shifts, moment: datetime) -> Shift:
    """Return the shift that a moment lies in.

    Args:
        settings: time zone and times of the starts.
        moment: with a time zone.
    """
    local_day = moment.astimezone(ZoneInfo(settings.zone)).date()
    starts = _starts(settings, local_day - timedelta(days=2), local_day + timedelta(days=2))
    place = max(index for index, (start, _) in enumerate(starts) if start <= moment)
    return Shift(starts[place][1], starts[place][0], starts[place + 1][0])


def shifts_between(settings: Shifts, start: datetime, end: datetime) -> Iterator[Shift]:
    """Yield the shifts that share a moment with ``start <= moment < end``, oldest first.

    Args:
        settings: time zone and times of the starts.
        start: with a time zone.
        end: with a time zone.
    """
    while start < end:
        shift = shift_of(settings, start)
        yield shift
        start = shift.end


def _starts(settings: Shifts, first: date, last: date) -> list[tuple[datetime, str]]:
    """Return start in UTC and name of the shifts that start on some days, in order.

    Where clocks skip the time of two starts, both would begin at the skip's end; the later one does.
    """
    zone = ZoneInfo(settings.zone)
    starts: dict[datetime, str] = {}
    day = first
    while day <= last:
        for text in settings.start:
            hour, minute = map(int, text.split(":"))
            starts[_in_utc(datetime.combine(day, clock_time(hour, minute)), zone)] = f"{day} {text}"
        day += timedelta(days=1)
    return sorted(starts.items())


def _in_utc(local: datetime, zone: ZoneInfo) -> datetime:
    """Return a local time in UTC: the first of two where clocks are put back, the end of the gap where they skip it."""
    before = local.replace(tzinfo=zone).astimezone(UTC)
    if before.astimezone(zone).replace(tzinfo=None) == local:
        return before
    low, high = local.replace(tzinfo=zone, fold=1).astimezone(UTC), before  # the skip lies between them
    offset = high.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        low, high = (low, middle) if middle.astimezone(zone).utcoffset() == offset else (middle, high)
    return high
