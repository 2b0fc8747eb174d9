"""All access to a GPU: memory, streams, kernels and graphs, by pycuda on the primary context.

The CUDA runtime uses the primary context, so TensorRT and ONNX Runtime share it. A CUDA context belongs to a thread. So a process
has one owner thread per GPU (:class:`~visionad_runtime.cuda.thread.DeviceThread`), and a :class:`Device` refuses calls from other
threads. Nothing is allocated per call: users allocate memory once, at the start.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import VisionADError
from .driver import check_status, driver_error, leak, load_libcuda, load_pycuda, translate_errors

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING. pycuda has no name for it."""


class Device:
    """One GPU, used by the thread that opened it.

    Attributes:
        name: The driver's name of the GPU.
        capability: Compute capability (major, minor).
        multiprocessors: Number of multiprocessors.
        total_memory: Bytes.
        driver: Newest CUDA version that the driver serves.
        context_lost: Whether a kernel failed and the driver refuses every call of this process since. Then nothing is freed,
            because each attempt would be one more error. The driver frees everything when the process ends.
    """

    _open: ClassVar[dict[int, Device]] = {}
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, index: int) -> None:
        """Use :meth:`open`."""
        cuda = load_pycuda()
        count = cuda.Device.count()
        if not 0 <= index < count:
            raise VisionADError(f"expected GPU {index}, got {count or 'no'} GPUs; `nvidia-smi` lists them")
        self.index = index
        self._cuda = cuda
        self._thread = threading.get_ident()
        self._users = 0
        self._buffers: set[Buffer] = set()
        self.context_lost = False
        gpu = cuda.Device(index)
        self.name: str = gpu.name()
        self.capability: tuple[int, int] = gpu.compute_capability()
        self.multiprocessors: int = gpu.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT)
        self.total_memory: int = gpu.total_memory()
        version = cuda.get_driver_version()
        self.driver = f"{version // 1000}.{version % 1000 // 10}"
        with translate_errors(cuda, f"using GPU {index} ({self.name})"):
            self._context = gpu.retain_primary_context()
            self._context.push()

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """Return the GPU for this thread. Every call returns the same object; the last :meth:`close` closes it.

        Raises:
            VisionADError: pycuda or the driver is missing, the GPU does not exist, or another thread of this process owns it.
        """
        with cls._opening:
            device = cls._open.get(index)
            if device is None:
                device = cls._open[index] = cls(index)
            device._check()
            device._users += 1
            return device

    def close(self) -> None:
        """Release the device. For the last user: free every buffer and the context."""
        with Device._opening:
            self._check()
            self._users -= 1
            if self._users > 0:
                return
            for buffer in list(self._buffers):
                buffer.close()
            del Device._open[self.index]
            self._cuda.Context.pop()  # pycuda aborts the process when a thread ends with a context on its stack
            self._context.detach()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def free_memory(self) -> int:
        """Return the bytes that are free now, on the whole GPU."""
        self._check()
        with translate_errors(self._cuda, "reading the free memory", self):
            free: int = self._cuda.mem_get_info()[0]
            return free

    def alloc(self, nbytes: int) -> Buffer:
        """Allocate device memory, until :meth:`Buffer.close` or :meth:`close`. Not for the hot path.

        Raises:
            VisionADError: The GPU is out of memory.
        """
        self._check()
        with translate_errors(self._cuda, f"allocating {nbytes / 2**20:.0f} MiB of GPU memory", self):
            return Buffer(self, self._cuda.mem_alloc(nbytes), nbytes)

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate a page-locked host array. The driver copies any other array through a buffer of its own."""
        self._check()
        with translate_errors(self._cuda, "allocating page-locked host memory", self):
            array: NDArray[Any] = self._cuda.pagelocked_empty(shape, dtype)
            return array

    def unpin(self, array: NDArray[Any]) -> None:
        """Free an array of :meth:`pinned`. Neither it nor a view of it may be in use, also not by a pending copy."""
        self._check()
        allocation: Any = array.base
        if self.context_lost:
            leak(allocation)
        else:
            allocation.free()

    def stream(self) -> Stream:
        """Create a stream. TensorRT takes its ``handle``.

        The stream and the default stream do not wait for each other: other code of this process may use the default stream, and
        work enqueued there would make a recording of a graph fail.
        """
        self._check()
        with translate_errors(self._cuda, "creating a stream", self):
            return Stream(self, self._cuda.Stream(NON_BLOCKING))

    def event(self) -> Event:
        """Create an event that can measure time."""
        self._check()
        with translate_errors(self._cuda, "creating an event", self):
            return Event(self, self._cuda.Event())

    def upload(self, dst: Buffer, src: NDArray[Any], stream: Stream, offset: int = 0) -> None:
        """Enqueue a copy from a C-contiguous host array. ``src`` must not change before the copy is done.

        Args:
            dst: The destination.
            src: The host array.
            stream: The stream.
            offset: First byte in ``dst``.
        """
        self._check()
        _fits(dst, src, offset)
        try:
            self._cuda.memcpy_htod_async(dst.ptr + offset, src, stream.raw)
        except self._cuda.Error as exc:
            raise self._failed("copying", exc) from None

    def download(self, dst: NDArray[Any], src: Buffer, stream: Stream, offset: int = 0) -> None:
        """Enqueue a copy to a C-contiguous host array. ``dst`` is valid after ``stream.synchronize()``.

        Args:
            dst: The host array.
            src: The source.
            stream: The stream.
            offset: First byte in ``src``.
        """
        self._check()
        _fits(src, dst, offset)
        try:
            self._cuda.memcpy_dtoh_async(dst, src.ptr + offset, stream.raw)
        except self._cuda.Error as exc:
            raise self._failed("copying", exc) from None

    def load(self, cubin: bytes) -> Module:
        """Load compiled kernels.

        Raises:
            VisionADError: The code is for another compute capability, or damaged.
        """
        self._check()
        major, minor = self.capability
        with translate_errors(
            self._cuda, f"loading a kernel on {self.name} (compute capability {major}.{minor})", self
        ):
            return Module(self, self._cuda.module_from_buffer(cubin))

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[Graph]:
        """Record what the block enqueues on ``stream`` instead of running it. The graph can be launched after the block.

        pycuda has no graphs, so this calls the driver's library.

        Raises:
            VisionADError: Something in the block cannot be recorded. Then none of it has run.
        """
        self._check()
        graph = Graph(self)
        driver = load_libcuda()
        this_thread = 1  # unsafe calls of other threads do not end this capture
        begun = driver.cuStreamBeginCapture_v2(ctypes.c_void_p(stream.handle), this_thread)
        check_status(begun, "starting a recording", self)
        recorded = ctypes.c_void_p()
        collects = gc.isenabled()
        try:
            try:
                gc.disable()  # a GPU object that is collected on this thread would make the recording fail
                yield graph
            finally:
                status = driver.cuStreamEndCapture(ctypes.c_void_p(stream.handle), ctypes.byref(recorded))
                if collects:
                    gc.enable()
            check_status(status, "recording a CUDA graph", self)
            made = driver.cuGraphInstantiateWithFlags(ctypes.byref(graph.raw), recorded, ctypes.c_ulonglong(0))
            check_status(made, "instantiating a CUDA graph", self)
        finally:
            if recorded:
                driver.cuGraphDestroy(recorded)

    def _failed(self, action: str, exc: Exception) -> VisionADError:
        """Return the one-line error. The hot path calls this on an error only, which is cheaper than a context manager."""
        return driver_error(self._cuda, f"{action} on {self.name}", exc, self)

    def _check(self) -> None:
        if threading.get_ident() != self._thread:
            raise VisionADError(
                f"GPU {self.index} ({self.name}) belongs to another thread of this process; use DeviceThread.of({self.index}).run"
            )


class Buffer:
    """Device memory.

    Attributes:
        ptr: Its address.
        nbytes: Its size.
    """

    def __init__(self, device: Device, raw: Any, nbytes: int) -> None:
        self._device, self._raw = device, raw
        self.ptr, self.nbytes = int(raw), nbytes
        device._buffers.add(self)

    def close(self) -> None:
        """Free the memory. A second call does nothing."""
        self._device._check()
        if self in self._device._buffers:
            self._device._buffers.remove(self)
            if self._device.context_lost:
                leak(self._raw)
            else:
                self._raw.free()


class Stream:
    """Work in order. ``handle`` is its CUstream as a number."""

    def __init__(self, device: Device, raw: Any) -> None:
        self._device, self.raw = device, raw
        self.handle: int = raw.handle

    def synchronize(self) -> None:
        """Wait for all enqueued work.

        Raises:
            VisionADError: A kernel failed. Then the context is unusable.
        """
        self._device._check()
        try:
            self.raw.synchronize()
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def wait(self, event: Event) -> None:
        """Make all work that is enqueued later wait for ``event``."""
        self._device._check()
        try:
            self.raw.wait_for_event(event.raw)
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def close(self) -> None:
        """Release the stream. A second call does nothing. pycuda frees it with the last reference, which must be dropped here."""
        self._device._check()
        if self._device.context_lost:
            leak(self.raw)
        self.raw = None


class Event:
    """A point in a stream's order."""

    def __init__(self, device: Device, raw: Any) -> None:
        self._device, self.raw = device, raw

    def record(self, stream: Stream) -> None:
        """Place the event behind all work that ``stream`` holds now."""
        self._device._check()
        try:
            self.raw.record(stream.raw)
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def query(self) -> bool:
        """Return whether the event has happened, without waiting.

        Raises:
            VisionADError: A kernel before it failed. Then the context is unusable.
        """
        self._device._check()
        try:
            happened: bool = self.raw.query()
            return happened
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def synchronize(self) -> None:
        """Wait for the event."""
        self._device._check()
        try:
            self.raw.synchronize()
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def elapsed_ms(self, since: Event) -> float:
        """Return the GPU time in milliseconds between two events that have happened."""
        self._device._check()
        try:
            elapsed: float = self.raw.time_since(since.raw)
            return elapsed
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def close(self) -> None:
        """Release the event. See :meth:`Stream.close`."""
        self._device._check()
        if self._device.context_lost:
            leak(self.raw)
        self.raw = None


class Module:
    """Loaded kernels."""

    def __init__(self, device: Device, raw: Any) -> None:
        self._device, self._raw = device, raw
        self._functions: list[Function] = []

    def function(self, name: str) -> Function:
        """Return a kernel by its symbol.

        Raises:
            VisionADError: The module has no such kernel.
        """
        self._device._check()
        with translate_errors(self._device._cuda, f"loading kernel {name!r}", self._device):
            self._functions.append(Function(self._device, self._raw.get_function(name), name))
            return self._functions[-1]

    def close(self) -> None:
        """Unload the kernels. Their functions cannot be launched any more. See :meth:`Stream.close`."""
        self._device._check()
        for function in self._functions:
            function._raw = None
        if self._device.context_lost:
            leak(self._raw)
        self._raw = None


class Function:
    """A kernel."""

    def __init__(self, device: Device, raw: Any, name: str) -> None:
        self._device, self._raw, self.name = device, raw, name
        self._types: list[str] | None = None

    def launch(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[int | float | np.number[Any] | Buffer],
        shared: int,
        stream: Stream,
    ) -> None:
        """Enqueue the kernel.

        Args:
            grid: Numbers of blocks.
            block: Numbers of threads.
            args: Arguments. A Buffer is passed as its address, a Python int as int32, a float as float32, a NumPy scalar as it is.
            shared: Dynamic shared memory in bytes. More than 48 KiB is requested from the driver.
            stream: The stream.

        Raises:
            VisionADError: The driver refuses, or an int does not fit int32.
        """
        self._device._check()
        cuda = self._device._cuda
        with translate_errors(cuda, f"launching {self.name}", self._device):
            if shared > 48 * 1024:
                self._raw.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
                # By default the driver may reserve room for one program and give the rest to L1. Two must fit.
                self._raw.set_attribute(cuda.function_attribute.PREFERRED_SHARED_MEMORY_CARVEOUT, 100)
            values = [kernel_argument(a) for a in args]
            types: list[str] = [v.dtype.char for v in values]
            if types != self._types:
                self._raw.prepare(types)
                self._types = types
            self._raw.prepared_async_call(grid, block, stream.raw, *values, shared_size=shared)


class Graph:
    """Recorded work that is launched as one."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.raw = ctypes.c_void_p()

    def launch(self, stream: Stream) -> None:
        """Enqueue the graph."""
        self._device._check()
        status = load_libcuda().cuGraphLaunch(self.raw, ctypes.c_void_p(stream.handle))
        check_status(status, "launching a CUDA graph", self._device)

    def close(self) -> None:
        """Destroy the graph. A second call does nothing."""
        self._device._check()
        if self.raw:
            load_libcuda().cuGraphExecDestroy(self.raw)
            self.raw = ctypes.c_void_p()


def kernel_argument(value: int | float | np.number[Any] | Buffer) -> np.number[Any]:
    """Return the scalar that a kernel gets for ``value`` (see :meth:`Function.launch`).

    Raises:
        VisionADError: An int needs more than 32 bits. Pass ``numpy.int64(...)`` if the kernel takes that.
    """
    if isinstance(value, np.number):
        return value
    if isinstance(value, int):
        if not -(2**31) <= value < 2**31:
            raise VisionADError(f"kernel argument {value} does not fit int32; pass numpy.int64({value})")
        return np.int32(value)
    if isinstance(value, float):
        return np.float32(value)
    return np.uintp(value.ptr)


def _fits(buffer: Buffer, array: NDArray[Any], offset: int) -> None:
    if not array.flags.c_contiguous:
        raise VisionADError("copy to or from a GPU: expected a C-contiguous array; use numpy.ascontiguousarray")
    if offset < 0 or offset + array.nbytes > buffer.nbytes:
        raise VisionADError(
            f"copy of {array.nbytes} bytes at offset {offset}: out of bounds of a GPU buffer of {buffer.nbytes} bytes"
        )
