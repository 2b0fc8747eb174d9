"""Commands that are sent twice are done once: a page that got no answer asks again with the same key."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .users import Refused

KEPT_REPLIES = 256
"""Answers that are kept, so that a command that is sent twice is done once."""


class Repetition:
    """The newest commands with a key, and their answers."""

    def __init__(self) -> None:
        self._replies: OrderedDict[tuple[str, str], tuple[str, Any]] = OrderedDict()  # key -> what was sent, the answer
        self._doing: dict[tuple[str, str], str] = {}

    async def once(self, who: str, m: Mapping[str, Any], work: Callable[[], Awaitable[Any]]) -> Any:
        """Do a command, or return the answer that it got before.

        Args:
            who: gives it.
            m: the message: its ``key``, if it has one, and what is to be done.
            work: does it.

        Raises:
            Refused: It is being done, or the key was sent before with something else.
        """
        if not m.get("key"):
            return await work()
        key, content = (who, str(m["key"])), _content(m)
        sent = self._replies[key][0] if key in self._replies else self._doing.get(key, content)
        if sent != content:
            raise Refused("key_reused", "this Idempotency-Key was sent before with another command or other values")
        if key in self._replies:
            return self._replies[key][1]
        if key in self._doing:
            raise Refused("being_done", "it is being done already")
        self._doing[key] = content
        try:
            value = await work()
        finally:
            del self._doing[key]
        self._replies[key] = content, value
        while len(self._replies) > KEPT_REPLIES:
            self._replies.popitem(last=False)
        return value


def _content(m: Mapping[str, Any]) -> str:
    """Return what a command says, whoever sends it and whenever."""
    return json.dumps({name: m[name] for name in sorted(m) if name not in ("ask", "session", "key")}, default=str)
