"""What is wrong with records that SQLite cannot use, and what mends it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ...errors import VisionADError


def records_unusable(path: Path, exc: Exception) -> VisionADError:
    """Return the error for records that cannot be used.

    Args:
        path: of the SQLite file.
        exc: what SQLite or the system says.
    """
    if getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:  # extended codes add to it
        return VisionADError(
            f"records {path} are damaged: {exc}; put the file aside, and the station begins a new one, or restore it from a copy"
        )
    return VisionADError(
        f"records {path} cannot be used: {exc}; free space, mend its permissions, or choose another place"
    )
