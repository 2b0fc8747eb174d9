"""Lock of a bank folder: one writer at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import BankError
from ..formats.files import try_lock

LOCK_SECONDS = 30.0
"""How long a writer waits for another one."""


@contextlib.contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the writer's lock of a bank folder. The operating system releases it when its holder dies, however it dies.

    Args:
        folder: folder of the bank.

    Raises:
        BankError: Another process holds the lock for :data:`LOCK_SECONDS`, or the folder cannot be written.
    """
    try:
        handle = open(folder / ".lock", "a+b")  # noqa: SIM115 - closed below, after the lock is released
    except OSError as exc:
        raise BankError(f"cannot write to bank {folder}: {exc.strerror}; nothing was changed") from None
    with handle:
        deadline = time.monotonic() + LOCK_SECONDS
        while not try_lock(handle.fileno()):
            if time.monotonic() > deadline:
                raise BankError(f"bank {folder} is being changed by another process; try again when it has finished")
            time.sleep(0.05)
        yield
