"""Keep a worker process running: ping it, replace it when it dies or hangs, and start it again by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..worker import worker as worker_process
from .process_handle import ProcessHandle
from .systemd import notify

PING_SECONDS = 0.25
"""Pause between two pings of the worker."""
SILENT_SECONDS = 1.0
"""Silence of an idle worker after which the heartbeat stops and no trigger is accepted."""
STUCK_SECONDS = 3.0
"""Silence after which the worker is replaced, counted from the deadline of the part in hand."""
START_SECONDS = 300.0
"""How long a worker may take to open model, bank and cameras."""
RESTART_SECONDS = (0.0, 0.5, 2.0, 5.0, 15.0)
"""Pauses before the worker is started again, by the number of failures in a row."""
WELL_SECONDS = 10.0
"""A worker that ran for so long has not failed in a row."""


class WorkerSupervisor:
    """Owns the worker process. All methods are called in the front's event loop.

    Args:
        path: station file.
        simulate: as ``visionad station --simulate``.
        on_message: told of each message of the worker, but for the answers to pings.
        on_lost: told why the worker was lost, before it is started again.
        on_alive: told whether the worker answers, after each ping.
        excused_until: returns monotonic seconds until which silence says nothing, such as the deadline of a part in hand.

    Attributes:
        handle: the process; ``None`` between two.
    """

    def __init__(
        self,
        path: Path,
        simulate: bool,
        on_message: Callable[[tuple[Any, ...]], object],
        on_lost: Callable[[str], object],
        on_alive: Callable[[bool], object],
        excused_until: Callable[[], float],
    ) -> None:
        self._path, self._simulate = path, simulate
        self._on_message, self._on_lost, self._on_alive = on_message, on_lost, on_alive
        self._excused_until = excused_until
        self._failures = 0
        self._ended = False
        self.handle: ProcessHandle | None = None

    @property
    def ready(self) -> bool:
        """Whether the worker has opened everything."""
        return self.handle is not None and self.handle.ready

    def start(self) -> None:
        """Start the worker."""
        if self.handle is None and not self._ended:
            loop = asyncio.get_running_loop()
            self.handle = ProcessHandle(
                "visionad-worker",
                worker_process.main,
                (str(self._path), self._simulate),
                loop,
                self._receive,
                self._end_of,
            )

    def send(self, *message: Any) -> bool:
        """Send a message. Return whether there is a worker that could get it."""
        if self.handle is None:
            return False
        self.handle.send(*message)
        return True

    def replace(self, why: str) -> None:
        """End the worker at once, and start another after a pause that grows with the failures in a row."""
        if self.handle is None:
            return
        self.handle.kill()
        self.handle = None
        self._on_lost(why)
        pause = RESTART_SECONDS[min(self._failures, len(RESTART_SECONDS) - 1)]
        self._failures += 1
        asyncio.get_running_loop().call_later(pause, self.start)

    async def watch(self) -> None:
        """Ping the worker until cancelled."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            handle = self.handle
            if handle is None:
                continue
            now = time.monotonic()
            if not handle.ready:
                if now > handle.started + START_SECONDS:
                    self.replace(f"it did not start in {START_SECONDS:.0f} s")
                continue
            handle.send("ping", now)
            since = max(handle.heard, self._excused_until())
            alive = now < since + SILENT_SECONDS
            self._on_alive(alive)
            if alive:
                notify("WATCHDOG=1")
                if self._failures and now > handle.started + WELL_SECONDS:
                    self._failures = 0
            elif now > since + STUCK_SECONDS:
                self.replace(f"it did not answer for {now - since:.1f} s")

    async def end(self) -> None:
        """Ask the worker to stop, and end it if it does not."""
        self._ended = True
        if self.handle is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.handle.end)

    def _receive(self, handle: ProcessHandle, message: tuple[Any, ...]) -> None:
        if handle is not self.handle:
            return
        handle.heard = time.monotonic()
        if message[0] == "pong":
            return
        if message[0] == "ready":
            handle.ready = True
        self._on_message(message)

    def _end_of(self, handle: ProcessHandle) -> None:
        if handle is self.handle and not self._ended:
            self.replace("it died")
