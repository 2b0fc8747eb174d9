"""Threads that stay, beside the caller's own, for work that lets go of Python's lock.

Some share a caller's work (:func:`parallel_for`), one does what nobody waits for (:func:`submit_background`).

A search is over in milliseconds. Threads made for each would cost a tenth of that, and a thread that the system wakes on its
waker's core, as kernels in virtual machines are seen to do, would halve the speed until a balancing tick that comes too late.
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
"""How much lower than the others' is the priority of the thread for what nobody waits for: a tenth of a core that both want."""


def available_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_for(work: Callable[[T], None], pieces: Iterable[T], workers: int) -> None:
    """Call ``work`` with each of ``pieces``, in this thread and up to ``workers - 1`` others; return when all are done.

    Each thread takes the next piece whenever it is free, so a thread that wakes up late does not delay the others. With one
    worker, or one piece, this thread does all of it. What ``work`` raises is raised here.
    """
    pieces = list(pieces)
    waiting, lock = iter(pieces), threading.Lock()

    def take() -> None:
        while True:
            with lock:
                piece = next(waiting, NOTHING)
            if piece is NOTHING:
                return
            work(piece)  # type: ignore[arg-type]

    more = min(workers, len(pieces)) - 1
    if more < 1:
        take()
        return
    crew = _crew()
    crew.keep_off_this_core()
    others = [crew.pool.submit(take) for _ in range(min(more, crew.size))]
    try:
        take()
    finally:  # what has begun works on the caller's arrays
        begun = [other for other in others if not other.cancel()]
        failed = [other.exception() for other in begun]
    for error in failed:
        if error is not None:
            raise error


NOTHING = object()


class _Crew:
    """The threads of this process, one fewer than there are cores."""

    def __init__(self) -> None:
        self.size = max(1, available_cpus() - 1)
        self._threads: list[int] = []
        self._kept_off: tuple[int | None, int] = None, 0
        self.pool = ThreadPoolExecutor(
            self.size, "visionad-search", lambda: self._threads.append(threading.get_native_id())
        )

    def keep_off_this_core(self) -> None:
        """Let the threads run on any core that this thread may use but the one it is on."""
        if sys.platform != "linux":
            return
        here = _here()
        known = here, len(self._threads)
        if here is None or known == self._kept_off:
            return
        allowed = os.sched_getaffinity(0) - {here}
        if allowed:
            for thread in self._threads:
                os.sched_setaffinity(thread, allowed)
        self._kept_off = known


@functools.cache
def _crew() -> _Crew:
    return _Crew()


def submit_background(work: Callable[[], object]) -> None:
    """Call ``work`` in a thread beside all others, after what was handed in before. The process does not wait for it to end."""
    _beside().put(work)


def drain_background() -> None:
    """Wait until all that was put aside is done."""
    done = threading.Event()
    submit_background(done.set)
    done.wait()


@functools.cache
def _beside() -> queue.SimpleQueue[Callable[[], object]]:
    waiting = queue.SimpleQueue[Callable[[], object]]()

    def run() -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own: it takes what the others leave
            with contextlib.suppress(OSError):  # a service may be forbidden to change it
                os.setpriority(
                    os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + BACKGROUND_NICENESS
                )
        while True:
            try:
                waiting.get()()
            except Exception:  # whoever handed it in is gone, and the next one waits
                log.exception("work put aside failed")

    threading.Thread(target=run, name="visionad-aside", daemon=True).start()
    return waiting


def _here() -> int | None:
    """Number of the core that this thread is on, where the system tells."""
    get = _getcpu()
    return None if get is None or (number := get()) < 0 else int(number)


@functools.cache
def _getcpu() -> Callable[[], int] | None:
    try:
        get: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
    except (OSError, AttributeError):
        return None
    return get


if hasattr(os, "register_at_fork"):  # a fork has none of its parent's threads
    os.register_at_fork(after_in_child=_crew.cache_clear)
    os.register_at_fork(after_in_child=_beside.cache_clear)


class Lifetime:
    """Calls under way, which closing waits for.

    Args:
        refusal: what a call that comes after closing is told.
    """

    def __init__(self, refusal: str) -> None:
        self._refusal = refusal
        self._changed = threading.Condition()
        self._under_way = 0
        self._closing = self._closed = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold around all that computes.

        Raises:
            VisionADError: closed.
        """
        with self._changed:
            if self._closing:
                raise VisionADError(self._refusal)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    @contextmanager
    def end(self) -> Iterator[bool]:
        """Refuse later calls and wait for those under way.

        Yields:
            Whether this is the first end. Its caller frees what was used.
        """
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._under_way)
            first, self._closed = not self._closed, True
            yield first
