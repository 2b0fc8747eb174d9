"""Records as Parquet: a folder with one file a batch, named by the records that it holds, so that a repeat writes nothing twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

import pyarrow as pa

from ..parquet import to_parquet
from ..storage import open_storage
from .database import as_time
from .records import StationRecords

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
    ]
)
_FILE = re.compile(r"(\d{12})-(\d{12})\.parquet")


def sync_parquet(records: StationRecords, url: str, station: str, step: Callable[[int], None] = lambda _: None) -> int:
    """Write the parts that a folder lacks. Arguments and errors are those of :func:`~.database.sync_database`.

    Returns:
        Number of parts that were written.
    """
    storage = open_storage(url)
    folder = f"station={quote(station, safe='')}"
    ends = [int(match[2]) for name in storage.list(folder) if (match := _FILE.fullmatch(name))]
    after, count = max(ends, default=0), 0
    for batch in records.batches(after):
        rows = [{**row, "time_utc": as_time(row["time_utc"])} for row in batch]  # the folder names the station
        name = f"{folder}/{batch[0]['cursor']:012d}-{batch[-1]['cursor']:012d}.parquet"
        storage.write(name, to_parquet(pa.Table.from_pylist(rows, schema=SCHEMA)))
        count += len(batch)
        step(len(batch))
    return count
