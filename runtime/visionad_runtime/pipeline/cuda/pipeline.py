"""The pipeline on an NVIDIA GPU: :class:`~visionad_runtime.pipeline.base.Pipeline` over the CUDA executor."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ...bank.memory_bank import MemoryBank
from ...cuda.interface import DeviceEngine, DeviceThread
from ...formats.manifest import FeatureIdentity
from ...scoring.score import score_tokens
from ...scoring.spec import ScoringSpec
from ...search import SearchIndex
from ..bank_search import bank_search
from ..base import BankSelector, PipelineOutput
from .executor import CudaExecutor
from .outputs import ExecutorOutput

F32 = NDArray[np.float32]

MAX_IN_FLIGHT = 2
"""Images in flight: while one is in the engine, the other is copied, resized or searched. Further threads wait."""
INITIAL_IMAGE_SIZE = (1080, 1920)
"""Height and width of the largest image that memory is allocated for at first."""


class _RecentBanks(threading.local):
    """The banks of a thread's last call, by identity.

    They are kept per thread, because a thread mostly serves one camera, and a camera mostly shows one class.
    """

    last: tuple[int, ...] = ()
    repeats = False

    def record(self, banks: Sequence[MemoryBank]) -> None:
        """Record the banks of a call."""
        current = tuple(map(id, banks))
        self.repeats, self.last = current == self.last, current


class FairSlotPool:
    """FIFO pool of pipeline slots.

    ``queue.Queue`` is not fair: the releasing thread can acquire again before a waiter wakes, which starves callers for seconds.
    """

    def __init__(self, slots: int) -> None:
        self._free, self._waiting = deque(range(slots)), deque[queue.SimpleQueue[int]]()
        self._lock = threading.Lock()

    def acquire(self) -> int:
        """Wait for a free slot in the order of arrival, and return its number."""
        with self._lock:
            if self._free:
                return self._free.popleft()
            handover: queue.SimpleQueue[int] = queue.SimpleQueue()
            self._waiting.append(handover)
        try:
            return handover.get()
        except BaseException:  # interrupted: pass on a slot that was handed over meanwhile
            with self._lock:
                if handover in self._waiting:
                    self._waiting.remove(handover)
            if not handover.empty():
                self.release(handover.get())
            raise

    def release(self, slot: int) -> None:
        """Return a slot to the pool, or hand it to the longest waiter."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().put(slot)
            else:
                self._free.append(slot)


class CudaPipeline:
    """Pipeline on an NVIDIA GPU with :data:`MAX_IN_FLIGHT` slots.

    Memory for images grows with the largest image seen, so nothing has to be configured.
    """

    def __init__(
        self,
        owner: DeviceThread,
        engine: DeviceEngine,
        identity: FeatureIdentity,
        scoring: ScoringSpec,
        *,
        keep_alive: float | None = None,
    ) -> None:
        """Load the kernels and allocate all memory.

        Args:
            owner: The owner thread of the GPU.
            engine: The backbone on that GPU.
            identity: The model's identity.
            scoring: Views, and how distances become scores.
            keep_alive: Idle seconds after which the engine runs its last batch again, to keep clocks up. ``None``: never.

        Raises:
            VisionADError: The executor cannot be opened. See :class:`~visionad_runtime.pipeline.cuda.executor.CudaExecutor`.
        """
        self._owner, self._engine, self._identity = owner, engine, identity
        self.scoring = scoring
        self.slots, self._max_image, self._keep_alive = MAX_IN_FLIGHT, INITIAL_IMAGE_SIZE, keep_alive
        self._banks: Mapping[int, MemoryBank] = {}
        self._recent = _RecentBanks()
        self._replacing = threading.Lock()
        self._host_index = SearchIndex()
        self._executor = self._open(INITIAL_IMAGE_SIZE)
        self._pool = FairSlotPool(MAX_IN_FLIGHT)

    def _open(self, max_image: tuple[int, int]) -> CudaExecutor:
        return CudaExecutor(
            self._owner,
            self._engine,
            self._identity,
            self.scoring,
            slots=self.slots,
            max_image=max_image,
            keep_alive=self._keep_alive,
        )

    def run(
        self,
        rgbs: Sequence[NDArray[np.uint8]],
        choose: BankSelector,
        *,
        class_token: bool,
        trace: bool = False,
    ) -> list[PipelineOutput]:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`.

        ``timings`` are the GPU's own by stage. ``wait`` is the rest: for a free slot, for copies on the host, for other work.

        Consecutive parts mostly have the same class. If the calling thread's last two calls used the same banks, this call is
        matched against them before ``choose`` is called, and the GPU goes from the engine to the search without a pause. If
        ``choose`` then returns other banks, the image is matched again.
        """
        started = time.perf_counter()
        self._make_room(max(rgb.shape[0] for rgb in rgbs), max(rgb.shape[1] for rgb in rgbs))
        route, timings = 0.0, list[Mapping[str, float]]()

        def timed_choose(cls: F32 | None) -> Sequence[MemoryBank]:
            nonlocal route
            begin = time.perf_counter()
            banks = choose(cls)
            route = 1e3 * (time.perf_counter() - begin)
            return banks

        with self._slot() as slot:
            likely = self._guess(len(rgbs)) if class_token else timed_choose(None)
            if likely:
                encoded, outputs = self._executor.inspect(rgbs, likely, slot)
            else:
                encoded, outputs = self._executor.encode(rgbs, slot), []
            timings += [encoded.timings, *(output.timings for output in outputs[:1])]
            cls = encoded.cls if class_token else None
            banks = timed_choose(cls) if class_token else likely
            if not outputs or not _same(banks, likely):
                outputs = self._executor.match(encoded, banks)
                timings.append(outputs[0].timings)
            remembers = any(bank.defects is not None for bank in banks)
            images, patch = self._executor.trace(encoded) if trace or remembers else (None, None)
        if remembers and patch is not None:
            outputs = [
                output if bank.defects is None else self._scored_on_host(output, bank, tokens)
                for output, bank, tokens in zip(outputs, banks, patch, strict=True)
            ]
        if not trace:
            images = patch = None
        if class_token:
            self._recent.record(banks)
        total = 1e3 * (time.perf_counter() - started)
        by_stage = _per_image(timings, route, total, len(rgbs))
        return [
            PipelineOutput(
                output.distances, output.anomaly_map, output.score, output.cutoff, by_stage,
                None if cls is None else cls[i], None if images is None else images[i], None if patch is None else patch[i],
            )
            for i, output in enumerate(outputs)
        ]  # fmt: skip

    def _scored_on_host(self, output: ExecutorOutput, bank: MemoryBank, patch: F32) -> ExecutorOutput:
        """Score the tokens of an image, float32 (V, P, D), on the CPU: the kernels know no remembered defects."""
        tokens = dict(zip(self.scoring.views, patch, strict=True))
        scored = score_tokens(tokens, bank_search(bank, self._host_index), self.scoring)
        return ExecutorOutput(scored.distances, scored.anomaly_map, scored.score, scored.cutoff, output.timings)

    def _guess(self, images: int) -> Sequence[MemoryBank]:
        """Return the banks that this many images will likely be matched against, or none."""
        recent, loaded = self._recent, self._banks
        likely = [loaded[bank] for bank in recent.last if bank in loaded] if recent.repeats else []
        return likely if len(likely) == len(recent.last) == images else []

    def load_banks(self, banks: Iterable[MemoryBank]) -> None:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`. Other calls go on meanwhile."""
        with self._replacing:
            newest = {id(bank): bank for bank in banks}
            self._executor.load_banks(newest.values())
            self._banks, self._recent = newest, _RecentBanks()

    def max_batch_size(self) -> int | None:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`."""
        return self._executor.max_batch_size

    def memory(self) -> dict[str, int]:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`."""
        return self._executor.memory()

    def close(self) -> None:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`."""
        self._executor.close()

    @contextmanager
    def _slot(self) -> Iterator[int]:
        slot = self._pool.acquire()
        try:
            yield slot
        finally:
            self._pool.release(slot)

    def _make_room(self, height: int, width: int) -> None:
        """Open a new executor for larger images, once all calls are done. If that fails, open the old one again."""
        if height <= self._max_image[0] and width <= self._max_image[1]:
            return
        with self._replacing:
            old = self._max_image
            larger = max(height, old[0]), max(width, old[1])
            if larger == old:
                return
            slots = [self._pool.acquire() for _ in range(self.slots)]
            try:
                self._executor.close()  # first: the memory may not hold both
                try:
                    self._executor = self._open(larger)
                    self._executor.load_banks(self._banks.values())
                    self._max_image = larger
                except BaseException:
                    self._executor.close()
                    self._executor = self._open(old)
                    self._executor.load_banks(self._banks.values())
                    raise
            finally:
                for slot in slots:
                    self._pool.release(slot)


def _same(banks: Sequence[MemoryBank], others: Sequence[MemoryBank]) -> bool:
    return len(banks) == len(others) and all(bank is other for bank, other in zip(banks, others, strict=True))


def _per_image(timings: Iterable[Mapping[str, float]], route: float, total: float, images: int) -> dict[str, float]:
    """Return milliseconds by stage of one image of a call.

    Args:
        timings: Milliseconds by stage of each run of the call.
        route: Milliseconds of the choice of banks.
        total: Milliseconds of the call.
        images: Images of the call.
    """
    stages = dict.fromkeys(("upload", "preprocess", "engine", "route", "search", "map", "download"), 0.0)
    stages["route"] = route
    for run in timings:
        for stage, ms in run.items():
            stages[stage] += ms
    stages["wait"] = max(0.0, total - sum(stages.values()))
    return {stage: ms / images for stage, ms in stages.items()}
