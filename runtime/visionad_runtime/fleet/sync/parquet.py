"""Records as Parquet: a folder with one file a batch, named by the records that it holds, so that a repeat writes nothing twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pyarrow as pa

from ..parquet import read_parquet, to_parquet
from ..storage import Storage, open_storage
from .records import StationRecords, Taken, two_stations

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("time_utc", pa.timestamp("ms", "UTC")),
        ("sequence", pa.int64()),
        ("part", pa.string()),
        ("recipe", pa.int64()),
        ("evaluation", pa.int16()),
        ("reason", pa.string()),
        ("latency_ms", pa.float64()),
        ("bank_version", pa.int64()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("bank", pa.string()),
        ("model", pa.string()),
        ("database", pa.string()),
    ]
)
_FILE = re.compile(r"(?:(?P<database>[0-9a-f]+)-(?P<newest>\d{8}T\d{9})-)?(?P<start>\d{12})-(?P<end>\d{12})\.parquet")
"""Name of a file. Those of earlier releases name neither the database nor the newest time."""
_TIME = "%Y%m%dT%H%M%S"


def sync_parquet(
    records: StationRecords,
    url: str,
    station: str,
    step: Callable[[int], None] = lambda _: None,
    note: Callable[[str], object] = lambda _: None,
) -> int:
    """Write the parts that a folder lacks. Arguments and errors are those of :func:`~.database.sync_database`.

    Returns:
        Number of parts that were written.
    """
    storage = open_storage(url)
    folder = f"station={quote(station, safe='')}"
    names = sorted(name for name in storage.list(folder) if _FILE.fullmatch(name))
    held: dict[str, Taken] = {}
    for name in names:
        match = _FILE.fullmatch(name)
        if match is not None and match["database"] is not None:  # sorted by time: the last one counts
            held[match["database"]] = Taken(int(match["end"]), _read_time(match["newest"]))
    database = records.identity(held)
    if database is None:
        return 0
    others = [taken.newest for known, taken in held.items() if known != database]
    if said := two_stations(station, url, others, records.first_time()):
        note(said)
    taken = held.get(database) or _of_earlier_release(records, storage, folder, names)
    count, newest = 0, taken.newest
    for batch in records.batches(records.resume(taken)):
        if batch.newest is None:
            continue
        newest = max(batch.newest, newest or batch.newest)
        rows = [{**row, "database": database} for row in batch.rows]  # the folder names the station
        name = f"{folder}/{database}-{_name_time(newest)}-{batch.start:012d}-{batch.end:012d}.parquet"
        storage.write(name, to_parquet(pa.Table.from_pylist(rows, schema=SCHEMA)))
        count += len(rows)
        step(len(rows))
    return count


def _of_earlier_release(records: StationRecords, storage: Storage, folder: str, names: list[str]) -> Taken:
    """Return how far an earlier release wrote these records: its files do not name the database."""
    old = [name for name in names if (match := _FILE.fullmatch(name)) and match["database"] is None]
    if not old:
        return Taken(0, None)
    end = int(old[-1].removesuffix(".parquet").rpartition("-")[2])
    rows = read_parquet(storage.read(f"{folder}/{old[-1]}"), ("id", "time_utc")).to_pylist()
    there = {(row["id"], row["time_utc"]) for row in rows}
    matched = [time for number, time in records.sample(end, not_ok=False) if (number, _milliseconds(time)) in there]
    return Taken(end, max(matched)) if matched else Taken(0, None)


def _milliseconds(time: datetime) -> datetime:
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def _name_time(time: datetime) -> str:
    """Return a time in a file's name, rounded up to a millisecond."""
    up = _milliseconds(time + timedelta(microseconds=999))
    return f"{up:{_TIME}}{up.microsecond // 1000:03d}"


def _read_time(text: str) -> datetime | None:
    try:
        time = datetime.strptime(text[:-3], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return time + timedelta(milliseconds=int(text[-3:]))
