"""One worker of a batch run: an inspector with one thread, which turns a block into a part file."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ...errors import ImageError, VisionADError
from ...images import decode
from ...inspector import Inspector
from ..storage import FileMissingError, open_storage
from .rows import inspected, row_of, to_parquet
from .source import Block


@dataclass(frozen=True)
class Settings:
    """How a run inspects.

    Attributes:
        model: model folder.
        bank: bank folder.
        class_name: class of all parts; ``None`` for the source's, else routing.
        backend: as for ``Inspector.open``, like ``precision``, ``device``, ``preset`` and ``views``.
        threads: threads of a worker. One thread a process does the least work for an image.
        bit_depth: bits that the camera fills in 16-bit files.
        digests: content digests of model and bank that a worker must find; ``None`` before they are known.
        folder: that relative paths of images are below. A worker on another node has another working folder.
    """

    model: str
    bank: str
    class_name: str | None = None
    backend: str = "auto"
    precision: str | None = None
    device: str | None = None
    preset: str | None = None
    views: tuple[str, ...] | None = None
    threads: int = 1
    bit_depth: int | None = None
    digests: tuple[str, str] | None = None
    folder: str = ""

    def open(self) -> Inspector:
        """Open the inspector.

        Raises:
            VisionADError: As for ``Inspector.open``, or model or bank are not those of the run.
        """
        inspector = Inspector.open(
            self.model,
            self.bank,
            backend=self.backend,
            precision=self.precision,
            device=self.device,
            threads=self.threads,
            preset=self.preset,
            views=self.views,
        )
        assert inspector.bank is not None
        got = (inspector.digest, inspector.bank.snapshot.digest)
        if self.digests is not None and got != self.digests:
            inspector.close()
            what = "model" if got[0] != self.digests[0] else "bank"
            raise VisionADError(
                f"{what} {self.model if what == 'model' else self.bank} is another one than when the run began; "
                "run again with one version for all workers"
            )
        return inspector


def part_name(number: int) -> str:
    """Return the name of a block's part file."""
    return f"part-{number:08d}.parquet"


class Worker:
    """An inspector that writes blocks below a URL."""

    def __init__(self, settings: Settings, run_url: str) -> None:
        self.settings = settings
        self.inspector = settings.open()
        self.storage = open_storage(run_url)

    def close(self) -> None:
        """Release the inspector."""
        self.inspector.close()

    def write_block(self, block: Block) -> dict[str, int]:
        """Inspect a block and write its part file, whole or not at all. A repeat writes the same results.

        If it has a part file, only the images that this one has no verdict for are inspected.

        Returns:
            Images of the block by verdict, and ``error`` for those without one.
        """
        rows = self.rows(block, self._inspected(block))
        self.storage.write(part_name(block.number), to_parquet(rows))
        return dict(Counter(row.get("verdict", "error") for row in rows))

    def rows(self, block: Block, known: Mapping[int, dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        """Return the rows of a block. An image that cannot be read has an ``error``; the others go on.

        Args:
            block: the images.
            known: rows that are known, by the image's id.
        """
        known = known or {}
        return [
            known.get(i) or row_of(self._inspect(image, name), i)
            for i, (image, name) in enumerate(zip(block.images, block.classes, strict=True), block.first)
        ]

    def _inspected(self, block: Block) -> dict[int, dict[str, Any]]:
        try:
            return inspected(self.storage.read(part_name(block.number)))
        except FileMissingError:
            return {}

    def _inspect(self, image: str, class_name: str | None) -> Mapping[str, Any]:
        start = time.perf_counter()
        try:
            rgb = decode.decode(_read(image, self.settings.folder), image, self.settings.bit_depth)
        except ImageError as exc:
            return {"image": image, "error": str(exc)}
        decode_ms = (time.perf_counter() - start) * 1e3
        try:
            name = self.settings.class_name or class_name
            result = self.inspector.trace_batch([rgb], name, trace=False)[0][0]
        except ImageError as exc:
            return {"image": image, "error": f"{image}: {exc}"}
        timings = {"decode": decode_ms, **result.timings, "total": result.timings["total"] + decode_ms}
        return replace(result, timings=timings).to_dict(image)


ENCODED = ("http", "https", "file", "local")
"""Schemes whose URLs are percent-encoded. Keys of object stores are not."""


def _read(image: str, folder: str) -> bytes:
    """Return the bytes of an image at a path, below ``folder`` if it is relative, or at a URL.

    Raises:
        ImageError: It cannot be read.
    """
    if "://" not in image:
        return decode.read_bytes(Path(folder, image))
    folder, _, name = image.rpartition("/")
    if image.partition("://")[0] in ENCODED:
        name = unquote(name)
    try:
        return open_storage(folder).read(name)
    except FileMissingError:
        raise ImageError(f"{image}: no such file") from None
    except VisionADError as exc:
        raise ImageError(f"{image}: {exc}") from None


_worker: Worker | None = None


def start_process(settings: Settings, run_url: str) -> None:
    """Open the worker of this process, and end the process when its parent dies."""
    global _worker
    import multiprocessing
    import multiprocessing.connection
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        assert parent is not None
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    # A killed parent closes no queue that a child also holds, so a child would wait for work for ever.
    threading.Thread(target=end_with_parent, daemon=True).start()
    _worker = Worker(settings, run_url)


def write_in_process(block: Block) -> dict[str, int]:
    """Have the worker of this process write a block."""
    assert _worker is not None
    return _worker.write_block(block)


def total(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Add counts by verdict."""
    added: Counter[str] = Counter()
    for one in counts:
        added.update(one)
    return dict(sorted(added.items()))
