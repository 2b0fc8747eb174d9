"""Worker threads: a persistent pool that shares a caller's work, and one low-priority background thread.

:func:`parallel_for` uses the pool, :func:`submit_background` the background thread. Work must release Python's lock to run in
parallel.

The pool is persistent because a search takes milliseconds, and starting threads would add a tenth. Its threads avoid the caller's
CPU: kernels in virtual machines have been seen to wake a thread on the CPU of its waker, which halves the speed until the scheduler
balances the load, too late.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from .errors import VisionADError

T = TypeVar("T")
log = logging.getLogger("visionad")

BACKGROUND_NICENESS = 10
"""Niceness of the background thread, relative to the process. It gets a tenth of a contended CPU."""

_NO_PIECE = object()
"""Marks the end of the pieces, which may be any object."""


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_for(work: Callable[[T], None], pieces: Iterable[T], workers: int) -> None:
    """Call ``work`` with each piece, in this thread and up to ``workers - 1`` others. Return when all calls have ended.

    Each thread takes the next piece when it is free, so a thread that wakes up late does not delay the others. With one worker or
    one piece, this thread does everything.

    Args:
        work: function of one piece. An exception that it raises is raised here.
        pieces: arguments of the calls.
        workers: maximum number of threads, this one included.
    """
    pieces = list(pieces)
    remaining, lock = iter(pieces), threading.Lock()

    def process() -> None:
        while True:
            with lock:
                piece = next(remaining, _NO_PIECE)
            if piece is _NO_PIECE:
                return
            work(piece)  # type: ignore[arg-type]

    helpers = min(workers, len(pieces)) - 1
    if helpers < 1:
        process()
        return
    pool = _worker_pool()
    pool.avoid_current_cpu()
    futures = [pool.executor.submit(process) for _ in range(min(helpers, pool.size))]
    try:
        process()
    finally:  # wait for calls that have begun: they use the caller's arrays
        begun = [future for future in futures if not future.cancel()]
        errors = [future.exception() for future in begun]
    for error in errors:
        if error is not None:
            raise error


class _WorkerPool:
    """Worker threads of this process, one fewer than CPUs."""

    def __init__(self) -> None:
        self.size = max(1, available_cpus() - 1)
        self._threads: list[int] = []
        self._avoided: tuple[int | None, int] = None, 0
        self.executor = ThreadPoolExecutor(
            self.size, "visionad-search", lambda: self._threads.append(threading.get_native_id())
        )

    def avoid_current_cpu(self) -> None:
        """Let the workers run on any CPU that the calling thread may use, except the one that it runs on."""
        if sys.platform != "linux":
            return
        cpu = _current_cpu()
        state = cpu, len(self._threads)
        if cpu is None or state == self._avoided:
            return
        allowed = os.sched_getaffinity(0) - {cpu}
        if allowed:
            for thread in self._threads:
                os.sched_setaffinity(thread, allowed)
        self._avoided = state


@functools.cache
def _worker_pool() -> _WorkerPool:
    return _WorkerPool()


def submit_background(work: Callable[[], object]) -> None:
    """Queue ``work`` for the background thread, which runs calls in order. The process does not wait for it when it exits."""
    _background_queue().put(work)


def drain_background() -> None:
    """Wait until all work queued so far is done."""
    done = threading.Event()
    submit_background(done.set)
    done.wait()


@functools.cache
def _background_queue() -> queue.SimpleQueue[Callable[[], object]]:
    pending = queue.SimpleQueue[Callable[[], object]]()

    def run() -> None:
        if sys.platform == "linux":  # only Linux has a priority for each thread
            with contextlib.suppress(OSError):  # a service may be forbidden to change it
                os.setpriority(
                    os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + BACKGROUND_NICENESS
                )
        while True:
            try:
                pending.get()()
            except Exception:  # the caller does not wait for the result, and the next call must still run
                log.exception("background work failed")

    threading.Thread(target=run, name="visionad-background", daemon=True).start()
    return pending


def _current_cpu() -> int | None:
    """Return the number of the CPU that this thread runs on, or ``None`` if the system does not tell."""
    get = _getcpu()
    return None if get is None or (number := get()) < 0 else int(number)


@functools.cache
def _getcpu() -> Callable[[], int] | None:
    try:
        get: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
    except (OSError, AttributeError):
        return None
    return get


if hasattr(os, "register_at_fork"):  # a forked process has no threads but the one that forked
    os.register_at_fork(after_in_child=_worker_pool.cache_clear)
    os.register_at_fork(after_in_child=_background_queue.cache_clear)


class Lifetime:
    """Count running calls, so that closing can wait for them."""

    def __init__(self, refusal: str) -> None:
        """Start open.

        Args:
            refusal: error message for calls after closing.
        """
        self._refusal = refusal
        self._changed = threading.Condition()
        self._running = 0
        self._closing = self._closed = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count the enclosed code as a running call.

        Raises:
            VisionADError: Closing has begun.
        """
        with self._changed:
            if self._closing:
                raise VisionADError(self._refusal)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def end(self) -> Iterator[bool]:
        """Refuse further calls and wait for the running ones.

        Yields:
            Whether this is the first call of ``end``. Only the first caller frees resources.
        """
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._running)
            first, self._closed = not self._closed, True
            yield first
