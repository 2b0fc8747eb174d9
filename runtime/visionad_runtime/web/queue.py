"""Images that clients send: how many are received, decoded and inspected at once. It needs neither a model nor a bank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..images.pixels import RGB8

MAX_QUEUE = 32
"""Images that may wait, decoded. More would be answered so late that nobody wants to know, and fill the memory."""
MAX_RECEIVED_BYTES = 1 << 30
"""Of all requests whose bodies are being received."""


class RequestError(Exception):
    """A request that is not answered, and with which status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UploadedImage(NamedTuple):
    """An image that was sent, what its sender calls it, its file, and the bit depth that was stated for that.

    The file is empty where bare pixels were sent: without their size they are no image.
    """

    rgb: RGB8
    name: str
    body: bytes
    bit_depth: int | None = None


class UploadQueue:
    """Places for images that clients send: how many are received, decoded and inspected at once.

    Args:
        show_waiting: told how many images wait or are inspected.
        show_receiving: told how many are being received.
    """

    def __init__(
        self,
        show_waiting: Callable[[int], object] = lambda _: None,
        show_receiving: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._show_waiting, self._show_receiving = show_waiting, show_receiving
        self._taken = self._senders = self._received_bytes = 0

    @property
    def waiting(self) -> int:
        """Images that wait or are inspected."""
        return self._taken

    @property
    def full(self) -> bool:
        """Whether the next image is refused."""
        return self._taken >= MAX_QUEUE

    def check_queue(self) -> None:
        """Check that there is a place in the queue.

        Raises:
            RequestError: 503, all are taken.
        """
        if self.full:
            raise RequestError(503, f"{self._taken} images wait already; send fewer, or to another box")

    @contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """Count a body that is being received. Yields the function that counts its bytes.

        That function raises :class:`RequestError` (503) where all bodies together are larger than :data:`MAX_RECEIVED_BYTES`.
        """
        size = 0

        def count(received: int) -> None:
            nonlocal size
            size += received
            self._received_bytes += received
            if self._received_bytes > MAX_RECEIVED_BYTES:
                raise RequestError(503, f"{self._senders} images are being sent at once; send fewer")

        self._senders += 1
        self._show_receiving(self._senders)
        try:
            yield count
        finally:
            self._senders -= 1
            self._received_bytes -= size
            self._show_receiving(self._senders)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, while the image is decoded and inspected.

        Raises:
            RequestError: 503, all are taken.
        """
        self.check_queue()
        self._taken += 1
        self._show_waiting(self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self._show_waiting(self._taken)
