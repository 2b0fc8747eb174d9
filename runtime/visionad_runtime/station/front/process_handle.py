"""A process of the station, seen from the front: started, spoken to, and ended. Nothing here waits for it."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any


class ProcessHandle:
    """A process of the station, seen from the front.

    Args:
        name: of the process.
        main: what it runs: called with its end of a pipe, and ``arguments``.
        arguments: can be pickled.
        loop: in which the two functions are called.
        on_message: told of each message.
        on_end: told that the process has ended.

    Attributes:
        ready: whether it has opened everything.
        started: monotonic seconds.
        heard: monotonic seconds of its last message.
    """

    def __init__(
        self,
        name: str,
        main: Callable[..., None],
        arguments: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[ProcessHandle, tuple[Any, ...]], object],
        on_end: Callable[[ProcessHandle], object],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=main, args=(theirs, *arguments), name=name, daemon=True)
        self.process.start()
        theirs.close()
        self.ready, self.started = False, time.monotonic()
        self.heard = self.started
        self._outbox: deque[tuple[Any, ...]] = deque()
        self._wake = threading.Event()
        self._ended = False
        self._reader = threading.Thread(target=self._read, args=(self._pipe, loop, on_message, on_end), daemon=True)
        self._sender = threading.Thread(target=self._send, args=(self._pipe,), daemon=True)
        self._reader.start()
        self._sender.start()

    def send(self, *message: Any) -> None:
        """Send a message. One that is stopped or stuck does not delay the front."""
        if message[0] == "ping" and any(waiting[0] == "ping" for waiting in self._outbox):
            return
        self._outbox.append(message)
        self._wake.set()

    def kill(self) -> None:
        """End the process at once."""
        self._ended = True
        self._wake.set()
        with suppress(OSError, AttributeError, ValueError):
            self.process.kill()
        self.process.join(5)
        with suppress(OSError):  # the end and a replacement may meet here
            self._pipe.close()

    def end(self) -> None:
        """Ask it to stop, and end it if it does not."""
        self.send("stop")
        self.process.join(3)
        self.kill()

    def _send(self, pipe: Connection) -> None:
        while not self._ended:
            self._wake.wait()
            self._wake.clear()
            while self._outbox:
                try:
                    pipe.send(self._outbox.popleft())
                except (OSError, ValueError):
                    return

    def _read(
        self,
        pipe: Connection,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[ProcessHandle, tuple[Any, ...]], object],
        on_end: Callable[[ProcessHandle], object],
    ) -> None:
        while True:
            try:
                message = pipe.recv()
            except (EOFError, OSError, ValueError, TypeError):
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(on_end, self)
                return
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(on_message, self, message)
