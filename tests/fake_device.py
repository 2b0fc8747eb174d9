"""A GPU made of numpy that is as unhelpful as a real one: work runs late, streams interleave at random, and every pointer
is checked.

Nothing that is enqueued runs before somebody waits or asks; then streams advance in an order drawn from a seed, bound by
events alone. So a missing wait shows as a wrong result under some seed, a pinned buffer rewritten too early as wrong
pixels, memory freed too early as an error. Kernels are numpy equivalents of ``export/visionad_export/kernels/source.py``.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from visionad_runtime.cuda import plan
from visionad_runtime.cuda.kernels import read_manifest
from visionad_runtime.errors import VisionADError
from visionad_runtime.maps import MAP_SIZE

GAP = 4096
"""Addresses between buffers that belong to nobody."""


class FakeBuffer:
    def __init__(self, device: FakeDevice, ptr: int, nbytes: int) -> None:
        self.device, self.ptr, self.nbytes = device, ptr, nbytes
        self.data = np.full(nbytes, 0xA5, np.uint8)
        self.freed = False

    def close(self) -> None:
        self.device.check()
        if not self.freed:
            self.freed = True
            self.device.buffers.remove(self)


class FakeStream:
    handle = 7

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.work: deque[tuple[str, Any]] = deque()
        self.graph: FakeGraph | None = None

    def add(self, kind: str, what: Any) -> None:
        self.device.check()
        if self.graph is not None:
            assert kind == "run", f"{kind} cannot be recorded into a graph here"
            self.graph.work.append((kind, what))
        else:
            self.work.append((kind, what))

    def wait(self, event: FakeEvent) -> None:
        assert event.recorded, "waits for an event that was never recorded"
        self.add("wait", (event, event.recorded))

    def synchronize(self) -> None:
        self.device.check()
        assert self.graph is None, "a stream cannot be waited for while it is recorded"
        self.device.run_until(lambda: not self.work)

    def step(self) -> bool:
        """Run one piece of work, if it may."""
        if not self.work:
            return False
        kind, what = self.work[0]
        if kind == "wait" and what[0].happened < what[1]:
            return False
        self.work.popleft()
        if kind == "run":
            what()
        elif kind == "record":
            event, number = what
            event.happened = max(event.happened, number)  # only a missing wait brings them out of order
            self.device.clock += 1
            event.time = self.device.clock
        return True


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.recorded = self.happened = 0
        self.time = 0

    def record(self, stream: FakeStream) -> None:
        self.recorded += 1
        stream.add("record", (self, self.recorded))

    def query(self) -> bool:
        self.device.check()
        assert self.recorded
        self.device.advance()
        return self.happened == self.recorded

    def synchronize(self) -> None:
        self.device.check()
        self.device.run_until(lambda: self.happened == self.recorded)

    def elapsed_ms(self, since: FakeEvent) -> float:
        self.device.check()
        assert self.happened == self.recorded and since.happened == since.recorded, "time of an event still to come"
        return float(self.time - since.time)


class FakeGraph:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.work: list[tuple[str, Any]] = []
        self.closed = False
        device.graphs.add(self)

    def launch(self, stream: FakeStream) -> None:
        assert not self.closed, "launches a graph that was closed"
        self.device.launches += 1
        for kind, what in self.work:
            stream.add(kind, what)

    def close(self) -> None:
        self.device.check()
        self.closed = True
        self.device.graphs.discard(self)


class FakeModule:
    def __init__(self, device: FakeDevice, code: bytes) -> None:
        digest = hashlib.sha256(code).hexdigest()
        found = [
            (name, record)
            for kernels in read_manifest()["targets"].values()
            for name, record in kernels.items()
            if record["sha256"] == digest
        ]
        assert found, "loads code that is not in the manifest"
        self.device, (self.name, self.record) = device, found[0]

    def function(self, name: str) -> FakeFunction:
        assert name == self.record["entry"]
        return FakeFunction(self.device, self.name, self.record)


class FakeFunction:
    def __init__(self, device: FakeDevice, name: str, record: dict[str, Any]) -> None:
        self.device, self.name, self.record = device, name, record

    def launch(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared: int, stream: FakeStream
    ) -> None:
        assert tuple(block) == (self.record["threads"], 1, 1) and shared == self.record["shared_bytes"]
        assert 1 <= grid[0] < 2**31 and 1 <= grid[1] < 65536 and grid[2] == 1
        kinds = {"pointer": np.uint64, "null": np.uint64, "i32": np.int32, "fp32": np.float32}
        assert [type(a) for a in args] == [kinds[k] for k in self.record["arguments"]]
        own = []
        for kind, a in zip(self.record["arguments"], args, strict=True):
            if kind == "null":
                assert a == 0
            else:
                assert kind != "pointer" or (a % 16 == 0 and self.device.find(int(a)))
                own.append(a.item())
        kernel = getattr(self.device, f"kernel_{self.name}")
        for _ in range(4):  # takes its time, so that streams come to overlap
            stream.add("run", lambda: None)
        stream.add("run", lambda: kernel(tuple(grid), self.record["constants"], *own))


class FakeDevice:
    """See the module. ``seed`` draws the order in which streams advance."""

    name = "numpy"

    def __init__(
        self, seed: int = 0, capability: tuple[int, int] = (9, 0), total_memory: int = 1 << 40, step: int = 3
    ) -> None:
        self.capability, self.total_memory, self.multiprocessors = capability, total_memory, 3
        self.rng = np.random.default_rng(seed)
        self.thread = threading.get_ident()
        self.buffers: list[FakeBuffer] = []
        self.streams: list[FakeStream] = []
        self.graphs: set[FakeGraph] = set()
        self.next = 1 << 20
        self.made = 0
        """Buffers, pinned arrays, streams and events so far."""
        self.launches = self.clock = 0
        self.pace = step

    # -- what device.py offers

    def alloc(self, nbytes: int) -> FakeBuffer:
        self.check()
        assert not any(s.graph for s in self.streams), "takes memory while a graph is recorded"
        assert nbytes > 0
        if nbytes + sum(b.nbytes for b in self.buffers) > self.total_memory:
            raise VisionADError(f"out of GPU memory taking {nbytes} bytes")
        self.made += 1
        buffer = FakeBuffer(self, self.next, nbytes)
        self.next = -(-(self.next + nbytes + GAP) // 256) * 256
        self.buffers.append(buffer)
        return buffer

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        self.check()
        self.made += 1
        array = np.empty(shape, dtype)
        array.view(np.uint8).fill(0x5A) if array.ndim else None
        return array

    def stream(self) -> FakeStream:
        self.check()
        self.made += 1
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def event(self) -> FakeEvent:
        self.check()
        self.made += 1
        return FakeEvent(self)

    def upload(self, dst: FakeBuffer, src: NDArray[Any], stream: FakeStream, offset: int = 0) -> None:
        assert src.flags.c_contiguous and offset >= 0 and offset + src.nbytes <= dst.nbytes

        def copy() -> None:
            self.read(dst.ptr + offset, np.uint8, src.nbytes)[:] = src.reshape(-1).view(np.uint8)

        stream.add("run", copy)

    def download(self, dst: NDArray[Any], src: FakeBuffer, stream: FakeStream, offset: int = 0) -> None:
        assert dst.flags.c_contiguous and offset >= 0 and offset + dst.nbytes <= src.nbytes

        def copy() -> None:
            dst.reshape(-1).view(np.uint8)[:] = self.read(src.ptr + offset, np.uint8, dst.nbytes)

        stream.add("run", copy)

    def load(self, code: bytes) -> FakeModule:
        self.check()
        return FakeModule(self, code)

    @contextmanager
    def capture(self, stream: FakeStream) -> Iterator[FakeGraph]:
        self.check()
        stream.graph = FakeGraph(self)
        try:
            yield stream.graph
        finally:
            stream.graph = None

    # -- how

    def check(self) -> None:
        assert threading.get_ident() == self.thread, "the device was used from a thread that does not own it"

    def find(self, ptr: int) -> FakeBuffer | None:
        return next((b for b in self.buffers if b.ptr <= ptr < b.ptr + b.nbytes), None)

    def read(self, ptr: int, dtype: DTypeLike, *shape: int) -> NDArray[Any]:
        """Live memory at an address, as an array that can be written."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = self.find(ptr)
        assert buffer is not None, f"address {ptr:#x} is nobody's: freed, or never taken"
        at = ptr - buffer.ptr
        assert at + nbytes <= buffer.nbytes, f"{nbytes} bytes at {at} of a buffer of {buffer.nbytes}"
        return buffer.data[at : at + nbytes].view(dtype).reshape(shape)

    def advance(self) -> bool:
        """A few steps of streams drawn at random. Whether anything moved."""
        moved = False
        for _ in range(self.pace):
            able = [s for s in self.streams if s.work]
            self.rng.shuffle(able)  # type: ignore[arg-type]
            moved |= any(s.step() for s in able)
        return moved

    def run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            assert self.advance(), "all streams wait for each other"

    # -- kernels

    def kernel_pack(
        self, grid: Any, constants: Any, tokens: int, packed: int, norms: int, dim: int, width: int
    ) -> None:
        value = self.read(tokens, np.float32, grid[0], dim)
        out = self.read(packed, np.float16, grid[0], width)
        out[:] = 0
        out[:, :dim] = value
        back = out[:, :dim].astype(np.float32)
        own = self.read(norms, np.float32, grid[0], 2)
        own[:, 0], own[:, 1] = np.linalg.norm(value - back, axis=1), np.linalg.norm(back, axis=1)

    def kernel_group_maxima(
        self,
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
        block_q, block_n, group = (constants[k] for k in ("BLOCK_Q", "BLOCK_N", "GROUP"))
        number = int(self.read(count, np.int32, 1)[0])
        for job, slot, begin, end in self.read(items, np.int32, number, 4).tolist():
            bank16, _, rows, first, slots, at = self.read(
                jobs + 8 * plan.JOB_COLUMNS * job, np.int64, plan.JOB_COLUMNS
            ).tolist()
            last = min(slot + block_q, first + slots)
            chosen = self.read(order + 4 * slot, np.int32, last - slot).tolist()
            left = np.stack([self.read(queries + 2 * width * q, np.float16, width) for q in chosen]).astype(np.float32)
            groups = -(-rows // group)
            for start in range(begin, end, block_n):
                right = self.read(bank16 + 2 * width * start, np.float16, block_n, width).astype(np.float32)
                with np.errstate(all="ignore"):
                    scores = left @ right.T
                scores[:, rows - start :] = -np.inf if rows - start < block_n else scores[:, rows - start :]
                top = scores.reshape(len(left), -1, group).max(axis=2)
                here = min(groups - start // group, top.shape[1])
                out = self.read(maxima + 4 * (at + (slot - first) * groups), np.float32, len(left), groups)
                out[:, start // group : start // group + here] = top[:, :here]

    def kernel_rescore(
        self, grid: Any, constants: Any, tokens: int, norms: int, order: int, job_of: int, jobs: int, bounds: int,
        maxima: int, distance: int, row: int, dim: int, slack: float, k: int,
    ) -> None:  # fmt: skip
        group = constants["GROUP"]
        queries, numbers = (self.read(p, np.int32, grid[0]).tolist() for p in (order, job_of))
        for slot, (query, number) in enumerate(zip(queries, numbers, strict=True)):
            _, bank32, rows, first, _, at = self.read(
                jobs + 8 * plan.JOB_COLUMNS * number, np.int64, plan.JOB_COLUMNS
            ).tolist()
            groups = -(-rows // group)
            scores = self.read(maxima + 4 * (at + (slot - first) * groups), np.float32, groups)
            lost, kept = self.read(norms + 8 * query, np.float32, 2).tolist()
            lost_bank, kept_bank = self.read(bounds + 8 * number, np.float32, 2).tolist()
            error = lost * (kept_bank + lost_bank) + kept * (lost_bank + kept_bank * slack)
            distances = self.read(distance + 4 * k * query, np.float32, k)
            winners = self.read(row + 4 * k * query, np.int32, k)
            if not np.isfinite(lost + kept):
                distances[:], winners[:] = np.nan, -1
                continue
            level = np.sort(scores)[-k] if k <= groups else -np.inf
            token = self.read(tokens + 4 * dim * query, np.float32, dim).astype(np.float64)
            exact, places = [], []
            for g in np.flatnonzero(scores >= level - 2.001 * error).tolist():
                members = self.read(bank32 + 4 * dim * g * group, np.float32, min(group, rows - g * group), dim)
                exact.append(np.einsum("d,nd->n", token, members.astype(np.float64)))
                places.append(g * group + np.arange(len(members)))
            score, place = np.concatenate(exact), np.concatenate(places)
            nearest = np.lexsort((place, -score))[:k]
            distances[:], winners[:] = 1 - score[nearest], place[nearest]

    def kernel_resize_across(
        self, grid: Any, constants: Any, pictures: int, tables: int, across: int, crop: int
    ) -> None:
        for own in self.read(pictures, np.int64, grid[1], plan.PICTURE_COLUMNS).tolist():
            pixels, width, channels, top, rows, taps, _, first, _, weights, _, at = own
            source = self.read(pixels + top * width * channels, np.uint8, rows, width, channels)
            column = self.read(tables + 4 * first, np.int32, crop)
            weight = self.read(tables + 4 * weights, np.int32, taps, crop)
            out = self.read(across + at, np.uint8, rows, 3, crop)
            total = np.full((rows, crop, channels), 1 << 21, np.int64)
            for tap in range(taps):
                total += source[:, np.minimum(column + tap, width - 1)].astype(np.int64) * weight[tap][None, :, None]
            out[:] = np.clip(total >> 22, 0, 255).transpose(0, 2, 1)

    def kernel_resize_down(
        self, grid: Any, constants: Any, pictures: int, tables: int, across: int, levels: int, views: int, count: int,
        images: int, crop: int,
    ) -> None:  # fmt: skip
        assert grid[0] == crop
        table = self.read(levels, np.float32, 3, 256)
        codes = self.read(views, np.int32, count).tolist()
        out = self.read(images, np.float32, grid[1], count, 3, crop, crop)
        for number, own in enumerate(self.read(pictures, np.int64, grid[1], plan.PICTURE_COLUMNS).tolist()):
            _, _, _, top, rows, _, taps, _, first, _, weights, at = own
            source = self.read(across + at, np.uint8, rows, 3, crop)
            row = self.read(tables + 4 * first, np.int32, crop) - top
            weight = self.read(tables + 4 * weights, np.int32, taps, crop)
            total = np.full((crop, 3, crop), 1 << 21, np.int64)
            for tap in range(taps):
                total += source[np.minimum(row + tap, rows - 1)].astype(np.int64) * weight[tap][:, None, None]
            byte = np.clip(total >> 22, 0, 255).transpose(1, 0, 2)
            value = np.stack([table[c][byte[c]] for c in range(3)])
            for v, code in enumerate(codes):
                out[number, v] = value[:, ::-1] if code == 1 else np.maximum(value, 0) if code == 2 else value

    def kernel_fuse_map(
        self, grid: Any, constants: Any, distance: int, views: int, count: int, low: int, part: int, region: int,
        anomaly_map: int, side: int,
    ) -> None:  # fmt: skip
        assert grid[0] == MAP_SIZE
        codes = self.read(views, np.int32, count).tolist()
        at = self.read(low, np.int32, MAP_SIZE)
        high, upper = np.minimum(at + 1, side - 1), self.read(part, np.float32, MAP_SIZE)
        rest = np.float32(1) - upper
        for own, inspected, out in zip(
            self.read(distance, np.float32, grid[1], count, side, side),
            self.read(region, np.uint8, grid[1], MAP_SIZE, MAP_SIZE),
            self.read(anomaly_map, np.float32, grid[1], MAP_SIZE, MAP_SIZE),
            strict=True,
        ):
            total = np.zeros((side, side), np.float32)
            for code, one in zip(codes, own, strict=True):
                total = total + (one[::-1] if code == 1 else one)
            across = total[:, at] * rest + total[:, high] * upper
            out[:] = np.where(inspected, across[at] * rest[:, None] + across[high] * upper[:, None], 0)

    def kernel_top_mean(self, grid: Any, constants: Any, anomaly_map: int, score: int, top: int) -> None:
        maps = np.sort(self.read(anomaly_map, np.float32, grid[0], MAP_SIZE**2), axis=1)
        self.read(score, np.float64, grid[0])[:] = maps[:, -top:].astype(np.float64).mean(axis=1)


class FakeOwner:
    """The owner's thread of a :class:`FakeDevice`."""

    def __init__(self, **settings: Any) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[Any], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, args=(settings,), daemon=True)
        self._thread.start()

    def run(self, work: Callable[[Any], Any]) -> Any:
        done: Future[Any] = Future()
        self._queue.put((work, done))
        return done.result(timeout=60)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _loop(self, settings: dict[str, Any]) -> None:
        device = FakeDevice(**settings)
        while (item := self._queue.get()) is not None:
            work, done = item
            try:
                done.set_result(work(device))
            except BaseException as exc:
                done.set_exception(exc)
