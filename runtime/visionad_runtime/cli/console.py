"""What commands say: lines on stdout, messages on stderr, progress bars, the log; and how they are stopped."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def set_verbosity(verbose: bool) -> None:
    log = logging.getLogger("visionad")
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    if not log.handlers:
        log.addHandler(StderrHandler())


class StderrHandler(logging.Handler):
    """The log's lines as the command's other messages, on whatever stderr is now."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"visionad: {record.getMessage()}\n")


def complain(message: str, status: int = 2) -> int:
    sys.stderr.write(f"visionad: {' '.join(message.split())}\n")
    return status


def say(text: str) -> None:
    """A line of output, seen at once: a line PC reads it through a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal's stderr, nothing in a pipe. Yields the function that counts one step."""
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
    """Set by Ctrl-C or a service's stop, so that what is being inspected is finished. A second Ctrl-C does not wait for that."""
    stop, before = threading.Event(), dict[signal.Signals, Any]()

    def end(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, end)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
