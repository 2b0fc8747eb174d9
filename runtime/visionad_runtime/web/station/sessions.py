"""Session of a request: a cookie that scripts cannot read, sent to this station only."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request

from .link import Answer, CommandError, FrontLink

COOKIE = "__Host-visionad"
"""Browsers send a cookie of this name over TLS and on loopback only, to the host that set it."""


def session_key(cookies: Mapping[str, str]) -> str:
    """Return the key of a session; empty without one."""
    return cookies.get(COOKIE, "")[:200]


class Caller:
    """Who asks, and the way to the front."""

    def __init__(self, request: Request) -> None:
        self._link: FrontLink = request.app.state.link
        self.key = session_key(request.cookies)
        self._repetition = request.headers.get("idempotency-key", "")[:100]

    async def ask(self, command: str, **values: Any) -> Answer:
        """Give a command in the name of the session. A repeated one, by its ``Idempotency-Key``, is done once."""
        return await self.send(command, values)

    async def send(self, command: str, values: Mapping[str, Any], blobs: tuple[bytes, ...] = ()) -> Answer:
        """As :meth:`ask`, with bytes such as those of an image."""
        if blobs and self._repetition:  # so that the front need not read them to know them again
            values = {**values, "content": await asyncio.to_thread(_digest, blobs)}
        return await self._link.ask(command, blobs, session=self.key, key=self._repetition, **values)

    async def session(self) -> dict[str, Any]:
        """Return the session.

        Raises:
            CommandError: There is none.
        """
        found: dict[str, Any] | None = (await self._link.ask("session", session=self.key, touch=True)).value
        if found is None:
            raise CommandError("no_session", "log in first")
        return found


def _digest(blobs: tuple[bytes, ...]) -> list[str]:
    return [hashlib.sha256(blob).hexdigest() for blob in blobs]


async def _reader(request: Request) -> Caller:
    caller = Caller(request)
    await caller.session()
    return caller


Anyone = Annotated[Caller, Depends(Caller)]
Reader = Annotated[Caller, Depends(_reader)]
"""A caller with a session: each role may read."""
