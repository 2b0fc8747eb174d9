"""Servers of the line's tests: programs of their own, on the loopback interface, ended by their process id."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from types import TracebackType

READY_S = 20.0


class Server:
    """A program that runs until the test ends.

    Args:
        command: program and arguments.
        is_ready: called until it returns true; raises nothing.
    """

    def __init__(self, *command: str, is_ready: Callable[[], bool]) -> None:
        self._command, self._is_ready = command, is_ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + READY_S
        while not self._is_ready():
            assert self._process.poll() is None, f"{self._command[0]} ended with status {self._process.returncode}"
            assert time.monotonic() < end, f"{self._command[0]} is not ready after {READY_S:g} s"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it without notice. A second call does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Let it stand still: it answers nothing, and its sockets stay."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
