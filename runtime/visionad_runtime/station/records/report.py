"""Report of a station: its statistics as lines for the console, CSV, JSON and one HTML file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from ...errors import VisionADError
from ..front.cycle import REASONS
from ..settings import Shifts
from .records import Records
from .shifts import YEARS, Shift
from .statistics import CELL, Counts, Share, ShiftStatistics, shift_statistics, utc_text

UNDECIDED = tuple(reason for reason in REASONS if reason not in ("none", "anomalous", "review"))
"""Reasons why a part is not decidable, each a column of the CSV."""
_SQLITE = b"SQLite format 3\0"


class Source(NamedTuple):
    """Where a report comes from.

    Attributes:
        name: of the station; the file's without one.
        records: record database.
        shifts: time zone and starts.
        recipe_names: number → name.
    """

    name: str
    records: Path
    shifts: Shifts
    recipe_names: Mapping[int, str]


class Report(NamedTuple):
    """A report.

    Attributes:
        source: where it comes from.
        start: UTC, included.
        end: UTC, not included.
        shifts: each shift in which something happened, oldest first.
    """

    source: Source
    start: datetime
    end: datetime
    shifts: Sequence[ShiftStatistics]


def read_source(path: Path) -> Source:
    """Return where the records of a file lie.

    Args:
        path: station file, or record database. The shifts of a bare database are those of the default settings, in UTC.

    Raises:
        VisionADError: It is neither, or there are no records.
    """
    from ..settings import read_station

    try:
        with path.open("rb") as file:
            is_database = file.read(len(_SQLITE)) == _SQLITE
    except OSError as exc:
        raise VisionADError(f"{path}: expected a station file or records, got {exc.strerror}") from None
    if is_database:
        return Source(path.stem, path, Shifts(), {})
    settings = read_station(path).settings
    if not settings.records.is_file():
        raise VisionADError(f"{path}: the station has no records yet: there is no file {settings.records}")
    names = {number: recipe.name for number, recipe in settings.recipes.items()}
    return Source(settings.station, settings.records, settings.shifts, names)


def make_report(source: Source, start: datetime, end: datetime) -> Report:
    """Count the parts of a time.

    Args:
        source: from :func:`read_source`.
        start: with a time zone, included.
        end: with a time zone, not included.

    Raises:
        VisionADError: The end is not after the start, a time is not in :data:`YEARS`, or the records cannot be read.
    """
    for moment in (start, end):
        if moment.year not in YEARS:
            raise VisionADError(f"report: expected times from {YEARS[0]} to {YEARS[-1]}, got {moment.isoformat()}")
    if end <= start:
        raise VisionADError(f"report: expected --to after --from, got {utc_text(start)} to {utc_text(end)}")
    records = Records(source.records)
    try:
        return Report(
            source,
            start.astimezone(UTC),
            end.astimezone(UTC),
            tuple(shift_statistics(records, source.shifts, start, end)),
        )
    finally:
        records.close()


def parse_time(text: str, zone: str, *, is_end: bool = False) -> datetime:
    """Return the moment that a text names.

    Args:
        text: ISO 8601 date, or date and time; without an offset in ``zone``.
        zone: name of a time zone.
        is_end: whether a date alone means the end of its day instead of the start.

    Raises:
        VisionADError: It is no time.
    """
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            day = date.fromisoformat(text) + timedelta(days=is_end)
            return datetime.combine(day, clock_time(), ZoneInfo(zone)).astimezone(UTC)
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).astimezone(UTC)
    except (ValueError, OverflowError):
        raise VisionADError(f"expected a time such as 2026-11-30 or '2026-11-30 06:00', got {text!r}") from None


def as_lines(report: Report) -> list[str]:
    """Return the report for the console: a row for each shift and recipe, then reasons and places of all parts."""
    header = (
        "shift", "recipe", "parts", "ok", "anomalous", "review", "undecided", "missed", "late", "p50 ms", "p95 ms",
        "p99 ms", "max ms",
    )  # fmt: skip
    rows = [header]
    for shift in report.shifts:
        for recipe, counts in _groups(shift):
            latency = counts.latency
            rows.append(
                (
                    shift.shift.name,
                    "all" if recipe is None else _recipe(report, recipe),
                    *map(str, (counts.parts, counts.ok, counts.anomalous, counts.review, counts.not_decidable.total())),
                    str(shift.missed) if recipe is None else "",
                    str(counts.late),
                    *(("",) * 4 if latency is None else (f"{value:.1f}" for value in latency)),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        f"{report.source.name}: {local_text(report.start, report)} to {local_text(report.end, report)}, {report.source.shifts.zone}"
    ]
    if not report.shifts:
        return [*lines, "no part was inspected, and no trigger missed"]
    for row in rows:
        cells = (
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    for shift in report.shifts:
        lines += [f"{shift.shift.name}: {text}" for text in _details(shift.total)]
    return lines


def as_csv(report: Report) -> str:
    """Return the report as CSV, a row for each shift and recipe, and one for all recipes of a shift.

    Numbers have a decimal point. Times are given in UTC and in the shifts' time zone. Lines end with CR LF (RFC 4180).
    """
    nothing = ShiftStatistics(Shift("", report.start, report.end), {}, Counts(), 0)
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(_csv_row(report, nothing, None, nothing.total)))
    writer.writeheader()
    for shift in report.shifts:
        writer.writerows(_csv_row(report, shift, recipe, counts) for recipe, counts in _groups(shift))
    return buffer.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values. Times are UTC."""
    return {
        "station": report.source.name,
        "zone": report.source.shifts.zone,
        "from": utc_text(report.start),
        "to": utc_text(report.end),
        "recipes": {str(number): name for number, name in report.source.recipe_names.items()},
        "shifts": [shift.to_dict() for shift in report.shifts],
    }


def as_html(report: Report) -> str:
    """Return the report as one HTML file that fetches nothing and can be printed.

    Raises:
        VisionADError: Jinja2 is not installed.
    """
    from ...visualization.html import render, require_jinja

    require_jinja()
    totals = [shift.total for shift in report.shifts]
    facts = [
        ("parts", sum(one.parts for one in totals)),
        ("ok", sum(one.ok for one in totals)),
        ("anomalous", sum(one.anomalous for one in totals)),
        ("for review", sum(one.review for one in totals)),
        ("not decidable", sum(one.not_decidable.total() for one in totals)),
        ("triggers missed", sum(shift.missed for shift in report.shifts)),
        ("late", sum(one.late for one in totals)),
        ("time zone", report.source.shifts.zone),
        ("from, UTC", utc_text(report.start)),
        ("to, UTC", utc_text(report.end)),
    ]
    return render(
        "report.html",
        title=f"Station {report.source.name}",
        pitch=f"{local_text(report.start, report)} to {local_text(report.end, report)}, {report.source.shifts.zone}",
        facts=facts,
        notes=[
            "Missed triggers belong to no recipe: they were not accepted.",
            "False rejects and missed defects are known only of parts that a person reviewed. The interval in brackets (95 %, "
            "exact) holds for all such parts if every one was reviewed, or a part of them drawn at random.",
            f"Regions without an ROI are counted in cells of {CELL} pixels, by their center.",
        ],
        shifts=[_html_shift(shift, report) for shift in report.shifts],
    )


def local_text(moment: datetime, report: Report) -> str:
    """Return a moment in the shifts' time zone: ISO 8601 to the second, with its offset."""
    return moment.astimezone(ZoneInfo(report.source.shifts.zone)).isoformat(sep=" ", timespec="seconds")


def _groups(shift: ShiftStatistics) -> Iterable[tuple[int | None, Counts]]:
    yield from shift.recipes.items()
    yield None, shift.total


def _csv_row(report: Report, shift: ShiftStatistics, recipe: int | None, counts: Counts) -> dict[str, Any]:
    start, end = shift.shift.start, shift.shift.end
    return {
        "station": _safe(report.source.name),
        "shift": shift.shift.name,
        "from_utc": utc_text(start),
        "to_utc": utc_text(end),
        "from_local": local_text(start, report),
        "to_local": local_text(end, report),
        "zone": report.source.shifts.zone,
        "recipe": "all" if recipe is None else recipe,
        "recipe_name": "" if recipe is None else _safe(report.source.recipe_names.get(recipe, "")),
        "parts": counts.parts,
        "ok": counts.ok,
        "anomalous": counts.anomalous,
        "review": counts.review,
        **{f"not_decidable_{reason.replace(' ', '_')}": counts.not_decidable[reason] for reason in UNDECIDED},
        "missed": shift.missed if recipe is None else "",
        "late": counts.late,
        **dict(zip(("p50_ms", "p95_ms", "p99_ms", "max_ms"), counts.latency or ("",) * 4, strict=True)),
        **_share_cells("rejects_reviewed", "false_rejects", counts.false_rejects),
        **_share_cells("passes_reviewed", "missed_defects", counts.missed_defects),
        "regions": "; ".join(f"{place}: {count}" for place, count in counts.pareto()),
    }


def _recipe(report: Report, number: int) -> str:
    name = report.source.recipe_names.get(number)
    return str(number) if name is None else f"{number} {name}"


def _details(counts: Counts) -> list[str]:
    lines = []
    if counts.not_decidable:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.not_decidable.most_common())
        lines.append(f"not decidable: {reasons}")
    if counts.regions:
        lines.append("regions: " + ", ".join(f"{place} {count}" for place, count in counts.pareto(5)))
    for name, share in (
        ("anomalous parts were good", counts.false_rejects),
        ("ok parts were not good", counts.missed_defects),
    ):
        if share.reviewed:
            lines.append(f"{_share_text(share)} reviewed {name}")
    return lines


def _share_text(share: Share) -> str:
    return f"{share.cases} of {share.reviewed} ({100 * share.low:.1f} to {100 * share.high:.1f} %)"


def _share_cells(reviewed: str, cases: str, share: Share) -> dict[str, Any]:
    values = (share.cases, f"{share.low:.6f}", f"{share.high:.6f}") if share.reviewed else ("", "", "")
    return {reviewed: share.reviewed, **dict(zip((cases, f"{cases}_low", f"{cases}_high"), values, strict=True))}


def _safe(text: str) -> str:
    """Return a text that a spreadsheet does not take for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _html_shift(shift: ShiftStatistics, report: Report) -> dict[str, Any]:
    largest = max(shift.total.regions.values(), default=1)
    return {
        "name": shift.shift.name,
        "span": f"{local_text(shift.shift.start, report)} to {local_text(shift.shift.end, report)}",
        "missed": shift.missed,
        "rows": [
            {
                "recipe": "all" if recipe is None else _recipe(report, recipe),
                "is_total": recipe is None,
                "counts": counts,
                "undecided": counts.not_decidable.total(),
                "missed": shift.missed if recipe is None else None,
                "latency": counts.latency,
                "false_rejects": _share_text(counts.false_rejects) if counts.false_rejects.reviewed else "not reviewed",
                "missed_defects": _share_text(counts.missed_defects)
                if counts.missed_defects.reviewed
                else "not reviewed",
            }
            for recipe, counts in _groups(shift)
        ],
        "reasons": shift.total.not_decidable.most_common(),
        "regions": [(place, count, 100 * count / largest) for place, count in shift.total.pareto()],
    }
