"""Output of the commands: lines on stdout, messages on stderr, progress bars and the log. Also how a command is stopped."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def set_verbosity(verbose: bool) -> None:
    """Send the log to stderr: from INFO on if ``verbose``, else warnings."""
    log = logging.getLogger("visionad")
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    if not log.handlers:
        log.addHandler(StderrHandler())


class StderrHandler(logging.Handler):
    """Write log records like the other messages. Stderr is looked up for each record, because a host may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        sys.stderr.write(f"visionad: {record.getMessage()}\n")


def complain(message: str, status: int = 2) -> int:
    """Write a message to stderr as one line; return the exit status."""
    sys.stderr.write(f"visionad: {' '.join(message.split())}\n")
    return status


def say(text: str) -> None:
    """Write a line to stdout and flush it, because a line PC reads it through a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on stderr if it is a terminal, and nothing otherwise.

    Args:
        what: title of the bar.
        total: number of steps.

    Yields:
        The function that counts one step.
    """
    if not sys.stderr.isatty() or total < 2:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C (SIGINT) or SIGTERM sets, so that the running inspection is finished.

    A second Ctrl-C stops at once.
    """
    stop, previous = threading.Event(), dict[signal.Signals, Any]()

    def set_stop(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous[signal.SIGINT])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, set_stop)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
