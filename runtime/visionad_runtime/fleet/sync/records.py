"""Read the records of a station: SQLite with a table ``parts``. Nothing is written to it."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import VisionADError
from ...station.records.identity import identities

REQUIRED = ("id", "time_utc", "sequence", "part", "recipe", "evaluation", "reason", "latency_ms", "bank_version")
OPTIONAL = ("score", "threshold", "cameras")
OK = 1
"""Evaluation of a good part."""
BATCH = 1000
"""Rows that are read, and committed, at once."""
_TEXTS, _WHOLE = ("part", "reason"), ("id", "sequence", "recipe")
_NUMBERS = ("latency_ms", "score", "threshold")


class Taken(NamedTuple):
    """How far a target has taken the parts of a database.

    Attributes:
        position: cursor of the last part.
        newest: newest time among the parts up to there; ``None`` if it is not known.
    """

    position: int
    newest: datetime | None


class Batch(NamedTuple):
    """Parts that are taken at once.

    Attributes:
        rows: the parts, each with its cursor as ``cursor`` and its time as ``time_utc``.
        start: cursor of the first part that was read.
        end: cursor of the last one.
        newest: newest time among the parts; ``None`` if there is none.
    """

    rows: list[dict[str, Any]]
    start: int
    end: int
    newest: datetime | None


class StationRecords:
    """The completed parts of a station, in the order in which they were completed.

    Args:
        path: record database.

    Attributes:
        damaged: number of rows that :meth:`batches` left out, because their values are not those of a part.

    Raises:
        VisionADError: There is none, or it lacks columns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        if not path.is_file():
            raise VisionADError(f"{path}: expected the records of a station, got no file")
        columns = [row[1] for row in self._query("PRAGMA table_info(parts)")]
        if missing := [name for name in REQUIRED if name not in columns]:
            raise VisionADError(
                f"{path}: expected a table `parts` of a station's records; it lacks {', '.join(missing)}"
            )
        self._columns = [name for name in (*REQUIRED, *OPTIONAL) if name in columns]
        self._order = "delivery" if "delivery" in columns else "id"

    def identity(self, known: Iterable[str] = ()) -> str | None:
        """Return the name of this database: one that the target knows it by, else the best; ``None`` for an empty one."""
        try:
            with closing(self._open()) as database:
                names = identities(database)
        except sqlite3.Error as exc:
            raise self._unreadable(exc) from None
        held = set(known)
        return next((name for name in names if name in held), names[0] if names else None)

    def last(self) -> int:
        """Return the cursor of the newest completed part; 0 without one."""
        return int(self._query(f"SELECT coalesce(max({self._order}), 0) FROM parts")[0][0])

    def first_time(self) -> datetime | None:
        """Return the time of the oldest part that is kept; ``None`` without one."""
        rows = self._query("SELECT time_utc FROM parts ORDER BY id LIMIT 1")
        return as_time(rows[0][0]) if rows else None

    def resume(self, taken: Taken) -> int:
        """Return the cursor that a target goes on after.

        A copy of the database that was restored counts its next parts from where it was: they have cursors that the target has
        taken already, of other parts, and are newer than all of these.
        """
        if taken.newest is None:
            return min(taken.position, self.last())
        query = f"SELECT {self._order}, time_utc FROM parts WHERE {self._order} <= ? ORDER BY {self._order} DESC LIMIT {BATCH}"
        upper = taken.position
        while rows := self._query(query, upper):
            for cursor, text in rows:
                time = as_time(text)
                if time is not None and time <= taken.newest:
                    return int(cursor)
            upper = rows[-1][0] - 1
        return 0

    def sample(self, upto: int, *, not_ok: bool) -> list[tuple[int, datetime]]:
        """Return id and time of the last parts up to a cursor, of at most a batch."""
        kind = f"AND evaluation != {OK}" if not_ok else ""
        query = (
            f"SELECT id, time_utc FROM parts WHERE {self._order} <= ? {kind} ORDER BY {self._order} DESC LIMIT {BATCH}"
        )
        found = ((number, as_time(text)) for number, text in self._query(query, upto))
        return [(number, time) for number, time in found if time is not None]

    def batches(self, after: int) -> Iterator[Batch]:
        """Yield completed parts beyond a cursor, in batches. Rows that are damaged are left out and counted."""
        while True:
            rows = self._query(
                f"SELECT {self._order}, {', '.join(self._columns)} FROM parts WHERE {self._order} > ? "
                f"ORDER BY {self._order} LIMIT {BATCH}",
                after,
            )
            if not rows:
                return
            good = [row for row in map(self._row, rows) if row is not None]
            self.damaged += len(rows) - len(good)
            start, after = rows[0][0], rows[-1][0]
            yield Batch(good, start, after, max((row["time_utc"] for row in good), default=None))

    def _row(self, values: tuple[Any, ...]) -> dict[str, Any] | None:
        row = dict.fromkeys((*REQUIRED, "score", "threshold"))
        row |= dict(zip(("cursor", *self._columns), values, strict=True))
        row |= _digests(row.pop("cameras", None))
        row["time_utc"] = as_time(row["time_utc"])
        return row if _is_part(row) else None

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
        database.text_factory = lambda data: data.decode("utf-8", "replace")
        return database

    def _query(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with closing(self._open()) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.Error as exc:
            raise self._unreadable(exc) from None

    def _unreadable(self, exc: sqlite3.Error) -> VisionADError:
        return VisionADError(f"{self.path}: expected the records of a station: {exc}")


def as_time(text: object) -> datetime | None:
    """Return a record's time, in UTC; ``None`` if it is none."""
    try:
        time = datetime.fromisoformat(str(text))
        return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def two_stations(station: str, target: str, others: Iterable[datetime | None], first: datetime | None) -> str | None:
    """Return what to say if another database of this station's name has parts that are newer than the first one here.

    A station that began a new database writes to the old one no more.

    Args:
        station: name of the station.
        target: where it is synced to.
        others: newest time of each other database of this name.
        first: time of the oldest part of this database.
    """
    if first is None or not any(newest is not None and newest > first for newest in others):
        return None
    return (
        f"{target} has parts of another record database of station {station} from the same time: two stations seem to share the "
        "name; both are kept apart by `database`; give each its own with --station"
    )


def _is_part(row: dict[str, Any]) -> bool:
    """Return whether all values of a row are of the types that a part has."""
    return (
        row["time_utc"] is not None
        and all(type(row[name]) is int for name in _WHOLE)
        and type(row["evaluation"]) is int
        and abs(row["evaluation"]) < 1 << 15
        and all(type(row[name]) is str and "\0" not in row[name] for name in _TEXTS)
        and all(
            row[name] is None or (type(row[name]) in (int, float) and not math.isnan(row[name])) for name in _NUMBERS
        )
        and (row["bank_version"] is None or type(row["bank_version"]) is int)
    )


def _digests(cameras: object) -> dict[str, str | None]:
    """Return the content digests of bank and model that judged a part, from its first camera with a result."""
    try:
        results = json.loads(str(cameras)).values() if cameras else ()
    except (ValueError, AttributeError, RecursionError):
        results = ()
    for result in results:
        if isinstance(result, dict) and "bank" in result:
            return {"bank": str(result["bank"]), "model": str(result.get("model") or "") or None}
    return {"bank": None, "model": None}
