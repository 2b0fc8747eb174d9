"""The inspector behind the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from ..bank.memory_bank import Snapshot
from ..formats.files import sha256_bytes
from ..formats.manifest import SupportImage
from ..images.pixels import RGB8
from ..inspector import Inspector
from ..result import Result
from .metrics import Metrics

T = TypeVar("T")
MAX_QUEUE = 32
"""Images that may wait, decoded. More would be answered so late that nobody wants to know, and fill the memory."""


class RequestError(Exception):
    """A request that is not answered, and with which status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UploadedImage(NamedTuple):
    """An image that was sent, what its sender calls it, and the bytes that it was sent as."""

    rgb: RGB8
    name: str
    body: bytes


class InspectionService:
    """The inspector behind the requests: whoever comes first is served first."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector, self.metrics = inspector, Metrics(inspector)
        self._pool = ThreadPoolExecutor(inspector.pipeline.slots, "visionad-serve")
        self._taken = 0

    async def inspect(self, given: UploadedImage, class_name: str | None) -> Result:
        """As :meth:`Inspector.inspect`, with the bank that is on disk."""

        def work() -> Result:
            self.inspector.refresh()
            return self.inspector.trace_batch([given.rgb], class_name, trace=False)[0][0]

        result = await self._turn(work)
        self.metrics.add(result)
        return result

    async def enroll(self, class_name: str, given: UploadedImage) -> int:
        """Enroll a good part; the bank's new version."""

        def work() -> int:
            support = SupportImage(sha256=sha256_bytes(given.body), source=given.name or "sent to visionad serve")
            tokens = self.inspector.encode_support(given.rgb)
            return self.inspector.enroll_encoded(class_name, [support], [tokens])

        return await self._turn(work)

    def bank(self) -> Snapshot:
        """The bank in force, as it is on disk."""
        self.inspector.refresh()
        assert self.inspector.bank is not None
        return self.inspector.bank.snapshot

    async def _turn(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, while the image is read, decoded and inspected.

        Raises:
            RequestError: all are taken.
        """
        if self._taken >= MAX_QUEUE:
            raise RequestError(503, f"{self._taken} images wait already; send fewer, or to another box")
        self._taken += 1
        self.metrics.waiting.set(self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self.metrics.waiting.set(self._taken)

    def close(self) -> None:
        """End its threads once what they do is done."""
        self._pool.shutdown()
