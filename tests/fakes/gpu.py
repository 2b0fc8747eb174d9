"""A GPU made of numpy, with the interface of ``visionad_runtime.cuda.device.Device``, that is as unhelpful as a real one and
forgives less: work runs late, streams interleave at random, and every pointer, size, lifetime and thread is checked.

Nothing that is enqueued runs before somebody waits or asks; then streams advance in an order drawn from a seed, bound by
events alone. So a missing wait shows as a wrong result under some seed, a result read too early as a stale one, a pinned buffer
rewritten too early as wrong pixels, memory freed too early as an error. Kernels are numpy equivalents of
``export/visionad_export/kernels/source.py``.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from visionad_runtime.cuda.kernels import choose_target, read_manifest
from visionad_runtime.errors import VisionADError
from visionad_runtime.pipeline.cuda import work_tables as plan
from visionad_runtime.scoring.anomaly_map import MAP_SIZE

Kernel = Callable[..., None]
GAP = 4096
"""Addresses between buffers that belong to nobody. None is given twice."""


class FakeDevice:
    """Set the class attributes to make another GPU of it; :meth:`reset` undoes that and forgets everything."""

    gpu: ClassVar[dict[str, Any]] = {}
    """``seed`` draws the order in which streams advance, ``pace`` is how far at a time; the rest as in ``Device``."""
    kernels: ClassVar[dict[str, Kernel]] = {}
    """Kernel name → Python function of (device, grid, block, *args as numpy scalars)."""
    current: ClassVar[FakeDevice | None] = None
    fail_at: ClassVar[int] = 0
    """The taking, counted from 1, that finds no memory left; 0: none."""
    missing: ClassVar[str | None] = None
    """If set, opening fails with this message."""
    _open: ClassVar[dict[int, FakeDevice]] = {}

    @classmethod
    def reset(cls) -> None:
        cls.gpu = {
            "name": "Fake L4",
            "capability": (8, 9),
            "multiprocessors": 58,
            "total_memory": 1 << 30,
            "driver": "13.0",
            "seed": 0,
            "pace": 3,
        }
        cls.kernels = {function.__name__: product_kernel(function) for function in PRODUCT}
        cls.current, cls.missing, cls._open, cls.fail_at = None, None, {}, 0

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.name: str = self.gpu["name"]
        self.capability: tuple[int, int] = self.gpu["capability"]
        self.multiprocessors: int = self.gpu["multiprocessors"]
        self.total_memory: int = self.gpu["total_memory"]
        self.driver: str = self.gpu["driver"]
        self._rng = np.random.default_rng(self.gpu["seed"])
        self._pace: int = self.gpu["pace"]
        self._thread = threading.get_ident()
        self._users = 0
        self._buffers: dict[int, FakeBuffer] = {}
        self._pinned: list[NDArray[Any]] = []
        self._streams: dict[int, FakeStream] = {}
        self._events: set[FakeEvent] = set()
        self._modules: set[FakeModule] = set()
        self._next = 0x7000_0000_0000
        self.graphs: set[FakeGraph] = set()
        self.made = 0
        """Takings so far: buffers, pinned arrays, streams, events, modules and graphs."""
        self.launches = 0
        """Of graphs."""
        self.clock = 0

    # -- what device.py offers

    @classmethod
    def open(cls, index: int = 0) -> FakeDevice:
        if cls.missing:
            raise VisionADError(cls.missing)
        device = cls._open.get(index)
        if device is None:
            device = cls._open[index] = FakeDevice.current = cls(index)
        device.check()
        device._users += 1
        return device

    def close(self) -> None:
        self.check()
        self._users -= 1
        if self._users == 0:
            for stream in self._streams.values():
                assert not stream.work, "the device was closed with work in a stream that nobody waited for"
            self._buffers.clear()
            del self._open[self.index]

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def free_memory(self) -> int:
        self.check()
        return self.total_memory - sum(b.nbytes for b in self._buffers.values())

    def alloc(self, nbytes: int) -> FakeBuffer:
        self._make()
        assert nbytes > 0
        if nbytes > self.free_memory():
            raise VisionADError(f"out of GPU memory taking {nbytes / 2**20:.0f} MiB of GPU memory")
        buffer = FakeBuffer(self, self._next, nbytes)
        self._next = -(-(self._next + nbytes + GAP) // 256) * 256
        self._buffers[buffer.ptr] = buffer
        return buffer

    def live(self) -> dict[str, int]:
        """How many of what was taken and not given back."""
        self.check()
        kinds = {"buffers": self._buffers, "pinned": self._pinned, "streams": self._streams, "events": self._events}
        kinds |= {"modules": self._modules, "graphs": self.graphs}
        return {kind: len(things) for kind, things in kinds.items() if things}

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        self._make()
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 0xA5  # whatever was there before
        self._pinned.append(array)
        return array

    def unpin(self, array: NDArray[Any]) -> None:
        self.check()
        self._pinned = [p for p in self._pinned if p is not array]
        array.reshape(-1).view(np.uint8)[...] = 0x77  # whoever still reads it finds nothing of use

    def stream(self) -> FakeStream:
        self._make()
        stream = FakeStream(self)
        self._streams[stream.handle] = stream
        return stream

    def event(self) -> FakeEvent:
        self._make()
        event = FakeEvent(self)
        self._events.add(event)
        return event

    def upload(self, dst: FakeBuffer, src: NDArray[Any], stream: FakeStream, offset: int = 0) -> None:
        self._check_copy(dst, src, offset)

        def copy() -> None:
            self._check_copy(dst, src, offset)
            self.read(dst.ptr + offset, np.uint8, src.nbytes)[:] = src.reshape(-1).view(np.uint8)

        stream.add(copy)

    def download(self, dst: NDArray[Any], src: FakeBuffer, stream: FakeStream, offset: int = 0) -> None:
        self._check_copy(src, dst, offset)

        def copy() -> None:
            self._check_copy(src, dst, offset)
            dst.reshape(-1).view(np.uint8)[:] = self.read(src.ptr + offset, np.uint8, dst.nbytes)

        stream.add(copy)

    def load(self, code: bytes) -> FakeModule:
        self._make()
        module = FakeModule(self, code)
        self._modules.add(module)
        return module

    @contextmanager
    def capture(self, stream: FakeStream) -> Iterator[FakeGraph]:
        self.check()
        graph = stream.graph = FakeGraph(self)
        try:
            yield graph
        finally:
            stream.graph = None
        self._make()
        self.graphs.add(graph)

    # -- how

    def check(self) -> None:
        assert threading.get_ident() == self._thread, "GPU call from a thread that does not own the device"

    def _make(self) -> None:
        self.check()
        assert not any(s.graph for s in self._streams.values()), "takes memory while a graph is recorded"
        self.made += 1
        if self.made == self.fail_at:
            raise VisionADError("out of GPU memory: out of memory")

    def _check_copy(self, buffer: FakeBuffer, array: NDArray[Any], offset: int) -> None:
        assert array.flags.c_contiguous, "copying an array that is not contiguous"
        assert any(np.may_share_memory(array, p) for p in self._pinned), (
            "asynchronous copy of memory that is not page-locked"
        )
        assert offset >= 0 and offset + array.nbytes <= buffer.nbytes, "copy out of bounds"
        assert self._buffers.get(buffer.ptr) is buffer, "copy to or from a buffer that was freed"

    def find(self, ptr: int) -> FakeBuffer:
        """The live buffer that an address lies in."""
        found = next((b for b in self._buffers.values() if b.ptr <= ptr < b.ptr + b.nbytes), None)
        assert found is not None, f"address {ptr:#x} is nobody's: freed, or never taken"
        return found

    def read(self, ptr: int, dtype: DTypeLike, *shape: int) -> NDArray[Any]:
        """Live memory at an address, as an array that can be written."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = self.find(ptr)
        at = ptr - buffer.ptr
        assert at + nbytes <= buffer.nbytes, f"{nbytes} bytes at {at} of a buffer of {buffer.nbytes}"
        return buffer.bytes[at : at + nbytes].view(dtype).reshape(shape)

    def stream_of(self, handle: int) -> FakeStream:
        """A stream by the handle that a library was given."""
        self.check()
        return self._streams[handle]

    def advance(self) -> bool:
        """A few steps of streams drawn at random. Whether anything moved."""
        moved = False
        for _ in range(self._pace):
            able = [s for s in self._streams.values() if s.work]
            self._rng.shuffle(able)  # type: ignore[arg-type]
            moved |= any(s.step() for s in able)
        return moved

    def run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            assert self.advance(), "all streams wait for each other"


class FakeBuffer:
    def __init__(self, device: FakeDevice, ptr: int, nbytes: int) -> None:
        self.device, self.ptr, self.nbytes = device, ptr, nbytes
        self.bytes = np.full(nbytes, 0x5A, np.uint8)

    def close(self) -> None:
        self.device.check()
        self.device._buffers.pop(self.ptr, None)


class FakeStream:
    _handles = itertools.count(0x1000, 8)

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.handle = next(self._handles)
        self.work: deque[Callable[[], bool]] = deque()
        self.graph: FakeGraph | None = None

    def add(self, work: Callable[[], None]) -> None:
        """Enqueue work, or record it."""
        self.device.check()
        assert self.handle in self.device._streams, "enqueues work on a stream that was closed"
        if self.graph is not None:
            self.graph.work.append(work)
        else:
            self.work.append(lambda: (work(), True)[1])

    def _point(self, step: Callable[[], bool]) -> None:
        self.device.check()
        assert self.graph is None, "events cannot be recorded into a graph here"
        self.work.append(step)

    def wait(self, event: FakeEvent) -> None:
        assert event.recorded, "waits for an event that was never recorded"
        number = event.recorded
        self._point(lambda: event.happened >= number)

    def synchronize(self) -> None:
        self.device.check()
        assert self.graph is None, "a stream cannot be waited for while it is recorded"
        self.device.run_until(lambda: not self.work)

    def close(self) -> None:
        """What it holds goes on, and finds freed what was freed before."""
        self.device.check()
        self.device.run_until(lambda: not self.work)
        self.device._streams.pop(self.handle, None)

    def step(self) -> bool:
        """Run one piece of work, if it may."""
        if not self.work or not self.work[0]():
            return False
        self.work.popleft()
        return True


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.recorded = self.happened = self.time = 0

    def record(self, stream: FakeStream) -> None:
        assert self in self.device._events, "records an event that was closed"
        self.recorded += 1
        number = self.recorded

        def happen() -> bool:
            self.happened = max(self.happened, number)  # only a missing wait brings them out of order
            self.device.clock += 1
            self.time = self.device.clock
            return True

        stream._point(happen)

    def query(self) -> bool:
        self.device.check()
        assert self.recorded
        happened = self.happened == self.recorded
        self.device.advance()  # time goes by
        return happened

    def synchronize(self) -> None:
        self.device.check()
        self.device.run_until(lambda: self.happened == self.recorded)

    def elapsed_ms(self, since: FakeEvent) -> float:
        self.device.check()
        assert self.happened == self.recorded and since.happened == since.recorded, "time of an event still to come"
        return float(self.time - since.time)

    def close(self) -> None:
        self.device.check()
        self.device._events.discard(self)


class FakeGraph:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.work: list[Callable[[], None]] = []

    def launch(self, stream: FakeStream) -> None:
        assert self in self.device.graphs and self.work, "launching a graph that is closed or empty"
        self.device.launches += 1
        for work in self.work:
            stream.add(work)

    def close(self) -> None:
        self.device.check()
        self.device.graphs.discard(self)


class FakeModule:
    def __init__(self, device: FakeDevice, code: bytes) -> None:
        targets = read_manifest()["targets"]
        kernels = targets[choose_target(device.capability, list(targets))]
        digest = hashlib.sha256(code).hexdigest()
        found = [(name, record) for name, record in kernels.items() if record["sha256"] == digest]
        assert found, "loads code that is not the product for this GPU"
        self.device, (self.name, self.record) = device, found[0]

    def function(self, name: str) -> FakeFunction:
        self.device.check()
        assert name == self.record["entry"]
        return FakeFunction(self)

    def close(self) -> None:
        self.device.check()
        self.device._modules.discard(self)


class FakeFunction:
    def __init__(self, module: FakeModule) -> None:
        self.module = module
        self.device, self.name, self.record = module.device, module.name, module.record

    def launch(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared: int, stream: FakeStream
    ) -> None:
        self.device.check()
        assert self.module in self.device._modules, "launches a kernel that was unloaded"
        assert tuple(block) == (self.record["threads"], 1, 1) and shared == self.record["shared_bytes"]
        assert 1 <= grid[0] < 2**31 and 1 <= grid[1] < 65536 and grid[2] == 1
        kinds = {"pointer": np.uint64, "null": np.uint64, "i32": np.int32, "fp32": np.float32}
        assert [type(a) for a in args] == [kinds[k] for k in self.record["arguments"]]
        for kind, a in zip(self.record["arguments"], args, strict=True):
            if kind == "null":
                assert a == 0
            elif kind == "pointer":
                assert a % 16 == 0 and self.device.find(int(a))
        kernel = self.device.kernels[self.name]
        for _ in range(4):  # takes its time, so that streams come to overlap
            stream.add(lambda: None)
        stream.add(lambda: kernel(self.device, tuple(grid), tuple(block), *args))


def product_kernel(function: Callable[..., None]) -> Kernel:
    """A kernel of the product: ``function`` of (device, grid, constants, *args as Python numbers), one of those below."""
    name = function.__name__

    def run(device: FakeDevice, grid: tuple[int, ...], block: tuple[int, ...], *args: np.number[Any]) -> None:
        targets = read_manifest()["targets"]
        record = targets[choose_target(device.capability, list(targets))][name]
        own = [a.item() for kind, a in zip(record["arguments"], args, strict=True) if kind != "null"]
        function(device, grid, record["constants"], *own)

    return run


def pack(
    device: FakeDevice, grid: Any, constants: Any, tokens: int, packed: int, norms: int, rows: int, dim: int, width: int
) -> None:
    value = np.zeros((grid[0], dim), np.float32)
    value[:rows] = device.read(tokens, np.float32, rows, dim)
    out = device.read(packed, np.float16, grid[0], width)
    out[:] = 0
    with np.errstate(over="ignore"):  # memory that nobody wrote yet is packed too
        out[:, :dim] = value
    back = out[:, :dim].astype(np.float32)
    own = device.read(norms, np.float32, rows, 2)
    own[:, 0], own[:, 1] = np.linalg.norm((value - back)[:rows], axis=1), np.linalg.norm(back[:rows], axis=1)


def group_maxima(
    device: FakeDevice,
    grid: Any,
    constants: Any,
    queries: int,
    order: int,
    jobs: int,
    items: int,
    count: int,
    maxima: int,
    width: int,
) -> None:
    block_q, block_n = constants["BLOCK_Q"], constants["BLOCK_N"]
    members = members_of(block_n, constants["RUN"], constants["GROUP"])
    number = int(device.read(count, np.int32, 1)[0])
    for job, slot, begin, end in device.read(items, np.int32, number, 4).tolist():
        own = device.read(jobs + 8 * plan.JOB_COLUMNS * job, np.int64, plan.JOB_COLUMNS).tolist()
        bank16, _, _, first, slots, _ = own
        fine, coarse = maxima_of(device, maxima, own, block_n, members)
        last = min(slot + block_q, first + slots)
        chosen = device.read(order + 4 * slot, np.int32, last - slot).tolist()
        left = np.stack([device.read(queries + 2 * width * q, np.float16, width) for q in chosen]).astype(np.float32)
        for start in range(begin, end, block_n):
            right = device.read(bank16 + 2 * width * start, np.float16, block_n, width).astype(np.float32)
            with np.errstate(all="ignore"):
                scores = left @ right.T
            top = scores[:, members].max(axis=2)
            fine[slot - first : last - first, start // block_n] = top
            coarse[slot - first : last - first, start // block_n] = top.max(axis=1)


def members_of(block_n: int, run: int, group: int) -> NDArray[np.int64]:
    """The rows of each group of a tile (groups, rows): pairs, a stride apart."""
    pairs = np.arange(block_n).reshape(block_n // run, group // 2, run // group, 2)
    return pairs.transpose(0, 2, 1, 3).reshape(-1, group)


def maxima_of(
    device: FakeDevice, maxima: int, job: Sequence[int], block_n: int, members: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A job's maxima: of groups (slots, tiles, groups of a tile), of tiles (slots, tiles)."""
    _, _, rows, _, slots, at = job
    tiles = -(-rows // block_n)
    padded = -(-tiles // 4) * 4
    fine = device.read(maxima + 4 * at, np.float32, slots, tiles, len(members))
    coarse = device.read(maxima + 4 * (at + fine.size), np.float32, slots, padded)
    assert slots * plan.maxima_per_query(rows, block_n) == fine.size + coarse.size
    return fine, coarse[:, :tiles]


def rescore(
    device: FakeDevice, grid: Any, constants: Any, tokens: int, norms: int, order: int, job_of: int, jobs: int, bounds: int,
    maxima: int, distance: int, row: int, dim: int, width: int, slack: float, k: int,
) -> None:  # fmt: skip
    block_n = constants["BLOCK_N"]
    members = members_of(block_n, constants["RUN"], constants["GROUP"])
    queries, numbers = (device.read(p, np.int32, grid[0]).tolist() for p in (order, job_of))
    for slot, (query, number) in enumerate(zip(queries, numbers, strict=True)):
        own = device.read(jobs + 8 * plan.JOB_COLUMNS * number, np.int64, plan.JOB_COLUMNS).tolist()
        _, bank32, rows, first, _, _ = own
        fine, coarse = (m[slot - first] for m in maxima_of(device, maxima, own, block_n, members))
        lost, kept = device.read(norms + 8 * query, np.float32, 2).tolist()
        lost_bank, kept_bank = device.read(bounds + 8 * number, np.float32, 2).tolist()
        error = lost * (kept_bank + lost_bank) + kept * (lost_bank + kept_bank * slack)
        distances = device.read(distance + 4 * k * query, np.float32, k)
        winners = device.read(row + 4 * k * query, np.int32, k)
        if not np.isfinite(lost + kept):
            distances[:], winners[:] = np.nan, -1
            continue
        whole = np.sort(coarse[: rows // block_n])
        level = whole[-k] if k <= len(whole) else -np.inf
        tile, group = np.nonzero((fine >= level - 2.001 * error) & (coarse >= level - 2.001 * error)[:, None])
        place = np.sort((tile[:, None] * block_n + members[group]).ravel())
        place = place[place < rows]
        token = device.read(tokens + 4 * dim * query, np.float32, dim).astype(np.float64)
        bank = device.read(bank32, np.float32, rows, dim)
        score = np.einsum("d,nd->n", token, bank[place].astype(np.float64))
        nearest = np.argsort(-score, kind="stable")[:k]
        some = len(nearest)  # fewer than k only where the maxima are not these queries'
        distances[:some], winners[:some] = 1 - score[nearest], place[nearest]


def weigh_rarity(
    device: FakeDevice, grid: Any, constants: Any, tokens: int, distance: int, side: int, dim: int, floor: float
) -> None:
    patches = side * side
    assert grid[0] == -(-patches // constants["BLOCK_Q"])
    at = np.stack(np.divmod(np.arange(patches), side), axis=1)
    near = np.abs(at[:, None] - at).max(axis=2) <= constants["REACH"]
    own = device.read(distance, np.float32, grid[1], patches)
    for row, patch in enumerate(device.read(tokens, np.float32, grid[1], patches, dim)):
        elsewhere = np.where(near, -np.inf, patch @ patch.T).max(axis=1)
        own[row] *= np.sqrt(np.sqrt(np.maximum(1 - elsewhere, np.float32(floor))))


def resize_across(
    device: FakeDevice, grid: Any, constants: Any, images: int, tables: int, across: int, crop: int
) -> None:
    for own in device.read(images, np.int64, grid[1], plan.IMAGE_COLUMNS).tolist():
        pixels, width, channels, top, rows, taps, _, first, _, weights, _, at = own
        source = device.read(pixels + top * width * channels, np.uint8, rows, width, channels)
        column = device.read(tables + 4 * first, np.int32, crop)
        weight = device.read(tables + 4 * weights, np.int32, taps, crop)
        out = device.read(across + at, np.uint8, rows, 3, crop)
        total = np.full((rows, crop, channels), 1 << 21, np.int64)
        for tap in range(taps):
            total += source[:, np.minimum(column + tap, width - 1)].astype(np.int64) * weight[tap][None, :, None]
        out[:] = np.clip(total >> 22, 0, 255).transpose(0, 2, 1)


def resize_down(
    device: FakeDevice, grid: Any, constants: Any, images: int, tables: int, across: int, levels: int, views: int, count: int,
    out_images: int, crop: int,
) -> None:  # fmt: skip
    assert grid[0] == crop
    table = device.read(levels, np.float32, 3, 256)
    codes = device.read(views, np.int32, count).tolist()
    out = device.read(out_images, np.float32, grid[1], count, 3, crop, crop)
    for number, own in enumerate(device.read(images, np.int64, grid[1], plan.IMAGE_COLUMNS).tolist()):
        _, _, _, top, rows, _, taps, _, first, _, weights, at = own
        source = device.read(across + at, np.uint8, rows, 3, crop)
        row = device.read(tables + 4 * first, np.int32, crop) - top
        weight = device.read(tables + 4 * weights, np.int32, taps, crop)
        total = np.full((crop, 3, crop), 1 << 21, np.int64)
        for tap in range(taps):
            total += source[np.minimum(row + tap, rows - 1)].astype(np.int64) * weight[tap][:, None, None]
        byte = np.clip(total >> 22, 0, 255).transpose(1, 0, 2)
        value = np.stack([table[c][byte[c]] for c in range(3)])
        for v, code in enumerate(codes):
            out[number, v] = value[:, ::-1] if code == 1 else np.maximum(value, 0) if code == 2 else value


def fuse_map(
    device: FakeDevice, grid: Any, constants: Any, distance: int, views: int, count: int, low: int, part: int, region: int,
    anomaly_map: int, side: int,
) -> None:  # fmt: skip
    assert grid[0] == MAP_SIZE
    codes = device.read(views, np.int32, count).tolist()
    at = device.read(low, np.int32, MAP_SIZE)
    high, upper = np.minimum(at + 1, side - 1), device.read(part, np.float32, MAP_SIZE)
    rest = np.float32(1) - upper
    for own, inspected, out in zip(
        device.read(distance, np.float32, grid[1], count, side, side),
        device.read(region, np.uint8, grid[1], MAP_SIZE, MAP_SIZE),
        device.read(anomaly_map, np.float32, grid[1], MAP_SIZE, MAP_SIZE),
        strict=True,
    ):
        total = np.zeros((side, side), np.float32)
        for code, one in zip(codes, own, strict=True):
            total = total + (one[::-1] if code == 1 else one)
        across = total[:, at] * rest + total[:, high] * upper
        out[:] = np.where(inspected, across[at] * rest[:, None] + across[high] * upper[:, None], 0)


def top_mean(device: FakeDevice, grid: Any, constants: Any, anomaly_map: int, found: int, top: int) -> None:
    highest = np.sort(device.read(anomaly_map, np.float32, grid[0], MAP_SIZE**2), axis=1)[:, -top:].astype(np.float64)
    device.read(found, np.float64, grid[0], 2)[:] = np.stack([highest.mean(axis=1), highest[:, 0]], axis=1)


PRODUCT = (pack, group_maxima, rescore, weigh_rarity, resize_across, resize_down, fuse_map, top_mean)
FakeDevice.reset()
