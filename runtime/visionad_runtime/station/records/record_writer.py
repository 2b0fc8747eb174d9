"""Write records in a thread of their own, in order. What cannot be written waits in memory, and inspection goes on."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from ..front.cycle import Job
from ..sink import Outcome
from .records import Records

log = logging.getLogger("visionad")

MAX_UNWRITTEN = 100_000
"""Results that wait in memory while the disk is full."""
RETRY_SECONDS = 1.0

T = TypeVar("T")


class RecordWriter:
    """Owns the thread that writes. All methods are called in the front's event loop.

    Args:
        records: the database.
        on_trouble: told why something could not be written.
        on_written: told that results were written.
        on_lost: told that the oldest result had to be given up.

    Attributes:
        records: the database, to be read.
    """

    def __init__(
        self,
        records: Records,
        on_trouble: Callable[[str], object],
        on_written: Callable[[], object],
        on_lost: Callable[[], object],
    ) -> None:
        self.records = records
        self._on_trouble, self._on_written, self._on_lost = on_trouble, on_written, on_lost
        self._thread = ThreadPoolExecutor(1, "visionad-records")
        self._waiting: dict[int, Outcome] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """Number of results that are not on disk yet."""
        return len(self._waiting)

    def start(self) -> None:
        """Use the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def accept(self, job: Job, simulated: bool, then: Callable[[], object]) -> None:
        """Note that a trigger was accepted, then call ``then``, also if it cannot be written."""
        self._submit(lambda: self.records.accept(job, simulated), then, lambda _: then())

    def complete(self, outcome: Outcome) -> None:
        """Note a result. It waits in memory until it is on disk."""
        self._waiting[outcome.id] = outcome
        if len(self._waiting) > MAX_UNWRITTEN:
            del self._waiting[next(iter(self._waiting))]
            self._on_lost()
        self._flush()

    def run(self, work: Callable[[], object]) -> None:
        """Write something else, in order with the rest."""
        self._submit(work, lambda: None, lambda _: None)

    async def ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a function of the database returns, called in order with the rest."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Write what waits, and close the database."""
        try:
            self._thread.submit(self.records.complete, list(self._waiting.values())).result(10)
        except Exception as exc:
            if self._waiting:
                log.error("records: %d results are lost: %s: %s", len(self._waiting), type(exc).__name__, exc)
        self._thread.shutdown()
        self.records.close()

    def _flush(self) -> None:
        batch = list(self._waiting.values())
        self._submit(
            lambda: self.records.complete(batch),
            lambda: self._written(batch),
            lambda _: self._loop.call_later(RETRY_SECONDS, self._flush) if self._loop is not None else None,
        )

    def _written(self, batch: Sequence[Outcome]) -> None:
        for outcome in batch:
            self._waiting.pop(outcome.id, None)
        self._on_written()

    def _submit(
        self, work: Callable[[], object], then: Callable[[], object], failed: Callable[[BaseException], object]
    ) -> None:
        def done(future: Future[object]) -> None:
            error = future.exception()
            if self._loop is None:
                return
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._done, error, then, failed)

        with suppress(RuntimeError):  # after the end
            self._thread.submit(work).add_done_callback(done)

    def _done(
        self, error: BaseException | None, then: Callable[[], object], failed: Callable[[BaseException], object]
    ) -> None:
        if error is None:
            then()
            return
        if not isinstance(error, (sqlite3.Error, OSError)):
            log.error("records: %s: %s", type(error).__name__, error)
        self._on_trouble(f"records cannot be written: {error}; they wait in memory")
        failed(error)
