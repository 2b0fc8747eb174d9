"""Log of a station: to stdout, or to a file of bounded size. The same message is written at most once a minute."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path

from ...errors import VisionADError

MAX_BYTES = 5_000_000
"""Size of a log file, at which the next one begins."""
BACKUPS = 5
"""Older files that are kept beside it. So the front's log, and the worker's, take 30 MB at most each."""
REPEAT_SECONDS = 60.0
"""The same message is written at most once in so long."""
MAX_ALIKE = 10
"""Messages that differ only in numbers and quoted texts are written at most so often in :data:`REPEAT_SECONDS`."""
MAX_CHARACTERS = 8000
"""A longer message is cut."""
_MAX_KNOWN = 2000
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|0x[0-9a-fA-F]+|\d+")


class RepeatFilter(logging.Filter):
    """Passes a message at most once a minute, and at most ten a minute that differ only in numbers and quoted texts.

    A message that passes says in ``record.left_out`` how many like it were left out before.

    Args:
        now: monotonic clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._same: dict[str, float] = {}
        self._alike: dict[str, list[float]] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is written."""
        now, text = self._now(), f"{record.name} {record.getMessage()}"
        shape = _VARYING.sub("#", text)
        recent = [moment for moment in self._alike.get(shape, ()) if now < moment + REPEAT_SECONDS]
        if now < self._same.get(text, float("-inf")) + REPEAT_SECONDS or len(recent) >= MAX_ALIKE:
            self._left_out[shape] = self._left_out.get(shape, 0) + 1
            return False
        self._forget(now)
        self._same[text] = now
        self._alike[shape] = [*recent, now]
        record.left_out = self._left_out.pop(shape, 0)
        return True

    def _forget(self, now: float) -> None:
        """Keep the tables small, whatever is logged."""
        if len(self._same) > _MAX_KNOWN:
            self._same = {text: last for text, last in self._same.items() if now < last + REPEAT_SECONDS}
            self._alike = {
                shape: moments for shape, moments in self._alike.items() if now < moments[-1] + REPEAT_SECONDS
            }
            self._left_out = {shape: count for shape, count in self._left_out.items() if shape in self._alike}
        if len(self._same) > _MAX_KNOWN:  # a flood of different messages
            for table in (self._same, self._alike, self._left_out):
                table.clear()


class _Format(logging.Formatter):
    def __init__(self, form: str, times: str | None = None) -> None:
        super().__init__(form, times)
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        left_out = getattr(record, "left_out", 0)
        if left_out:
            text += f" ({left_out} more like it were left out)"
        return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Go on without a line: a full disk must not stop a line, and its alarm is raised elsewhere."""


class _Stdout(logging.Handler):
    """Writes to whatever stdout is now, because a host may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stdout.write(self.format(record) + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):
            pass  # the reader is gone


def start_logging(path: Path | None, process: str = "") -> Callable[[str], None]:
    """Send the log of this process to a file or to stdout, bounded. A second call replaces the first.

    Args:
        path: file, which is made; ``None`` for stdout.
        process: added to the file's name: two processes cannot share one that is rotated.

    Returns:
        A function that logs an event.

    Raises:
        VisionADError: The file cannot be written.
    """
    handler: logging.Handler
    if path is None:
        handler = _Stdout()
        handler.setFormatter(_Format("%(message)s"))
    else:
        own = path.with_name(f"{path.stem}-{process}{path.suffix}") if process else path
        try:
            own.parent.mkdir(parents=True, exist_ok=True)
            handler = _File(own, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8")
        except OSError as exc:
            raise VisionADError(
                f"log {own}: cannot be written: {exc.strerror}; mend its permissions, or choose another file (key log)"
            ) from None
        handler.setFormatter(_Format("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    handler.addFilter(RepeatFilter())
    root, ours, events = logging.getLogger(), logging.getLogger("visionad"), logging.getLogger("visionad.station")
    for logger in (root, ours):
        for old in list(logger.handlers):
            if logger is ours or isinstance(old, _File | _Stdout):
                logger.removeHandler(old)
                old.close()
    root.addHandler(handler)
    events.setLevel(logging.INFO)
    return lambda text: events.info("%s", text)
