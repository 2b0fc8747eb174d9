"""Connections: head and body of an answer leave at once, so that a proxy never holds half of one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="serving takes the serve extra")

from uvicorn import Config
from uvicorn.server import ServerState
from visionad_runtime.web.connections import TAKE_SECONDS, Connection, Phase, _Joined
from visionad_runtime.web.server import SLOW_SECONDS, Server


class Transport:
    """Notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

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


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Clock:
    """In place of the module ``time``."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("connections", "server"):
        monkeypatch.setattr(f"visionad_runtime.web.{module}.time", clock)
    return clock


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def connected(transport: Transport, state: ServerState, app: Any = _hello) -> Connection:
    config = Config(app, lifespan="off", log_config=None)
    config.load()
    connection = Connection(config, state, {})
    connection.connection_made(transport)  # type: ignore[arg-type]
    return connection


def test_a_client_that_takes_no_answer_loses_its_place(clock: Clock) -> None:
    async def run() -> None:
        transport, full = Transport(), Server(Config(_hello, lifespan="off", log_config=None))
        connection = connected(transport, full.server_state)
        connection.data_received(GET)
        await asyncio.sleep(0.01)
        connection.pause_writing()  # the buffer is full
        assert connection.phase is Phase.IDLE  # as nothing is asked
        clock.now += 3
        connection.data_received(GET + GET)
        await asyncio.sleep(0.01)
        assert connection.phase is Phase.TAKING and len(transport.sent) == 1 and len(full.server_state.tasks) == 1
        clock.now += SLOW_SECONDS - 3
        assert not full._make_room()  # it may be a slow one
        clock.now += 1
        assert full._make_room() and transport.aborted
        connection.connection_lost(None)
        await asyncio.sleep(0.01)
        assert not full.server_state.tasks and not full.server_state.connections

    asyncio.run(run())


def test_answers_are_taken_within_a_limit(clock: Clock) -> None:
    async def run() -> None:
        transport = Transport()
        connection = connected(transport, ServerState())
        connection.data_received(GET * 3)
        connection.pause_writing()
        clock.now += TAKE_SECONDS - 1
        assert connection.phase is Phase.TAKING and not connection.expired(clock.now)
        connection.resume_writing()  # it took some
        assert connection.phase is Phase.BUSY and not connection.expired(clock.now + 1000)  # a long inspection
        connection.pause_writing()
        clock.now += TAKE_SECONDS
        assert not connection.expired(clock.now)
        connection.data_received(GET)  # asking more gives no more time
        assert connection.expired(clock.now + 0.1)
        connection.expire()
        assert transport.aborted
        connection.connection_lost(None)
        await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_client_that_takes_its_answers_gets_all(clock: Clock) -> None:
    async def run() -> None:
        transport = Transport()
        connection = connected(transport, ServerState())
        connection.data_received(GET * 3)
        connection.pause_writing()
        await asyncio.sleep(0.01)
        assert not transport.sent
        connection.resume_writing()
        await asyncio.sleep(0.05)
        assert b"".join(transport.sent).count(b"\r\n\r\nok") == 3 and connection.phase is Phase.IDLE
        connection.timeout_keep_alive_handler()

    asyncio.run(run())


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    kept = [value for name, value in scope["headers"] if name == b"x-kept"]
    text = b"<%s %s %s %s>" % (scope["method"].encode(), scope["raw_path"], b"".join(kept), body)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nx-kept: \xfc\r\n"
LENGTH = b"POST /a%20b HTTP/1.1\r\nHost: x\r\n" + OFFER + b"Content-Length: 5\r\n\r\nimage"
CHUNKS = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + OFFER + b"\r\n5\r\nimage\r\n0\r\n\r\n"
BODILESS = b"GET /g HTTP/1.1\r\nHost: x\r\n" + OFFER + b"\r\n"
PLAIN = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 22\r\n\r\n\r\nUpgrade: body\r\n\r\nx\r\n"


def answered(*pieces: bytes) -> bytes:
    transport = Transport()

    async def run() -> None:
        connection = connected(transport, ServerState(), _echo)
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(40):
            await asyncio.sleep(0)
        connection.timeout_keep_alive_handler()

    asyncio.run(run())
    return b"".join(piece[piece.index(b"<") :] for piece in transport.sent)


def test_a_request_that_offers_another_protocol_is_answered_wherever_it_is_split() -> None:
    for request, answer in (
        (LENGTH, b"<POST /a%20b \xfc image>"), (CHUNKS, b"<POST /c \xfc image>"), (BODILESS, b"<GET /g \xfc >"),
        (PLAIN, b"<POST /p  \r\nUpgrade: body\r\n\r\nx\r\n>"),
        (LENGTH.replace(b": Upgrade,", b": close, upgrade,"), b"<POST /a%20b \xfc image>"),
        (CHUNKS.replace(OFFER, b"").removesuffix(b"\r\n") + OFFER.replace(b"x-kept", b"x") + b"\r\n", b"<POST /c  image>"),
    ):  # fmt: skip
        for place in range(1, len(request) + 1):
            assert answered(request[:place], request[place:]) == answer, (place, request)
        assert answered(*(request[i : i + 1] for i in range(len(request)))) == answer


def test_requests_that_offer_another_protocol_may_follow_one_another() -> None:
    together = b"<POST /a%20b \xfc image><GET /g \xfc ><POST /p  \r\nUpgrade: body\r\n\r\nx\r\n><POST /c \xfc image>"
    assert answered(LENGTH + BODILESS + PLAIN + CHUNKS) == together
    assert answered(GET + LENGTH[:70], LENGTH[70:]) == b"<GET /  ><POST /a%20b \xfc image>"


@pytest.mark.parametrize("upgrades", [True, False])
def test_a_page_may_offer_a_web_socket(monkeypatch: pytest.MonkeyPatch, upgrades: bool) -> None:
    begun: list[bytes] = []
    monkeypatch.setattr(Connection, "upgrades", upgrades)
    monkeypatch.setattr(
        Connection, "_should_upgrade", lambda self: self.upgrades and self._get_upgrade() == b"websocket"
    )
    monkeypatch.setattr(Connection, "handle_websocket_upgrade", lambda self: begun.append(self.url))
    request = b"GET /feed HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
    for place in range(1, len(request)):
        assert answered(request[:place], request[place:]) == (b"" if upgrades else b"<GET /feed  >")
    assert begun == ([b"/feed"] * (len(request) - 1) if upgrades else [])
