"""``visionad sync``."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from ...errors import VisionADError
from ..console import complain, say


def sync(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="records of a station (SQLite)")],
    target: Annotated[
        str, typer.Argument(metavar="postgresql://…|DIR.parquet", help="database, or folder or URL for Parquet")
    ],
    station: Annotated[
        str | None, typer.Option("--station", metavar="NAME", help="name of the station [default: that of the machine]")
    ] = None,
    not_ok: Annotated[
        bool, typer.Option("--not-ok", help="leave rows of good parts out of the database; sums by hour count them all")
    ] = False,
) -> None:
    """Bring the parts of a station that a database or a folder lacks into it. It may be stopped and repeated at any time."""
    from ...fleet.sync.records import StationRecords

    name = station or socket.gethostname()
    source = StationRecords(records)
    if target.rstrip("/").endswith(".parquet"):
        if not_ok:
            raise VisionADError("--not-ok is for databases; Parquet is small enough for all rows")
        try:
            from ...fleet.sync.parquet import sync_parquet
        except ModuleNotFoundError as exc:
            raise VisionADError(f"Parquet takes {exc.name}: pip install 'visionad[sql]'") from None
        count = sync_parquet(source, target, name, note=complain)
    elif "://" in target:
        from ...fleet.sync.database import sync_database

        count = sync_database(source, target, name, not_ok=not_ok, note=complain)
    else:
        raise VisionADError(f"{target}: expected postgresql://… or a folder that ends in .parquet")
    if source.damaged:
        complain(f"{records}: {source.damaged} rows are damaged and were left out")
    say(f"{count} parts of station {name} brought to {target.rpartition('@')[2]}")
