"""Resources that one user holds on a GPU, released together."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

from numpy.typing import DTypeLike, NDArray

from .interface import Buffer, Device, Stream


class Closable(Protocol):
    """An object that is released by ``close``."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)
S = TypeVar("S", bound=Stream)


class ResourceScope:
    """Owner of buffers, page-locked arrays, streams and events.

    Use it on the GPU's owner thread, :meth:`close` included. An object that is only dropped may be collected on another thread,
    where the driver cannot free it.

    Attributes:
        device_bytes: Bytes allocated on the device.
        pinned_bytes: Page-locked bytes on the host.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._resources = ExitStack()
        self._streams: list[Stream] = []
        self.device_bytes = self.pinned_bytes = 0

    def __enter__(self) -> ResourceScope:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def alloc(self, nbytes: int) -> Buffer:
        """Allocate device memory."""
        buffer = self.own(self._device.alloc(max(nbytes, 16)))
        self.device_bytes += buffer.nbytes
        return buffer

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate a page-locked host array. Neither it nor a view of it may be used after :meth:`close`."""
        array = self._device.pinned(shape, dtype)
        self._resources.callback(self._device.unpin, array)
        self.pinned_bytes += array.nbytes
        return array

    def stream(self, stream: S) -> S:
        """Own a stream. :meth:`close` waits for its work before it releases anything."""
        self._streams.append(stream)
        return self.own(stream)

    def own(self, resource: T) -> T:
        """Own a resource: :meth:`close` closes it."""
        self._resources.callback(resource.close)
        return resource

    def constant(self, array: NDArray[Any], stream: Stream) -> Buffer:
        """Return a buffer with the contents of ``array``."""
        buffer = self.alloc(array.nbytes)
        with ResourceScope(self._device) as staging:
            host = staging.pinned(array.shape, array.dtype)
            host[...] = array
            self._device.upload(buffer, host, stream)
            stream.synchronize()
        return buffer

    def close(self) -> None:
        """Release everything, the newest first, even if a step fails. A second call does nothing.

        If streams of others use these resources, wait for those streams before.
        """
        while self._streams:
            self._resources.callback(self._streams.pop().synchronize)
        self._resources.close()
