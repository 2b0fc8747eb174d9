"""Start of a station's records: one station alone writes them, and parts that a kill interrupted are completed."""

from __future__ import annotations

import logging
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ...errors import VisionADError
from ...formats.files import lock_beside
from ..records.records import Records
from ..records.unusable import records_unusable

log = logging.getLogger("visionad")


class StartedRecords(NamedTuple):
    """Records that a station may write.

    Attributes:
        records: the database.
        lock: held until it is closed, so that no other station writes them; ``None`` where the file system has no locks.
        interrupted: number of parts that were in hand when the station was killed, recorded as not decidable.
        last_id: largest number of a part; 0 without one.
        unseen: numbers of parts that were not ok and that nobody has seen yet, oldest first.
        golden_passed: when golden parts passed last; ``None`` if they never did.
    """

    records: Records
    lock: BinaryIO | None
    interrupted: int
    last_id: int
    unseen: list[int]
    golden_passed: datetime | None

    def unlock(self) -> None:
        """Let another station write them. A second call does nothing."""
        if self.lock is not None:
            self.lock.close()


def start_records(path: Path) -> StartedRecords:
    """Open the records of a station for writing. Others may still read them.

    Args:
        path: of the SQLite file.

    Raises:
        VisionADError: Another station writes them, they are damaged, or they cannot be opened.
    """
    lock = _locked(path)
    records: Records | None = None
    try:
        records = Records(path)
        interrupted = records.finish_interrupted()
        passed = records.last_event("golden-passed")
        when = None if passed is None else datetime.fromisoformat(passed["time_utc"])
        return StartedRecords(records, lock, interrupted, records.last_id(), records.unseen(), when)
    except BaseException as exc:
        if records is not None:
            records.close()
        if lock is not None:
            lock.close()
        if isinstance(exc, sqlite3.Error):
            raise records_unusable(path, exc) from None
        raise


def _locked(path: Path) -> BinaryIO | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_beside(path)
    except OSError as exc:
        log.warning("records %s cannot be locked: %s; let only one station use them", path, exc.strerror or exc)
        return None
    if lock is None:
        raise VisionADError(f"records {path} are in use by another station; stop that one, or choose another file")
    return lock
