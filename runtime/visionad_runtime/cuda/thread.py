"""The one thread that uses a GPU, and the work that others hand to it."""

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

if TYPE_CHECKING:
    from . import interface

from .device import Buffer, Device, Event, Graph, Module, Stream

T = TypeVar("T")


class DeviceThread:
    """The one thread that uses a GPU. Any thread hands work in, with :meth:`run` or :meth:`serve`; it is begun in that order."""

    _all: ClassVar[dict[int, DeviceThread]] = {}
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, index: int) -> None:
        """Use :meth:`of`."""
        self._index = index
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._taking, self._ended = threading.Lock(), False
        sys.setswitchinterval(min(sys.getswitchinterval(), TURN_SECONDS))
        self._thread = threading.Thread(target=self._loop, name=f"visionad-gpu-{index}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @classmethod
    def of(cls, index: int = 0) -> DeviceThread:
        """The owner of a GPU, the same for everybody in this process. Its device is opened with the first work."""
        with cls._making:
            if index not in cls._all:
                cls._all[index] = cls(index)
            return cls._all[index]

    def run(self, work: Callable[[Device], T]) -> T:
        """``work(device)`` on the owner thread; what it returns or raises.

        Raises:
            VisionADError: as :meth:`Device.open`, besides what ``work`` raises.
        """
        if threading.current_thread() is self._thread:  # work that calls `run`: it is there already
            return work(Device._open[self._index])
        found: T = self._hand_in(work, None)
        return found

    def serve(self, begin: Callable[[Device], Any], end: Callable[[Device], T]) -> T:
        """``begin(device)`` enqueues and returns an event; once that has happened, ``end(device)``, and what it returns or raises.

        The thread does others' work meanwhile, and the caller sleeps: nothing is handed to and fro while the GPU works.

        Raises:
            VisionADError: as :meth:`Device.open`, or what was enqueued failed; besides what ``begin`` and ``end`` raise.
        """
        if threading.current_thread() is self._thread:
            device = Device._open[self._index]
            begin(device).synchronize()
            return end(device)
        found: T = self._hand_in(begin, end)
        return found

    def _hand_in(self, work: Callable[[Device], Any], end: Callable[[Device], Any] | None) -> Any:
        done: Future[Any] = Future()
        with self._taking:
            if self._ended:
                raise VisionADError(f"GPU {self._index} was let go by this process; open the inspector again")
            self._queue.put(_Work(work, end, done))
        return done.result()

    def close(self) -> None:
        """Finish what is under way, close the device and end the thread. The next :meth:`of` starts a new one."""
        with DeviceThread._making:
            if DeviceThread._all.get(self._index) is self:
                del DeviceThread._all[self._index]
        atexit.unregister(self.close)
        with self._taking:
            self._ended = True
            self._queue.put(None)  # the last
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        _sleep_exactly()
        device: Device | None = None
        under_way: list[_UnderWay] = []
        closing = False
        while not closing or under_way:
            try:
                # Not `get` with a timeout: when one of a few microseconds passes in the wrong place, CPython 3.11 waits for ever.
                item = self._queue.get(block=not under_way)
            except queue.Empty:
                time.sleep(POLL_SECONDS)
            else:
                if item is None:
                    closing = True
                else:
                    try:
                        if device is None:
                            device = Device.open(self._index)
                        found = item.work(device)
                        if item.end is None:
                            item.done.set_result(found)
                        else:
                            under_way.append(_UnderWay(found, item.end, item.done))
                        del found
                    except BaseException as exc:
                        item.done.set_exception(exc)
                del item  # or the last work's arrays live until the next one comes
            if device is not None:
                under_way = [one for one in under_way if not one.ended(device)]
        if device is not None:
            device.close()


TURN_SECONDS = 0.5e-3
"""How long a Python thread may keep the interpreter's lock while another thread waits for it, once a GPU is used. The owner's
thread gives the lock up at every copy and pause. Beside one busy thread it would get it back only after Python's usual 5 ms, each
time as long as a whole run of an engine."""
POLL_SECONDS = 10e-6
"""Pause of an owner thread between two looks at what the GPU is doing."""


class _Work(NamedTuple):
    work: Callable[[Device], Any]
    end: Callable[[Device], Any] | None
    done: Future[Any]


class _UnderWay(NamedTuple):
    event: Event
    end: Callable[[Device], Any]
    done: Future[Any]

    def ended(self, device: Device) -> bool:
        try:
            if not self.event.query():
                return False
            self.done.set_result(self.end(device))
        except BaseException as exc:
            self.done.set_exception(exc)
        return True


def _sleep_exactly() -> None:
    """Linux wakes a sleeping thread up to 50 us late, to save power, unless the thread asks for more."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(29, ctypes.c_ulong(1), 0, 0, 0)  # PR_SET_TIMERSLACK, nanoseconds


if TYPE_CHECKING:  # what the chain asks for is what there is

    def _fulfils(
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
