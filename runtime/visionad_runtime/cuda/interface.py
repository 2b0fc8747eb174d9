"""What kernels and pipeline need of a device, as protocols. ``device.py`` implements them; the tests have fakes in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

T = TypeVar("T")


class Buffer(Protocol):
    """Device memory at address ``ptr``."""

    ptr: int
    nbytes: int

    def close(self) -> None: ...


class Stream(Protocol):
    """Work in order. ``handle`` is its CUstream as a number."""

    handle: int

    def synchronize(self) -> None: ...
    def wait(self, event: Any, /) -> None: ...
    def close(self) -> None: ...


class Event(Protocol):
    """A point in a stream's order. ``query`` tells whether it has happened, without waiting."""

    def record(self, stream: Any, /) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...
    def elapsed_ms(self, since: Any, /) -> float: ...
    def close(self) -> None: ...


class Function(Protocol):
    """A loaded kernel."""

    def launch(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[np.number[Any]],
        shared: int,
        stream: Any,
    ) -> None: ...


class Module(Protocol):
    """Loaded machine code."""

    def function(self, name: str, /) -> Function: ...
    def close(self) -> None: ...


class Graph(Protocol):
    """A CUDA graph."""

    def launch(self, stream: Any, /) -> None: ...
    def close(self) -> None: ...


class Device(Protocol):
    """One GPU, used only on its owner thread."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int

    def alloc(self, nbytes: int, /) -> Buffer: ...
    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike, /) -> NDArray[Any]: ...
    def unpin(self, array: NDArray[Any], /) -> None: ...
    def stream(self) -> Stream: ...
    def event(self) -> Event: ...
    def upload(self, dst: Any, src: NDArray[Any], stream: Any, offset: int = 0) -> None: ...
    def download(self, dst: NDArray[Any], src: Any, stream: Any, offset: int = 0) -> None: ...
    def load(self, cubin: bytes, /) -> Module: ...
    def capture(self, stream: Any, /) -> AbstractContextManager[Graph]: ...


class DeviceThread(Protocol):
    """The only thread that uses a GPU.

    ``run(work)`` calls ``work(device)`` there, in the order of submission. ``submit(enqueue, finish)`` calls ``enqueue(device)``,
    which returns an event, and ``finish(device)`` once the event has happened. The thread does other work in between.
    """

    def run(self, work: Callable[[Any], T], /) -> T: ...
    def submit(self, enqueue: Callable[[Any], Any], finish: Callable[[Any], T], /) -> T: ...


class DeviceEngine(Protocol):
    """A backbone on the device.

    ``enqueue`` reads ``rows`` normalised float32 images (3, crop, crop) at the address ``images``. It writes unit rows, float32
    (rows, P, D) at ``patch`` and (rows, Dc) at ``cls``, in the stream's order. Its scratch memory may be shared, because the
    pipeline never runs it on two streams at once.

    Attributes:
        max_rows: Largest number of rows of a call.
        capturable: Whether ``enqueue`` may be recorded in a CUDA graph.
    """

    max_rows: int
    capturable: bool

    def enqueue(self, images: int, patch: int, cls: int, rows: int, stream: Any) -> None: ...
