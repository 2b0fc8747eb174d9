"""Plain TCP text: one line in, one line out. Every PLC can do it.

``TRIGGER seq [part]`` → ``RESULT seq evaluation score threshold recipe class part`` · ``RECIPE n`` → ``RECIPE n`` ·
``ACK seq`` → ``ACK seq`` · ``STATE`` → ``STATE phase ready recipe waiting missed`` · anything else → ``ERROR code text``.
Lines end by CR, LF or both, and have at most 1024 characters; a longer one is answered with one ``ERROR``.
The next ``TRIGGER`` of the connection that was sent a result acknowledges it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from ..leaf import LeafSettings
from ..sink import Line, Outcome, SinkError, StationState

MAX_LINE = 1024
MAX_CLIENTS = 16
PREPARE_SECONDS = 60.0
ERRORS = {1: "not understood", 2: "missed", 3: "recipe", 4: "nothing to acknowledge", 5: "too many clients"}
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
"""What no answer holds: a client would take it for an end of the line."""


class TcpSettings(LeafSettings):
    """Settings of a TCP sink.

    Attributes:
        host: address to listen at.
        port: port.
        unsolicited: whether each client is sent every result, also those that it did not ask for.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=5020, ge=1, le=65535)
    unsolicited: bool = False


class TcpSink:
    """See :class:`~visionad_runtime.station.sink.Sink`."""

    Settings: ClassVar[type[LeafSettings]] = TcpSettings
    live: ClassVar[bool] = True

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, TcpSettings)
        self._name, self._settings = name, settings
        self._changed: asyncio.Condition | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._shown = 0

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.sink.Sink`. Nothing is needed."""
        return None

    async def run(self, line: Line) -> None:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        self._changed = asyncio.Condition()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(line, reader, writer)

        try:
            server = await asyncio.start_server(serve, self._settings.host, self._settings.port, limit=MAX_LINE)
        except OSError as exc:
            raise SinkError(
                f"sink {self._name}: cannot listen at {self._settings.host}:{self._settings.port}: {exc.strerror}; choose "
                "another port"
            ) from None
        try:
            async with server:
                await server.serve_forever()
        finally:
            for writer in list(self._clients):
                writer.close()

    async def tell(self, state: StationState) -> None:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        if self._changed is None:
            return
        async with self._changed:
            self._changed.notify_all()
        offered = state.offered
        if self._settings.unsolicited and offered is not None and offered.id > self._shown:
            self._shown = offered.id
            for writer in list(self._clients):
                _write(writer, result_line(offered))

    async def store(self, record: Mapping[str, Any]) -> None:
        """Live sinks store nothing."""

    def health(self) -> Mapping[str, Any]:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        return {"ok": True, "detail": f"{len(self._clients)} clients"}

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _serve(self, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            _write(writer, _error(5, f"{MAX_CLIENTS} clients are connected already"))
            writer.close()
            return
        self._clients.add(writer)
        sent: int | None = None
        rest, passed_over = b"", False
        try:
            while True:
                data = await reader.read(MAX_LINE)
                if not data:
                    return
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                if passed_over and lines:  # the end of a line that was answered already
                    del lines[0]
                    passed_over = False
                for raw in filter(None, lines):
                    words = raw.decode("ascii", "replace").split()
                    if len(raw) > MAX_LINE:
                        _write(writer, _TOO_LONG)
                    elif words:
                        answer, sent = await self._answer(line, words, sent)
                        _write(writer, answer)
                if len(rest) > MAX_LINE and not passed_over:
                    _write(writer, _TOO_LONG)
                    passed_over = True
                rest = b"" if passed_over else rest
                await writer.drain()
        except (ConnectionError, TimeoutError):
            return
        finally:
            self._clients.discard(writer)
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, line: Line, words: list[str], sent: int | None) -> tuple[str, int | None]:
        """Return the answer to a command, and the number of the result that this connection was sent last."""
        command, *values = words
        if command.upper() == "STATE" and not values:
            state = line.state
            return f"STATE {state.phase} {int(state.ready)} {state.recipe} {state.waiting} {state.missed}", sent
        number = int(values[0]) if values and values[0].isdecimal() and len(values[0]) <= 9 else None
        if command.upper() == "TRIGGER" and number is not None:
            return await self._trigger(line, number, " ".join(values[1:]), sent)
        if command.upper() == "RECIPE" and number is not None and len(values) == 1:
            return await self._prepare(line, number), sent
        if command.upper() == "ACK" and number is not None and len(values) == 1:
            waiting = [one.id for one in line.state.unacknowledged if one.sequence == number]
            if not waiting:
                return _error(4, f"no result of sequence {number} waits"), sent
            line.acknowledge(waiting[0])
            return f"ACK {number}", None
        return _error(1, "expected TRIGGER seq [part], RECIPE n, ACK seq or STATE"), sent

    async def _trigger(self, line: Line, sequence: int, part: str, sent: int | None) -> tuple[str, int | None]:
        if sent is not None:
            line.acknowledge(sent)
        number = line.trigger(sequence, part)
        if number is None:
            return _error(2, f"trigger {sequence} was missed: {_why_missed(line.state)}"), None
        outcome = await self._wait(lambda: _offered(line, number), None)
        assert outcome is not None
        return result_line(outcome), number

    async def _prepare(self, line: Line, recipe: int) -> str:
        refused = line.prepare(recipe)
        if refused is not None:
            return _error(3, refused)
        done = await self._wait(lambda: True if line.state.phase != "preparing" else None, PREPARE_SECONDS)
        if not done or line.state.recipe != recipe:
            return _error(3, f"recipe {recipe} could not be prepared")
        return f"RECIPE {recipe}"

    async def _wait(self, found: Any, seconds: float | None) -> Any:
        """Wait until ``found()`` returns something, looking at each change."""
        assert self._changed is not None
        async with self._changed:
            try:
                async with asyncio.timeout(seconds):
                    while (value := found()) is None:
                        await self._changed.wait()
            except TimeoutError:
                return None
        return value


def result_line(outcome: Outcome) -> str:
    """Return a result as text."""
    names = [str(facts.get("class") or "-") for facts in outcome.cameras.values()]
    numbers = [f"{value:.6g}" if value is not None else "-" for value in (outcome.score, outcome.threshold)]
    name = (names[0] if names else "-").replace(" ", "_")
    return f"RESULT {outcome.sequence} {outcome.evaluation} {' '.join(numbers)} {outcome.recipe} {name} {outcome.part}".rstrip()


def _offered(line: Line, number: int) -> Outcome | None:
    return next((one for one in line.state.unacknowledged if one.id == number), None)


def _why_missed(state: StationState) -> str:
    if state.control != "line":
        return f"control is with the {state.control}"
    if state.phase != "ready":
        return f"the station is {state.phase}"
    if state.ready:
        return "the cameras start the cycle"
    return "the station is not ready" if state.alive else "the station is waiting for its worker"


def _error(code: int, text: str) -> str:
    return f"ERROR {code} {text}"


def _write(writer: asyncio.StreamWriter, text: str) -> None:
    line = _CONTROL.sub(b"?", text.encode("ascii", "replace"))
    with contextlib.suppress(OSError, RuntimeError):
        writer.write(line + b"\r\n")


_TOO_LONG = _error(1, f"a line has at most {MAX_LINE} characters")
