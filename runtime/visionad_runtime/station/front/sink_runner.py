"""Run the sinks of a station: each in tasks of its own, so that one that fails never delays another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..records.record_writer import RecordWriter
from ..records.records import result_object
from ..sink import Line, Sink, SinkError
from .alarms import Alarms

log = logging.getLogger("visionad")

MAX_RETRY_SECONDS = 30.0
"""Longest pause between two attempts of a sink."""
START_SECONDS = 5.0
"""A live sink that ends within so long could not start, such as for an occupied port: the station does not start either."""
TELL_SECONDS = 1.0


class SinkRunner:
    """Runs the sinks, shows them each state, and delivers records to the stored ones.

    Args:
        sinks: name → sink.
        line: what they see of the station.
        writer: the records.
        alarms: raised for sinks that fail.
        note: notes an event: code and text.
    """

    def __init__(
        self,
        sinks: Mapping[str, Sink],
        line: Line,
        writer: RecordWriter,
        alarms: Alarms,
        note: Callable[[str, str], object],
    ) -> None:
        self._sinks, self._line, self._writer, self._alarms, self._note = sinks, line, writer, alarms, note
        self._changed: dict[str, asyncio.Event] = {}
        self._recorded = asyncio.Event()
        self._failures: dict[str, str] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> list[asyncio.Task[None]]:
        """Start all sinks. Return the tasks that end, with :class:`SinkError`, if a live sink cannot start."""
        starting = []
        for name, sink in self._sinks.items():
            self._changed[name] = asyncio.Event()
            self.tasks.append(asyncio.create_task(self._tell(name, sink)))
            if not sink.live:
                self.tasks.append(asyncio.create_task(self._deliver(name, sink)))
            starting.append(asyncio.create_task(self._serve(name, sink)))
        self.tasks += starting
        return starting

    def show(self) -> None:
        """Have each sink show the newest state."""
        for event in self._changed.values():
            event.set()

    def recorded(self) -> None:
        """Have the stored sinks look for new records."""
        self._recorded.set()

    def health(self) -> dict[str, dict[str, Any]]:
        """Return the health of each sink, with the backlog of stored ones."""
        health = {}
        for name, sink in self._sinks.items():
            facts = dict(sink.health())
            if not sink.live:
                facts["backlog"] = self._writer.records.backlog(name)
            if name in self._failures:
                facts |= {"ok": False, "detail": self._failures[name]}
            health[name] = facts
        return health

    async def _serve(self, name: str, sink: Sink) -> None:
        """Run a sink, again if it ends."""
        pause = 0.5
        started = False
        while True:
            begun = time.monotonic()
            try:
                await sink.run(self._line)
            except asyncio.CancelledError:
                raise
            except SinkError as exc:
                if not started and sink.live and time.monotonic() < begun + START_SECONDS:
                    raise
                self._trouble(name, str(exc))
            except Exception as exc:
                log.exception("sink %s", name)
                self._trouble(name, f"{type(exc).__name__}: {exc}")
            started = True
            await asyncio.sleep(pause)
            pause = min(MAX_RETRY_SECONDS, 2 * pause)

    async def _tell(self, name: str, sink: Sink) -> None:
        """Show each newest state to a sink. Stored sinks too: a broker keeps the state for who comes later."""
        event = self._changed[name]
        while True:
            await event.wait()
            event.clear()
            try:
                await asyncio.wait_for(sink.tell(self._line.state), TELL_SECONDS)
            except asyncio.CancelledError:
                raise
            except Exception as exc:
                self._trouble(name, f"{type(exc).__name__}: {exc}")

    async def _deliver(self, name: str, sink: Sink) -> None:
        """Give a stored sink its records, in order, each until it has it."""
        pause = 0.5
        records = self._writer.records
        await self._writer.ask(records.register, name)
        while True:
            rows = await self._writer.ask(records.undelivered, name)
            if not rows:
                self._recorded.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._recorded.wait(), 5)
                continue
            for row in rows:
                try:
                    await sink.store(result_object(row, self._line.station_name))
                except asyncio.CancelledError:
                    raise
                except Exception as exc:
                    self._trouble(name, str(exc) if isinstance(exc, SinkError) else f"{type(exc).__name__}: {exc}")
                    await asyncio.sleep(pause)
                    pause = min(MAX_RETRY_SECONDS, 2 * pause)
                    break
                pause = 0.5
                if self._failures.pop(name, None) is not None:
                    self._alarms.clear("sink", name)
                    self._note("sink-back", f"sink {name} delivers again")
                await self._writer.ask(records.delivered, name, row["delivery"])

    def _trouble(self, name: str, why: str) -> None:
        self._failures[name] = why
        self._alarms.set("sink", f"sink {name}: {why}", key=name)
