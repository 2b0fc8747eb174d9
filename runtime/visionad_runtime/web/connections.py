"""A connection of a client: time limits for its parts, and errors as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import time
from http import HTTPStatus
from typing import Any, cast

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
"""From the connection, or from the first byte of a further request, to the end of its head."""
MAX_HEAD_BYTES = 256 << 10
"""Of a request's line and headers."""
KEEP_ALIVE_SECONDS = 75
"""Between requests of a connection. Clients that ask once a minute keep theirs."""
DRAIN_SECONDS = 5.0
"""For the rest of a body that nobody reads, so that the client reads the answer before the connection ends."""
TAKE_SECONDS = 30.0
"""For a client to take what was answered before the answer to its next request."""
CLOSE_SECONDS = 30.0
"""For a client to take the answer after which its connection ends."""


class Phase(enum.Enum):
    """What a connection is at."""

    HEAD = "expects a request's head"
    BUSY = "a request is received or answered"
    TAKING = "a request is answered, and the client does not take what was sent before"
    DRAIN = "the answer is sent, the body still arrives"
    IDLE = "between two requests"
    CLOSING = "ends once the answer is sent"


LIMITS: dict[Phase, float | None] = {
    Phase.HEAD: HEAD_SECONDS,
    Phase.BUSY: None,  # bodies have a limit of their own
    Phase.TAKING: TAKE_SECONDS,
    Phase.DRAIN: DRAIN_SECONDS,
    Phase.IDLE: KEEP_ALIVE_SECONDS,
    Phase.CLOSING: CLOSE_SECONDS,
}


class _Joined:
    """A transport that sends what is written in one turn of the event loop at once.

    An answer's head and body are two writes. A proxy passes the head on as soon as it comes, and then cannot ask another server
    any more if this one dies before the body.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._send)
        self._waiting.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting and not self._transport.is_closing():
            self._transport.write(b"".join(waiting))


class _Parser:
    """uvicorn's parser, which goes on where a client offers a protocol that the service does not speak.

    Java's client offers HTTP/2 with a request. The parser ends such a request with its head, and drops the body. So another parser
    begins the request anew, without the offer.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._parser = connection, connection.parser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                self._parser.feed_data(rest)
                break
            except HttpParserUpgrade as exc:
                if not self._connection.declines():
                    raise
                rest, head = rest[exc.args[0] :], self._connection.head_without_offer()
                self._parser = HttpRequestParser(self._connection)
                with contextlib.suppress(AttributeError):  # as uvicorn's: older ones have no such setting
                    self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self._parser.feed_data(head)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a phase. :class:`Acceptor` ends those that are in one for too long."""

    upgrades = False
    """Whether a request may become a WebSocket."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.phase, self.since = Phase.HEAD, time.monotonic()
        self._paused_since = self.since
        self._head_bytes = 0
        self._in_head = self._in_body = False
        self.parser = cast(HttpRequestParser, _Parser(self))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client."""
        super().connection_made(transport if self.upgrades else cast(asyncio.Transport, _Joined(transport, self.loop)))

    def _enter(self, phase: Phase) -> None:
        self.phase, self.since = phase, time.monotonic()
        if phase is Phase.BUSY and self.flow.write_paused:  # for as long, whatever else the client asks meanwhile
            self.phase, self.since = Phase.TAKING, self._paused_since

    @property
    def receiving(self) -> bool:
        """Whether the body of the request is still arriving."""
        return self._in_body

    def expired(self, now: float) -> bool:
        """Whether it is in its phase for too long."""
        limit = LIMITS[self.phase]
        return limit is not None and now - self.since > limit

    def expire(self) -> None:
        """End it: with an answer where a request had begun."""
        if self.phase in (Phase.CLOSING, Phase.TAKING):
            self.transport.abort()
        elif self.phase is Phase.HEAD and self._head_bytes:
            self.refuse(408, f"expected the request's head within {HEAD_SECONDS:g} s; send it again")
        else:
            self.close()

    def close(self) -> None:
        """End it once what was answered is sent."""
        self._enter(Phase.CLOSING)
        self.transport.close()

    def refuse(self, status: int, message: str) -> None:
        """Answer a request that is not understood, and end the connection."""
        body = json.dumps({"error": message}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
        self.close()

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        if self.phase is Phase.IDLE:
            self._enter(Phase.HEAD)
        super().data_received(data)
        if self.phase is Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.refuse(431, f"expected a request's head of at most {MAX_HEAD_BYTES >> 10} KiB, got more")

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that has sent its request and says that it will send no more."""
        if self.cycle is None or self.cycle.response_complete or self._in_body or self._in_head:
            return None
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        """Wait for a client that does not take what was sent. No answer is written meanwhile."""
        super().pause_writing()
        self._paused_since = time.monotonic()
        if self.phase is Phase.BUSY:
            self._enter(Phase.BUSY)

    def resume_writing(self) -> None:
        """Go on answering: the client took most of what was sent."""
        super().resume_writing()
        if self.phase is Phase.TAKING:
            self._enter(Phase.BUSY)

    def declines(self) -> bool:
        """Whether the request at hand offers another protocol, which the service does not speak."""
        offers = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        return offers and not (self.upgrades and self._get_upgrade() == b"websocket")

    def head_without_offer(self) -> bytes:
        """Head of the request at hand, as it came, without what it offers."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin what follows a request's head."""
        if self.declines():  # it comes once more
            return
        self._in_head, self._in_body, self._head_bytes = False, True, 0
        self._enter(Phase.BUSY)
        if self.url == b"*":
            self.url = b"/"
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request."""
        if self.declines():
            return
        self._in_body = False
        super().on_message_complete()
        if self.phase is Phase.DRAIN:
            self._enter(Phase.IDLE)

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        if self.transport.is_closing():
            self._enter(Phase.CLOSING)
        elif self.pipeline:
            self._enter(Phase.BUSY)
        elif self._in_head:
            self._enter(Phase.HEAD)
        else:
            self._enter(Phase.DRAIN if self._in_body else Phase.IDLE)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        del msg
        self.refuse(400, "expected an HTTP/1.1 request with a percent-encoded target, got something else")

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that was idle for too long."""
        if not self.transport.is_closing():
            self.close()
