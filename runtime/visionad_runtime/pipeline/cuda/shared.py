"""What all slots of the CUDA executor share: kernels, tables, staging memory, and the banks on the GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...cuda.interface import Buffer, Device, Stream
from ...cuda.kernels import Kernels
from ...cuda.memory import ResourceScope
from ...errors import VisionADError
from ...formats.manifest import FeatureIdentity, PreprocessSpec, ViewName
from ...preprocess import view_slice
from ...scoring.anomaly_map import top_pixels
from ...scoring.spec import ScoringSpec
from . import work_tables
from .work_tables import BankView, SearchPlan

F32 = NDArray[np.float32]

STAGING_BYTES = 16 << 20
"""Bytes of a bank that are uploaded in one piece. A piece takes a few milliseconds; between pieces the slots are served."""


class MemoryBankLike(Protocol):
    """What is read of a :class:`~visionad_runtime.bank.memory_bank.MemoryBank`."""

    @property
    def name(self) -> str: ...
    @property
    def blocks(self) -> tuple[str, ...]: ...
    @property
    def features(self) -> F32: ...


class SharedBuffers:
    """Kernels, constant tables, and the search's maxima, which one slot uses at a time.

    Attributes:
        identity: The model's identity.
        max_image: Largest height and width of an image.
        max_rows: Largest number of rows of an engine's call.
        top: Pixels of the map whose mean is the score.
        self_similarity: Whether distances are weighted by self-similarity.
        spec: Resize, crop and normalisation.
        patches: Patches of an image.
        width: Columns of a 16-bit row.
        uploading: Held while a bank is uploaded.
        maxima: Scratch memory of the search.
        maxima_version: Counts reallocations of ``maxima``, because recorded graphs hold its address.
        plan: Work tables for bank views, one per engine row, in their order. Cached, because they mostly repeat.
        resources: Owns the buffers.
    """

    def __init__(
        self,
        device: Device,
        identity: FeatureIdentity,
        max_image: tuple[int, int],
        max_rows: int,
        scoring: ScoringSpec,
    ) -> None:
        self.identity, self.max_image, self.max_rows = identity, max_image, max_rows
        self.top, self.self_similarity = top_pixels(scoring.top_fraction), scoring.self_similarity
        self.spec: PreprocessSpec = identity.preprocess
        self.patches = identity.grid**2
        self.width = work_tables.packed_width(identity.dim)
        self.uploading = threading.Lock()
        self.maxima_version = 0
        self.plan = lru_cache(maxsize=32)(self._plan)
        self.resources = ResourceScope(device)
        try:
            self._allocate(device)
        except BaseException:
            self.resources.close()
            raise

    def _allocate(self, device: Device) -> None:
        own = self.resources.own
        self.kernels = own(Kernels(device))
        first_pass = self.kernels["group_maxima"]
        self.block_q, self.block_n = first_pass.constants["BLOCK_Q"], first_pass.constants["BLOCK_N"]
        self.programs = device.multiprocessors * first_pass.per_multiprocessor
        self.stream = self.resources.stream(device.stream())  # of uploads
        self.staging = [self.resources.pinned(STAGING_BYTES, np.uint8) for _ in range(2)]
        self.staged = [own(device.event()) for _ in range(2)]
        self.engine_free, self.maxima_free = own(device.event()), own(device.event())
        for event in (*self.staged, self.engine_free, self.maxima_free):
            event.record(self.stream)
        low, part = work_tables.upsample_tables(self.identity.grid)
        self.levels = self.resources.constant(work_tables.level_table(self.spec), self.stream)
        self.low, self.part = self.resources.constant(low, self.stream), self.resources.constant(part, self.stream)
        self.maxima = device.alloc(4)

    def _plan(self, views: tuple[BankView, ...]) -> SearchPlan:
        """Plan the search of the patches of each engine row in the row's bank view."""
        patches = np.arange(len(views) * self.patches, dtype=np.int32)
        work = list(zip(views, patches.reshape(len(views), -1), strict=True))
        return work_tables.plan_search(work, self.block_q, self.block_n, self.programs)

    def reserve(self, device: Device, resident: ResidentBank, streams: Sequence[Stream]) -> None:
        """Make ``maxima`` large enough for a full batch against a bank that is not in use yet.

        Args:
            device: The GPU.
            resident: The bank.
            streams: Streams that use ``maxima``. Their work is waited for.

        Raises:
            VisionADError: The GPU is out of memory.
        """
        rows = max((part.stop - part.start for part in resident.slices.values()), default=0)
        nbytes = 4 * self.max_rows * self.patches * work_tables.maxima_per_query(rows, self.block_n)
        if nbytes <= self.maxima.nbytes:
            return
        for stream in streams:
            stream.synchronize()
        larger = device.alloc(nbytes)
        self.maxima.close()
        self.maxima = larger
        self.maxima_version += 1

    def close(self) -> None:
        """Free everything."""
        self.resources.close()
        self.maxima.close()


class ResidentBank:
    """A class's bank on the device: all encodings in float32 and in 16 bits. A view is a range of rows.

    Attributes:
        features: The bank's array. The reference keeps its ``id`` unique.
        users: Callers that use the bank; it is freed when there is none.
        slices: View -> its rows.
        quantization_error: Largest norm of what rounding to 16 bits took from a row.
        quantized_norm: Largest norm of a 16-bit row.
        resources: Owns the buffers.
    """

    def __init__(
        self, bank: MemoryBankLike, dim: int, width: int, resources: ResourceScope, rows32: Buffer, rows16: Buffer
    ) -> None:
        self.features = bank.features
        self.users = 1
        self.quantization_error = self.quantized_norm = 0.0
        rows_per_encoding = bank.features.shape[1] * bank.features.shape[2]
        self.slices = {
            view: slice(encodings.start * rows_per_encoding, encodings.stop * rows_per_encoding)
            for view in work_tables.VIEW_CODES
            if (encodings := _encodings_of(bank, view)) is not None
        }
        self._dim, self._width, self.resources = dim, width, resources
        self._rows32, self._rows16 = rows32, rows16

    def view(self, bank: MemoryBankLike, view: ViewName) -> BankView:
        """Return where a view's rows are.

        Raises:
            VisionADError: The class was not enrolled in this view.
        """
        if view not in self.slices:
            raise VisionADError(f"class {bank.name!r} was not enrolled in view {view}; it has {', '.join(self.slices)}")
        part = self.slices[view]
        return BankView(
            self._rows32.ptr + 4 * self._dim * part.start, self._rows16.ptr + 2 * self._width * part.start,
            part.stop - part.start, self.quantization_error, self.quantized_norm,
        )  # fmt: skip

    def close(self) -> None:
        """Free the bank."""
        self.resources.close()


def _encodings_of(bank: MemoryBankLike, view: ViewName) -> slice | None:
    """Return the view's range of encodings, or ``None`` if not all of them were enrolled."""
    try:
        encodings = view_slice(bank.blocks, view)
    except ValueError:
        return None
    return encodings if encodings.stop <= len(bank.blocks) else None
