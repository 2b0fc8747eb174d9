"""``visionad doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..console import say
from ..options import JsonFlag


def doctor(
    as_json: JsonFlag = False,
    model: Annotated[Path | None, typer.Option(metavar="MODEL", help="also run the self-test of this model")] = None,
) -> int:
    """Report what this machine can run and what to install. Exit status 2 if something is broken."""
    from ...tools.doctor import diagnose, format_report

    report = diagnose(model)
    say(json.dumps(report, ensure_ascii=False) if as_json else format_report(report))
    return 2 if report["problems"] else 0
