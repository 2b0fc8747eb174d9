"""``visionad report``: what a station did, by shift and recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..console import complain, say
from ..options import JsonFlag
from ..outputs import check_outputs


def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="station file, or its records")],
    start: Annotated[
        str,
        typer.Option("--from", metavar="TIME", help="2026-11-30 or '2026-11-30 06:00', in the shifts' time zone"),
    ],
    end: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TIME", help="as --from, not included; a date alone is its whole day [default: now]"
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="PATH", help="write a CSV file")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="PATH", help="write one HTML file, to print")] = None,
    as_json: JsonFlag = False,
) -> int:
    """Count a station's parts by shift and recipe: verdicts, missed, late, latency, regions, false rejects."""
    from datetime import UTC, datetime

    from ...formats.files import atomic_write
    from ...station.records import report as reports
    from ...station.settings import StationFileError
    from ...visualization.html import require_jinja

    check_outputs((("--csv", csv), ("--html", html)))
    if html is not None:
        require_jinja()
    try:
        source = reports.read_source(file)
    except StationFileError as exc:
        for line in exc.problems:
            complain(line)
        return 2
    zone = source.shifts.zone
    until = datetime.now(UTC) if end is None else reports.parse_time(end, zone, is_end=True)
    made = reports.make_report(source, reports.parse_time(start, zone), until)
    if csv is not None:
        atomic_write(csv, reports.as_csv(made).encode())
    if html is not None:
        atomic_write(html, reports.as_html(made).encode())
    if as_json:
        say(json.dumps(reports.as_json(made), ensure_ascii=False))
    else:
        for line in reports.as_lines(made):
            say(line)
    return 0
