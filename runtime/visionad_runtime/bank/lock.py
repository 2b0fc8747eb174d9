"""One writer of a bank folder at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import BankError
from ..formats.files import try_lock

LOCK_SECONDS = 30.0


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time. The system drops the lock when its holder dies, so a kill never leaves it behind.

    Raises:
        BankError: another process holds it for 30 s, or the folder cannot be written.
    """
    try:
        handle = open(folder / ".lock", "a+b")  # noqa: SIM115 - closed below, after the lock is released
    except OSError as exc:
        raise BankError(f"cannot write to bank {folder}: {exc.strerror}; nothing was changed") from None
    with handle:
        until = time.monotonic() + LOCK_SECONDS
        while not try_lock(handle.fileno()):
            if time.monotonic() > until:
                raise BankError(f"bank {folder} is being changed by another process; try again when it has finished")
            time.sleep(0.05)
        yield
