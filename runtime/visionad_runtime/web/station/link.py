"""The page process's side of its connection to the front."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from ...station.page.wire import packed, receive

ANSWER_SECONDS = 40.0


class CommandError(Exception):
    """The front refused a command, or could not do it.

    Attributes:
        code: word for programs.
        values: fill the page's sentence.
    """

    def __init__(self, code: str, message: str, values: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.values = code, values or {}


class Answer(NamedTuple):
    """What the front answers."""

    value: Any
    blobs: list[bytes]


class FrontLink:
    """Connection to the front.

    Args:
        on_event: called with each event's header and bytes.
    """

    def __init__(self, on_event: Callable[[dict[str, Any], list[bytes]], object]) -> None:
        self._on_event = on_event
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answer]] = {}

    async def run(self, connection: socket.socket, token: str) -> None:
        """Read events until the front is gone."""
        connection.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=connection)
        if token:
            self._writer.write(packed({"token": token}))
        alive = asyncio.create_task(self._say_alive())
        try:
            while True:
                message, blobs = await receive(reader)
                if "reply" in message:
                    self._on_reply(message, blobs)
                else:
                    self._on_event(message, blobs)
        except EOFError:
            return
        finally:
            alive.cancel()
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(CommandError("unavailable", "the station ended"))

    def tell(self, command: str, **values: Any) -> None:
        """Send a command that needs no answer."""
        if self._writer is not None:
            self._writer.write(packed({"do": command, **values}))

    async def ask(self, command: str, blobs: tuple[bytes, ...] = (), **values: Any) -> Answer:
        """Send a command and return its answer.

        Raises:
            CommandError: It was refused, or the front does not answer.
        """
        if self._writer is None:
            raise CommandError("unavailable", "the station is not connected")
        number = next(self._numbers)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._writer.write(packed({"do": command, "ask": number, **values}, blobs))
        try:
            return await asyncio.wait_for(future, ANSWER_SECONDS)
        except TimeoutError:
            raise CommandError("unavailable", "the station does not answer") from None
        finally:
            self._asked.pop(number, None)

    def _on_reply(self, message: dict[str, Any], blobs: list[bytes]) -> None:
        future = self._asked.get(message["reply"])
        if future is None or future.done():
            return
        if message["ok"]:
            future.set_result(Answer(message["value"], blobs))
        else:
            future.set_exception(CommandError(message["code"], message["message"], message["values"]))

    async def _say_alive(self) -> None:
        while True:
            self.tell("alive")
            await asyncio.sleep(1)
