"""The inspector behind the requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..bank.memory_bank import Snapshot
from ..bank.supports import check_new, png_file, read_kept, support_record
from ..inspector import Inspector
from ..result import Result
from ..station.judging.judge import Judge
from ..visualization.overlay import overlay_png
from .metrics import Metrics
from .queue import UploadedImage, UploadQueue

log = logging.getLogger("visionad")

T = TypeVar("T")


class InspectionService(UploadQueue):
    """The inspector behind the requests: whoever comes first is served first."""

    def __init__(self, inspector: Inspector, evidence: bool = False) -> None:
        self.inspector = inspector
        self._judge = Judge(inspector, log.warning, evidence=evidence)
        self.metrics = Metrics(inspector, self._judge.promises)
        super().__init__(self.metrics.waiting.set, self.metrics.receiving.set)
        self.evidence = evidence
        self._pool = ThreadPoolExecutor(inspector.pipeline.slots, "visionad-serve")

    async def inspect(self, upload: UploadedImage, class_name: str | None) -> Result:
        """As :meth:`Inspector.inspect`, with the bank that is on disk."""

        def work() -> Result:
            self._judge.refresh()
            return self._judge.judge(upload.rgb, class_name)

        result = await self._turn(work)
        self.metrics.add(result)
        return result

    async def is_ready(self) -> bool:
        """Return whether a class is enrolled and there is a place for an image."""
        return bool((await asyncio.to_thread(self.bank)).classes) and not self.full

    async def enroll(self, class_name: str, upload: UploadedImage) -> int:
        """Enroll a good part; the bank's new version."""

        def work() -> int:
            source = upload.name or "sent to visionad serve"
            file, suffix = upload.body, Path(upload.name).suffix
            if not file:  # bare pixels, which nobody could read from the bank
                file, suffix = png_file(upload.rgb), ".png"
            support = support_record(file, upload.rgb, source, upload.bit_depth)
            check_new(self.bank().classes, class_name, [support])  # before the image is encoded
            return self.inspector.enroll_image(class_name, support, upload.rgb, file, suffix)

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
