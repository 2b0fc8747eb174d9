"""What a station does beside its parts: audit its settings at the start, forget what is too old, look at the clock."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from ..records.record_writer import RecordWriter
from ..settings import StationSettings
from .alarms import Alarms, clock_is_synchronized

HOUSE_SECONDS = 60.0


async def audit_settings(writer: RecordWriter, settings: StationSettings) -> None:
    """Add a row to the audit if the station file says other things than at the last start.

    Args:
        writer: the records.
        settings: what the station file says.
    """
    new = {
        "deadline_ms": settings.deadline_ms,
        "recipes": {str(number): recipe.digest() for number, recipe in settings.recipes.items()},
        "model": str(settings.model),
        "bank": str(settings.bank),
    }

    def work() -> None:
        rows = writer.records.audit_rows(1000)
        last = json.loads(next((row["new"] for row in rows if row["what"] == "station file"), "null"))
        if last != new:
            writer.records.audit("station", "station file", last, new)

    await writer.ask(work)


async def keep_house(writer: RecordWriter, alarms: Alarms, retention_days: float | None) -> None:
    """Every minute, forget records that are too old, and look at their file and at the clock. It ends when it is cancelled.

    Args:
        writer: the records.
        alarms: raised if the file of the records was deleted or replaced, or if the clock is not synchronized.
        retention_days: age of the oldest records; ``None`` keeps all.
    """
    path = writer.records.path
    opened = _identity(path)
    while True:
        if _identity(path) != opened:  # what is written to it now is lost with the last process that has it open
            alarms.set(
                "disk",
                f"records {path} were deleted or replaced while the station runs; stop it, and put them back",
                key="file",
            )
        else:
            alarms.clear("disk", "file")
        if retention_days is not None:
            before = (datetime.now(UTC) - timedelta(days=retention_days)).isoformat(timespec="milliseconds")
            writer.run(partial(writer.records.forget, before))
        if clock_is_synchronized() is False:
            alarms.set("clock", "the system clock is not synchronized")
        else:
            alarms.clear("clock")
        await asyncio.sleep(HOUSE_SECONDS)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one under the same name; ``None`` if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
