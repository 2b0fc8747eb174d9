"""The TCP sink against clients that send what they should not: one line in, one line out."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from visionad_runtime.station.sinks.tcp import ERRORS, MAX_CLIENTS, MAX_LINE, TcpSettings, TcpSink

from tests.data import ROOT
from tests.fakes.line import FakeLine, outcome
from tests.ports import free_port

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
TOO_LONG = b"ERROR 1 a line has at most 1024 characters\r\n"
STATE = b"STATE ready 1 1 0 0\r\n"


class FullLine(FakeLine):
    """A line that also says which results wait."""

    def show(self, **fields: Any) -> None:
        if "offered" in fields:
            fields["unacknowledged"] = () if fields["offered"] is None else (fields["offered"],)
        super().show(**fields)


def talk(
    play: Callable[[FakeLine, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    line_type: type[FakeLine] = FakeLine,
    **settings: Any,
) -> None:
    """Play a client of a sink whose line is ready."""

    async def main() -> None:
        port = free_port()
        sink = TcpSink("tcp", TcpSettings(kind="tcp", port=port, **settings))
        line = line_type()
        line.sinks.append(sink)
        running = asyncio.create_task(sink.run(line))
        for _ in range(100):
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            await asyncio.sleep(0.02)
        line.show(phase="ready", ready=True, prepared=True, recipe=1)
        try:
            await asyncio.wait_for(play(line, reader, writer), 10)
        finally:
            writer.close()
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(main())


@pytest.mark.parametrize("pieces", [1, 3, 100])
@pytest.mark.parametrize(
    ("length", "answer"), [(1025, TOO_LONG), (2000, TOO_LONG), (10_000, TOO_LONG), (1024, b"ERROR 1 exp")]
)
def test_a_line_that_is_too_long_has_one_answer(length: int, answer: bytes, pieces: int) -> None:
    async def play(line: FakeLine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b"STATE\r\n" + b"X" * length + b"\r\nSTATE\r\n" + b"Y" * 3000 + b"\nSTATE\n"
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            await asyncio.sleep(0.002)
        got = [await reader.readline() for _ in range(5)]
        assert got[1].startswith(answer)
        assert [got[0], *got[2:]] == [STATE, STATE, TOO_LONG, STATE]

    talk(play)


def test_a_line_without_an_end_is_answered_once() -> None:
    async def play(line: FakeLine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(9):
            writer.write(b"X" * 1000)
            await asyncio.sleep(0.005)
        assert await reader.readline() == TOO_LONG
        writer.write(b"\nSTATE\n")
        assert await reader.readline() == STATE

    talk(play)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"control": "page"}, "control is with the page"),
        ({"phase": "busy", "ready": False}, "the station is busy"),
        ({"ready": False, "alive": False}, "the station is waiting for its worker"),
        ({"ready": False}, "the station is not ready"),
    ],
)
def test_a_missed_trigger_says_why(state: dict[str, Any], why: str) -> None:
    async def play(line: FakeLine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line.show(**state)
        writer.write(b"TRIGGER 5 a\n")
        assert await reader.readline() == f"ERROR 2 trigger 5 was missed: {why}\r\n".encode()

    talk(play)


def test_no_control_character_leaves_in_an_answer() -> None:
    async def play(line: FakeLine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"TRIGGER 7 a\x00\x1b[31m\x07z\x7f\xff\n")
        assert await reader.readline() == b"RESULT 7 1 0.2 0.402 1 gear a??[31m?z??\r\n"
        line.show(offered=outcome(9, "SN\r\nRESULT 1 1\u2028\x85x", 9))  # of a file name
        assert await reader.readline() == b"RESULT 9 1 0.2 0.402 1 gear SN??RESULT 1 1??x\r\n"

    talk(play, unsolicited=True)


def guide() -> str:
    return (ROOT / "docs" / "guides" / "sinks.md").read_text(encoding="utf-8").split("\n## TCP\n")[1].split("\n## ")[0]


def test_the_conversation_of_the_guide_takes_place() -> None:
    talked = re.search(r"```text\n(.*?)```", guide(), re.DOTALL)
    assert talked is not None
    lines = talked[1].splitlines()
    assert len(lines) >= 16
    assert {line.split()[1] for line in lines} >= {"STATE", "TRIGGER", "RESULT", "ACK", "RECIPE", "ERROR"}

    async def play(line: FakeLine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for said, answer in zip(lines[::2], lines[1::2], strict=True):
            writer.write(said.removeprefix("> ").encode() + b"\n")
            assert b"< " + await reader.readline() == answer.encode() + b"\r\n", said

    talk(play, FullLine)


def test_the_guide_has_every_error_and_limit() -> None:
    numbers = re.findall(r"^\| (\d+) \|", guide(), re.MULTILINE)
    assert [int(number) for number in numbers] == list(ERRORS)
    assert f"longer than {MAX_LINE} characters" in guide()
    assert f"{MAX_CLIENTS} clients are connected already" in guide()


def test_every_result_is_sent_if_the_file_says_so() -> None:
    async def play(line: FakeLine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"TRIGGER 7 a\nACK 7\n")
        told = [await reader.readline() for _ in range(3)]
        assert [one.split()[0] for one in told] == [b"RESULT", b"RESULT", b"ACK"]

    talk(play, FullLine, unsolicited=True)
