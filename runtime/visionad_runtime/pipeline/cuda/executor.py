"""Preprocess, encode, search and score on one GPU, one stream per slot.

Nothing is allocated per call: each slot has its buffers, page-locked memory on the host, and one CUDA graph per stage and batch
size. All slots share the scratch memory of the engine and of the search, and pass it on by events. Banks stay on the device. A new
bank is uploaded beside the others, in pieces between which inspection goes on, and is used once it is complete.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...cuda.interface import Device, DeviceEngine, DeviceThread, Event
from ...errors import VisionADError
from ...formats.manifest import FeatureIdentity
from ...scoring.spec import PAPER, ScoringSpec
from .loader import BankLoader, checked_rows
from .outputs import Encoded, ExecutorOutput, Views
from .shared import MemoryBankLike, ResidentBank, SharedBuffers
from .slot import Slot
from .work_tables import SearchPlan, check_image

F32 = NDArray[np.float32]


class CudaExecutor:
    """The pipeline's stages on one GPU. Any thread may call any method. A slot serves one call at a time."""

    def __init__(
        self,
        owner: DeviceThread,
        engine: DeviceEngine,
        identity: FeatureIdentity,
        scoring: ScoringSpec = PAPER,
        *,
        slots: int = 1,
        max_image: tuple[int, int] = (2160, 3840),
        keep_alive: float | None = None,
    ) -> None:
        """Load the kernels and allocate all memory.

        Args:
            owner: The owner thread of the GPU.
            engine: The backbone on that GPU.
            identity: The model's identity.
            scoring: Views, and how distances become scores.
            slots: Number of slots, each with a stream of its own.
            max_image: Largest height and width of an image.
            keep_alive: Idle seconds after which the engine runs its last batch again. This keeps clocks up, so the next image
                after a pause is as fast as the others. ``None``: never.

        Raises:
            VisionADError: The GPU is too old or out of memory, or the engine takes no rows.
        """
        self.identity, self.scoring = identity, scoring
        self._owner, self._engine = owner, engine
        self._max_image = max_image
        self.max_rows = engine.max_rows
        if self.max_rows < 1 or slots < 1:
            raise VisionADError(f"expected an engine of at least 1 row and 1 slot, got {self.max_rows} and {slots}")
        self._banks: dict[int, ResidentBank] = {}
        self._banks_lock = threading.Lock()
        self._closed = threading.Event()
        self._last_use = time.monotonic()
        self._shared, self._slots = owner.run(lambda device: self._open(device, slots))
        self._keeper: threading.Thread | None = None
        if keep_alive is not None:
            self._keeper = threading.Thread(target=self._keep_alive, args=(keep_alive,), daemon=True)
            self._keeper.start()

    def _open(self, device: Device, count: int) -> tuple[SharedBuffers, list[Slot]]:
        shared = SharedBuffers(device, self.identity, self._max_image, self.max_rows, self.scoring)
        slots: list[Slot] = []
        try:
            slots.extend(Slot(device, shared) for _ in range(count))
        except BaseException:
            for slot in slots:
                slot.close()
            shared.close()
            raise
        return shared, slots

    def __enter__(self) -> CudaExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def max_batch_size(self) -> int:
        """Images that one call can take."""
        return self.max_rows // len(self.scoring.views)

    # -- inspect ------------------------------------------------------------------------------------------------------

    def encode(self, rgbs: Sequence[NDArray[np.uint8]], slot_index: int = 0) -> Encoded:
        """Preprocess and encode images.

        Args:
            rgbs: uint8 (H, W, 3) RGB, or (H, W) grey, of any size up to ``max_image``; 1 to :attr:`max_batch_size` of them.
            slot_index: Number of the slot.

        Raises:
            ImageError: An array is no such image.
            VisionADError: The number of images is out of range, or the GPU failed.
        """
        views = self.scoring.views
        self._check_images(rgbs)
        slot = self._slots[slot_index]
        with slot.lock:
            self._check_open()
            slot.stage_images(rgbs)
            timings = self._run(slot, lambda: slot.start(len(rgbs), views, self._engine, False))
            return slot.encoded(len(rgbs), views, slot_index, timings)

    def inspect(
        self,
        rgbs: Sequence[NDArray[np.uint8]],
        banks: Sequence[MemoryBankLike],
        slot_index: int = 0,
    ) -> tuple[Encoded, list[ExecutorOutput]]:
        """Run :meth:`encode` and :meth:`match` at once, for banks that are known beforehand.

        The GPU does not wait for the host in between. All timings are with the outputs; those of the encoding are empty.

        Args:
            rgbs: As for :meth:`encode`.
            banks: One per image.
            slot_index: Number of the slot.

        Raises:
            ImageError: An array is no such image.
            VisionADError: As for :meth:`encode` and :meth:`match`.
        """
        views = self.scoring.views
        self._check_images(rgbs)
        _check_banks(len(rgbs), banks, None)
        slot = self._slots[slot_index]
        with slot.lock:
            self._check_open()
            slot.stage_images(rgbs)
            with self._using(banks) as residents:
                slot.stage_search(self._plan(residents, banks, views), None)
                timings = self._run(slot, lambda: slot.start(len(rgbs), views, self._engine, True))
            encoded = slot.encoded(len(rgbs), views, slot_index, {})
            outputs = slot.matched(len(rgbs), views, timings)
        return encoded, outputs

    def match(
        self,
        encoded: Encoded,
        banks: Sequence[MemoryBankLike],
        regions: Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> list[ExecutorOutput]:
        """Search each image's bank, fuse the views, upsample and score.

        Args:
            encoded: The images.
            banks: One per image. A bank that :meth:`load_banks` has not loaded is uploaded for this call.
            regions: Per image a (256, 256) mask of the map's pixels that count, or ``None`` for all. The others become 0.

        Raises:
            VisionADError: The slot has encoded other images since, a bank is empty, or the tokens contain NaN or Inf.
        """
        slot = self._slots[encoded.slot]
        count, views = len(encoded.cls), encoded.views
        _check_banks(count, banks, regions)
        with slot.lock:
            self._check_open()
            if slot.ticket != encoded.ticket:
                raise VisionADError(f"slot {encoded.slot} has encoded other images since; match before encoding again")
            with self._using(banks) as residents:
                slot.stage_search(self._plan(residents, banks, views), regions)
                timings = self._run(slot, lambda: slot.start(count, views, None, True))
            return slot.matched(count, views, timings)

    def trace(self, encoded: Encoded) -> tuple[F32, F32]:
        """Return what lies between image and distances, for parity reports.

        Returns:
            Normalised views (N, V, 3, crop, crop) and patch tokens (N, V, P, D), both float32.

        Raises:
            VisionADError: The slot has encoded other images since.
        """
        slot = self._slots[encoded.slot]
        with slot.lock:
            self._check_open()
            if slot.ticket != encoded.ticket:
                raise VisionADError(f"slot {encoded.slot} has encoded other images since; trace before encoding again")
            images, patch = self._owner.run(
                lambda device: slot.download_trace(device, encoded.cls.shape[0] * len(encoded.views))
            )
        lead = encoded.cls.shape[:2]
        return images.reshape(*lead, *images.shape[1:]), patch.reshape(*lead, *patch.shape[1:])

    def _check_images(self, rgbs: Sequence[NDArray[np.uint8]]) -> None:
        if not 1 <= len(rgbs) <= self.max_batch_size:
            raise VisionADError(
                f"expected 1 to {self.max_batch_size} images of {len(self.scoring.views)} views, got {len(rgbs)}"
            )
        for rgb in rgbs:
            check_image(rgb, *self._max_image)

    def _plan(self, residents: Sequence[ResidentBank], banks: Sequence[MemoryBankLike], views: Views) -> SearchPlan:
        bank_views = [residents[i].view(bank, view) for i, bank in enumerate(banks) for view in views]
        return self._shared.plan(tuple(bank_views))

    def _run(self, slot: Slot, start: Callable[[], None]) -> Mapping[str, float]:
        """Enqueue work on the owner thread, sleep until it is done, and return milliseconds by stage."""
        self._check_open()
        self._last_use = time.monotonic()

        def enqueue(_: Device) -> Event:
            start()
            return slot.done

        try:
            timings = self._owner.submit(enqueue, lambda _: slot.finish())
        except BaseException:
            with suppress(VisionADError):  # enqueued work still reads a bank that the caller may free next
                self._owner.run(lambda _: slot.stream.synchronize())
            raise
        self._last_use = time.monotonic()
        return timings

    # -- banks --------------------------------------------------------------------------------------------------------

    def load_banks(self, banks: Iterable[MemoryBankLike]) -> None:
        """Make these banks the resident ones. Slots use the old banks until the new ones are complete.

        A bank is identified by its ``features`` array, so unchanged classes cost nothing.

        Raises:
            VisionADError: A bank is empty or contains NaN or Inf, the GPU is out of memory, or the executor was closed.
        """
        requested = {id(bank.features): bank for bank in banks}
        for key, bank in requested.items():
            with self._banks_lock:
                known = key in self._banks
            if not known:
                resident = self._upload(bank)
                with self._banks_lock:
                    stored = self._banks.setdefault(key, resident)
                if stored is not resident:  # two threads loaded it at once
                    self._release(resident)
        with self._banks_lock:
            dropped = [self._banks.pop(key) for key in list(self._banks) if key not in requested]
        for resident in dropped:
            self._release(resident)
        if self._closed.is_set():  # closed during the last upload: nobody else frees that bank
            self._release_all()
            self._check_open()

    @contextmanager
    def _using(self, banks: Sequence[MemoryBankLike]) -> Iterator[list[ResidentBank]]:
        """Provide resident banks that are not freed before the block ends. Others are uploaded for the block."""
        used: dict[int, ResidentBank] = {}
        try:
            for bank in banks:
                key = id(bank.features)
                if key in used:
                    continue
                with self._banks_lock:
                    resident = self._banks.get(key)
                    if resident is not None:
                        resident.users += 1
                used[key] = resident if resident is not None else self._upload(bank)
            yield [used[id(bank.features)] for bank in banks]
        finally:
            for resident in used.values():
                self._release(resident)

    def _release(self, resident: ResidentBank) -> None:
        with self._banks_lock:
            resident.users -= 1
            unused = resident.users == 0
        if unused:
            self._owner.run(lambda _: resident.close())

    def _upload(self, bank: MemoryBankLike) -> ResidentBank:
        """Upload a bank and return it with one user. Each step is separate work for the owner thread."""
        with self._shared.uploading:
            self._check_open()
            source = checked_rows(bank)  # on this thread: it takes long for a large bank
            loader = self._owner.run(lambda device: BankLoader(device, self._shared, bank, source))
            try:
                while not self._owner.run(lambda _: loader.step()):
                    pass
                resident = loader.resident()
                # Every slot may search the largest bank with a full batch, so reserve memory for that before the bank is used.
                self._owner.run(
                    lambda device: self._shared.reserve(device, resident, [slot.stream for slot in self._slots])
                )
            except BaseException:
                self._owner.run(lambda _: loader.abandon())
                raise
            return resident

    def memory(self) -> dict[str, int]:
        """Return bytes in use: ``chain`` (all but banks) and ``banks`` on the GPU, ``page_locked`` on the host."""
        scopes = [self._shared.resources, *(slot.resources for slot in self._slots)]
        with self._banks_lock:
            banks = sum(resident.resources.device_bytes for resident in self._banks.values())
        buffers = self._shared.maxima.nbytes + sum(scope.device_bytes for scope in scopes)
        return {"chain": buffers, "banks": banks, "page_locked": sum(scope.pinned_bytes for scope in scopes)}

    # -- life ---------------------------------------------------------------------------------------------------------

    def _keep_alive(self, seconds: float) -> None:
        while not self._closed.wait(max(0.0, self._last_use + seconds - time.monotonic())):
            if time.monotonic() - self._last_use < seconds:
                continue
            used = next((slot for slot in self._slots if slot.ticket), None)
            if used is not None:
                with used.lock:
                    if self._closed.is_set():
                        return
                    try:  # the same images give the same tokens, so an Encoded stays valid
                        self._run(used, partial(used.start_again, self._engine))
                    except VisionADError:
                        return  # the next inspection reports it
            self._last_use = time.monotonic()

    def close(self) -> None:
        """Free everything after the current calls. A second call does nothing. The engine stays open."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._keeper is not None:
            self._keeper.join()
        for slot in self._slots:
            slot.lock.acquire()
        try:
            with self._shared.uploading:
                self._owner.run(lambda _: self._close())
        finally:
            for slot in self._slots:
                slot.lock.release()

    def _close(self) -> None:
        for slot in self._slots:
            slot.close()
        self._release_all()
        self._shared.close()

    def _release_all(self) -> None:
        with self._banks_lock:
            residents = list(self._banks.values())
            self._banks.clear()
        for resident in residents:
            self._release(resident)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise VisionADError("this CUDA executor was closed; open the inspector again")


def _check_banks(
    count: int, banks: Sequence[MemoryBankLike], regions: Sequence[NDArray[np.bool_] | None] | None
) -> None:
    if len(banks) != count or (regions is not None and len(regions) != count):
        raise VisionADError(f"expected a bank (and region) for each of {count} images, got {len(banks)}")
