"""What all slots of the CUDA executor share: kernels, tables, staging memory, the banks on the GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...cuda.interface import Buffer, Device, Stream
from ...cuda.kernels import Kernels
from ...cuda.memory import Memory
from ...errors import VisionADError
from ...formats.manifest import FeatureIdentity, PreprocessSpec, ViewName
from ...preprocess import view_slice
from ...scoring.anomaly_map import top_pixels
from ...scoring.spec import ScoringSpec
from . import work_tables as plan
from .work_tables import BankView

F32 = NDArray[np.float32]

STAGING = 16 << 20
"""Bytes of a bank uploaded in one piece: a few milliseconds of copying, between which cameras are served."""


class ClassBankLike(Protocol):
    """What is read of a :class:`~visionad_runtime.bank.memory_bank.ClassBank`."""

    @property
    def name(self) -> str: ...
    @property
    def blocks(self) -> tuple[str, ...]: ...
    @property
    def features(self) -> F32: ...


# --- memory ----------------------------------------------------------------------------------------------------------


class SharedBuffers:
    """What all cameras use: kernels, constant tables, and the search's maxima, which one camera has at a time."""

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
        self.width = plan.packed_width(identity.dim)
        self.uploading = threading.Lock()
        self.maxima_version = 0
        self.plan = lru_cache(maxsize=32)(self._plan)
        """Work tables for a bank view a query row group, in the order of the engine's rows. Mostly the same as the last time."""
        self.memory = Memory(device)
        try:
            self._take(device)
        except BaseException:
            self.memory.close()
            raise

    def _take(self, device: Device) -> None:
        hold = self.memory.hold
        self.kernels = hold(Kernels(device))
        first_pass = self.kernels["group_maxima"]
        self.block_q, self.block_n = first_pass.constants["BLOCK_Q"], first_pass.constants["BLOCK_N"]
        self.programs = device.multiprocessors * first_pass.per_multiprocessor
        self.stream = self.memory.stream(device.stream())  # of uploads
        self.staging = [self.memory.pinned(STAGING, np.uint8) for _ in range(2)]
        self.staged = [hold(device.event()) for _ in range(2)]
        self.engine_free, self.maxima_free = hold(device.event()), hold(device.event())
        for event in (*self.staged, self.engine_free, self.maxima_free):
            event.record(self.stream)
        low, part = plan.upsample_tables(self.identity.grid)
        self.levels = self.memory.constant(plan.level_table(self.spec), self.stream)
        self.low, self.part = self.memory.constant(low, self.stream), self.memory.constant(part, self.stream)
        self.maxima = device.alloc(4)

    def _plan(self, views: tuple[BankView, ...]) -> plan.SearchPlan:
        """The patches of each of the engine's rows against its view."""
        patches = np.arange(len(views) * self.patches, dtype=np.int32)
        work = list(zip(views, patches.reshape(len(views), -1), strict=True))
        return plan.plan_search(work, self.block_q, self.block_n, self.programs)

    def reserve(self, device: Device, resident: ResidentBank, streams: Sequence[Stream]) -> None:
        """Make the maxima large enough for a full batch against this bank. Waits for the streams: the larger bank is not
        in use yet."""
        rows = max((part.stop - part.start for part in resident.slices.values()), default=0)
        nbytes = 4 * self.max_rows * self.patches * plan.maxima_a_query(rows, self.block_n)
        if nbytes <= self.maxima.nbytes:
            return
        for stream in streams:
            stream.synchronize()
        larger = device.alloc(nbytes)
        self.maxima.close()
        self.maxima = larger
        self.maxima_version += 1

    def close(self) -> None:
        self.memory.close()
        self.maxima.close()


class ResidentBank:
    """A class's bank on the device: all its blocks in float32 and in 16 bits; a view is a run of rows."""

    def __init__(
        self, bank: ClassBankLike, dim: int, width: int, memory: Memory, rows32: Buffer, rows16: Buffer
    ) -> None:
        self.features = bank.features  # kept, so that its id stays its own
        self.users = 1
        self.lost = self.kept = 0.0
        per_block = bank.features.shape[1] * bank.features.shape[2]
        self.slices = {
            view: slice(run.start * per_block, run.stop * per_block)
            for view in plan.VIEW_CODES
            if (run := _blocks_of(bank, view)) is not None
        }
        self._dim, self._width, self.memory = dim, width, memory
        self._rows32, self._rows16 = rows32, rows16

    def view(self, bank: ClassBankLike, view: ViewName) -> BankView:
        """Where a view's rows lie."""
        if view not in self.slices:
            raise VisionADError(f"class {bank.name!r} was not enrolled in view {view}; it has {', '.join(self.slices)}")
        part = self.slices[view]
        return BankView(
            self._rows32.ptr + 4 * self._dim * part.start, self._rows16.ptr + 2 * self._width * part.start,
            part.stop - part.start, self.lost, self.kept,
        )  # fmt: skip

    def close(self) -> None:
        self.memory.close()


def _blocks_of(bank: ClassBankLike, view: ViewName) -> slice | None:
    """The view's run of blocks, or ``None`` where not all of them were enrolled."""
    try:
        run = view_slice(bank.blocks, view)
    except ValueError:
        return None
    return run if run.stop <= len(bank.blocks) else None
