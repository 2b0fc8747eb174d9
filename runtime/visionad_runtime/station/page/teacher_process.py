"""The teaching process, seen from the page's side of the front: started when somebody teaches, ended when nobody does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ..front.process_handle import ProcessHandle
from ..front.questions import Questions
from ..teacher import teacher

IDLE_SECONDS = 900.0
"""The process ends after so long without a question. Its memory is that of a second model."""
ANSWER_SECONDS = 35.0
"""An answer takes at most this long; the first one opens a model."""


class TeacherProcess:
    """Owns the teaching process. All methods are called in the front's event loop.

    Args:
        path: station file.
        simulate: as ``visionad station --simulate``.
    """

    def __init__(self, path: Path, simulate: bool) -> None:
        self._path, self._simulate = path, simulate
        self._handle: ProcessHandle | None = None
        self._questions = Questions(self, "the process that teaches")
        self._idle: asyncio.TimerHandle | None = None

    def send(self, *message: Any) -> bool:
        """Send a message. The process is started if it is not there."""
        loop = asyncio.get_running_loop()
        if self._handle is None:
            self._handle = ProcessHandle(
                "visionad-teacher", teacher.main, (str(self._path), self._simulate), loop, self._receive, self._end_of
            )
        if self._idle is not None:
            self._idle.cancel()
        self._idle = loop.call_later(IDLE_SECONDS, self._end_if_idle)
        self._handle.send(*message)
        return True

    async def ask(self, command: str, *values: Any) -> Any:
        """Have the process do a command of :class:`~visionad_runtime.station.teacher.teacher.Teacher`.

        Raises:
            Refused: The draft does not allow it.
            SinkError: The process ended meanwhile.
            TimeoutError: It did not answer.
        """
        return await self._questions.ask(command, *values, seconds=ANSWER_SECONDS)

    async def end(self) -> None:
        """End the process."""
        handle, self._handle = self._handle, None
        if self._idle is not None:
            self._idle.cancel()
        if handle is not None:
            await asyncio.get_running_loop().run_in_executor(None, handle.end)

    def _end_if_idle(self) -> None:
        if self._handle is not None and not self._questions.are_open:
            self._handle.kill()  # drafts are on disk after each answer
            self._handle = None

    def _receive(self, handle: ProcessHandle, message: tuple[Any, ...]) -> None:
        if handle is self._handle:
            self._questions.answered(*message[1:])

    def _end_of(self, handle: ProcessHandle) -> None:
        if handle is self._handle:
            self._handle = None
            self._questions.give_up()
