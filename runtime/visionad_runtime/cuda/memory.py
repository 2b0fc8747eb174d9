"""What one user took of a GPU, given back together."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

from numpy.typing import DTypeLike, NDArray

from .interface import Buffer, Device, Stream


class Closable(Protocol):
    """Whatever is given back by ``close``."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)
S = TypeVar("S", bound=Stream)


class Memory:
    """Buffers, page-locked arrays and whatever else one user took. :meth:`close` gives them back on the owner's thread: what is
    merely dropped may be collected on another one, where the driver cannot free it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held = ExitStack()
        self._streams: list[Stream] = []
        self.taken = self.locked = 0
        """Bytes on the device and page-locked ones on the host, so far."""

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, nbytes: int) -> Buffer:
        """Device memory."""
        buffer = self.hold(self._device.alloc(max(nbytes, 16)))
        self.taken += buffer.nbytes
        return buffer

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A page-locked host array; no view of it may be used after :meth:`close`."""
        array = self._device.pinned(shape, dtype)
        self._held.callback(self._device.unpin, array)
        self.locked += array.nbytes
        return array

    def stream(self, stream: S) -> S:
        """A stream of one's own: what it holds is waited for before anything goes."""
        self._streams.append(stream)
        return self.hold(stream)

    def hold(self, thing: T) -> T:
        """An event, kernels: closed with the rest."""
        self._held.callback(thing.close)
        return thing

    def constant(self, array: NDArray[Any], stream: Stream) -> Buffer:
        """A buffer that holds ``array``."""
        buffer = self.take(array.nbytes)
        with Memory(self._device) as brief:
            host = brief.pinned(array.shape, array.dtype)
            host[...] = array
            self._device.upload(buffer, host, stream)
            stream.synchronize()
        return buffer

    def close(self) -> None:
        """Give everything back, what came last first, even where one of it fails; twice is harmless. Where others' streams work
        with it, wait for those before."""
        while self._streams:
            self._held.callback(self._streams.pop().synchronize)
        self._held.close()
