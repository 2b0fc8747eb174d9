"""The one place that talks to a GPU: memory, streams, kernels and graphs, by pycuda on the primary context.

The primary context is the one the CUDA runtime uses, so TensorRT and ONNX Runtime share it. A CUDA context belongs to a
thread: each GPU has one owner thread in a process (:class:`Owner`), and a :class:`Device` refuses calls from any other. Nothing
is allocated per call; whoever needs memory takes it once, at the start.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import VisionADError

if TYPE_CHECKING:
    pass

from .driver import _abandon, _call, _error, _libcuda, _pycuda, _translated

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING; pycuda has no name for it."""


class Device:
    """One GPU, used by the thread that opened it.

    Attributes:
        name: as the driver gives it. capability: (major, minor). multiprocessors: how many. total_memory: bytes.
        driver: newest CUDA version it serves. lost: a kernel failed, and since then the driver refuses every call of this process.
            Nothing is freed then, because each attempt would be one more error; the driver frees it all when the process ends.
    """

    _open: ClassVar[dict[int, Device]] = {}
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, index: int) -> None:
        """Use :meth:`open`."""
        cuda = _pycuda()
        count = cuda.Device.count()
        if not 0 <= index < count:
            raise VisionADError(f"expected GPU {index}, got {count or 'none'}; `nvidia-smi` lists them")
        self.index = index
        self._cuda = cuda
        self._thread = threading.get_ident()
        self._users = 0
        self._buffers: set[Buffer] = set()
        self.lost = False
        gpu = cuda.Device(index)
        self.name: str = gpu.name()
        self.capability: tuple[int, int] = gpu.compute_capability()
        self.multiprocessors: int = gpu.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT)
        self.total_memory: int = gpu.total_memory()
        version = cuda.get_driver_version()
        self.driver = f"{version // 1000}.{version % 1000 // 10}"
        with _translated(cuda, f"using GPU {index} ({self.name})"):
            self._context = gpu.retain_primary_context()
            self._context.push()

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """The GPU, for this thread; opened twice it is the same object, closed when the last user closes it.

        Raises:
            VisionADError: pycuda or the driver is missing, there is no such GPU, or another thread of this process owns it.
        """
        with cls._opening:
            device = cls._open.get(index)
            if device is None:
                device = cls._open[index] = cls(index)
            device._check()
            device._users += 1
            return device

    def close(self) -> None:
        """Free every buffer and let the GPU go, when the last user closes it."""
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
        """Bytes free now, whoever uses the rest."""
        self._check()
        with _translated(self._cuda, "asking for free memory", self):
            free: int = self._cuda.mem_get_info()[0]
            return free

    def alloc(self, nbytes: int) -> Buffer:
        """Device memory, until :meth:`Buffer.close` or the end of the device. Not for the hot path.

        Raises:
            VisionADError: out of GPU memory.
        """
        self._check()
        with _translated(self._cuda, f"taking {nbytes / 2**20:.0f} MiB of GPU memory", self):
            return Buffer(self, self._cuda.mem_alloc(nbytes), nbytes)

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A page-locked host array: the only kind that is copied without a detour."""
        self._check()
        with _translated(self._cuda, "taking page-locked host memory", self):
            array: NDArray[Any] = self._cuda.pagelocked_empty(shape, dtype)
            return array

    def unpin(self, array: NDArray[Any]) -> None:
        """Free what :meth:`pinned` gave: neither it nor a view of it may be used any more, by a copy under way either."""
        self._check()
        allocation: Any = array.base
        if self.lost:
            _abandon(allocation)
        else:
            allocation.free()

    def stream(self) -> Stream:
        """A new stream. Its ``handle`` is what TensorRT takes.

        It does not wait for the default stream, nor that one for it: other code of this process may work there, and what it
        enqueued while a graph is recorded would spoil the recording.
        """
        self._check()
        with _translated(self._cuda, "making a stream", self):
            return Stream(self, self._cuda.Stream(NON_BLOCKING))

    def event(self) -> Event:
        """A new event that can measure time."""
        self._check()
        with _translated(self._cuda, "making an event", self):
            return Event(self, self._cuda.Event())

    def upload(self, dst: Buffer, src: NDArray[Any], stream: Stream, offset: int = 0) -> None:
        """Copy a C-contiguous host array to ``dst`` from byte ``offset`` on; ``src`` must stay as it is until that is done."""
        self._check()
        _fits(dst, src, offset)
        try:
            self._cuda.memcpy_htod_async(dst.ptr + offset, src, stream.raw)
        except self._cuda.Error as exc:
            raise self._failed("copying", exc) from None

    def download(self, dst: NDArray[Any], src: Buffer, stream: Stream, offset: int = 0) -> None:
        """Copy from ``src``, byte ``offset`` on, to a C-contiguous host array: there after ``stream.synchronize()``."""
        self._check()
        _fits(src, dst, offset)
        try:
            self._cuda.memcpy_dtoh_async(dst, src.ptr + offset, stream.raw)
        except self._cuda.Error as exc:
            raise self._failed("copying", exc) from None

    def load(self, cubin: bytes) -> Module:
        """Load compiled kernels.

        Raises:
            VisionADError: compiled for another compute capability, or damaged.
        """
        self._check()
        major, minor = self.capability
        with _translated(self._cuda, f"loading a kernel on {self.name} (compute capability {major}.{minor})", self):
            return Module(self, self._cuda.module_from_buffer(cubin))

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[Graph]:
        """Record what the block enqueues on ``stream`` instead of running it; the graph can be launched after the block.

        pycuda has no graphs, so this goes to the driver's library itself.

        Raises:
            VisionADError: the block did something that cannot be recorded. Nothing of it has run then.
        """
        self._check()
        graph = Graph(self)
        driver = _libcuda()
        this_thread = 1  # others' unsafe calls are no concern of this capture
        begun = driver.cuStreamBeginCapture_v2(ctypes.c_void_p(stream.handle), this_thread)
        _call(begun, "starting a capture", self)
        recorded = ctypes.c_void_p()
        collects = gc.isenabled()
        try:
            try:
                gc.disable()  # garbage of the GPU's, freed on this thread meanwhile, would spoil the recording
                yield graph
            finally:
                status = driver.cuStreamEndCapture(ctypes.c_void_p(stream.handle), ctypes.byref(recorded))
                if collects:
                    gc.enable()
            _call(status, "recording a CUDA graph", self)
            made = driver.cuGraphInstantiateWithFlags(ctypes.byref(graph.raw), recorded, ctypes.c_ulonglong(0))
            _call(made, "making a CUDA graph", self)
        finally:
            if recorded:
                driver.cuGraphDestroy(recorded)

    def _failed(self, doing: str, exc: Exception) -> VisionADError:
        """The driver's error as one line. What runs for every image asks for it only where there is one."""
        return _error(self._cuda, f"{doing} on {self.name}", exc, self)

    def _check(self) -> None:
        if threading.get_ident() != self._thread:
            raise VisionADError(
                f"GPU {self.index} ({self.name}) belongs to another thread of this process; go through Owner.of({self.index}).run"
            )


class Buffer:
    """Device memory at address ``ptr``, ``nbytes`` long."""

    def __init__(self, device: Device, raw: Any, nbytes: int) -> None:
        self._device, self._raw = device, raw
        self.ptr, self.nbytes = int(raw), nbytes
        device._buffers.add(self)

    def close(self) -> None:
        """Free it; twice is harmless."""
        self._device._check()
        if self in self._device._buffers:
            self._device._buffers.remove(self)
            if self._device.lost:
                _abandon(self._raw)
            else:
                self._raw.free()


class Stream:
    """An order of work. ``handle`` is its CUstream as a number."""

    def __init__(self, device: Device, raw: Any) -> None:
        self._device, self.raw = device, raw
        self.handle: int = raw.handle

    def synchronize(self) -> None:
        """Wait for all that was enqueued.

        Raises:
            VisionADError: a kernel failed. The context is then unusable.
        """
        self._device._check()
        try:
            self.raw.synchronize()
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def wait(self, event: Event) -> None:
        """What is enqueued from now on waits for ``event``."""
        self._device._check()
        try:
            self.raw.wait_for_event(event.raw)
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def close(self) -> None:
        """Let it go; twice is harmless. pycuda frees it with its last reference, if that is dropped on this thread."""
        self._device._check()
        if self._device.lost:
            _abandon(self.raw)
        self.raw = None


class Event:
    """A point in a stream's order."""

    def __init__(self, device: Device, raw: Any) -> None:
        self._device, self.raw = device, raw

    def record(self, stream: Stream) -> None:
        """It happens when all that ``stream`` holds now is done."""
        self._device._check()
        try:
            self.raw.record(stream.raw)
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def query(self) -> bool:
        """Whether it has happened, without waiting.

        Raises:
            VisionADError: a kernel before it failed. The context is then unusable.
        """
        self._device._check()
        try:
            happened: bool = self.raw.query()
            return happened
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def synchronize(self) -> None:
        """Wait until it has happened."""
        self._device._check()
        try:
            self.raw.synchronize()
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def elapsed_ms(self, since: Event) -> float:
        """GPU time between two events that have happened."""
        self._device._check()
        try:
            elapsed: float = self.raw.time_since(since.raw)
            return elapsed
        except self._device._cuda.Error as exc:
            raise self._device._failed("running", exc) from None

    def close(self) -> None:
        """As :meth:`Stream.close`."""
        self._device._check()
        if self._device.lost:
            _abandon(self.raw)
        self.raw = None


class Module:
    """Loaded kernels."""

    def __init__(self, device: Device, raw: Any) -> None:
        self._device, self._raw = device, raw
        self._functions: list[Function] = []

    def function(self, name: str) -> Function:
        """A kernel by its symbol.

        Raises:
            VisionADError: the module has no such kernel.
        """
        self._device._check()
        with _translated(self._device._cuda, f"looking for kernel {name!r}", self._device):
            self._functions.append(Function(self._device, self._raw.get_function(name), name))
            return self._functions[-1]

    def close(self) -> None:
        """Unload the kernels: its functions cannot be launched any more. Otherwise as :meth:`Stream.close`."""
        self._device._check()
        for function in self._functions:
            function._raw = None
        if self._device.lost:
            _abandon(self._raw)
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
        """Enqueue it. A Buffer is passed as its address, a Python int as int32, a float as float32, numpy scalars as they are.

        More than 48 KiB of dynamic ``shared`` memory (bytes) is asked for where needed.
        """
        self._device._check()
        cuda = self._device._cuda
        with _translated(cuda, f"launching {self.name}", self._device):
            if shared > 48 * 1024:
                self._raw.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
                # Left to itself the driver may give that one program its room and the rest to L1; two are to fit.
                self._raw.set_attribute(cuda.function_attribute.PREFERRED_SHARED_MEMORY_CARVEOUT, 100)
            values = [kernel_argument(a) for a in args]
            types: list[str] = [v.dtype.char for v in values]
            if types != self._types:
                self._raw.prepare(types)
                self._types = types
            self._raw.prepared_async_call(grid, block, stream.raw, *values, shared_size=shared)


class Graph:
    """Recorded work, launched as one."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.raw = ctypes.c_void_p()

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it."""
        self._device._check()
        status = _libcuda().cuGraphLaunch(self.raw, ctypes.c_void_p(stream.handle))
        _call(status, "launching a CUDA graph", self._device)

    def close(self) -> None:
        """Forget it; twice is harmless."""
        self._device._check()
        if self.raw:
            _libcuda().cuGraphExecDestroy(self.raw)
            self.raw = ctypes.c_void_p()


def kernel_argument(value: int | float | np.number[Any] | Buffer) -> np.number[Any]:
    """What a kernel is given for ``value`` (see :meth:`Function.launch`).

    Raises:
        VisionADError: an int beyond 32 bits; say ``numpy.int64(...)`` if the kernel takes that.
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
        raise VisionADError("copying to or from a GPU: expected a C-contiguous array; use numpy.ascontiguousarray")
    if offset < 0 or offset + array.nbytes > buffer.nbytes:
        raise VisionADError(
            f"copying {array.nbytes} bytes at offset {offset} of a GPU buffer of {buffer.nbytes}: out of bounds"
        )
