"""The owner thread of a GPU, and the work that other threads submit to it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from ..errors import VisionADError
from .device import Buffer, Device, Event, Graph, Module, Stream

if TYPE_CHECKING:
    from . import interface

T = TypeVar("T")

SWITCH_INTERVAL_SECONDS = 0.5e-3
"""Longest time that a Python thread keeps the interpreter's lock while another thread waits for it, once a GPU is used.

The owner thread releases the lock at every copy and pause. Beside one busy thread it would get the lock back only after Python's
default of 5 ms, which each time is as long as a whole run of an engine.
"""
POLL_SECONDS = 10e-6
"""Pause of an owner thread between two polls of the GPU's events."""


class DeviceThread:
    """The only thread of a process that uses a GPU.

    Any thread may submit work, by :meth:`run` or :meth:`submit`. Work starts in the order of submission.
    """

    _all: ClassVar[dict[int, DeviceThread]] = {}
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, index: int) -> None:
        """Use :meth:`of`."""
        self._index = index
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._submitting, self._ended = threading.Lock(), False
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_SECONDS))
        self._thread = threading.Thread(target=self._loop, name=f"visionad-gpu-{index}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @classmethod
    def of(cls, index: int = 0) -> DeviceThread:
        """Return the owner thread of a GPU. The first work opens the device."""
        with cls._making:
            if index not in cls._all:
                cls._all[index] = cls(index)
            return cls._all[index]

    def run(self, work: Callable[[Device], T]) -> T:
        """Call ``work(device)`` on the owner thread and return its result.

        Raises:
            VisionADError: The device cannot be opened (:meth:`Device.open`), or the thread has ended.
        """
        if threading.current_thread() is self._thread:  # nested call
            return work(Device._open[self._index])
        result: T = self._wait_for(work, None)
        return result

    def submit(self, enqueue: Callable[[Device], Any], finish: Callable[[Device], T]) -> T:
        """Call ``enqueue(device)``, wait for the event that it returns, and return ``finish(device)``.

        The thread does other work until the event has happened, and the caller sleeps. So no thread switches occur while the GPU
        works.

        Args:
            enqueue: Enqueues work and returns an event behind it.
            finish: Collects the result.

        Raises:
            VisionADError: The device cannot be opened (:meth:`Device.open`), the thread has ended, or the enqueued work failed.
        """
        if threading.current_thread() is self._thread:
            device = Device._open[self._index]
            enqueue(device).synchronize()
            return finish(device)
        result: T = self._wait_for(enqueue, finish)
        return result

    def _wait_for(self, work: Callable[[Device], Any], finish: Callable[[Device], Any] | None) -> Any:
        done: Future[Any] = Future()
        with self._submitting:
            if self._ended:
                raise VisionADError(f"GPU {self._index}: its owner thread has ended; open the inspector again")
            self._queue.put(_Work(work, finish, done))
        return done.result()

    def close(self) -> None:
        """Finish the submitted work, close the device and end the thread. The next :meth:`of` starts a new one."""
        with DeviceThread._making:
            if DeviceThread._all.get(self._index) is self:
                del DeviceThread._all[self._index]
        atexit.unregister(self.close)
        with self._submitting:
            self._ended = True
            self._queue.put(None)  # the last
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        _set_timer_slack()
        device: Device | None = None
        in_flight: list[_InFlight] = []
        closing = False
        while not closing or in_flight:
            try:
                # `get` with a timeout is no alternative: CPython 3.11 may wait forever if a timeout of a few microseconds expires
                # at the wrong place.
                item = self._queue.get(block=not in_flight)
            except queue.Empty:
                time.sleep(POLL_SECONDS)
            else:
                if item is None:
                    closing = True
                else:
                    try:
                        if device is None:
                            device = Device.open(self._index)
                        result = item.work(device)
                        if item.finish is None:
                            item.done.set_result(result)
                        else:
                            in_flight.append(_InFlight(result, item.finish, item.done))
                        del result
                    except BaseException as exc:
                        item.done.set_exception(exc)
                del item  # otherwise the last work's arrays live until the next item
            if device is not None:
                in_flight = [work for work in in_flight if not work.complete(device)]
        if device is not None:
            device.close()


class _Work(NamedTuple):
    work: Callable[[Device], Any]
    finish: Callable[[Device], Any] | None
    done: Future[Any]


class _InFlight(NamedTuple):
    event: Event
    finish: Callable[[Device], Any]
    done: Future[Any]

    def complete(self, device: Device) -> bool:
        """Finish the work if its event has happened; return whether it has."""
        try:
            if not self.event.query():
                return False
            self.done.set_result(self.finish(device))
        except BaseException as exc:
            self.done.set_exception(exc)
        return True


def _set_timer_slack() -> None:
    """Ask Linux for exact wake-ups. By default it wakes a sleeping thread up to 50 us late, to save power."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(29, ctypes.c_ulong(1), 0, 0, 0)  # PR_SET_TIMERSLACK, nanoseconds


if TYPE_CHECKING:  # the type checker proves that these classes implement the protocols

    def _implements(
        device: Device, buffer: Buffer, stream: Stream, event: Event, module: Module, graph: Graph, owner: DeviceThread
    ) -> tuple[
        interface.Device,
        interface.Buffer,
        interface.Stream,
        interface.Event,
        interface.Module,
        interface.Graph,
        interface.DeviceThread,
    ]:
        return device, buffer, stream, event, module, graph, owner
