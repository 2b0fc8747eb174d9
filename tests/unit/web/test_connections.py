"""Connections: head and body of an answer leave at once, so that a proxy never holds half of one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="serving takes the serve extra")

from visionad_runtime.web.connections import Connection, _Joined


class Transport:
    """Notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return None


def played(play: Any) -> Transport:
    transport = Transport()

    async def run() -> None:
        await play(_Joined(transport, asyncio.get_running_loop()))  # type: ignore[arg-type]

    asyncio.run(run())
    return transport


def test_what_is_written_in_one_turn_is_sent_at_once() -> None:
    async def play(joined: _Joined) -> None:
        joined.write(b"head ")
        joined.write(b"body")
        await asyncio.sleep(0.01)
        joined.write(b"next")  # such as a stream's next part
        await asyncio.sleep(0.01)

    assert played(play).sent == [b"head body", b"next"]


def test_what_waits_is_sent_before_the_end_and_nothing_after_it() -> None:
    async def play(joined: _Joined) -> None:
        joined.write(b"last")
        joined.close()
        joined.write(b"late")
        await asyncio.sleep(0.01)
        assert joined.is_closing()

    transport = played(play)
    assert transport.sent == [b"last"] and transport.closed


@pytest.mark.parametrize(("upgrades", "writes"), [(False, 1), (True, 2)])
def test_an_answer_of_the_service_is_one_write(upgrades: bool, writes: int) -> None:
    """A page's connection may become a WebSocket, which has writes of its own."""
    from uvicorn import Config
    from uvicorn.server import ServerState

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    transport = Transport()

    async def run() -> None:
        config = Config(app, lifespan="off", log_config=None)
        config.load()
        kind = type("Own", (Connection,), {"upgrades": upgrades})
        connection = kind(config, ServerState(), {})
        connection.connection_made(transport)
        connection.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.05)
        connection.timeout_keep_alive_handler()

    asyncio.run(run())
    assert len(transport.sent) == writes and b"".join(transport.sent).endswith(b"\r\n\r\nok") and transport.closed
