"""Picture → map and score on the device: preprocess, engine, search, fuse, in one stream a camera.

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
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..artefacts import FeatureIdentity, PreprocessSpec, ViewName
from ..errors import VisionADError
from ..picture import copy_pixels
from ..preprocess import view_blocks
from ..scoring.anomaly_map import MAP_SIZE, top_pixels
from ..scoring.self_similarity import MIN_DISTANCE
from ..scoring.spec import PAPER, ScoringSpec
from ..search import BROKEN_TOKENS, NO_ROWS
from ..workers import cores, spread
from . import plan
from .interface import Buffer, Device, DeviceEngine, Event, Graph, Owner
from .kernels import Kernels
from .memory import Memory
from .plan import BankView, PicturePlan

F32 = NDArray[np.float32]
Views = tuple[ViewName, ...]

STAGING = 16 << 20
"""Bytes of a bank uploaded in one piece: a few milliseconds of copying, between which cameras are served."""
COPY, COPIERS = 1 << 20, 4
"""Bytes of a picture that a thread copies at a time, and most threads: one alone would take longer for a large picture than the
GPU's own copy."""
ACROSS_PROGRAMS = 512
"""Programs a picture that the first resize pass's rows are dealt to."""
UPLOAD_POLL_SECONDS = 50e-6
"""Pause of the owner's thread before it looks again whether a piece of a bank has been uploaded."""


class ClassBankLike(Protocol):
    """What is read of a :class:`~visionad_runtime.bank.ClassBank`."""

    @property
    def name(self) -> str: ...
    @property
    def blocks(self) -> tuple[str, ...]: ...
    @property
    def features(self) -> F32: ...


@dataclass(frozen=True, eq=False)
class Encoded:
    """Pictures on the device, encoded. ``cls`` float32 (N, V, Dc), unit rows. The patch tokens stay where they are, until
    the same camera encodes again. ``timings``: milliseconds by stage, of the whole batch."""

    cls: F32
    views: Views
    timings: Mapping[str, float]
    camera: int
    ticket: int = field(repr=False)


@dataclass(frozen=True, eq=False)
class Matched:
    """One picture's outcome: ``distances`` float32 (side, side) by view, ``anomaly_map`` float32 (256, 256), ``score`` and ``edge``
    of :func:`~visionad_runtime.scoring.anomaly_map.top_k_mean`. ``timings``: milliseconds by stage, of the whole batch."""

    distances: Mapping[ViewName, F32]
    anomaly_map: F32
    score: float
    edge: float
    timings: Mapping[str, float]


class Chain:
    """The chain on one GPU for several cameras. Every method may be called from any thread; a camera serves one call at a
    time."""

    def __init__(
        self,
        owner: Owner,
        engine: DeviceEngine,
        identity: FeatureIdentity,
        scoring: ScoringSpec = PAPER,
        *,
        cameras: int = 1,
        max_picture: tuple[int, int] = (2160, 3840),
        keep_alive: float | None = None,
    ) -> None:
        """Load the kernels and take all memory.

        Args:
            owner: of the GPU that ``engine`` is on.
            identity: of the model.
            scoring: in which views, and how scores are made of distances.
            cameras: how many streams.
            max_picture: largest height and width of a picture.
            keep_alive: seconds of idleness after which the engine runs its last batch again, so that clocks stay up and
                the next picture after a pause is as fast as the others. ``None``: never.

        Raises:
            VisionADError: GPU too old, memory too small, engine without rows.
        """
        self.identity, self.scoring = identity, scoring
        self._owner, self._engine = owner, engine
        self._max_picture = max_picture
        self.max_rows = engine.max_rows
        if self.max_rows < 1 or cameras < 1:
            raise VisionADError(f"wanted an engine of at least 1 row and a camera, found {self.max_rows} and {cameras}")
        self._banks: dict[int, _Resident] = {}
        self._publishing = threading.Lock()
        self._closed = threading.Event()
        self._last_use = time.monotonic()
        self._shared, self._cameras = owner.run(lambda device: self._open(device, cameras))
        self._keeper: threading.Thread | None = None
        if keep_alive is not None:
            self._keeper = threading.Thread(target=self._keep_alive, args=(keep_alive,), daemon=True)
            self._keeper.start()

    def _open(self, device: Device, cameras: int) -> tuple[_Shared, list[_Camera]]:
        shared = _Shared(device, self.identity, self._max_picture, self.max_rows, self.scoring)
        made: list[_Camera] = []
        try:
            made.extend(_Camera(device, shared) for _ in range(cameras))
        except BaseException:
            for camera in made:
                camera.close()
            shared.close()
            raise
        return shared, made

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def max_batch(self) -> int:
        """Images that one call can take."""
        return self.max_rows // len(self.scoring.views)

    # -- inspect ------------------------------------------------------------------------------------------------------

    def encode(self, rgbs: Sequence[NDArray[np.uint8]], camera: int = 0) -> Encoded:
        """Preprocess and encode pictures.

        Args:
            rgbs: uint8 (H, W, 3) RGB, or (H, W) grey, of any size up to ``max_picture``; 1 to :attr:`max_batch` of them.

        Raises:
            PictureError: not such a picture. VisionADError: none, or too many; the GPU failed.
        """
        views = self.scoring.views
        self._check_pictures(rgbs)
        own = self._cameras[camera]
        with own.lock:
            self._check_open()
            own.stage_pictures(rgbs)
            timings = self._run(own, lambda: own.start(len(rgbs), views, self._engine, False))
            return own.encoded(len(rgbs), views, camera, timings)

    def inspect(
        self,
        rgbs: Sequence[NDArray[np.uint8]],
        banks: Sequence[ClassBankLike],
        camera: int = 0,
    ) -> tuple[Encoded, list[Matched]]:
        """:meth:`encode` and :meth:`match` in one go, for whoever knows the banks beforehand: the GPU does not wait for the host in
        between. All timings are with the matches, those of the encoding are empty.

        Raises:
            PictureError, VisionADError: as both.
        """
        views = self.scoring.views
        self._check_pictures(rgbs)
        _check_banks(len(rgbs), banks, None)
        own = self._cameras[camera]
        with own.lock:
            self._check_open()
            own.stage_pictures(rgbs)
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
    ) -> list[Matched]:
        """Search each picture's bank, fuse, upsample and score.

        Args:
            banks: one a picture. One that :meth:`keep` has not put on the device is uploaded for this call alone.
            regions: per picture a (256, 256) mask of the map's pixels that count, or ``None`` for all; the others become 0.

        Raises:
            VisionADError: the camera has encoded other pictures since; an empty bank; NaN or Inf among the tokens.
        """
        own = self._cameras[encoded.camera]
        count, views = len(encoded.cls), encoded.views
        _check_banks(count, banks, regions)
        with own.lock:
            self._check_open()
            if own.ticket != encoded.ticket:
                raise VisionADError(
                    f"camera {encoded.camera} has encoded other pictures since; match before encoding again"
                )
            with self._using(banks) as residents:
                own.stage_search(self._plan(residents, banks, views), regions)
                timings = self._run(own, lambda: own.start(count, views, None, True))
            return own.matched(count, views, timings)

    def trace(self, encoded: Encoded) -> tuple[F32, F32]:
        """What lies between picture and distances, for parity reports: normalised views (N, V, 3, crop, crop), patch
        tokens (N, V, P, D).

        Raises:
            VisionADError: the camera has encoded other pictures since.
        """
        own = self._cameras[encoded.camera]
        with own.lock:
            self._check_open()
            if own.ticket != encoded.ticket:
                raise VisionADError(
                    f"camera {encoded.camera} has encoded other pictures since; trace before encoding again"
                )
            images, patch = self._owner.run(
                lambda device: own.download_trace(device, encoded.cls.shape[0] * len(encoded.views))
            )
        lead = encoded.cls.shape[:2]
        return images.reshape(*lead, *images.shape[1:]), patch.reshape(*lead, *patch.shape[1:])

    def _check_pictures(self, rgbs: Sequence[NDArray[np.uint8]]) -> None:
        if not 1 <= len(rgbs) <= self.max_batch:
            raise VisionADError(
                f"wanted 1 to {self.max_batch} pictures of {len(self.scoring.views)} views, found {len(rgbs)}"
            )
        for rgb in rgbs:
            plan.check_picture(rgb, *self._max_picture)

    def _plan(self, residents: Sequence[_Resident], banks: Sequence[ClassBankLike], views: Views) -> plan.SearchPlan:
        found = [residents[i].view(bank, view) for i, bank in enumerate(banks) for view in views]
        return self._shared.plan(tuple(found))

    def _run(self, own: _Camera, start: Callable[[], None]) -> Mapping[str, float]:
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

    def keep(self, banks: Iterable[ClassBankLike]) -> None:
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
    def _using(self, banks: Sequence[ClassBankLike]) -> Iterator[list[_Resident]]:
        """The banks' residents; none of them is freed before the block ends. Banks that are not kept are here for the
        block alone."""
        held: dict[int, _Resident] = {}
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

    def _release(self, resident: _Resident) -> None:
        with self._publishing:
            resident.users -= 1
            last = resident.users == 0
        if last:
            self._owner.run(lambda _: resident.close())

    def _upload(self, bank: ClassBankLike) -> _Resident:
        """Put a bank on the device, with one user. Every step is work of its own for the owner's thread."""
        with self._shared.uploading:
            self._check_open()
            source = _checked_rows(bank)  # on this thread: it takes long for a large bank
            loader = self._owner.run(lambda device: _Loader(device, self._shared, bank, source))
            try:
                while not self._owner.run(lambda _: loader.step()):
                    pass
                resident = loader.resident()
                # Every camera may come with a full batch of the largest bank: room for that is made before the bank takes part.
                self._owner.run(lambda device: self._shared.reserve(device, resident, self._cameras))
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
                    try:  # the same pictures give the same tokens: what an Encoded refers to does not change
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
        raise VisionADError(f"wanted a bank (and region) for each of {count} pictures, found {len(banks)}")


# --- memory ----------------------------------------------------------------------------------------------------------


class _Shared:
    """What all cameras use: kernels, constant tables, and the search's maxima, which one camera has at a time."""

    def __init__(
        self,
        device: Device,
        identity: FeatureIdentity,
        max_picture: tuple[int, int],
        max_rows: int,
        scoring: ScoringSpec,
    ) -> None:
        self.identity, self.max_picture, self.max_rows = identity, max_picture, max_rows
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

    def reserve(self, device: Device, resident: _Resident, cameras: Sequence[_Camera]) -> None:
        """Make the maxima large enough for a full batch against this bank. Waits for the cameras: the larger bank is not
        in use yet."""
        rows = max((part.stop - part.start for part in resident.slices.values()), default=0)
        nbytes = 4 * self.max_rows * self.patches * plan.maxima_a_query(rows, self.block_n)
        if nbytes <= self.maxima.nbytes:
            return
        for camera in cameras:
            camera.stream.synchronize()
        larger = device.alloc(nbytes)
        self.maxima.close()
        self.maxima = larger
        self.maxima_version += 1

    def close(self) -> None:
        self.memory.close()
        self.maxima.close()


class _Resident:
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
        run = view_blocks(bank.blocks, view)
    except ValueError:
        return None
    return run if run.stop <= len(bank.blocks) else None


def _checked_rows(bank: ClassBankLike) -> F32:
    """A bank's numbers one after the other.

    Raises:
        VisionADError: NaN or Inf among them.
    """
    source = np.ascontiguousarray(bank.features).reshape(-1)
    if not np.isfinite(source).all():
        raise VisionADError(f"class {bank.name!r}: NaN or Inf among the bank's rows; `visionad bank verify` says more")
    return source


class _Loader:
    """Uploads a bank piece by piece through two page-locked buffers, then packs it to 16 bits."""

    def __init__(self, device: Device, shared: _Shared, bank: ClassBankLike, source: F32) -> None:
        self._device, self._shared, self._source = device, shared, source
        dim = shared.identity.dim
        self._rows = len(self._source) // dim
        if not self._rows:
            raise VisionADError(NO_ROWS)
        self._memory, self._spare = Memory(device), Memory(device)
        try:
            self._rows32 = self._memory.take(self._source.nbytes)
            # The last tile reads beyond the last row. What it finds there is never given as a result, but zeros cost least.
            self._rows16 = self._memory.take(2 * shared.width * (self._rows + shared.block_n))
            self._norms = self._spare.take(8 * self._rows)
            self._host_norms: F32 = self._spare.pinned((self._rows, 2), np.float32)
            self._packed = self._spare.hold(device.event())
        except BaseException:
            self.abandon()
            raise
        self._at = 0
        self._turn = 0
        self._resident = _Resident(bank, dim, shared.width, self._memory, self._rows32, self._rows16)

    def step(self) -> bool:
        """Enqueue the next piece, or look whether all is done."""
        shared, stream = self._shared, self._shared.stream
        if self._at < len(self._source):
            turn = self._turn % 2
            if not shared.staged[turn].query():
                time.sleep(UPLOAD_POLL_SECONDS)
                return False
            piece = self._source[self._at : self._at + STAGING // 4]
            host = shared.staging[turn][: piece.nbytes].view(np.float32)
            host[...] = piece
            self._device.upload(self._rows32, host, stream, 4 * self._at)
            shared.staged[turn].record(stream)
            self._at += len(piece)
            self._turn += 1
            if self._at == len(self._source):
                shared.kernels["pack"].launch(
                    (self._rows + shared.block_n, 1),
                    (self._rows32, self._rows16, self._norms, self._rows, shared.identity.dim, shared.width), stream,
                )  # fmt: skip
                self._device.download(self._host_norms, self._norms, stream)
                self._packed.record(stream)
            return False
        if not self._packed.query():
            time.sleep(UPLOAD_POLL_SECONDS)
            return False
        self._packed.synchronize()
        self._resident.lost, self._resident.kept = self._host_norms.max(axis=0).tolist()
        self._spare.close()
        return True

    def resident(self) -> _Resident:
        """The bank, complete."""
        return self._resident

    def abandon(self) -> None:
        """Free what was taken."""
        self._shared.stream.synchronize()
        self._spare.close()
        self._memory.close()


class _Layout:
    """Arrays of fixed places in one block of memory, page-locked here and on the device there, copied together."""

    def __init__(self, memory: Memory, fields: Mapping[str, tuple[tuple[int, ...], type[np.generic]]]) -> None:
        self._places: dict[str, int] = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            self._places[name] = end
            end += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 256) * 256
        self.host: NDArray[np.uint8] = memory.pinned(end, np.uint8)
        self.host[...] = 0
        self.buffer = memory.take(end)
        self.arrays: dict[str, NDArray[Any]] = {
            name: self.host[self._places[name] :][: int(np.prod(shape)) * np.dtype(dtype).itemsize]
            .view(dtype)
            .reshape(shape)
            for name, (shape, dtype) in fields.items()
        }

    def address(self, name: str) -> int:
        return self.buffer.ptr + self._places[name]


def _copy_rows(to: NDArray[np.uint8], source: NDArray[np.uint8], step: int, end: int, start: int) -> None:
    stop = min(start + step, end)
    copy_pixels(to[start:stop], source[start:stop])


@dataclass(frozen=True)
class _Host:
    """Page-locked results. ``scores`` (rows, 2): score and edge."""

    cls: F32
    distance: F32
    maps: F32
    scores: NDArray[np.float64]


class _Camera:
    """One stream with its buffers and graphs. What is staged and found is for who holds ``lock``, all else for the owner."""

    def __init__(self, device: Device, shared: _Shared) -> None:
        self._device, self._shared = device, shared
        self.lock = threading.Lock()
        self.ticket = 0
        """Counts encodings, so that an :class:`Encoded` knows whether its tokens are still there."""
        self.memory = Memory(device)
        self._laps: list[str] = []
        self._graphs: dict[tuple[str, int, Views], tuple[int, Graph]] = {}
        self._views: dict[Views, Buffer] = {}
        self._last: tuple[int, Views] = (0, ())  # pictures and views of the last encoding
        try:
            self._take()
        except BaseException:
            self.memory.close()
            raise

    def _take(self) -> None:
        device, shared = self._device, self._shared
        take, pinned, hold = self.memory.take, self.memory.pinned, self.memory.hold
        self.stream = self.memory.stream(device.stream())
        self.done = hold(device.event())
        stages = ("start", "upload", "preprocess", "engine", "search", "map", "download")
        self._marks = {name: hold(device.event()) for name in stages}
        identity, rows, crop, patches = shared.identity, shared.max_rows, shared.spec.crop, shared.patches
        height, width = shared.max_picture
        self._picture_bytes = -(-height * width * 3 // 256) * 256
        self._host_pixels = pinned((rows, self._picture_bytes), np.uint8)
        self._pixels = take(rows * self._picture_bytes)
        self._table = plan.table_size(height, width, shared.spec)
        self._sizes: list[tuple[int, ...]] = [()] * rows
        self._rows = [(0, 0)] * rows  # of the pictures, that the crop needs
        self._staged = [slice(0)] * rows  # and the bytes of them
        self._planned: plan.SearchPlan | None = None
        self._new_sizes = self._new_plan = self._new_regions = False
        self._pictures = _Layout(
            self.memory,
            {"pictures": ((rows, plan.PICTURE_COLUMNS), np.int64), "tables": ((rows, self._table), np.int32)},
        )  # fmt: skip
        self._across = take(rows * height * 3 * crop)
        self._images = take(4 * rows * 3 * crop * crop)
        self._patch = take(4 * rows * patches * identity.dim)
        self._cls = take(4 * rows * identity.class_token_dim)
        self._packed = take(2 * rows * patches * shared.width)
        self._norms = take(8 * rows * patches)
        slots = rows * patches
        self._search = _Layout(
            self.memory,
            {
                "order": ((slots,), np.int32), "job_of": ((slots,), np.int32), "jobs": ((rows, plan.JOB_COLUMNS), np.int64),
                "bounds": ((rows, 2), np.float32), "count": ((1,), np.int32),
                "items": ((plan.max_items(slots, rows, shared.block_q, shared.programs), 4), np.int32),
            },
        )  # fmt: skip
        self._distance, self._row = take(4 * slots), take(4 * slots)
        self._maps, self._scores = take(4 * rows * MAP_SIZE**2), take(16 * rows)
        self._host_region = pinned((rows, MAP_SIZE, MAP_SIZE), np.uint8)
        self._host_region[...] = 1
        self._region = take(rows * MAP_SIZE**2)
        device.upload(self._region, self._host_region, self.stream)
        self.stream.synchronize()
        self._masked = False
        self.host = _Host(
            pinned((rows, identity.class_token_dim), np.float32), pinned((rows, patches), np.float32),
            pinned((rows, MAP_SIZE, MAP_SIZE), np.float32), pinned((rows, 2), np.float64),
        )  # fmt: skip

    # -- on the caller's thread, who holds the lock: the owner's is for what is short -----------------------------------

    def stage_pictures(self, rgbs: Sequence[NDArray[np.uint8]]) -> None:
        """Copy pictures to page-locked memory, as far as the crop needs them."""
        for slot, rgb in enumerate(rgbs):
            if self._sizes[slot] != rgb.shape:
                self._describe(slot, rgb)
            first, end = self._rows[slot]
            line = rgb.nbytes // len(rgb)
            self._staged[slot] = slice(first * line, end * line)
            picture = self._host_pixels[slot, : rgb.nbytes].reshape(rgb.shape)
            step = max(1, COPY // line)
            workers = min(COPIERS, cores(), (end - first) // step)
            if workers < 2:
                copy_pixels(picture[first:end], rgb[first:end])
            else:
                starts = range(first, end, step)
                spread(partial(_copy_rows, picture, rgb, step, end), starts, workers)

    def _describe(self, slot: int, rgb: NDArray[np.uint8]) -> None:
        """Write how to resize the picture in ``slot``."""
        self._new_sizes = True  # until they are on the device
        spec = self._shared.spec
        found = PicturePlan.of(rgb.shape[0], rgb.shape[1], rgb.shape[2] if rgb.ndim == 3 else 1, spec)
        self._pictures.arrays["tables"][slot, : len(found.tables)] = found.tables
        self._pictures.arrays["pictures"][slot] = found.columns(
            self._pixels.ptr + slot * self._picture_bytes,
            slot * self._table,
            slot * self._shared.max_picture[0] * 3 * spec.crop,
        )
        self._sizes[slot], self._rows[slot] = rgb.shape, (found.top, found.top + found.rows)

    def stage_search(self, search: plan.SearchPlan, regions: Sequence[NDArray[np.bool_] | None] | None) -> None:
        """Write what is searched where, and which of the maps' pixels count, unless it is as the time before."""
        if search is not self._planned:
            self._planned, self._new_plan = search, True
            arrays = self._search.arrays
            for name in ("order", "job_of", "jobs", "bounds", "items"):
                table = getattr(search, name)
                arrays[name][: len(table)] = table
            arrays["count"][0] = len(search.items)
        if regions is not None or self._masked:
            for i, region in enumerate(regions or ()):
                self._host_region[i] = 1 if region is None else region
            if regions is None:
                self._host_region[...] = 1
            self._masked, self._new_regions = regions is not None, True

    def encoded(self, count: int, views: Views, camera: int, timings: Mapping[str, float]) -> Encoded:
        """What the last run found of pictures."""
        cls = self.host.cls[: count * len(views)].reshape(count, len(views), -1).copy()
        return Encoded(cls, views, timings, camera, self.ticket)

    def matched(self, count: int, views: Views, timings: Mapping[str, float]) -> list[Matched]:
        """What the last run found of them in the banks.

        Raises:
            VisionADError: NaN or Inf among the patch tokens.
        """
        rows = (
            self.host.distance[: count * len(views)].reshape(count, len(views), self._shared.identity.grid, -1).copy()
        )
        maps, scores = self.host.maps[:count].copy(), self.host.scores[:count].tolist()
        if not np.isfinite(rows).all():
            raise VisionADError(BROKEN_TOKENS)
        return [
            Matched(dict(zip(views, rows[i], strict=True)), maps[i], score, edge, timings)
            for i, (score, edge) in enumerate(scores)
        ]

    # -- on the owner's thread -----------------------------------------------------------------------------------------

    def start(self, count: int, views: Views, engine: DeviceEngine | None, search: bool) -> None:
        """Enqueue what was staged: encode the pictures with ``engine``, and search their patch tokens."""
        self._begin()
        if engine is not None:
            self.ticket += 1
            self._last = (count, views)
            for slot, part in enumerate(self._staged[:count]):
                at = slot * self._picture_bytes + part.start
                self._device.upload(self._pixels, self._host_pixels[slot, part], self.stream, at)
            if self._new_sizes:
                self._device.upload(self._pictures.buffer, self._pictures.host, self.stream)
                self._new_sizes = False
        if search:
            if self._new_plan:
                self._device.upload(self._search.buffer, self._search.host, self.stream)
                self._new_plan = False
            if self._new_regions:
                self._device.upload(self._region, self._host_region, self.stream)
                self._new_regions = False
        self._lap("upload")
        if engine is not None:
            self._stage("preprocess", count, views, lambda: self._preprocess(count, views))
            self._lap("preprocess")
            self._encode(engine)
        if search:
            shared = self._shared
            self.stream.wait(shared.maxima_free)
            self._stage("search", count, views, lambda: self._nearest(count, views), shared.maxima_version)
            shared.maxima_free.record(self.stream)
            self._lap("search")
            self._stage("map", count, views, lambda: self._map(count, views))
            self._lap("map")
        rows = count * len(views)
        if engine is not None:
            self._device.download(self.host.cls[:rows], self._cls, self.stream)
        if search:
            self._device.download(self.host.distance[:rows], self._distance, self.stream)
            self._device.download(self.host.maps[:count], self._maps, self.stream)
            self._device.download(self.host.scores[:count], self._scores, self.stream)
        self._lap("download")
        self.done.record(self.stream)

    def finish(self) -> Mapping[str, float]:
        """Milliseconds between the marks of the last run, which is done.

        Raises:
            VisionADError: something failed on the way.
        """
        self.done.synchronize()
        return {
            stage: self._marks[stage].elapsed_ms(self._marks[before])
            for before, stage in zip(self._laps, self._laps[1:], strict=False)
        }

    def start_again(self, engine: DeviceEngine) -> None:
        """The engine on the last pictures once more."""
        self._begin()
        self._encode(engine)
        self.done.record(self.stream)

    def _encode(self, engine: DeviceEngine) -> None:
        count, views = self._last
        shared = self._shared
        self.stream.wait(shared.engine_free)

        def work() -> None:
            rows = count * len(views)
            engine.enqueue(self._images.ptr, self._patch.ptr, self._cls.ptr, rows, self.stream)

        if engine.capturable:
            self._stage("engine", count, views, work)
        else:
            work()
        shared.engine_free.record(self.stream)
        self._lap("engine")

    def _preprocess(self, count: int, views: Views) -> None:
        kernels, crop = self._shared.kernels, self._shared.spec.crop
        pictures, tables = self._pictures.address("pictures"), self._pictures.address("tables")
        kernels["resize_across"].launch((ACROSS_PROGRAMS, count), (pictures, tables, self._across, crop), self.stream)
        kernels["resize_down"].launch(
            (crop, count),
            (pictures, tables, self._across, self._shared.levels, self._codes(views), len(views), self._images, crop),
            self.stream,
        )

    def _nearest(self, count: int, views: Views) -> None:
        shared, at, slots = self._shared, self._search.address, count * len(views) * self._shared.patches
        dim, kernels = shared.identity.dim, shared.kernels
        kernels["pack"].launch(
            (slots, 1), (self._patch, self._packed, self._norms, slots, dim, shared.width), self.stream
        )
        kernels["group_maxima"].launch(
            (shared.programs, 1),
            (self._packed, at("order"), at("jobs"), at("items"), at("count"), shared.maxima, shared.width), self.stream,
        )  # fmt: skip
        kernels["rescore"].launch(
            (slots, 1),
            (
                self._patch, self._norms, at("order"), at("job_of"), at("jobs"), at("bounds"), shared.maxima,
                self._distance, self._row, dim, shared.width, plan.accumulation_slack(dim), 1,
            ), self.stream,
        )  # fmt: skip
        if shared.self_similarity:
            weigh = kernels["weigh_rarity"]
            blocks = -(-shared.patches // weigh.constants["BLOCK_Q"])
            weigh.launch(
                (blocks, count * len(views)),
                (self._patch, self._distance, shared.identity.grid, dim, MIN_DISTANCE),
                self.stream,
            )

    def _map(self, count: int, views: Views) -> None:
        shared = self._shared
        shared.kernels["fuse_map"].launch(
            (MAP_SIZE, count),
            (
                self._distance, self._codes(views), len(views), shared.low, shared.part, self._region, self._maps,
                shared.identity.grid,
            ), self.stream,
        )  # fmt: skip
        shared.kernels["top_mean"].launch((count, 1), (self._maps, self._scores, shared.top), self.stream)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _stage(self, name: str, count: int, views: Views, work: Callable[[], None], version: int = 0) -> None:
        """Run a stage: the first time as it is, then by its graph. ``version`` is of the shared memory it refers to."""
        key = (name, count, views)
        recorded = self._graphs.get(key)
        if recorded is not None and recorded[0] == version:
            recorded[1].launch(self.stream)
            return
        work()  # what is set up on first use is so before the recording, where it would not be allowed
        if recorded is not None:
            recorded[1].close()
        with self._device.capture(self.stream) as graph:
            work()
        self._graphs[key] = version, graph

    def _codes(self, views: Views) -> Buffer:
        if views not in self._views:
            codes = np.array([plan.VIEW_CODES[v] for v in views], np.int32)
            self._views[views] = self.memory.constant(codes, self.stream)
        return self._views[views]

    def _begin(self) -> None:
        self._laps = ["start"]
        self._marks["start"].record(self.stream)

    def _lap(self, stage: str) -> None:
        self._laps.append(stage)
        self._marks[stage].record(self.stream)

    def download_trace(self, device: Device, rows: int) -> tuple[F32, F32]:
        """Normalised pictures and patch tokens of the last encoding; page-locked memory is taken for it, this is no part
        of the line."""
        crop, identity = self._shared.spec.crop, self._shared.identity
        with Memory(device) as brief:
            images: F32 = brief.pinned((rows, 3, crop, crop), np.float32)
            patch: F32 = brief.pinned((rows, self._shared.patches, identity.dim), np.float32)
            device.download(images, self._images, self.stream)
            device.download(patch, self._patch, self.stream)
            self.stream.synchronize()
            return images.copy(), patch.copy()

    def close(self) -> None:
        for _, graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self.memory.close()
