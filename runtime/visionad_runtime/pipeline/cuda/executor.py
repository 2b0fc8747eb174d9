"""Image → map and score on the device: preprocess, engine, search, fuse, in one stream a camera.

Nothing is allocated per call: every camera has its buffers, page-locked on the host, and one CUDA graph per stage and
batch size. The engine's scratch memory and the search's are shared by all cameras and handed on by events. Banks stay on
the device; a new one is uploaded beside the others, in pieces between which the cameras go on, and takes part once it is
complete.
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
from . import work_tables as plan
from .loader import BankLoader, checked_rows
from .outputs import Encoded, ExecutorOutput, Views
from .shared import ClassBankLike, ResidentBank, SharedBuffers
from .slot import Slot

F32 = NDArray[np.float32]


class CudaExecutor:
    """The chain on one GPU for several cameras. Every method may be called from any thread; a camera serves one call at a
    time."""

    def __init__(
        self,
        owner: DeviceThread,
        engine: DeviceEngine,
        identity: FeatureIdentity,
        scoring: ScoringSpec = PAPER,
        *,
        cameras: int = 1,
        max_image: tuple[int, int] = (2160, 3840),
        keep_alive: float | None = None,
    ) -> None:
        """Load the kernels and take all memory.

        Args:
            owner: of the GPU that ``engine`` is on.
            identity: of the model.
            scoring: in which views, and how scores are made of distances.
            cameras: how many streams.
            max_image: largest height and width of an image.
            keep_alive: seconds of idleness after which the engine runs its last batch again, so that clocks stay up and
                the next image after a pause is as fast as the others. ``None``: never.

        Raises:
            VisionADError: GPU too old, memory too small, engine without rows.
        """
        self.identity, self.scoring = identity, scoring
        self._owner, self._engine = owner, engine
        self._max_image = max_image
        self.max_rows = engine.max_rows
        if self.max_rows < 1 or cameras < 1:
            raise VisionADError(f"expected an engine of at least 1 row and a camera, got {self.max_rows} and {cameras}")
        self._banks: dict[int, ResidentBank] = {}
        self._publishing = threading.Lock()
        self._closed = threading.Event()
        self._last_use = time.monotonic()
        self._shared, self._cameras = owner.run(lambda device: self._open(device, cameras))
        self._keeper: threading.Thread | None = None
        if keep_alive is not None:
            self._keeper = threading.Thread(target=self._keep_alive, args=(keep_alive,), daemon=True)
            self._keeper.start()

    def _open(self, device: Device, cameras: int) -> tuple[SharedBuffers, list[Slot]]:
        shared = SharedBuffers(device, self.identity, self._max_image, self.max_rows, self.scoring)
        made: list[Slot] = []
        try:
            made.extend(Slot(device, shared) for _ in range(cameras))
        except BaseException:
            for camera in made:
                camera.close()
            shared.close()
            raise
        return shared, made

    def __enter__(self) -> CudaExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def max_batch(self) -> int:
        """Images that one call can take."""
        return self.max_rows // len(self.scoring.views)

    # -- inspect ------------------------------------------------------------------------------------------------------

    def encode(self, rgbs: Sequence[NDArray[np.uint8]], camera: int = 0) -> Encoded:
        """Preprocess and encode images.

        Args:
            rgbs: uint8 (H, W, 3) RGB, or (H, W) grey, of any size up to ``max_image``; 1 to :attr:`max_batch` of them.

        Raises:
            ImageError: not such an image. VisionADError: none, or too many; the GPU failed.
        """
        views = self.scoring.views
        self._check_images(rgbs)
        own = self._cameras[camera]
        with own.lock:
            self._check_open()
            own.stage_images(rgbs)
            timings = self._run(own, lambda: own.start(len(rgbs), views, self._engine, False))
            return own.encoded(len(rgbs), views, camera, timings)

    def inspect(
        self,
        rgbs: Sequence[NDArray[np.uint8]],
        banks: Sequence[ClassBankLike],
        camera: int = 0,
    ) -> tuple[Encoded, list[ExecutorOutput]]:
        """:meth:`encode` and :meth:`match` in one go, for whoever knows the banks beforehand: the GPU does not wait for the host in
        between. All timings are with the matches, those of the encoding are empty.

        Raises:
            ImageError, VisionADError: as both.
        """
        views = self.scoring.views
        self._check_images(rgbs)
        _check_banks(len(rgbs), banks, None)
        own = self._cameras[camera]
        with own.lock:
            self._check_open()
            own.stage_images(rgbs)
            with self._using(banks) as residents:
                own.stage_search(self._plan(residents, banks, views), None)
                timings = self._run(own, lambda: own.start(len(rgbs), views, self._engine, True))
            found = own.encoded(len(rgbs), views, camera, {})
            matched = own.matched(len(rgbs), views, timings)
        return found, matched

    def match(
        self,
        encoded: Encoded,
        banks: Sequence[ClassBankLike],
        regions: Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> list[ExecutorOutput]:
        """Search each image's bank, fuse, upsample and score.

        Args:
            banks: one an image. One that :meth:`keep` has not put on the device is uploaded for this call alone.
            regions: per image a (256, 256) mask of the map's pixels that count, or ``None`` for all; the others become 0.

        Raises:
            VisionADError: the camera has encoded other images since; an empty bank; NaN or Inf among the tokens.
        """
        own = self._cameras[encoded.camera]
        count, views = len(encoded.cls), encoded.views
        _check_banks(count, banks, regions)
        with own.lock:
            self._check_open()
            if own.ticket != encoded.ticket:
                raise VisionADError(
                    f"camera {encoded.camera} has encoded other images since; match before encoding again"
                )
            with self._using(banks) as residents:
                own.stage_search(self._plan(residents, banks, views), regions)
                timings = self._run(own, lambda: own.start(count, views, None, True))
            return own.matched(count, views, timings)

    def trace(self, encoded: Encoded) -> tuple[F32, F32]:
        """What lies between image and distances, for parity reports: normalised views (N, V, 3, crop, crop), patch
        tokens (N, V, P, D).

        Raises:
            VisionADError: the camera has encoded other images since.
        """
        own = self._cameras[encoded.camera]
        with own.lock:
            self._check_open()
            if own.ticket != encoded.ticket:
                raise VisionADError(
                    f"camera {encoded.camera} has encoded other images since; trace before encoding again"
                )
            images, patch = self._owner.run(
                lambda device: own.download_trace(device, encoded.cls.shape[0] * len(encoded.views))
            )
        lead = encoded.cls.shape[:2]
        return images.reshape(*lead, *images.shape[1:]), patch.reshape(*lead, *patch.shape[1:])

    def _check_images(self, rgbs: Sequence[NDArray[np.uint8]]) -> None:
        if not 1 <= len(rgbs) <= self.max_batch:
            raise VisionADError(
                f"expected 1 to {self.max_batch} images of {len(self.scoring.views)} views, got {len(rgbs)}"
            )
        for rgb in rgbs:
            plan.check_image(rgb, *self._max_image)

    def _plan(self, residents: Sequence[ResidentBank], banks: Sequence[ClassBankLike], views: Views) -> plan.SearchPlan:
        found = [residents[i].view(bank, view) for i, bank in enumerate(banks) for view in views]
        return self._shared.plan(tuple(found))

    def _run(self, own: Slot, start: Callable[[], None]) -> Mapping[str, float]:
        """Enqueue on the owner's thread, and sleep until it is done. Milliseconds by stage."""
        self._check_open()
        self._last_use = time.monotonic()

        def begin(_: Device) -> Event:
            start()
            return own.done

        try:
            timings = self._owner.serve(begin, lambda _: own.finish())
        except BaseException:
            with suppress(VisionADError):  # what was enqueued still reads a bank that the caller may free next
                self._owner.run(lambda _: own.stream.synchronize())
            raise
        self._last_use = time.monotonic()
        return timings

    # -- banks --------------------------------------------------------------------------------------------------------

    def load_banks(self, banks: Iterable[ClassBankLike]) -> None:
        """Have these banks on the device, and no others. Cameras go on with what they have until the new ones are complete.

        A bank is known by its ``features`` array, so classes that did not change cost nothing.
        """
        wanted = {id(bank.features): bank for bank in banks}
        for key, bank in wanted.items():
            with self._publishing:
                known = key in self._banks
            if not known:
                resident = self._upload(bank)
                with self._publishing:
                    spare = self._banks.setdefault(key, resident)
                if spare is not resident:  # two threads kept it at once
                    self._release(resident)
        with self._publishing:
            gone = [self._banks.pop(key) for key in list(self._banks) if key not in wanted]
        for resident in gone:
            self._release(resident)
        if self._closed.is_set():  # closed while the last of them was uploaded: nobody else frees it
            self._release_all()
            self._check_open()

    @contextmanager
    def _using(self, banks: Sequence[ClassBankLike]) -> Iterator[list[ResidentBank]]:
        """The banks' residents; none of them is freed before the block ends. Banks that are not kept are here for the
        block alone."""
        held: dict[int, ResidentBank] = {}
        try:
            for bank in banks:
                key = id(bank.features)
                if key in held:
                    continue
                with self._publishing:
                    resident = self._banks.get(key)
                    if resident is not None:
                        resident.users += 1
                held[key] = resident if resident is not None else self._upload(bank)
            yield [held[id(bank.features)] for bank in banks]
        finally:
            for resident in held.values():
                self._release(resident)

    def _release(self, resident: ResidentBank) -> None:
        with self._publishing:
            resident.users -= 1
            last = resident.users == 0
        if last:
            self._owner.run(lambda _: resident.close())

    def _upload(self, bank: ClassBankLike) -> ResidentBank:
        """Put a bank on the device, with one user. Every step is work of its own for the owner's thread."""
        with self._shared.uploading:
            self._check_open()
            source = checked_rows(bank)  # on this thread: it takes long for a large bank
            loader = self._owner.run(lambda device: BankLoader(device, self._shared, bank, source))
            try:
                while not self._owner.run(lambda _: loader.step()):
                    pass
                resident = loader.resident()
                # Every camera may come with a full batch of the largest bank: room for that is made before the bank takes part.
                self._owner.run(
                    lambda device: self._shared.reserve(device, resident, [camera.stream for camera in self._cameras])
                )
            except BaseException:
                self._owner.run(lambda _: loader.abandon())
                raise
            return resident

    def memory(self) -> dict[str, int]:
        """Bytes taken now: ``chain`` and ``banks`` on the GPU, ``page_locked`` on the host."""
        parts = [self._shared.memory, *(camera.memory for camera in self._cameras)]
        with self._publishing:
            banks = sum(resident.memory.taken for resident in self._banks.values())
        chain = self._shared.maxima.nbytes + sum(part.taken for part in parts)
        return {"chain": chain, "banks": banks, "page_locked": sum(part.locked for part in parts)}

    # -- life ---------------------------------------------------------------------------------------------------------

    def _keep_alive(self, seconds: float) -> None:
        while not self._closed.wait(max(0.0, self._last_use + seconds - time.monotonic())):
            if time.monotonic() - self._last_use < seconds:
                continue
            used = next((camera for camera in self._cameras if camera.ticket), None)
            if used is not None:
                with used.lock:
                    if self._closed.is_set():
                        return
                    try:  # the same images give the same tokens: what an Encoded refers to does not change
                        self._run(used, partial(used.start_again, self._engine))
                    except VisionADError:
                        return  # whoever inspects next is told
            self._last_use = time.monotonic()

    def close(self) -> None:
        """Free everything; waits for calls under way. Twice is harmless. The engine is its owner's to close."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._keeper is not None:
            self._keeper.join()
        for own in self._cameras:
            own.lock.acquire()
        try:
            with self._shared.uploading:
                self._owner.run(lambda _: self._close())
        finally:
            for own in self._cameras:
                own.lock.release()

    def _close(self) -> None:
        for camera in self._cameras:
            camera.close()
        self._release_all()
        self._shared.close()

    def _release_all(self) -> None:
        with self._publishing:
            gone = list(self._banks.values())
            self._banks.clear()
        for resident in gone:
            self._release(resident)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise VisionADError("this chain was closed")


def _check_banks(
    count: int, banks: Sequence[ClassBankLike], regions: Sequence[NDArray[np.bool_] | None] | None
) -> None:
    if len(banks) != count or (regions is not None and len(regions) != count):
        raise VisionADError(f"expected a bank (and region) for each of {count} images, got {len(banks)}")
