"""``visionad audit``: whether the audit of a station is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import complain, say


def audit_verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="station file, or its records")],
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="HASH", help="hash of the newest row, as it was published; finds a cut-off end"),
    ] = None,
) -> int:
    """Check each row of a station's audit against the one before. Exit status 1 if one was changed, removed or cut off."""
    from ...station.records.records import audit_end, verify_audit
    from ...station.records.report import read_source
    from ...station.settings import StationFileError

    try:
        records = read_source(file).records
    except StationFileError as exc:
        for line in exc.problems:
            complain(line)
        return 2
    problems = verify_audit(records, head)
    for line in problems:
        say(line)
    if problems:
        return 1
    count, newest = audit_end(records)
    say(f"whole: {count} rows, newest {newest}")
    return 0
