"""Read the records of a station: SQLite with a table ``parts``. Nothing is written to it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ...errors import VisionADError

REQUIRED = ("id", "time_utc", "sequence", "part", "recipe", "evaluation", "reason", "latency_ms", "bank_version")
OPTIONAL = ("score", "threshold", "cameras")
OK = 1
"""Evaluation of a good part."""
BATCH = 1000
"""Rows that are read, and committed, at once."""


class StationRecords:
    """The completed parts of a station, in the order in which they were completed.

    Args:
        path: record database.

    Raises:
        VisionADError: There is none, or it lacks columns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise VisionADError(f"{path}: expected the records of a station, got no file")
        columns = [row[1] for row in self._query("PRAGMA table_info(parts)")]
        if missing := [name for name in REQUIRED if name not in columns]:
            raise VisionADError(
                f"{path}: expected a table `parts` of a station's records; it lacks {', '.join(missing)}"
            )
        self._columns = [name for name in (*REQUIRED, *OPTIONAL) if name in columns]
        self._order = "delivery" if "delivery" in columns else "id"

    def last(self) -> int:
        """Return the cursor of the newest completed part; 0 without one."""
        return int(self._query(f"SELECT coalesce(max({self._order}), 0) FROM parts")[0][0])

    def batches(self, after: int) -> Iterator[list[dict[str, Any]]]:
        """Yield completed parts beyond a cursor, in batches. Each row has its cursor as ``cursor``."""
        while True:
            rows = self._query(
                f"SELECT {self._order}, {', '.join(self._columns)} FROM parts WHERE {self._order} > ? "
                f"ORDER BY {self._order} LIMIT {BATCH}",
                after,
            )
            if not rows:
                return
            yield [self._row(row) for row in rows]
            after = rows[-1][0]

    def _row(self, values: tuple[Any, ...]) -> dict[str, Any]:
        row = dict.fromkeys((*REQUIRED, "score", "threshold"))
        row |= dict(zip(("cursor", *self._columns), values, strict=True))
        row |= _digests(row.pop("cameras", None))
        return row

    def _query(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.Error as exc:
            raise VisionADError(f"{self.path}: expected the records of a station: {exc}") from None


def _digests(cameras: object) -> dict[str, str | None]:
    """Return the content digests of bank and model that judged a part, from its first camera with a result."""
    try:
        results = json.loads(str(cameras)).values() if cameras else ()
    except (ValueError, AttributeError):
        results = ()
    for result in results:
        if isinstance(result, dict) and "bank" in result:
            return {"bank": str(result["bank"]), "model": str(result.get("model") or "") or None}
    return {"bank": None, "model": None}
