"""Statistics of a station by shift and recipe, from its records."""

from __future__ import annotations

import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..front.cycle import ANOMALOUS, OK
from ..settings import Shifts
from .records import Records
from .shifts import Shift, shifts_between

CELL = 128
"""Side in pixels of the cells that regions without an ROI are counted in."""
CONFIDENCE = 0.95
"""Confidence of the intervals of a :class:`Share`."""
MISSED = ("trigger-missed", "frames-lost")
"""Codes of events that say that parts were missed."""
_LOST = re.compile(r"^(\d+) frames? (?:were|was) lost")


class Share(NamedTuple):
    """A share of reviewed parts, with its exact interval at :data:`CONFIDENCE`.

    The interval holds for all such parts if a person reviewed every one, or a part of them drawn at random.

    Attributes:
        cases: number of reviewed parts that are such cases.
        reviewed: number of reviewed parts.
        low: lower end of the interval, 0..1.
        high: upper end of the interval, 0..1.
    """

    cases: int
    reviewed: int
    low: float
    high: float


class Latency(NamedTuple):
    """Milliseconds from the trigger to the result: nearest-rank percentiles and the largest."""

    p50: float
    p95: float
    p99: float
    max: float


@dataclass
class Counts:
    """What happened to parts.

    Attributes:
        parts: number of parts.
        ok: evaluation 1.
        anomalous: evaluation 2.
        review: evaluation 3 because a person must look.
        not_decidable: reason → number, evaluation 3 for any other reason.
        late: parts whose result came after the deadline.
        regions: place → number of regions of parts that are not ok: camera and ROI, or camera and cell of :data:`CELL` pixels that
            the region's center lies in.
    """

    parts: int = 0
    ok: int = 0
    anomalous: int = 0
    review: int = 0
    not_decidable: Counter[str] = field(default_factory=Counter)
    late: int = 0
    regions: Counter[str] = field(default_factory=Counter)
    _milliseconds: array[float] = field(default_factory=lambda: array("d"))
    _reviewed: Counter[tuple[int, bool]] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any], was_good: bool | None) -> None:
        """Count a part.

        Args:
            row: of the records.
            was_good: what its newest review says; ``None`` without one.
        """
        self.parts += 1
        evaluation = row["evaluation"]
        if evaluation == OK:
            self.ok += 1
        elif evaluation == ANOMALOUS:
            self.anomalous += 1
        elif row["reason"] == "review":
            self.review += 1
        else:
            self.not_decidable[row["reason"]] += 1
        self.late += row["late"] is not None
        if "interrupted" not in row["alarms"]:  # such a part has no latency
            self._milliseconds.append(row["latency_ms"])
        if evaluation != OK:
            self.regions.update(_places(json.loads(row["cameras"])))
        if was_good is not None:
            self._reviewed[evaluation, was_good] += 1

    @property
    def latency(self) -> Latency | None:
        """Latencies; ``None`` without a part."""
        ordered = sorted(self._milliseconds)
        if not ordered:
            return None
        return Latency(_percentile(ordered, 0.5), _percentile(ordered, 0.95), _percentile(ordered, 0.99), ordered[-1])

    @property
    def false_rejects(self) -> Share:
        """Share of reviewed anomalous parts that were good."""
        return self._share(ANOMALOUS, True)

    @property
    def missed_defects(self) -> Share:
        """Share of reviewed ok parts that were not good."""
        return self._share(OK, False)

    def pareto(self, limit: int = 10) -> list[tuple[str, int]]:
        """Return places with the most regions, most first."""
        return sorted(self.regions.items(), key=lambda item: (-item[1], item[0]))[:limit]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        latency = self.latency
        return {
            "parts": self.parts,
            "ok": self.ok,
            "anomalous": self.anomalous,
            "review": self.review,
            "not_decidable": dict(sorted(self.not_decidable.items())),
            "late": self.late,
            "latency_ms": None if latency is None else latency._asdict(),
            "regions": [{"place": place, "count": count} for place, count in self.pareto()],
            "false_rejects": self.false_rejects._asdict(),
            "missed_defects": self.missed_defects._asdict(),
        }

    def _share(self, evaluation: int, was_good: bool) -> Share:
        from ...scoring.intervals import clopper_pearson  # only now: it needs NumPy, and the page does not

        reviewed = self._reviewed[evaluation, True] + self._reviewed[evaluation, False]
        cases = self._reviewed[evaluation, was_good]
        return Share(cases, reviewed, *clopper_pearson(cases, reviewed, CONFIDENCE))


@dataclass
class ShiftStatistics:
    """Statistics of one shift.

    Attributes:
        shift: the shift, cut to the asked time.
        recipes: number → its parts, in order of numbers.
        total: all parts.
        missed: triggers that were not accepted, and frames that were lost. They belong to no recipe.
    """

    shift: Shift
    recipes: dict[int, Counts]
    total: Counts
    missed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON. Times are UTC."""
        return {
            "shift": self.shift.name,
            "from": utc_text(self.shift.start),
            "to": utc_text(self.shift.end),
            "missed": self.missed,
            "total": self.total.to_dict(),
            "recipes": {str(number): counts.to_dict() for number, counts in self.recipes.items()},
        }


def shift_statistics(records: Records, shifts: Shifts, start: datetime, end: datetime) -> Iterator[ShiftStatistics]:
    """Yield the statistics of each shift in which something happened, oldest first.

    Args:
        records: record database.
        shifts: time zone and starts.
        start: with a time zone, included.
        end: with a time zone, not included.
    """
    for shift in shifts_between(shifts, start, end):
        cut = shift._replace(start=max(start, shift.start), end=min(end, shift.end))
        one = _one_shift(records, cut)
        if one.total.parts or one.missed:
            yield one


def _one_shift(records: Records, shift: Shift) -> ShiftStatistics:
    start, end = utc_text(shift.start), utc_text(shift.end)
    recipes: dict[int, Counts] = {}
    total = Counts()
    page: list[dict[str, Any]] = []

    def count() -> None:
        reviews = records.reviews_of(page[0]["id"], page[-1]["id"])
        for row in page:
            was_good = reviews.get(row["id"])
            recipes.setdefault(row["recipe"], Counts()).add(row, was_good)
            total.add(row, was_good)
        page.clear()

    for row in records.between(start, end):
        page.append(row)
        if len(page) == 1000:
            count()
    if page:
        count()
    missed = missed_in(records.events_between(start, end, MISSED))
    return ShiftStatistics(shift, dict(sorted(recipes.items())), total, missed)


def missed_in(events: Iterable[Mapping[str, Any]]) -> int:
    """Return how many parts were missed: triggers that were not accepted, and frames that were lost.

    Args:
        events: of the codes :data:`MISSED`, with ``code`` and ``text``.
    """
    missed = 0
    for event in events:
        lost = _LOST.search(event["text"]) if event["code"] == "frames-lost" else None
        missed += 1 if lost is None else int(lost[1])
    return missed


def utc_text(moment: datetime) -> str:
    """Return a moment as records have it: UTC, ISO 8601, milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _places(cameras: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for camera, facts in cameras.items():
        for region in facts.get("regions") or ():
            roi = region.get("roi")
            if roi and roi != "image":  # the name of the whole image
                yield f"{camera} {roi}"
                continue
            x, y, width, height = region["bbox"]
            left, top = (x + width // 2) // CELL * CELL, (y + height // 2) // CELL * CELL
            yield f"{camera} x {left}-{left + CELL - 1} y {top}-{top + CELL - 1}"
