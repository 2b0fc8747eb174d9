"""What the front asks of another process for others, beside the line's parts, and waits for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any, Protocol

from ..page.users import Refused
from ..sink import SinkError

SECONDS = 30.0
"""An answer takes at most this long."""


class AskedProcess(Protocol):
    """A process that is asked."""

    def send(self, *message: Any) -> bool:
        """Send a message. Return whether there is a process that could get it."""


class Questions:
    """Questions to a process that are not answered yet.

    Args:
        process: that is asked.
        who: it is, for messages.
    """

    def __init__(self, process: AskedProcess, who: str) -> None:
        self._process, self._who = process, who
        self._tickets = itertools.count(1)  # a late answer must not be taken for another question's
        self._open: dict[int, asyncio.Future[Any]] = {}

    @property
    def are_open(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._open)

    async def ask(self, command: str, *values: Any, seconds: float = SECONDS) -> Any:
        """Send a command, and return the answer.

        Raises:
            Refused: The process says why not.
            SinkError: There is no process, or it was replaced meanwhile.
            TimeoutError: It did not answer in time.
        """
        ticket = next(self._tickets)
        future = self._open[ticket] = asyncio.get_running_loop().create_future()
        try:
            if not self._process.send(command, ticket, *values):
                raise SinkError(f"{self._who} is not there; try again in a moment")
            return await asyncio.wait_for(future, seconds)
        finally:
            self._open.pop(ticket, None)

    def answered(
        self, ticket: int, value: Any, code: str, problem: str, values: Mapping[str, Any] | None = None
    ) -> None:
        """Take an answer: a value; or the code of a refusal, its sentence, and what fills the page's sentence."""
        future = self._open.get(ticket)
        if future is None or future.done():
            return
        if value is None:
            future.set_exception(Refused(code, problem, **(values or {})))
        else:
            future.set_result(value)

    def give_up(self) -> None:
        """Tell all who wait that the process was replaced."""
        for future in list(self._open.values()):
            if not future.done():
                future.set_exception(SinkError(f"{self._who} was replaced; try again in a moment"))
