"""The log of the service: whatever clients do, it grows by a few lines a minute at most."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("visionad.web")
PERIOD = 60.0
"""Seconds in which a message is written once."""
MAX_MESSAGES = 64
"""Different messages that are told apart within a period."""


class RateLimit(logging.Filter):
    """Lets each message through once a period, by its text before arguments are filled in; says how many were left out.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        key, now = str(record.msg)[:200], self._clock()
        if key == "%s":  # the arguments are all there is
            key = record.getMessage().splitlines()[0][:200]
        since, left_out = self._seen.get(key, (-PERIOD, 0))
        if now - since < PERIOD:
            self._seen[key] = since, left_out + 1
            return False
        self._seen = {k: v for k, v in self._seen.items() if now - v[0] < PERIOD or v[1]}
        if len(self._seen) >= MAX_MESSAGES:
            return False
        self._seen[key] = now, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more since the last such line)", ()
        return True


class _Forward(logging.Handler):
    """Hands what libraries log to the service's log, without their tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, record.msg, *(record.args if isinstance(record.args, tuple) else ()))


@contextmanager
def bounded_log() -> Iterator[None]:
    """Bound what this service, its HTTP server and the event loop log."""
    limit, forward = RateLimit(), _Forward(logging.WARNING)
    libraries = [logging.getLogger(name) for name in ("uvicorn", "asyncio")]
    before = [library.propagate for library in libraries]
    log.addFilter(limit)
    for library in libraries:
        library.addHandler(forward)
        library.propagate = False
    try:
        yield
    finally:
        log.removeFilter(limit)
        for library, propagate in zip(libraries, before, strict=True):
            library.removeHandler(forward)
            library.propagate = propagate
