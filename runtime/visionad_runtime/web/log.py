"""The log of the service: whatever clients do, it grows by a few lines a minute at most."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("visionad.web")
PERIOD = 60.0
"""Seconds in which a message is written once."""
_NUMBER = re.compile(r"\d+")
MAX_MESSAGES = 64
"""Different messages that are told apart within a period."""


class RateLimit(logging.Filter):
    """Lets each message through once a period, and says how many were left out. Numbers in it make no other message.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        first, now = record.getMessage().partition("\n")[0], self._clock()
        key = _NUMBER.sub("0", first)[:200]
        since, left_out = self._seen.get(key, (-PERIOD, 0))
        if now - since < PERIOD:
            self._seen[key] = since, left_out + 1
            return False
        self._seen.pop(key, None)
        self._seen = {k: v for k, v in self._seen.items() if now - v[0] < PERIOD or v[1]}
        if len(self._seen) >= MAX_MESSAGES:
            oldest = min(self._seen, key=lambda k: self._seen[k][0])
            if now - self._seen[oldest][0] < PERIOD:
                return False
            del self._seen[oldest]  # with its count: clients may choose messages that never come again
        self._seen[key] = now, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more since the last such line)", ()
        return True


class _Forward(logging.Handler):
    """Hands what libraries log to the service's log, as one line without a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] != "visionad":
            log.log(record.levelno, "%s", " ".join(f"{record.name}: {record.getMessage()}".split()))


@contextmanager
def bounded_log() -> Iterator[None]:
    """Bound what this service, its HTTP server, the event loop and every other library log."""
    limit, forward, root = RateLimit(), _Forward(logging.WARNING), logging.getLogger()
    log.addFilter(limit)
    root.addHandler(forward)
    try:
        yield
    finally:
        log.removeFilter(limit)
        root.removeHandler(forward)
