"""The inspector's chain on a GPU: :class:`~visionad_runtime.pipeline.base.Pipeline` over the chain of one GPU."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ...bank.memory_bank import ClassBank
from ...cuda.interface import DeviceEngine, DeviceThread
from ...formats.manifest import FeatureIdentity
from ...scoring.spec import ScoringSpec
from ..base import BankSelector, PipelineOutput
from .executor import CudaExecutor

F32 = NDArray[np.float32]

MAX_IN_FLIGHT = 2
"""Images under way at once: while one is in the engine, the other is copied, resized or searched. More threads take turns."""
INITIAL_IMAGE_SIZE = (1080, 1920)
"""Height and width that room is taken for at first."""


class _Seen(threading.local):
    """What a thread's last calls were matched against, by identity of the banks: parts that pass one camera are mostly of one
    class, those of another camera need not be."""

    last: tuple[int, ...] = ()
    repeats = False

    def note(self, banks: Sequence[ClassBank]) -> None:
        """A call was matched against these."""
        now = tuple(map(id, banks))
        self.repeats, self.last = now == self.last, now


class FairSlotPool:
    """Cameras that are free, to callers in the order in which they came. From a plain queue the thread that has just given one back
    takes it again before another wakes up, and of many threads some wait for seconds."""

    def __init__(self, cameras: int) -> None:
        self._free, self._waiting = deque(range(cameras)), deque[queue.SimpleQueue[int]]()
        self._lock = threading.Lock()

    def take(self) -> int:
        """A camera, as soon as whoever came before has one."""
        with self._lock:
            if self._free:
                return self._free.popleft()
            own: queue.SimpleQueue[int] = queue.SimpleQueue()
            self._waiting.append(own)
        try:
            return own.get()
        except BaseException:  # interrupted: what was or will be handed over is not to be lost
            with self._lock:
                if own in self._waiting:
                    self._waiting.remove(own)
            if not own.empty():
                self.give(own.get())
            raise

    def give(self, camera: int) -> None:
        """Back, or on to who has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().put(camera)
            else:
                self._free.append(camera)


class CudaPipeline:
    """Each call takes a camera that is free. Room for images grows with the largest seen: a line's first image decides, and
    nothing is to be configured."""

    def __init__(
        self,
        owner: DeviceThread,
        engine: DeviceEngine,
        identity: FeatureIdentity,
        scoring: ScoringSpec,
        *,
        keep_alive: float | None = None,
    ) -> None:
        """Load the kernels and take all memory.

        Raises:
            VisionADError: as :class:`~visionad_runtime.pipeline.cuda.executor.CudaExecutor`.
        """
        self._owner, self._engine, self._identity = owner, engine, identity
        self.scoring = scoring
        self.cameras, self._size, self._keep_alive = MAX_IN_FLIGHT, INITIAL_IMAGE_SIZE, keep_alive
        self._banks: Mapping[int, ClassBank] = {}
        self._seen = _Seen()
        self._growing = threading.Lock()
        self._chain = self._open(INITIAL_IMAGE_SIZE)
        self._turns = FairSlotPool(MAX_IN_FLIGHT)

    def _open(self, size: tuple[int, int]) -> CudaExecutor:
        return CudaExecutor(
            self._owner,
            self._engine,
            self._identity,
            self.scoring,
            cameras=self.cameras,
            max_image=size,
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

        Parts of one class mostly follow each other. So where the calling thread's last two calls were matched against the same
        banks, this one is too before ``choose`` is asked, and the GPU goes from the engine to the search without a pause. Where
        ``choose`` then says otherwise, it is matched again.
        """
        started = time.perf_counter()
        self._make_room(max(rgb.shape[0] for rgb in rgbs), max(rgb.shape[1] for rgb in rgbs))
        route, laps = 0.0, list[Mapping[str, float]]()

        def ask(cls: F32 | None) -> Sequence[ClassBank]:
            nonlocal route
            asked = time.perf_counter()
            banks = choose(cls)
            route = 1e3 * (time.perf_counter() - asked)
            return banks

        with self._camera() as camera:
            likely = self._guess(len(rgbs)) if class_token else ask(None)
            if likely:
                encoded, found = self._chain.inspect(rgbs, likely, camera)
            else:
                encoded, found = self._chain.encode(rgbs, camera), []
            laps += [encoded.timings, *(one.timings for one in found[:1])]
            cls = encoded.cls if class_token else None
            banks = ask(cls) if class_token else likely
            if not found or not _same(banks, likely):
                found = self._chain.match(encoded, banks)
                laps.append(found[0].timings)
            images, patch = self._chain.trace(encoded) if trace else (None, None)
        if class_token:
            self._seen.note(banks)
        whole = 1e3 * (time.perf_counter() - started)
        timings = _share(laps, route, whole, len(rgbs))
        return [
            PipelineOutput(
                one.distances, one.anomaly_map, one.score, one.cutoff, timings,
                None if cls is None else cls[i], None if images is None else images[i], None if patch is None else patch[i],
            )
            for i, one in enumerate(found)
        ]  # fmt: skip

    def _guess(self, images: int) -> Sequence[ClassBank]:
        """The banks that so many images will be matched against, or none."""
        seen, kept = self._seen, self._banks
        likely = [kept[bank] for bank in seen.last if bank in kept] if seen.repeats else []
        return likely if len(likely) == len(seen.last) == images else []

    def load_banks(self, banks: Iterable[ClassBank]) -> None:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`. The others go on inspecting meanwhile."""
        with self._growing:
            newest = {id(bank): bank for bank in banks}
            self._chain.load_banks(newest.values())
            self._banks, self._seen = newest, _Seen()

    def max_batch_size(self) -> int | None:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`."""
        return self._chain.max_batch

    def memory(self) -> dict[str, int]:
        """See :class:`~visionad_runtime.pipeline.base.Pipeline`."""
        return self._chain.memory()

    def close(self) -> None:
        """Free the GPU's memory; waits for calls under way. The engine is not closed."""
        self._chain.close()

    @contextmanager
    def _camera(self) -> Iterator[int]:
        camera = self._turns.take()
        try:
            yield camera
        finally:
            self._turns.give(camera)

    def _make_room(self, height: int, width: int) -> None:
        """Open the chain anew for larger images, once all calls under way are done. If that fails, it is as it was."""
        if height <= self._size[0] and width <= self._size[1]:
            return
        with self._growing:
            old = self._size
            larger = max(height, old[0]), max(width, old[1])
            if larger == old:
                return
            idle = [self._turns.take() for _ in range(self.cameras)]
            try:
                self._chain.close()  # first, or both would have to fit
                try:
                    self._chain = self._open(larger)
                    self._chain.load_banks(self._banks.values())
                    self._size = larger
                except BaseException:
                    self._chain.close()
                    self._chain = self._open(old)
                    self._chain.load_banks(self._banks.values())
                    raise
            finally:
                for camera in idle:
                    self._turns.give(camera)


def _same(banks: Sequence[ClassBank], others: Sequence[ClassBank]) -> bool:
    return len(banks) == len(others) and all(one is other for one, other in zip(banks, others, strict=True))


def _share(laps: Iterable[Mapping[str, float]], route: float, whole: float, images: int) -> dict[str, float]:
    """Milliseconds by stage, of one image of a call."""
    stages = dict.fromkeys(("upload", "preprocess", "engine", "route", "search", "map", "download"), 0.0)
    stages["route"] = route
    for own in laps:
        for stage, ms in own.items():
            stages[stage] += ms
    stages["wait"] = max(0.0, whole - sum(stages.values()))
    return {stage: ms / images for stage, ms in stages.items()}
