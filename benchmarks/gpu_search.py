"""The GPU's exact search side by side with cuBLAS, torch, faiss and cuVS: `python benchmarks/gpu_search.py --out FILE`.

All search the same 16-bit rows in the same GPU memory, in turns within one process, by GPU time: the runtime's kernels, torch's
product (cuBLAS) alone, and the product with its maximum, each as one CUDA graph; others as they are called. Before every timed
search another kernel has gone through more memory than the GPU's cache holds, as the backbone does at the line. What each found
is compared. A share of cuBLAS's rate is by medians, and peaks are measured here. Sizes that matter most come first, until
``--seconds`` are spent; the rest is told as skipped.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
from gpu_table import told_aim
from numpy.typing import NDArray
from visionad_runtime.bench import box, measure, roofline
from visionad_runtime.cuda import plan
from visionad_runtime.cuda.device import Owner
from visionad_runtime.cuda.interface import Buffer, Device, Graph, Stream
from visionad_runtime.cuda.kernels import Kernels
from visionad_runtime.cuda.plan import BankView
from visionad_runtime.errors import VisionADError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
OURS, PRODUCT, MAXIMUM, EXPRESSION, COMPILED = "visionad", "gemm", "gemm + max", "torch", "torch compiled"
BLOCK = 16384
"""Rows drawn and uploaded at a time."""
SHARE = 4
"""A score matrix of more than this part of the free memory is made in tiles."""
CACHE = 128 << 20
"""Bytes gone through before every search: more than any GPU's cache."""
ROUNDS, CALLS = 5, 400
HALF_SCORES = 2e-3
"""What a peer's score may be off: 16-bit operands, and a result of 16 bits (steps of 5e-4 below 1)."""
CHECKED = 64
"""Queries whose winners are scored again in float64 on the host."""
AIM = (784, 1_000_000, 1024)
"""Queries, rows, dim at which the share of cuBLAS's rate is wanted."""
AIM_SHARE = 0.75
CLASSES, SHOTS, POSES, PATCHES = 16, 4, 6, 784


# -- what is searched --------------------------------------------------------------------------------------------------


def draw(dim: int, rows: int, seed: int = 0) -> Iterator[F32]:
    """``rows`` tokens (``common.Tokens``) in blocks of at most :data:`BLOCK`, each of a seed of its own, so that all cores draw."""

    def block(number: int) -> F32:
        tokens = common.Tokens(dim)
        tokens.rng = np.random.default_rng((seed, number))
        return tokens.draw(min(BLOCK, rows - number * BLOCK))

    workers = min(16, os.cpu_count() or 1)
    numbers = range(-(-rows // BLOCK))
    with ThreadPoolExecutor(workers) as pool:  # a few at a time: all of them would not fit the host
        for start in range(0, len(numbers), workers):
            yield from pool.map(block, numbers[start : start + workers])


class Rows:
    """Unit rows on the device: float32 (rows, dim), 16-bit (rows, width), and how long the longest and the most that rounding
    took are. What the chain keeps of a bank; any run of rows is a bank."""

    def __init__(
        self, device: Device, kernels: Kernels, stream: Stream, rows: int, dim: int, blocks: Iterable[F32]
    ) -> None:
        self.rows, self.dim, self.width = rows, dim, plan.packed_width(dim)
        self.lost = self.kept = 0.0
        self._buffers: list[Buffer] = []
        try:
            self.rows32 = self._take(device, 4 * rows * dim)
            # The last tile reads beyond the last row.
            beyond = kernels["group_maxima"].constants["BLOCK_N"]
            self.rows16 = self._take(device, 2 * self.width * (rows + beyond))
            self.norms = self._take(device, 8 * rows)
            host, at = device.pinned((min(BLOCK, rows), dim), np.float32), 0
            for block in blocks:
                host[: len(block)] = block
                device.upload(self.rows32, host[: len(block)], stream, 4 * dim * at)
                stream.synchronize()
                at += len(block)
            assert at == rows
            kernels["pack"].launch((rows, 1), (self.rows32, self.rows16, self.norms, dim, self.width), stream)
            norms = device.pinned((rows, 2), np.float32)
            device.download(norms, self.norms, stream)
            stream.synchronize()
            self.lost, self.kept = norms.max(axis=0).tolist()
        except BaseException:
            self.close()
            raise

    def _take(self, device: Device, nbytes: int) -> Buffer:
        self._buffers.append(device.alloc(nbytes))
        return self._buffers[-1]

    def view(self, start: int, stop: int) -> BankView:
        """Some rows as a bank."""
        return BankView(
            self.rows32.ptr + 4 * self.dim * start, self.rows16.ptr + 2 * self.width * start, stop - start, self.lost,
            self.kept,
        )  # fmt: skip

    def half(self, count: int) -> Shared:
        """The first rows in 16 bits."""
        return Shared(self.rows16.ptr, (count, self.width))

    def close(self) -> None:
        while self._buffers:
            self._buffers.pop().close()


class Shared:
    """16-bit device memory as other libraries take it, without a copy."""

    def __init__(self, ptr: int, shape: tuple[int, int]) -> None:
        self.shape, self.dtype = shape, np.dtype(np.float16)
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f2", "data": (ptr, False), "strides": None, "version": 3,
        }  # fmt: skip


Work = Sequence[tuple[BankView, I32]]
"""Banks, and the numbers of the query rows to search them for."""


class Search:
    """One search by the runtime's kernels: its tables and results, and one graph of all launches."""

    def __init__(
        self, device: Device, kernels: Kernels, stream: Stream, queries: Rows, work: Work, neighbours: int = 1
    ) -> None:
        self._device, self._kernels, self._stream, self._queries = device, kernels, stream, queries
        self._neighbours, self._buffers = neighbours, list[Buffer]()
        self._graph: Graph | None = None
        tile = kernels["group_maxima"].constants
        self._programs = device.multiprocessors * tile["per_multiprocessor"]
        self._used = 1 + max(int(rows.max()) for _, rows in work)
        self.plan = plan.plan_search(work, tile["BLOCK_Q"], tile["BLOCK_N"], self._programs, neighbours)
        try:
            found, count = self.plan, np.array([len(self.plan.items)], np.int32)
            tables = (found.order, found.job_of, found.jobs, found.bounds, found.items, count)
            self._order, self._job_of, self._jobs, self._bounds, self._items, self._count = map(self._constant, tables)
            self._maxima = self._take(4 * found.maxima)
            size = self._used * neighbours
            self._distance, self._row = self._take(4 * size), self._take(4 * size)
            self._found = device.pinned((self._used, neighbours), np.float32)
            self._rows = device.pinned((self._used, neighbours), np.int32)
        except BaseException:
            self.close()
            raise

    def _take(self, nbytes: int) -> Buffer:
        self._buffers.append(self._device.alloc(max(nbytes, 16)))
        return self._buffers[-1]

    def _constant(self, table: NDArray[Any]) -> Buffer:
        buffer, host = self._take(table.nbytes), self._device.pinned(table.shape, table.dtype)
        host[...] = table
        self._device.upload(buffer, host, self._stream)
        self._stream.synchronize()
        return buffer

    def _launches(self) -> Iterator[str]:
        """Enqueue kernel after kernel, and tell which it was."""
        queries, kernels, slots = self._queries, self._kernels, len(self.plan.order)
        dim, width = queries.dim, queries.width
        kernels["pack"].launch(
            (self._used, 1), (queries.rows32, queries.rows16, queries.norms, dim, width), self._stream
        )
        yield "pack"
        kernels["group_maxima"].launch(
            (self._programs, 1),
            (queries.rows16, self._order, self._jobs, self._items, self._count, self._maxima, width), self._stream,
        )  # fmt: skip
        yield "group_maxima"
        kernels["rescore"].launch(
            (slots, 1),
            (
                queries.rows32, queries.norms, self._order, self._job_of, self._jobs, self._bounds, self._maxima,
                self._distance, self._row, dim, plan.accumulation_slack(dim), self._neighbours,
            ), self._stream,
        )  # fmt: skip
        yield "rescore"

    def run(self) -> None:
        """Enqueue it: the first time as it is, then by its graph."""
        if self._graph is None:
            list(self._launches())
            with self._device.capture(self._stream) as graph:
                list(self._launches())
            self._graph = graph
        else:
            self._graph.launch(self._stream)

    def stages(self) -> dict[str, float]:
        """Milliseconds of each kernel, launched one by one."""
        marks = {name: self._device.event() for name in ("start", "pack", "group_maxima", "rescore")}
        marks["start"].record(self._stream)
        for name in self._launches():
            marks[name].record(self._stream)
        self._stream.synchronize()
        return {name: marks[name].elapsed_ms(marks[before]) for before, name in itertools.pairwise(marks)}

    def found(self) -> tuple[F32, I32]:
        """Distances and rows (Q, k) of the last run; the rows count from each bank's first."""
        self._device.download(self._found, self._distance, self._stream)
        self._device.download(self._rows, self._row, self._stream)
        self._stream.synchronize()
        return self._found.copy(), self._rows.copy()

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        while self._buffers:
            self._buffers.pop().close()


# -- who searches ------------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """``run`` searches once and gives the GPU's milliseconds; ``found`` gives the best score and row of each query, or ``None``
    where none is looked for. ``how``: by which launch, by which clock."""

    name: str
    how: str
    run: Callable[[], float]
    found: Callable[[], tuple[F32, NDArray[Any]]] | None = None


@dataclass
class Ground:
    """What all use: the device, the runtime's kernels, a stream, and something that empties the cache."""

    device: Device
    kernels: Kernels
    stream: Stream
    cache: int = CACHE
    _scratch: list[Buffer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._count = self.cache // 4 // 512
        self._scratch = [self.device.alloc(n * self._count) for n in (4 * 512, 2 * 512, 8)]

    def flush(self) -> None:
        """Enqueue going through more memory than the cache holds."""
        self.kernels["pack"].launch((self._count, 1), (*self._scratch, 512, 512), self.stream)

    def timed(self, enqueue: Callable[[], object]) -> float:
        """Milliseconds between events around what is enqueued on the stream, which it is while :meth:`flush` still runs."""
        begin, end = self.device.event(), self.device.event()
        self.flush()
        begin.record(self.stream)
        enqueue()
        end.record(self.stream)
        end.synchronize()
        return end.elapsed_ms(begin)

    def close(self) -> None:
        while self._scratch:
            self._scratch.pop().close()


@contextmanager
def ours(ground: Ground, queries: Rows, work: Work, name: str = OURS) -> Iterator[tuple[Contender, Search]]:
    """The runtime's search."""
    search = Search(ground.device, ground.kernels, ground.stream, queries, work)

    def found() -> tuple[F32, NDArray[Any]]:
        distance, row = search.found()
        return 1 - distance[:, 0], row[:, 0]

    try:
        search.run()  # as it is; from now on by its graph
        ground.stream.synchronize()
        yield Contender(name, "graph, events", lambda: ground.timed(search.run), found), search
    finally:
        search.close()


Make = Callable[[Ground, Shared, Shared, bool], list[Contender]]
"""Ground, queries, bank, whether this size is worth compiling for → contenders.

Raises:
    VisionADError: why there are none.
"""


def torch_contenders(ground: Ground, queries: Shared, bank: Shared, compiled: bool) -> list[Contender]:
    """cuBLAS by torch: the product alone, product and maximum, the plain expression, and that compiled."""
    torch = _library("torch")
    if not torch.cuda.is_available():
        raise VisionADError("torch sees no GPU")
    q, b = torch.as_tensor(queries, device="cuda"), torch.as_tensor(bank, device="cuda")
    tile = min(len(b), max(1, torch.cuda.mem_get_info()[0] // SHARE // 2 // len(q)))
    scores = torch.empty(len(q) * tile, dtype=torch.float16, device="cuda")
    best, row = (
        torch.empty(len(q), dtype=torch.float16, device="cuda"),
        torch.empty(len(q), dtype=torch.int64, device="cuda"),
    )
    stream = torch.cuda.ExternalStream(ground.stream.handle)

    def product(start: int) -> Any:
        part = b[start : start + tile]
        return torch.mm(q, part.t(), out=scores[: len(q) * len(part)].view(len(q), len(part)))

    def products() -> None:
        for start in range(0, len(b), tile):
            product(start)

    def maximum() -> None:
        torch.max(product(0), dim=1, out=(best, row))
        for start in range(tile, len(b), tile):
            value, where = torch.max(product(start), dim=1)
            better = value > best
            best.copy_(torch.where(better, value, best))
            row.copy_(torch.where(better, where + start, row))

    def timed(work: Callable[[], object]) -> float:
        with torch.cuda.stream(stream):
            return ground.timed(work)

    def graphed(work: Callable[[], object]) -> Callable[[], float]:
        with torch.cuda.stream(stream):
            work()  # sets cuBLAS up, which cannot be recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
        return partial(timed, graph.replay)

    def found() -> tuple[F32, NDArray[Any]]:
        torch.cuda.synchronize()
        return best.float().cpu().numpy(), row.cpu().numpy()

    out = [
        Contender(PRODUCT, "graph, events", graphed(products)),
        Contender(MAXIMUM, "graph, events", graphed(maximum), found),
    ]
    if tile < len(b):  # the whole matrix would not fit
        return out

    def expression(q: Any, b: Any) -> Any:
        return torch.max(q @ b.t(), dim=1)

    calls = {EXPRESSION: expression} | ({COMPILED: torch.compile(expression, dynamic=False)} if compiled else {})
    for name, call in calls.items():
        one = partial(call, q, b)
        one()  # compiling is no part of it
        out.append(Contender(name, "calls, events", partial(timed, one), partial(_torch_found, one)))
    return out


def _torch_found(call: Callable[[], Any]) -> tuple[F32, NDArray[Any]]:
    value, where = call()
    return value.float().cpu().numpy(), where.cpu().numpy()


def cupy_contenders(ground: Ground, queries: Shared, bank: Shared, _: bool) -> list[Contender]:
    """cuBLAS by cupy, where there is no torch."""
    if _has_torch():
        raise VisionADError("cuBLAS is called by torch here")
    cupy = _library("cupy")
    q, b = cupy.asarray(queries), cupy.asarray(bank)
    tile = min(len(b), max(1, cupy.cuda.Device().mem_info[0] // SHARE // 2 // len(q)))
    scores = cupy.empty(len(q) * tile, cupy.float16)
    best, row = cupy.empty(len(q), cupy.float16), cupy.empty(len(q), cupy.int64)

    def product(start: int) -> Any:
        part = b[start : start + tile]
        return cupy.matmul(q, part.T, out=scores[: len(q) * len(part)].reshape(len(q), len(part)))

    def products() -> None:
        for start in range(0, len(b), tile):
            product(start)

    def maximum() -> None:
        for start in range(0, len(b), tile):
            part = product(start)
            where = part.argmax(axis=1)
            value = cupy.take_along_axis(part, where[:, None], axis=1)[:, 0]
            better = value > best if start else cupy.ones(len(q), bool)
            best[...] = cupy.where(better, value, best)
            row[...] = cupy.where(better, where + start, row)

    def timed(work: Callable[[], object]) -> float:
        with cupy.cuda.ExternalStream(ground.stream.handle):
            return ground.timed(work)

    def found() -> tuple[F32, NDArray[Any]]:
        return cupy.asnumpy(best).astype(np.float32), cupy.asnumpy(row)

    return [
        Contender(PRODUCT, "calls, events", partial(timed, products)),
        Contender(MAXIMUM, "calls, events", partial(timed, maximum), found),
    ]


def faiss_contenders(ground: Ground, queries: Shared, bank: Shared, _: bool) -> list[Contender]:
    """faiss's brute force on the GPU, on torch tensors."""
    faiss, torch = _library("faiss"), _library("torch")
    if not hasattr(faiss, "StandardGpuResources"):
        raise VisionADError("faiss here is the CPU's")
    importlib.import_module("faiss.contrib.torch_utils")
    resources = faiss.StandardGpuResources()
    q, b = torch.as_tensor(queries, device="cuda"), torch.as_tensor(bank, device="cuda")

    def call() -> tuple[Any, Any]:
        found: tuple[Any, Any] = faiss.knn_gpu(resources, q, b, 1, metric=faiss.METRIC_INNER_PRODUCT)
        return found

    def found() -> tuple[F32, NDArray[Any]]:
        score, row = call()
        return score[:, 0].float().cpu().numpy(), row[:, 0].cpu().numpy()

    return [Contender("faiss", "calls, wall clock", lambda: _wall(ground, call, torch.cuda.synchronize), found)]


def cuvs_contenders(ground: Ground, queries: Shared, bank: Shared, _: bool) -> list[Contender]:
    """cuVS's brute force; it waits for its results itself."""
    brute_force = _library("cuvs.neighbors").brute_force
    index = brute_force.build(bank, metric="inner_product")

    def call() -> tuple[Any, Any]:
        found: tuple[Any, Any] = brute_force.search(index, queries, 1)
        return found

    def found() -> tuple[F32, NDArray[Any]]:
        score, row = (one.copy_to_host()[:, 0] for one in call())
        return score.astype(np.float32), row

    return [Contender("cuvs", "calls, wall clock", lambda: _wall(ground, call, lambda: None), found)]


PEERS: dict[str, Make] = {
    "torch": torch_contenders,
    "cupy": cupy_contenders,
    "faiss": faiss_contenders,
    "cuvs": cuvs_contenders,
}


def _wall(ground: Ground, call: Callable[[], object], wait: Callable[[], object]) -> float:
    ground.flush()
    ground.stream.synchronize()
    start = time.perf_counter()
    call()
    wait()
    return (time.perf_counter() - start) * 1e3


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise VisionADError(f"{name} is not here ({exc})") from None


def _has_torch() -> bool:
    try:
        return bool(_library("torch").cuda.is_available())
    except VisionADError:
        return False


def make_peers(
    peers: Mapping[str, Make], ground: Ground, queries: Shared, bank: Shared, compiled: bool
) -> tuple[list[Contender], dict[str, str]]:
    """Those that run here, and why others do not."""
    made: list[Contender] = []
    missing: dict[str, str] = {}
    for name, make in peers.items():
        try:
            made += make(ground, queries, bank, compiled)
        except VisionADError as exc:
            missing[name] = str(exc)
        except Exception as exc:  # other people's libraries: no memory, no kernel for this GPU, another release's names
            missing[name] = f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
    return made, missing


# -- measuring ---------------------------------------------------------------------------------------------------------


def _give_back() -> None:
    """torch keeps what it has freed; the next size needs it."""
    if _has_torch():
        gc.collect()
        sys.modules["torch"].cuda.empty_cache()


class GpuClock:
    """Time that passes on the GPU alone, so that ``measure.race`` deals turns by it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def entrant(self, contender: Contender) -> measure.Entrant:
        def call(_: int) -> None:
            self.seconds += contender.run() / 1e3

        return measure.Entrant(contender.name, call)


def race(contenders: Sequence[Contender], seconds: float) -> dict[str, dict[str, Any]]:
    """Milliseconds of each, timed in turns for about ``seconds`` of the GPU each, or :data:`CALLS` of the fastest."""
    clock = GpuClock()
    seconds = min(seconds, CALLS * min(c.run() for c in contenders) / 1e3)
    entrants = [clock.entrant(c) for c in contenders]
    measure.race(entrants, seconds, ROUNDS, clock=clock)
    return {c.name: {**measure.summarise(e.times), "how": c.how} for c, e in zip(contenders, entrants, strict=True)}


@dataclass(frozen=True)
class Size:
    """Of a search: ``queries`` against ``rows`` of ``dim``."""

    queries: int
    rows: int
    dim: int

    def __str__(self) -> str:
        return f"{self.queries} x {self.rows} x {self.dim}"


def cell(
    ground: Ground, size: Size, queries: Rows, bank: Rows, seconds: float, peers: Mapping[str, Make], compiled: bool
) -> dict[str, Any]:
    """One size: everybody's times, whether they agree, what was reached."""
    with ours(ground, queries, [(bank.view(0, size.rows), np.arange(size.queries, dtype=np.int32))]) as (own, search):
        others, missing = make_peers(peers, ground, queries.half(size.queries), bank.half(size.rows), compiled)
        times = race([own, *others], seconds)
        assert own.found is not None
        score, row = own.found()
        exact = _exact(ground, queries, bank, row)
        off = float(np.abs(exact - score[_some(len(score))]).max())
        if not off <= 2e-7:  # a float32 distance of unit rows, and the score from it
            raise VisionADError(f"{size}: the score found is off the row's own by {off:.2g}")
        for other in others:
            if other.found is not None:
                _agree(size, other.name, score, exact, *other.found(), ground, queries, bank)
        return {
            "queries": size.queries, "rows": size.rows, "dim": size.dim, "ms": times, "missing": missing,
            "kernels_ms": {k: round(v, 4) for k, v in _stages(ground, search).items()},
        }  # fmt: skip


def _stages(ground: Ground, search: Search) -> dict[str, float]:
    ground.flush()
    return search.stages()


def _agree(
    size: Size, name: str, score: F32, exact: NDArray[np.float64], theirs: F32, row: NDArray[Any], ground: Ground,
    queries: Rows, bank: Rows,
) -> None:  # fmt: skip
    """A peer's 16-bit scores are ours but for rounding, and no row it found is nearer than ours."""
    apart = float(np.abs(theirs - score).max())
    if not apart <= HALF_SCORES:
        raise VisionADError(f"{size}: {name} and the runtime differ by {apart:.2g}; they do not search the same rows")
    nearer = float((_exact(ground, queries, bank, row) - exact).max())
    if nearer > 1e-9:
        raise VisionADError(f"{size}: {name} found a row nearer by {nearer:.2g} than the runtime's")


def _exact(ground: Ground, queries: Rows, bank: Rows, row: NDArray[Any]) -> NDArray[np.float64]:
    """Float64 scores of some queries with these rows, fetched from the device."""
    device, stream = ground.device, ground.stream
    some = _some(len(row))
    left, right = (device.pinned((len(some), bank.dim), np.float32) for _ in range(2))
    for i, query in enumerate(some.tolist()):
        device.download(left[i], queries.rows32, stream, 4 * bank.dim * query)
        device.download(right[i], bank.rows32, stream, 4 * bank.dim * int(row[query]))
    stream.synchronize()
    return np.einsum("pd,pd->p", left.astype(np.float64), right.astype(np.float64))


def _some(count: int) -> NDArray[np.int64]:
    """At most :data:`CHECKED` queries of ``count``, spread over all of them."""
    return np.unique(np.linspace(0, count - 1, min(CHECKED, count)).astype(np.int64))


def mixed(
    ground: Ground, dim: int, rows: int, patches: int, bank: Rows, queries: Rows, seconds: float
) -> dict[str, Any]:
    """A picture of each of :data:`CLASSES` classes of ``rows`` rows in one launch; as many pictures of one class as large as all
    of them; and of one class of ``rows``: as many products, a 16th of the memory."""
    every = np.split(np.arange(CLASSES * patches, dtype=np.int32), CLASSES)
    works: dict[str, Work] = {
        "mixed": [(bank.view(i * rows, (i + 1) * rows), part) for i, part in enumerate(every)],
        "one class, all rows": [(bank.view(0, CLASSES * rows), part) for part in every],
        "one class, same work": [(bank.view(0, rows), part) for part in every],
    }
    with ExitStack() as stack:
        contenders = [stack.enter_context(ours(ground, queries, w, name))[0] for name, w in works.items()]
        times = race(contenders, seconds)
    p50 = {name: t["p50"] for name, t in times.items()}
    return {
        "classes": CLASSES, "rows_a_class": rows, "queries": CLASSES * patches, "dim": dim, "ms": times,
        "ratio": {name: round(p50["mixed"] / p50[name], 4) for name in works if name != "mixed"},
    }  # fmt: skip


def judged(found: dict[str, Any], peaks: roofline.Peaks | None) -> dict[str, Any]:
    """Rates and shares of a cell by medians."""
    p50 = {name: t["p50"] for name, t in found["ms"].items()}
    own = p50[OURS]
    work = roofline.Work(
        2.0 * found["queries"] * found["rows"] * found["dim"],
        2.0 * (found["queries"] + found["rows"]) * found["dim"] + 8.0 * found["queries"],
    )
    return {
        **found,
        "tflop_per_s": round(work.flops / own / 1e9, 2),
        "gb_per_s": round(work.bytes / own / 1e6, 1),
        "share_of_peak": round(work.flops / (own / 1e3) / peaks.flops, 4) if peaks else None,
        "share_of_bandwidth": round(work.bytes / (own / 1e3) / peaks.bytes, 4) if peaks else None,
        "share_of_roof": roofline.assess(work, own / 1e3, peaks)["share_of_roof"],
        "share_of_cublas": round(p50[PRODUCT] / own, 4) if PRODUCT in p50 else None,
        "to_gemm_and_max": round(own / p50[MAXIMUM], 4) if MAXIMUM in p50 else None,
    }


def aims(cells: Sequence[Mapping[str, Any]], mixtures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was wanted, and whether it is so: ``pass`` true, false, or ``None`` where it was not measured."""
    wanted = [c for c in cells if (c["queries"], c["rows"], c["dim"]) == AIM and c["share_of_cublas"] is not None]
    share = wanted[0]["share_of_cublas"] if wanted else None
    beside = [c for c in cells if c["to_gemm_and_max"] is not None]
    slowest = max(beside, key=lambda c: c["to_gemm_and_max"], default=None)
    worst = max((m["ratio"]["one class, all rows"] for m in mixtures), default=None)
    same = max((m["ratio"]["one class, same work"] for m in mixtures), default=None)
    return [
        {
            "aim": f"search at {' x '.join(map(str, AIM))}: at least {AIM_SHARE:.0%} of cuBLAS's rate",
            "found": None if share is None else f"{share:.1%}",
            "pass": None if share is None else share >= AIM_SHARE,
        },
        {
            "aim": "search never slower than GEMM + max",
            "found": slowest
            and f"at most {slowest['to_gemm_and_max']:.3f} of its time, at {slowest['queries']} x {slowest['rows']} x "
            f"{slowest['dim']}, of {len(beside)} sizes",
            "pass": slowest and slowest["to_gemm_and_max"] <= 1,
        },
        {
            "aim": f"{CLASSES} classes x {SHOTS} shots mixed no slower than one class of that size",
            "found": None if worst is None else f"{worst:.3f} of its time; {same:.3f} of one class with the same work",
            "pass": None if worst is None else worst <= 1,
        },
    ]


def passes(rows: Sequence[int], dims: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Banks in the order they are made, as (dim, row counts that are searched in it): those of up to a million rows first, as a
    larger one takes long to make."""
    few, many = [n for n in rows if n <= AIM[1]], [n for n in rows if n > AIM[1]]
    return [(dim, sorted(part, reverse=True)) for part in (few, many) if part for dim in dims]


@dataclass
class Limits:
    """``until``: when no new size is begun. ``seconds`` of the GPU for each contender at each size."""

    until: float
    seconds: float

    def left(self) -> bool:
        return time.monotonic() < self.until


def measure_all(device: Device, args: argparse.Namespace, peers: Mapping[str, Make] = PEERS) -> dict[str, Any]:
    """All sizes, on the owner's thread."""
    limits = Limits(time.monotonic() + args.seconds, args.each)
    stream = device.stream()
    ground = Ground(device, Kernels(device), stream, args.cache)
    peaks = {kind: roofline.gpu_peaks(kind) for kind in ("fp16", "bf16")}
    fp16 = peaks["fp16"]
    own = fp16 if isinstance(fp16, roofline.Peaks) else None
    cells: list[dict[str, Any]] = []
    mixtures: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    print(HEADER, flush=True)
    for dim, rows in passes(args.rows, args.dims):
        sizes = [Size(q, n, dim) for n in rows for q in args.queries]
        if not limits.left():
            skipped |= dict.fromkeys(map(str, sizes), f"no time left of {args.seconds:g} s")
            continue
        try:
            with ExitStack() as stack:
                made = Rows(device, ground.kernels, stream, rows[0], dim, draw(dim, rows[0]))
                stack.callback(made.close)
                asked = max(*args.queries, CLASSES * args.patches)
                queries = Rows(device, ground.kernels, stream, asked, dim, draw(dim, asked, 1))
                stack.callback(queries.close)
                for size in sorted(sizes, key=lambda s: (s.queries, s.rows) != AIM[:2]):
                    if not limits.left():
                        skipped[str(size)] = f"no time left of {args.seconds:g} s"
                        continue
                    compiled = args.compiled and (size.queries, size.rows) == AIM[:2]
                    try:
                        found = cell(ground, size, queries, made, limits.seconds, peers, compiled)
                    except VisionADError as exc:
                        if "out of GPU memory" not in str(exc):
                            raise
                        skipped[str(size)] = str(exc)
                        continue
                    finally:
                        _give_back()
                    cells.append(judged(found, own))
                    print(line(cells[-1]), flush=True)
                if rows[0] <= AIM[1] and rows[0] >= CLASSES * args.class_rows and limits.left():
                    mixtures.append(mixed(ground, dim, args.class_rows, args.patches, made, queries, limits.seconds))
        except VisionADError as exc:
            if "out of GPU memory" not in str(exc):
                raise
            skipped |= {str(s): str(exc) for s in sizes if str(s) not in skipped}
    ground.close()
    return {
        "gpu": device.name, "capability": ".".join(map(str, device.capability)), "target": ground.kernels.target,
        "peaks": {
            kind: {"tflop_per_s": round(p.flops / 1e12, 1), "gb_per_s": round(p.bytes / 1e9, 1), "how": p.how}
            if isinstance(p, roofline.Peaks)
            else {"tflop_per_s": None, "gb_per_s": None, "why_null": p}
            for kind, p in peaks.items()
        },
        "cells": cells, "mixed": mixtures, "aims": aims(cells, mixtures), "skipped": skipped,
    }  # fmt: skip


# -- telling -----------------------------------------------------------------------------------------------------------

COLUMNS = (OURS, PRODUCT, MAXIMUM, EXPRESSION, "faiss", "cuvs")
HEADER = (
    f"{'queries x rows x dim':<24}"
    + "".join(f"{name:>11}" for name in COLUMNS)
    + f"{'p99':>9}{'TFLOP/s':>9}{'GB/s':>8}{'peak':>6}{'cuBLAS':>7}   p50 ms; p99 and rates: visionad's"
)


def line(found: Mapping[str, Any]) -> str:
    """A row of the table."""
    p50 = "".join(f"{_number(found['ms'].get(name, {}).get('p50')):>11}" for name in COLUMNS)
    shares = (f"{'-' if s is None else format(s, '.0%')}" for s in (found["share_of_peak"], found["share_of_cublas"]))
    return (
        f"{Size(found['queries'], found['rows'], found['dim'])!s:<24}{p50}{_number(found['ms'][OURS]['p99']):>9}"
        f"{found['tflop_per_s']:>9.1f}{found['gb_per_s']:>8.0f}{next(shares):>6}{next(shares):>7}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else format(value, ".4g")


def summary(report: Mapping[str, Any]) -> list[str]:
    """What comes below the rows."""
    lines = [
        f"{m['classes']} classes of {m['rows_a_class']} rows mixed, {m['queries']} queries, dim {m['dim']}: "
        + ", ".join(f"{name} {_number(t['p50'])} ms" for name, t in m["ms"].items())
        for m in report["mixed"]
    ]
    for kind, peak in report["peaks"].items():
        told = peak.get("why_null") or f"{peak['tflop_per_s']} TFLOP/s, {peak['gb_per_s']} GB/s ({peak['how']})"
        lines.append(f"peak {kind}: {told}")
    missing = {name: why for c in report["cells"] for name, why in c["missing"].items()}
    lines += [f"not beside: {name}: {why}" for name, why in missing.items()]
    reasons: dict[str, list[str]] = {}
    for size, why in report["skipped"].items():
        reasons.setdefault(why, []).append(size)
    lines += [f"skipped: {why} ({', '.join(sizes)})" for why, sizes in reasons.items()]
    return lines + [told_aim(aim) for aim in report["aims"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write ``--out``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, nargs="+", default=[1000, 5000, 50_000, 500_000, 1_000_000, 4_000_000])
    options.add_argument("--dims", type=int, nargs="+", default=[1024, 384, 768, 192])
    options.add_argument("--queries", type=int, nargs="+", default=[PATCHES, 3 * PATCHES, 8 * PATCHES, 32 * PATCHES])
    options.add_argument("--patches", type=int, default=PATCHES, help="queries a picture, in the mixture of classes")
    options.add_argument("--class-rows", type=int, default=SHOTS * POSES * PATCHES, help="rows a class, there")
    options.add_argument("--seconds", type=float, default=240, help="after which no new size is begun")
    options.add_argument("--each", type=float, default=0.3, help="seconds of GPU time of each contender at each size")
    options.add_argument("--cache", type=int, default=CACHE, help="bytes gone through before every search")
    options.add_argument("--compiled", action="store_true", help="torch.compile too, at the size of the first aim")
    options.add_argument("--out", type=Path, help="JSON file")
    args = options.parse_args(argv)
    try:
        report = Owner.of(0).run(lambda device: measure_all(device, args))
    except VisionADError as exc:
        print(f"gpu_search: {exc}", file=sys.stderr)
        return 2
    report = {"environment": box.environment(), **report}
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(summary(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
