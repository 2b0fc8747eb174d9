"""What the front asks of the worker for others, beside the line's parts, and waits for."""

from __future__ import annotations

import asyncio
from typing import Any

from ..page.users import Refused
from ..sink import SinkError
from .supervisor import WorkerSupervisor

SECONDS = 30.0
"""An answer takes at most this long."""


class WorkerQuestions:
    """Questions to the worker that are not answered yet.

    Args:
        supervisor: of the worker.
    """

    def __init__(self, supervisor: WorkerSupervisor) -> None:
        self._supervisor = supervisor
        self._open: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, command: str, *values: Any) -> Any:
        """Send a command, and return the answer.

        Raises:
            Refused: The worker says why not.
            SinkError: There is no worker, or it was replaced meanwhile.
            TimeoutError: It did not answer.
        """
        if self._supervisor.handle is None:
            raise SinkError("the worker is not there; try again in a moment")
        ticket = max(self._open, default=0) + 1
        future = self._open[ticket] = asyncio.get_running_loop().create_future()
        self._supervisor.send(command, ticket, *values)
        return await asyncio.wait_for(future, SECONDS)

    def answered(self, ticket: int, value: Any, code: str, problem: str) -> None:
        """Take the worker's answer: a value, or the code of a refusal and its sentence."""
        future = self._open.pop(ticket, None)
        if future is None or future.done():
            return
        if value is None:
            future.set_exception(Refused(code, problem))
        else:
            future.set_result(value)

    def give_up(self) -> None:
        """Tell all who wait that the worker was replaced."""
        for future in self._open.values():
            if not future.done():
                future.set_exception(SinkError("the worker was replaced; try again in a moment"))
        self._open.clear()
