"""Alarms: each with a code, a text and what mends it; raised once, and over once."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

from ..worker.checks import ALARMS

REPEAT_SECONDS = 60.0
"""A standing alarm is said again at most this often."""
_PART_ALARMS_SECONDS = 300.0
"""An alarm that parts raise is over when no part has raised it for so long."""


class Alarms:
    """Alarms that stand.

    Args:
        say: called with code, text and whether the alarm has begun (or is over).
    """

    def __init__(self, say: Callable[[str, str, bool], object]) -> None:
        self._say = say
        self._active: dict[tuple[str, str], tuple[str, float, float]] = {}

    def set(self, code: str, text: str, key: str = "") -> None:
        """Raise an alarm, or keep it standing.

        Args:
            code: one of ``checks.ALARMS``.
            text: what happened.
            key: tells alarms of one code apart, such as the name of a sink.
        """
        now = time.monotonic()
        known = self._active.get((code, key))
        self._active[code, key] = (text, now if known is None else known[1], now)
        if known is None or (known[0] != text and now > known[2] + REPEAT_SECONDS):
            self._say(code, text, True)

    def clear(self, code: str, key: str = "") -> None:
        """End an alarm, if it stands."""
        known = self._active.pop((code, key), None)
        if known is not None:
            self._say(code, known[0], False)

    def active(self) -> list[dict[str, Any]]:
        """Return the standing alarms: code, text, what it means and what mends it, age in seconds."""
        now = time.monotonic()
        for (code, key), (_, _, last) in list(self._active.items()):
            if not key and code not in ("disk", "clock") and now > last + _PART_ALARMS_SECONDS:
                self.clear(code, key)
        return [
            {
                "code": code,
                "text": text,
                "meaning": ALARMS.get(code, ("", ""))[0],
                "remedy": ALARMS.get(code, ("", ""))[1],
                "age_s": round(now - since, 1),
            }
            for (code, _), (text, since, _) in self._active.items()
        ]


def clock_is_synchronized() -> bool | None:
    """Return whether the system clock is synchronized; ``None`` where the system does not say."""
    if not sys.platform.startswith("linux"):
        return None

    class Timex(ctypes.Structure):
        _fields_ = (("modes", ctypes.c_uint), ("rest", ctypes.c_byte * 512))

    try:
        status = ctypes.CDLL(None).adjtimex(ctypes.byref(Timex()))
    except (OSError, AttributeError):
        return None
    return None if status < 0 else bool(status != 5)
