"""Parts of the line that drafts collect: all consecutive ones, whatever their verdict. What cannot hold for all of them ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sink import Outcome, SinkError
from .commands import FrontSide
from .teacher_process import TeacherProcess
from .users import Refused

MAX_WAITING = 500
"""Parts of a draft that wait to be scored."""
MAX_BYTES = 512 << 20
"""Bytes of their images; one part may have more."""
RESTARTED = "the station was started again"
RECIPE = "the recipe was changed"
LIGHT = "the light is not that of the good parts"
TOO_FAST = "parts came faster than they could be scored"
LOST = "a part could not be scored"


@dataclass(eq=False)
class _Run:
    """What is collected from one beginning to its end.

    Attributes:
        recipe: during which parts are collected; 0 until one is prepared.
        waiting: parts that wait to be scored.
        size: bytes of their images.
        turn: held by the part that is being scored. The others wait here, where a person's questions pass them.
    """

    recipe: int
    waiting: int = 0
    size: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Collecting:
    """Collects the line's parts for drafts. All methods are called in the front's event loop.

    Args:
        front: the station.
        teacher: the process that scores them.
    """

    def __init__(self, front: FrontSide, teacher: TeacherProcess) -> None:
        self._front, self._teacher = front, teacher
        self._runs: dict[str, _Run] = {}
        self._ended: dict[str, str] = {}  # class -> why; until the teaching process has noted it
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, name: str) -> None:
        """Collect parts of a class from now on."""
        self._ended.pop(name, None)
        self._runs[name] = _Run(self._front.state.recipe)

    def stop(self, name: str) -> None:
        """Collect no more: a person has ended it, or the draft is gone."""
        self._runs.pop(name, None)
        self._ended.pop(name, None)

    async def settled(self, name: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the facts of a draft after its state is that of the line: parts in between are missing where it is not."""
        if not facts["collecting"]:
            self._runs.pop(name, None)
        elif name not in self._runs:
            await self._teacher.ask("ended", name, self._ended.pop(name, RESTARTED))
            return dict(await self._teacher.ask("facts", name))
        return facts

    def on_state(self) -> None:
        """Look whether the line has another recipe. That of the first part counts where none was prepared at the beginning."""
        recipe = self._front.state.recipe
        for name, run in list(self._runs.items()) if recipe else ():
            if run.recipe not in (0, recipe):
                self._end(name, RECIPE)
            run.recipe = recipe

    def on_outcome(self, outcome: Outcome) -> None:
        """Collect a part of the line."""
        for name, run in list(self._runs.items()):
            run.recipe = run.recipe or outcome.recipe
            if outcome.recipe != run.recipe:
                self._end(name, RECIPE)
            elif "light" in outcome.alarms:
                self._end(name, LIGHT)
            elif run.waiting >= MAX_WAITING:
                self._end(name, TOO_FAST)
            else:
                run.waiting += 1
                self._start(self._collect(name, run, outcome))

    def close(self) -> None:
        """Stop what is under way."""
        for task in self._tasks:
            task.cancel()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _end(self, name: str, why: str, run: _Run | None = None) -> None:
        if run is not None and self._runs.get(name) is not run:
            return  # it was ended already
        del self._runs[name]
        self._ended[name] = why
        self._start(self._note_end(name, why))

    async def _note_end(self, name: str, why: str) -> None:
        await self._teacher.ask("ended", name, why)
        if self._ended.get(name) == why:
            del self._ended[name]

    async def _collect(self, name: str, run: _Run, outcome: Outcome) -> None:
        size = 0
        try:
            pixels: dict[str, NDArray[np.uint8]] = {}
            with suppress(Refused, SinkError, TimeoutError):
                pixels = await self._front.ask_worker("pixels", outcome.id)
            if run.size and run.size + sum(one.nbytes for one in pixels.values()) > MAX_BYTES:
                self._end(name, TOO_FAST, run)
                return
            size = sum(one.nbytes for one in pixels.values())
            run.size += size
            async with run.turn:
                for camera in self._cameras(name, outcome):
                    if self._runs.get(name) is run:  # else it was ended, or begun anew
                        shown = pixels.get(camera)
                        await self._take(name, outcome.id, outcome.part, camera, shown, outcome.bank_version)
        except (Refused, SinkError, TimeoutError):  # all consecutive parts are collected, or it ends
            self._end(name, LOST, run)
        finally:
            run.waiting -= 1
            run.size -= size

    async def _take(self, *values: Any) -> None:
        try:
            await self._teacher.ask("take", *values)
        except SinkError:  # the process ended; the next one counts the same image once
            await self._teacher.ask("take", *values)

    def _cameras(self, name: str, outcome: Outcome) -> list[str]:
        """Return the cameras whose images of a part are of the class."""
        recipe = self._front.station.settings.recipes[outcome.recipe]
        return [
            camera
            for camera in recipe.cameras or self._front.station.cameras
            if (recipe.class_of(camera) or (outcome.cameras.get(camera) or {}).get("class")) == name
        ]

    def _start(self, work: Awaitable[None]) -> None:
        async def quietly() -> None:
            with suppress(
                Refused, SinkError, TimeoutError
            ):  # the draft is gone, or its process: the line does not mind
                await work

        task = asyncio.get_running_loop().create_task(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
