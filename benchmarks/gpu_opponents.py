"""Who searches in ``gpu_search.py``, and in what: the runtime's kernels, and other libraries on the same device memory."""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionad_runtime.cuda.interface import Buffer, Device, Graph, Stream
from visionad_runtime.cuda.kernels import Kernel, Kernels
from visionad_runtime.errors import VisionADError
from visionad_runtime.pipeline.cuda import work_tables as plan
from visionad_runtime.pipeline.cuda.work_tables import BankView

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
OURS, PRODUCT, MAXIMUM, EXPRESSION, COMPILED = "visionad", "gemm", "gemm + max", "torch", "torch compiled"
BLOCK = 16384
"""Rows uploaded at a time."""
SHARE = 4
"""A score matrix of more than this part of the free memory is made in tiles."""
CACHE = 128 << 20
"""Bytes gone through before every search: more than any GPU's cache."""


# -- what is searched --------------------------------------------------------------------------------------------------


class Rows:
    """Unit rows on the device: float32 (rows, dim), 16-bit (rows, width), and how long the longest and the most that rounding
    took are. What the chain keeps of a bank; any run of rows is a bank."""

    def __init__(
        self, device: Device, kernels: Kernels, stream: Stream, rows: int, dim: int, blocks: Iterable[F32]
    ) -> None:
        self.rows, self.dim, self.width = rows, dim, plan.packed_width(dim)
        self.quantization_error = self.quantized_norm = 0.0
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
            packed = (self.rows32, self.rows16, self.norms, rows, dim, self.width)
            kernels["pack"].launch((rows + beyond, 1), packed, stream)
            norms = device.pinned((rows, 2), np.float32)
            device.download(norms, self.norms, stream)
            stream.synchronize()
            self.quantization_error, self.quantized_norm = norms.max(axis=0).tolist()
        except BaseException:
            self.close()
            raise

    def _take(self, device: Device, nbytes: int) -> Buffer:
        self._buffers.append(device.alloc(nbytes))
        return self._buffers[-1]

    def view(self, start: int, stop: int) -> BankView:
        """Some rows as a bank."""
        return BankView(
            self.rows32.ptr + 4 * self.dim * start, self.rows16.ptr + 2 * self.width * start, stop - start,
            self.quantization_error, self.quantized_norm,
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
KernelSet = Kernels | Mapping[str, Kernel]


class Search:
    """One search by the runtime's kernels: its tables and results, and one graph of all launches."""

    def __init__(
        self, device: Device, kernels: KernelSet, stream: Stream, queries: Rows, work: Work, neighbours: int = 1
    ) -> None:
        self._device, self._kernels, self._stream, self._queries = device, kernels, stream, queries
        self._neighbours, self._buffers = neighbours, list[Buffer]()
        self._graph: Graph | None = None
        first_pass = kernels["group_maxima"]
        tile, self._programs = first_pass.constants, device.multiprocessors * first_pass.per_multiprocessor
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
        buffer = self._take(table.nbytes)
        host = self._device.pinned(table.shape, table.dtype)
        host[...] = table
        self._device.upload(buffer, host, self._stream)
        self._stream.synchronize()
        return buffer

    def _launches(self) -> Iterator[str]:
        """Enqueue kernel after kernel, and tell which it was."""
        queries, kernels, slots = self._queries, self._kernels, len(self.plan.order)
        dim, width = queries.dim, queries.width
        kernels["pack"].launch(
            (self._used, 1), (queries.rows32, queries.rows16, queries.norms, self._used, dim, width), self._stream
        )
        yield "pack"
        self.first_pass()
        yield "group_maxima"
        kernels["rescore"].launch(
            (slots, 1),
            (
                queries.rows32, queries.norms, self._order, self._job_of, self._jobs, self._bounds,
                self._maxima, self._distance, self._row, dim, width, plan.accumulation_slack(dim), self._neighbours,
            ), self._stream,
        )  # fmt: skip
        yield "rescore"

    def first_pass(self) -> None:
        """Enqueue ``group_maxima`` alone."""
        self._kernels["group_maxima"].launch(
            (self._programs, 1),
            (
                self._queries.rows16, self._order, self._jobs, self._items, self._count, self._maxima,
                self._queries.width,
            ), self._stream,
        )  # fmt: skip

    def run(self) -> None:
        """Enqueue it: the first time as it is, then by its graph."""
        if self._graph is None:
            list(self._launches())
            with self._device.capture(self._stream) as graph:
                list(self._launches())
            self._graph = graph
        else:
            self._graph.launch(self._stream)

    def deal(self, items: I32) -> None:
        """Have the programs take the first pass's work in these pieces from now on."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._items, self._count = map(self._constant, (items, np.array([len(items)], np.int32)))

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
        self.kernels["pack"].launch((self._count, 1), (*self._scratch, self._count, 512, 512), self.stream)

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
def ours(
    ground: Ground, queries: Rows, work: Work, name: str = OURS, kernels: KernelSet | None = None
) -> Iterator[tuple[Contender, Search]]:
    """The runtime's search, by its own kernels or others."""
    search = Search(ground.device, kernels or ground.kernels, ground.stream, queries, work)

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


def tile_rows(queries: int, rows: int, free: int) -> int:
    """Bank rows whose 16-bit scores are made at a time. Where those are a part of the bank, they are a multiple of 256: rows of
    scores that do not begin at a multiple of 16 bytes would cost cuBLAS its fast kernels."""
    most = free // SHARE // 2 // queries
    return rows if rows <= most else max(256, most // 256 * 256)


def torch_contenders(ground: Ground, queries: Shared, bank: Shared, compiled: bool) -> list[Contender]:
    """cuBLAS by torch: the product alone, product and maximum, the plain expression, and that compiled."""
    torch = _library("torch")
    if not torch.cuda.is_available():
        raise VisionADError("torch sees no GPU")
    q, b = torch.as_tensor(queries, device="cuda"), torch.as_tensor(bank, device="cuda")
    tile = tile_rows(len(q), len(b), torch.cuda.mem_get_info()[0])
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
    if has_torch():
        raise VisionADError("cuBLAS is called by torch here")
    cupy = _library("cupy")
    q, b = cupy.asarray(queries), cupy.asarray(bank)
    tile = tile_rows(len(q), len(b), cupy.cuda.Device().mem_info[0])
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


def has_torch() -> bool:
    """Whether torch is here and sees a GPU."""
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
            some = make(ground, queries, bank, compiled)
            for one in some:
                one.run()
            made += some
        except VisionADError as exc:
            missing[name] = str(exc)
        except Exception as exc:  # other people's libraries: no memory, no kernel for this GPU, another release's names
            missing[name] = f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
    return made, missing
