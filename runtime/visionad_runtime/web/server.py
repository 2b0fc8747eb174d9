"""uvicorn with a bound on connections, and a log that does not grow with what clients do."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn

from ..errors import VisionADError
from .connections import Connection, Phase

log = logging.getLogger("visionad.web")
MAX_CONNECTIONS = 256
RESERVED_FILES = 32
"""File descriptors that inspecting may need, beside those that are open when the service starts."""
MIN_CONNECTIONS = 8
SWEEP_SECONDS = 0.5
YOUNG_SECONDS = 0.25
"""A connection that is this young is not ended for another one: its request may be on its way."""
SLOW_SECONDS = 5.0
"""A body that arrives for so long, or an answer that is not taken for so long, may be given up for another connection."""
RETRY_SECONDS = 1.0
GRACE_SECONDS = 10.0
"""For requests under way when the service is stopped."""
LISTEN_BACKLOG = 1024


def max_connections() -> int:
    """Return how many connections may be open at once: fewer where the process may open few files."""
    if sys.platform == "win32":  # where sockets are no files
        return MAX_CONNECTIONS
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    try:
        opened = sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:
        opened = RESERVED_FILES
    return max(MIN_CONNECTIONS, min(MAX_CONNECTIONS, limit - opened - RESERVED_FILES))


class Server(uvicorn.Server):
    """A server that accepts a connection only where there is a place for it.

    asyncio accepts all that come. Where the process may open no more files, it logs a traceback for each, and tries again. Here
    a full server ends the connection that least deserves its place: one that never asked, then one that is idle, then one whose
    body is slow, or whose client does not take its answers. Where all are busy, clients wait in the system's queue.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._background: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections at the sockets."""
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report)
        self._limit = max_connections()
        for waiting in sockets or []:
            waiting.setblocking(False)
            waiting.listen(LISTEN_BACKLOG)
            self._background.append(loop.create_task(self._accept(waiting)))
        self._background.append(loop.create_task(self._sweep()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, finish what is under way, and answer what is not complete after :data:`GRACE_SECONDS`."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up)
        await super().shutdown(sockets=sockets)
        timer.cancel()

    def _give_up(self) -> None:
        if tasks := list(self.server_state.tasks):
            log.warning(
                "%d requests were not complete %g s after the stop; they are refused", len(tasks), GRACE_SECONDS
            )
        for task in tasks:  # the gate answers
            task.cancel()
        for one in self._connections:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, one.transport.abort)

    @property
    def _connections(self) -> list[Connection]:
        return [one for one in self.server_state.connections if isinstance(one, Connection)]

    async def _accept(self, waiting: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        def make() -> asyncio.Protocol:
            state: dict[str, Any] = self.lifespan.state
            kind: type[asyncio.Protocol] = self.config.http_protocol_class
            return kind(config=self.config, server_state=self.server_state, app_state=state)  # type: ignore[call-arg]

        while True:
            while len(self.server_state.connections) >= self._limit:
                if not self._make_room():
                    await asyncio.sleep(YOUNG_SECONDS / 5)
                await asyncio.sleep(0)
            try:
                client, _ = await loop.sock_accept(waiting)
            except OSError as exc:  # the client is gone already, or the process may open no more files
                log.warning("cannot accept a connection: %s", exc.strerror or exc)
                self._make_room()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                await loop.connect_accepted_socket(make, client)
            except OSError:  # gone between the two
                client.close()

    def _make_room(self) -> bool:
        """End the connection that least deserves its place. Returns whether there was one."""
        now = time.monotonic()

        def rank(one: Connection) -> int | None:
            age = now - one.since
            if one.phase in (Phase.HEAD, Phase.IDLE) and age < YOUNG_SECONDS:
                return None
            if one.phase is Phase.TAKING:
                return 3 if age > SLOW_SECONDS else None
            if one.phase is Phase.BUSY:
                return 3 if one.receiving and age > SLOW_SECONDS else None
            return {Phase.HEAD: 0, Phase.DRAIN: 1, Phase.CLOSING: 1, Phase.IDLE: 2}[one.phase]

        ranked = [(order, one.since, one) for one in self._connections if (order := rank(one)) is not None]
        if not ranked:
            return False
        min(ranked, key=lambda entry: entry[:2])[2].transport.abort()
        return True

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for one in self._connections:
                if one.expired(now):
                    one.expire()


def _report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    exception = context.get("exception")
    log.warning("%s", f"{context['message']}: {exception}" if exception else context["message"])


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients; port 0 is any free one.

    Raises:
        VisionADError: taken, not permitted, or no such address.
    """
    try:
        waiting = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # By name, as clients' sockets then are: where the protocol is 0, asyncio leaves TCP_NODELAY out, and the second packet of
        # every answer waits 40 ms for the first one to be acknowledged.
        return socket.socket(waiting.family, waiting.type, socket.IPPROTO_TCP, waiting.detach())
    except OSError as exc:
        why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else "no such address"  # the resolver's are below 0
        raise VisionADError(f"cannot listen on {host}, port {port}: {why}; choose another --port or --host") from None
