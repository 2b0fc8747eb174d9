"""The inspector behind the requests."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..bank.memory_bank import Snapshot
from ..bank.supports import check_new, read_kept, support_record
from ..images.pixels import RGB8
from ..inspector import Inspector
from ..result import Result
from ..station.worker.promise_watch import PromiseWatch
from ..visualization.overlay import overlay_png
from .metrics import Metrics

log = logging.getLogger("visionad")

T = TypeVar("T")
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
    """An image that was sent, what its sender calls it, the bytes that it was sent as, and the bit depth that was stated."""

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


class InspectionService(UploadQueue):
    """The inspector behind the requests: whoever comes first is served first."""

    def __init__(self, inspector: Inspector, evidence: bool = False) -> None:
        self.inspector = inspector
        self.promises = PromiseWatch(inspector, log.warning)
        self.metrics = Metrics(inspector, self.promises)
        super().__init__(self.metrics.waiting.set, self.metrics.receiving.set)
        self._following = threading.Lock()
        self.evidence = evidence
        self._pool = ThreadPoolExecutor(inspector.pipeline.slots, "visionad-serve")

    async def inspect(self, upload: UploadedImage, class_name: str | None) -> Result:
        """As :meth:`Inspector.inspect`, with the bank that is on disk."""

        def work() -> Result:
            self.inspector.refresh()
            return self.inspector.trace_batch([upload.rgb], class_name, trace=False, evidence=self.evidence)[0][0]

        result = await self._turn(work)
        with self._following:
            result = self.promises.follow(result)
        self.metrics.add(result)
        return result

    async def enroll(self, class_name: str, upload: UploadedImage) -> int:
        """Enroll a good part; the bank's new version."""

        def work() -> int:
            source = upload.name or "sent to visionad serve"
            support = support_record(upload.body, upload.rgb, source, upload.bit_depth)
            check_new(self.bank().classes, class_name, [support])  # before the image is encoded
            return self.inspector.enroll_image(class_name, support, upload.rgb, upload.body, Path(upload.name).suffix)

        return await self._turn(work)

    def overlay(self, upload: UploadedImage, result: Result) -> bytes:
        """Return the overlay of an inspected image as PNG, with the evidence if the service gives it."""
        bank = self.inspector.bank
        assert bank is not None
        if not self.evidence:
            return overlay_png(upload.rgb, result)
        return overlay_png(upload.rgb, result, lambda shown: read_kept(bank.folder, shown.kept, shown.bit_depth))

    def bank(self) -> Snapshot:
        """The bank in force, as it is on disk."""
        self.inspector.refresh()
        assert self.inspector.bank is not None
        return self.inspector.bank.snapshot

    async def _turn(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """End its threads once what they do is done."""
        self._pool.shutdown()
