"""What the front sends to the worker, read by a thread, so that a message can arrive while a part is judged."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any


class Inbox:
    """Messages of the front, in order.

    Args:
        pipe: to the front.
        at_once: name of a message → function that takes its values in the reading thread, beside whatever the worker does.
            All other messages wait for :meth:`get`.
    """

    def __init__(self, pipe: Connection, at_once: Mapping[str, Callable[..., object]]) -> None:
        self._pipe, self._at_once = pipe, at_once
        self._waiting: queue.SimpleQueue[tuple[Any, ...] | Exception] = queue.SimpleQueue()

    def start(self) -> None:
        """Read from now on."""
        threading.Thread(target=self._read, name="visionad-inbox", daemon=True).start()

    @property
    def is_empty(self) -> bool:
        """Whether :meth:`get` would wait."""
        return self._waiting.empty()

    def get(self) -> tuple[Any, ...]:
        """Return the next message, and wait for it.

        Raises:
            EOFError: The front is gone.
            OSError: The same.
        """
        message = self._waiting.get()
        if isinstance(message, Exception):
            raise message
        return message

    def _read(self) -> None:
        try:
            while True:
                name, *values = message = self._pipe.recv()
                if name in self._at_once:
                    self._at_once[name](*values)
                else:
                    self._waiting.put(message)
        except Exception as exc:  # it ends the worker, in the thread that judges
            self._waiting.put(exc)
