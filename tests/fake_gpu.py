"""A GPU of numpy memory with the interface of ``visionad_runtime.cuda.device.Device``, which forgives less than a real one.

Work is only queued until somebody synchronises, so a result read too early is stale here every time. Every address, size, lifetime
and thread is checked. ``FakeDevice.memory(ptr, nbytes)`` gives kernels and fake libraries the bytes behind an address.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import fake_device
import numpy as np
from numpy.typing import DTypeLike, NDArray
from visionad_runtime.cuda.device import kernel_argument
from visionad_runtime.cuda.kernels import choose_target, read_manifest
from visionad_runtime.errors import VisionADError

Work = Callable[[], None]
Kernel = Callable[..., None]


class FakeDevice:
    """Set the class attributes to make another GPU of it; :meth:`reset` undoes that and forgets everything."""

    gpu: ClassVar[dict[str, Any]] = {}
    kernels: ClassVar[dict[str, Kernel]] = {}
    """Kernel name → Python function of (device, grid, block, *args as numpy scalars)."""
    current: ClassVar[FakeDevice | None] = None
    missing: ClassVar[str | None] = None
    """If set, opening fails with this message."""
    _open: ClassVar[dict[int, FakeDevice]] = {}

    @classmethod
    def reset(cls) -> None:
        cls.gpu = {
            "name": "Fake L4",
            "capability": (8, 9),
            "multiprocessors": 58,
            "total_memory": 1 << 30,
            "driver": "13.0",
        }
        cls.kernels = {name: product_kernel(name) for name in read_manifest()["targets"]["sm_80"]}
        cls.current, cls.missing, cls._open = None, None, {}

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.name: str = self.gpu["name"]
        self.capability: tuple[int, int] = self.gpu["capability"]
        self.multiprocessors: int = self.gpu["multiprocessors"]
        self.total_memory: int = self.gpu["total_memory"]
        self.driver: str = self.gpu["driver"]
        self._thread = threading.get_ident()
        self._users = 0
        self._buffers: dict[int, FakeBuffer] = {}
        self._streams: dict[int, FakeStream] = {}
        self._addresses = itertools.count(0x7000_0000_0000, 0x1_0000_0000)
        self._pinned: list[NDArray[Any]] = []
        self.allocations = 0
        self.launches = 0

    @classmethod
    def open(cls, index: int = 0) -> FakeDevice:
        if cls.missing:
            raise VisionADError(cls.missing)
        device = cls._open.get(index)
        if device is None:
            device = cls._open[index] = cls.current = cls(index)
        device.check()
        device._users += 1
        return device

    def close(self) -> None:
        self.check()
        self._users -= 1
        if self._users == 0:
            for stream in self._streams.values():
                assert not stream.queue, "the device was closed with work in a stream that nobody waited for"
            self._buffers.clear()
            del FakeDevice._open[self.index]

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        assert threading.get_ident() == self._thread, "GPU call from a thread that does not own the device"

    def free_memory(self) -> int:
        self.check()
        return self.total_memory - sum(b.nbytes for b in self._buffers.values())

    def alloc(self, nbytes: int) -> FakeBuffer:
        self.check()
        assert nbytes > 0
        if nbytes > self.free_memory():
            raise VisionADError(f"out of GPU memory taking {nbytes / 2**20:.0f} MiB of GPU memory")
        self.allocations += 1
        buffer = FakeBuffer(self, next(self._addresses), nbytes)
        self._buffers[buffer.ptr] = buffer
        return buffer

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        self.check()
        self.allocations += 1
        array = np.empty(shape, dtype)
        array.view(np.uint8)[...] = 0xA5  # whatever was there before
        self._pinned.append(array)
        return array

    def stream(self) -> FakeStream:
        self.check()
        stream = FakeStream(self)
        self._streams[stream.handle] = stream
        return stream

    def event(self) -> FakeEvent:
        self.check()
        return FakeEvent(self)

    def upload(self, dst: FakeBuffer, src: NDArray[Any], stream: FakeStream, offset: int = 0) -> None:
        self.check()
        self._copy(dst, src, offset)
        target = self.memory(dst.ptr + offset, src.nbytes)
        stream.put(lambda: np.copyto(target, src.reshape(-1).view(np.uint8)))

    def download(self, dst: NDArray[Any], src: FakeBuffer, stream: FakeStream, offset: int = 0) -> None:
        self.check()
        self._copy(src, dst, offset)
        source = self.memory(src.ptr + offset, dst.nbytes)
        stream.put(lambda: np.copyto(dst.reshape(-1).view(np.uint8), source))

    def _copy(self, buffer: FakeBuffer, array: NDArray[Any], offset: int) -> None:
        assert array.flags.c_contiguous, "copying an array that is not contiguous"
        assert any(np.shares_memory(array, p) for p in self._pinned), (
            "asynchronous copy of memory that is not page-locked"
        )
        assert offset >= 0 and offset + array.nbytes <= buffer.nbytes, "copy out of bounds"
        assert self._buffers.get(buffer.ptr) is buffer, "copy to or from a buffer that was freed"

    def memory(self, ptr: int, nbytes: int) -> NDArray[np.uint8]:
        """The bytes behind an address."""
        for buffer in self._buffers.values():
            if buffer.ptr <= ptr < buffer.ptr + buffer.nbytes:
                assert ptr + nbytes <= buffer.ptr + buffer.nbytes, "access out of bounds"
                return buffer.bytes[ptr - buffer.ptr : ptr - buffer.ptr + nbytes]
        raise AssertionError(f"address {ptr:#x} is in no live buffer")

    def read(self, ptr: int, dtype: DTypeLike, *shape: int) -> NDArray[Any]:
        """Live memory at an address, as an array that can be written."""
        return self.memory(ptr, int(np.prod(shape)) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)

    def stream_of(self, handle: int) -> FakeStream:
        """A stream by the handle that a library was given."""
        self.check()
        return self._streams[handle]

    def load(self, cubin: bytes) -> FakeModule:
        self.check()
        assert cubin, "an empty cubin"
        return FakeModule(self)

    @contextmanager
    def capture(self, stream: FakeStream) -> Iterator[FakeGraph]:
        self.check()
        graph = FakeGraph(self)
        held, stream.queue = stream.queue, []
        stream.capturing = True
        try:
            yield graph
        finally:
            stream.capturing = False
            graph.work, stream.queue = stream.queue, held


class FakeBuffer:
    def __init__(self, device: FakeDevice, ptr: int, nbytes: int) -> None:
        self.device, self.ptr, self.nbytes = device, ptr, nbytes
        self.bytes = np.full(nbytes, 0x5A, np.uint8)

    def close(self) -> None:
        self.device.check()
        self.device._buffers.pop(self.ptr, None)


class FakeStream:
    _handles = itertools.count(0x1000, 8)

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.handle = next(self._handles)
        self.queue: list[Work] = []
        self.capturing = False

    def put(self, work: Work) -> None:
        self.device.check()
        self.queue.append(work)

    def synchronize(self) -> None:
        self.device.check()
        assert not self.capturing, "waiting for a stream that is being captured"
        self.run()

    def run(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def wait(self, event: FakeEvent) -> None:
        self.put(event.recording())  # as it is recorded now: what it is recorded for later does not matter


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.stream: FakeStream | None = None
        self.recorded = self.reached = 0

    @property
    def happened(self) -> bool:
        return self.reached >= self.recorded > 0

    def record(self, stream: FakeStream) -> None:
        self.stream = stream
        self.recorded += 1
        number = self.recorded
        stream.put(lambda: self._mark(number))

    def _mark(self, number: int) -> None:
        self.reached = max(self.reached, number)

    def recording(self) -> Work:
        """Work that goes on when what was recorded last has happened."""
        assert self.stream is not None, "waiting for an event that was never recorded"
        stream, number = self.stream, self.recorded

        def work() -> None:
            while self.reached < number:
                stream.queue.pop(0)()

        return work

    def happen(self) -> None:
        self.recording()()

    def query(self) -> bool:
        self.device.check()
        if self.stream is not None and not self.happened and self.stream.queue:
            self.stream.queue.pop(0)()  # time goes by
        return self.happened

    def synchronize(self) -> None:
        self.device.check()
        self.happen()

    def elapsed_ms(self, since: FakeEvent) -> float:
        self.device.check()
        assert self.happened and since.happened, "time between events that have not happened"
        return 1.0


class FakeModule:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def function(self, name: str) -> FakeFunction:
        self.device.check()
        if name not in self.device.kernels:
            raise VisionADError(f"the GPU failed looking for kernel {name!r}: named symbol not found")
        return FakeFunction(self.device, name)


class FakeFunction:
    def __init__(self, device: FakeDevice, name: str) -> None:
        self.device, self.name = device, name

    def launch(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Any],
        shared: int,
        stream: FakeStream,
    ) -> None:
        self.device.check()
        assert all(n >= 1 for n in (*grid, *block)) and np.prod(block) <= 1024 and shared <= 232448
        for arg in args:
            if isinstance(arg, FakeBuffer):
                self.device.memory(arg.ptr, arg.nbytes)
        values = [kernel_argument(a) for a in args]
        self.device.launches += 1
        kernel = self.device.kernels[self.name]
        stream.put(lambda: kernel(self.device, grid, block, *values))


class FakeGraph:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.work: list[Work] = []
        self.closed = False

    def launch(self, stream: FakeStream) -> None:
        self.device.check()
        assert not self.closed and self.work, "launching a graph that is closed or empty"
        for work in self.work:
            stream.put(work)

    def close(self) -> None:
        self.device.check()
        self.closed = True


def product_kernel(name: str) -> Kernel:
    """A kernel of the product, as ``fake_device.py`` computes it in numpy."""

    def run(device: FakeDevice, grid: tuple[int, ...], block: tuple[int, ...], *args: np.number[Any]) -> None:
        targets = read_manifest()["targets"]
        record = targets[choose_target(device.capability, list(targets))][name]
        assert block == (record["threads"], 1, 1)
        own = [a.item() for kind, a in zip(record["arguments"], args, strict=True) if kind != "null"]
        getattr(fake_device.FakeDevice, f"kernel_{name}")(device, grid, record["constants"], *own)

    return run


FakeDevice.reset()
