"""Which record database this is: the central database and Parquet keep the parts of each apart."""

from __future__ import annotations

import re
import sqlite3
import uuid

from ...formats.files import sha256_bytes

_NAME = re.compile(r"[0-9a-f]{32}")
FACT = "database"
"""Name of the identity in the table ``facts``. Copies of a database share it."""


def identities(db: sqlite3.Connection) -> list[str]:
    """Return what a record database is named by, best first; none for one without parts that an earlier release made.

    An earlier release wrote no identity, so it is derived from the first row of the audit, or of the parts. Whoever has known a
    database by one of these names knows it further on.

    Args:
        db: the database, or another with a table ``parts``.
    """
    found = [str(row[0]) for row in _rows(db, f"SELECT value FROM facts WHERE name = '{FACT}'")]
    found += [str(row[0])[:32] for row in _rows(db, "SELECT hash FROM audit ORDER BY id LIMIT 1")]
    first = _rows(db, "SELECT id, time_utc, sequence, part FROM parts ORDER BY id LIMIT 1")
    found += [sha256_bytes(repr(tuple(row)).encode())[:32] for row in first]
    return [name for name in dict.fromkeys(found) if _NAME.fullmatch(name)]


def note_identity(db: sqlite3.Connection) -> None:
    """Give a record database an identity unless it has one."""
    names = identities(db) or [uuid.uuid4().hex]
    db.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (FACT, names[0]))


def _rows(db: sqlite3.Connection, query: str) -> list[tuple[object, ...]]:
    try:
        return db.execute(query).fetchall()
    except sqlite3.OperationalError as exc:
        if "no such" in str(exc):  # a table or column that others do not write
            return []
        raise
