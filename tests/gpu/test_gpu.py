"""On the hardware: what other tests drive against stand-ins; `benchmarks/gpu.sh` runs it. Without an NVIDIA GPU the engines are
skipped, and everything else runs on stand-ins at smaller sizes: numpy's kernels, the kernels' own source interpreted, and, in a
process of its own (`test_pretend_driver.py`), pycuda and `device.py` on a pretended driver."""

from __future__ import annotations

import importlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime import Inspector, preprocess, search
from visionad_runtime.bank.memory_bank import MemoryBank
from visionad_runtime.cli.main import run
from visionad_runtime.cuda import thread
from visionad_runtime.cuda.device import Device
from visionad_runtime.cuda.kernels import Kernels
from visionad_runtime.cuda.memory import ResourceScope
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.engine.base import NVIDIA_GPU, Engine
from visionad_runtime.engine.registry import backend_spec, backends
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import ModelManifest, read_manifest
from visionad_runtime.pipeline.cuda import slot
from visionad_runtime.pipeline.cuda.outputs import ExecutorOutput
from visionad_runtime.pipeline.cuda.pipeline import CudaPipeline
from visionad_runtime.pipeline.host import HostPipeline
from visionad_runtime.pipeline.opening import open_engine
from visionad_runtime.pipeline.self_test import GOLDEN_TOLERANCE, POSITION_TOLERANCE
from visionad_runtime.preprocess import normalise
from visionad_runtime.scoring.anomaly_map import fuse, top_k_mean, upsample
from visionad_runtime.scoring.self_similarity import MIN_DISTANCE, self_similarity_weight
from visionad_runtime.system import has_nvidia_driver

from tests import cache
from tests.data import ROOT, in_threads, noise, part, slow, unit
from tests.fakes.engine import VIEWS
from tests.fakes.places import PRETENDED, SIZES, Line, Place, stand_in
from tests.oracles import brute_force, check_neighbours, every

T = TypeVar("T")
F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
OnDevice = Callable[[Callable[[Device], T]], T]
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
ON_GPU = tuple(spec.name for spec in backends().values() if spec.device == NVIDIA_GPU)
on_hardware = pytest.mark.skipif(not has_nvidia_driver(), reason="no GPU")


# -- where -------------------------------------------------------------------------------------------------------------

PLACES = ("hardware",) if has_nvidia_driver() else ("driver",) if PRETENDED else ("numpy", "interpreter")
not_interpreted = pytest.mark.parametrize("place", [p for p in PLACES if SIZES[p]["calls"]], indirect=True)
"""What takes too long there, and is interpreted elsewhere."""


@pytest.fixture(params=[slow("interpreter", p) if p == "interpreter" else p for p in PLACES])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The GPU, or each stand-in, behind an owner's thread."""
    if request.param != "hardware":
        monkeypatch.setattr(DeviceThread, "_all", {})
        monkeypatch.setattr(thread, "Device", stand_in(request.param))
        if request.param == "interpreter":
            monkeypatch.setattr(slot, "ROW_PROGRAMS", 4)
    try:
        DeviceThread.of(0).run(lambda device: device.name)
    except VisionADError as exc:
        pytest.skip(str(exc))
    yield Place(request.param, DeviceThread.of(0), **SIZES[request.param])
    if request.param != "hardware":
        DeviceThread.of(0).close()
    if request.param == "driver":
        pretended = importlib.import_module("tests.fakes.pretend_driver").set_up()
        assert not pretended.fault() and not pretended.live()


@pytest.fixture
def on_device(place: Place) -> OnDevice[object]:
    """Runs work on the owner's thread."""
    return place.owner.run


# -- device ------------------------------------------------------------------------------------------------------------


def test_what_is_uploaded_comes_back(on_device: OnDevice[object]) -> None:
    def work(device: Device) -> None:
        stream = device.stream()
        there, back = device.pinned((1000, 3), np.float32), device.pinned((1000, 3), np.float32)
        there[:] = np.random.default_rng(0).standard_normal(there.shape)
        buffer = device.alloc(2 * there.nbytes)
        before = device.event()
        before.record(stream)
        device.upload(buffer, there, stream, offset=there.nbytes)
        device.download(back, buffer, stream, offset=there.nbytes)
        after = device.event()
        after.record(stream)
        after.synchronize()
        np.testing.assert_array_equal(back, there)
        assert after.elapsed_ms(before) > 0
        buffer.close()

    on_device(work)


@not_interpreted
def test_memory_is_given_back(on_device: OnDevice[object]) -> None:
    def work(device: Device) -> None:
        free = device.free_memory()
        buffer = device.alloc(256 * 2**20)
        assert device.free_memory() <= free - 256 * 2**20
        buffer.close()
        assert device.free_memory() >= free - 2**20

    on_device(work)


def test_too_much_memory_is_one_line_and_the_device_lives_on(on_device: OnDevice[object]) -> None:
    def work(device: Device) -> None:
        with pytest.raises(VisionADError, match="out of GPU memory"):
            device.alloc(2 * device.total_memory)
        device.alloc(4).close()

    on_device(work)


def test_a_graph_does_again_what_was_recorded(on_device: OnDevice[object]) -> None:
    def work(device: Device) -> None:
        stream = device.stream()
        there, back = device.pinned(64, np.int32), device.pinned(64, np.int32)
        back[:] = -1
        buffer = device.alloc(there.nbytes)
        with device.capture(stream) as graph:
            device.upload(buffer, there, stream)
            device.download(back, buffer, stream)
        stream.synchronize()
        assert (back == -1).all()  # recorded, not run
        for value in (3, 5):
            there[:] = value
            graph.launch(stream)
            stream.synchronize()
            assert (back == value).all()
        graph.close()
        buffer.close()

    on_device(work)


# -- kernels -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_search(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark of the search, which launches it as the chain does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_search")


def searched(
    gpu_search: Any, place: Place, queries: F32, work: Sequence[tuple[F32, I32]], neighbours: int = 1
) -> tuple[F32, I32]:
    """Distances and rows (Q, k) of query rows against banks, in one launch. As enqueued and by its graph they are the same."""

    def run(device: Device) -> tuple[F32, I32]:
        kernels, stream = Kernels(device), device.stream()
        with ExitStack() as stack:

            def resident(rows: F32) -> Any:
                made = gpu_search.Rows(device, kernels, stream, *rows.shape, blocks(rows))
                stack.callback(made.close)
                return made

            def blocks(rows: F32) -> Iterator[F32]:
                for start in range(0, len(rows), gpu_search.BLOCK):
                    yield rows[start : start + gpu_search.BLOCK]

            banks = {id(bank): resident(bank) for bank, _ in work}
            views = [(banks[id(bank)].view(0, len(bank)), rows) for bank, rows in work]
            one = gpu_search.Search(device, kernels, stream, resident(queries), views, neighbours)
            stack.callback(one.close)
            found = []
            for _ in range(3):
                one.run()
                found.append(one.found())
            for distance, row in found[1:]:
                np.testing.assert_array_equal(distance, found[0][0])
                np.testing.assert_array_equal(row, found[0][1])
            result: tuple[F32, I32] = found[0]
            return result

    return place.owner.run(run)


@pytest.mark.parametrize(
    ("rows", "dim"), [(1, 3), (1, 384), (7, 97), (31, 64), (1000, 385), (5000, 192), (5003, 1024), (100_000, 384)]
)
def test_search_finds_what_the_cpu_finds(gpu_search: Any, place: Place, rows: int, dim: int) -> None:
    queries, bank = unit(rows, place.queries, dim), unit(dim + 1, min(rows, place.rows), dim)
    distance, row = searched(gpu_search, place, queries, [(bank, every(queries))])
    cpu = search.nearest(queries, bank)
    np.testing.assert_array_max_ulp(distance[:, 0], cpu.distance, maxulp=1)
    other = np.flatnonzero(row[:, 0] != cpu.row)  # rows nearer to each other than float64 tells
    assert len(other) <= len(queries) / 100
    exact = np.einsum("qd,qd->q", queries[other].astype(np.float64), bank[row[other, 0]].astype(np.float64))
    expected = np.einsum("qd,qd->q", queries[other].astype(np.float64), bank[cpu.row[other]].astype(np.float64))
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-15)


@not_interpreted
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize(("rows", "distinct"), [(64, 1), (129, 7), (2500, 40)])
def test_of_equal_rows_the_lowest_is_found(gpu_search: Any, place: Place, rows: int, distinct: int, k: int) -> None:
    rows = min(rows, place.rows)
    bank = unit(rows, distinct, 97)[np.random.default_rng(k).integers(0, distinct, rows)]
    queries = unit(1, min(place.queries, 100), 97)
    check_neighbours(queries, bank, *searched(gpu_search, place, queries, [(bank, every(queries))], k), k)


def test_rows_that_16_bits_cannot_tell_apart(gpu_search: Any, place: Place) -> None:
    rng, queries = np.random.default_rng(3), unit(4, min(place.queries, 20), 64)
    bank = np.concatenate([np.repeat(q[None], 15, axis=0) for q in queries])
    bank += rng.standard_normal(bank.shape).astype(np.float32) * np.float32(1e-5)
    bank = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32)
    half = brute_force(*(rows.astype(np.float16).astype(np.float32) for rows in (queries, bank)))
    assert (half[1] != brute_force(queries, bank)[1]).any()
    check_neighbours(queries, bank, *searched(gpu_search, place, queries, [(bank, every(queries))]))


def test_rows_that_all_point_away(gpu_search: Any, place: Place) -> None:
    bank, queries = np.abs(unit(0, 130, 40)), -np.abs(unit(1, min(place.queries, 30), 40))
    check_neighbours(queries, bank, *searched(gpu_search, place, queries, [(bank, every(queries))]))


def test_many_classes_and_views_in_one_launch(gpu_search: Any, place: Place) -> None:
    count = max(12, place.queries)
    queries = unit(5, count, 100)
    banks = [unit(6 + i, min(n, place.rows), 100) for i, n in enumerate((1, 64, 65, 2000, 7, 513))]
    order = np.random.default_rng(0).permutation(count).astype(np.int32)
    parts = np.split(order, [1, 3, 4, count // 2, count // 2 + 2, count - 3])  # the last shares the fourth one's bank
    work = list(zip([*banks, banks[3]], parts, strict=True))
    distance, row = searched(gpu_search, place, queries, work)
    for bank, some in work:
        check_neighbours(queries[some], bank, distance[some], row[some])
    alone = searched(gpu_search, place, queries[parts[3]], [(banks[3], every(parts[3]))])
    np.testing.assert_array_equal(alone[0], distance[parts[3]])  # and each is what it is alone
    np.testing.assert_array_equal(alone[1], row[parts[3]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_a_broken_query_is_marked_and_spoils_no_other(gpu_search: Any, place: Place, value: float) -> None:
    queries, bank = unit(8, max(6, min(place.queries, 150)), 40), unit(9, 200, 40)
    queries[3, 2] = value
    distance, row = searched(gpu_search, place, queries, [(bank, every(queries))])
    good = np.arange(len(queries)) != 3
    assert np.isnan(distance[3]).all() and (row[3] == -1).all()
    check_neighbours(queries[good], bank, distance[good], row[good])


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize(("side", "dim"), [(6, 3), (13, 97), (28, 384), (37, 1024)])
def test_rarity_is_the_cpus(place: Place, side: int, dim: int, alike: bool) -> None:
    if place.name == "interpreter" and side > 13:
        pytest.skip("takes too long there")
    rows, patches = 3, side * side
    tokens = unit(side, rows * patches, dim).reshape(rows, patches, dim)  # the nearest of each may be anywhere
    if alike:  # distances around the floor, the nearest mostly near the first
        tokens = tokens[:, :1] + np.linspace(0.05, 0.9, patches, dtype=np.float32)[:, None] * tokens
        tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    distance = np.random.default_rng(0).random((rows, patches), dtype=np.float32)

    def run(device: Device) -> F32:
        with closing(Kernels(device)) as kernels, ResourceScope(device) as memory:
            stream = memory.stream(device.stream())
            source, target = memory.constant(tokens, stream), memory.constant(distance, stream)
            out = memory.pinned(distance.shape, np.float32)
            kernel = kernels["weigh_rarity"]
            kernel.launch(
                (-(-patches // kernel.constants["BLOCK_Q"]), rows), (source, target, side, dim, MIN_DISTANCE), stream
            )
            device.download(out, target, stream)
            stream.synchronize()
            return out.copy()

    found = place.owner.run(run)
    weights = np.stack([self_similarity_weight(own, side) for own in tokens])
    np.testing.assert_allclose(found, distance * weights, rtol=1e-5)
    assert not alike or np.ptp(weights) > 0.1


# -- chain -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def line(place: Place) -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def make(**settings: Any) -> Line:
        made.append(Line(place, **settings))
        return made[-1]

    yield make
    for one in made:
        one.executor.close()
        one.engine.close()


def same(found: ExecutorOutput, expected: ExecutorOutput) -> None:
    """To the last bit."""
    for view in VIEWS:
        np.testing.assert_array_equal(found.distances[view], expected.distances[view])
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    assert found.score == expected.score


IMAGES = [
    (1, 1, 3), (2, 3, 3), (13, 61, 1), (61, 13, 3), (480, 640, 3), (1, 3000, 3), (3000, 1, 1), (2048, 2448, 3), (1080, 1920, 0),
    (333, 4096, 3), (4096, 333, 0),
]  # fmt: skip


def test_preprocess_gives_the_hosts_bytes(line: Callable[..., Line], place: Place) -> None:
    one = line()
    sizes = [size for size in IMAGES if max(size) <= place.side]
    for turn in range(0, len(sizes), 2):  # two images a call: other sizes by the same graph
        rgbs = [noise(h, w, i, c or 1) for i, (h, w, c) in enumerate(sizes[turn : turn + 2])]
        rgbs = [p if size[2] else p[:, :, 0] for p, size in zip(rgbs, sizes[turn : turn + 2], strict=True)]
        images, _ = one.executor.trace(one.encode(rgbs))
        for rgb, found in zip(rgbs, images, strict=True):
            colour = (
                rgb if rgb.ndim == 3 and rgb.shape[2] == 3 else np.repeat(rgb.reshape(*rgb.shape[:2], 1), 3, axis=2)
            )
            expected = preprocess.query_views(preprocess.prepare(colour, place.spec), VIEWS)
            np.testing.assert_array_equal(found, expected, err_msg=str(rgb.shape))


def test_distances_map_and_score_are_the_hosts_and_stay(line: Callable[..., Line]) -> None:
    one = line(side=64)
    banks = [one.enroll(0), one.enroll(1, shots=2)]
    one.executor.load_banks(banks)
    first = one.inspect([noise(30, 40)] * 2, banks)
    one.check(first, banks)
    if one.place.name != "interpreter":  # where each map takes seconds
        again = one.inspect([noise(30, 40)] * 2, banks)  # by its graph
        for a, b in zip(first, again, strict=True):
            same(b, a)
    one.engine.patch[:] = one.engine.patch[::-1].copy()  # other tokens and other banks by the same graph
    one.check(one.inspect([noise(30, 40)] * 2, banks[::-1]), banks[::-1])
    one.check(one.inspect([noise(20, 20)], banks[:1]), banks[:1])  # another batch size


@not_interpreted
def test_a_image_like_the_enrolled_ones_has_no_distance(line: Callable[..., Line]) -> None:
    one = line(side=64)
    bank = one.enroll(0)
    for v, view in enumerate(VIEWS):
        one.engine.patch[v] = bank.rows(view)[: len(one.engine.patch[v])]
    (found,) = one.inspect([noise(9, 9)], [bank])
    one.check([found], [bank])
    assert 0 <= abs(found.score) < 1e-6


@not_interpreted
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_engine_is_an_error(line: Callable[..., Line], value: float) -> None:
    one = line(side=64)
    bank = one.enroll(0)
    one.executor.load_banks([bank])
    right = one.engine.patch[4, 1, 2].copy()
    one.engine.patch[4, 1, 2] = value
    with pytest.raises(VisionADError, match="NaN or Inf among the patch tokens"):
        one.inspect([noise(9, 9)] * 2, [bank, bank])
    one.engine.patch[4, 1, 2] = right
    one.check(one.inspect([noise(9, 9)] * 2, [bank, bank]), [bank, bank])


def test_pixels_outside_the_region_are_zero(line: Callable[..., Line]) -> None:
    one = line(side=64)
    bank, region = one.enroll(0), np.random.default_rng(0).random((256, 256)) > 0.7
    encoded = one.encode([noise(9, 9)] * 2)
    plain, masked = one.executor.match(encoded, [bank, bank], [None, region])
    one.check([plain], [bank])
    whole = upsample(fuse(masked.distances))
    np.testing.assert_array_equal(masked.anomaly_map, np.where(region, whole, np.float32(0)))
    assert (masked.score, masked.cutoff) == top_k_mean(masked.anomaly_map)


@not_interpreted
def test_a_class_changes_while_other_cameras_inspect(line: Callable[..., Line], place: Place) -> None:
    """Four cameras, each with a class of its own, while another class comes, changes and goes; no result moves by a bit."""
    cameras = 4
    one = line(slots=cameras, rows=3, side=64)
    steady, versions = [one.enroll(i) for i in range(cameras)], [one.enroll(100 + i, shots=1 + i) for i in range(3)]
    one.executor.load_banks(steady)
    expected = [one.inspect([noise(20, 30, i)], [bank], i)[0] for i, bank in enumerate(steady)]
    for found, bank in zip(expected, steady, strict=True):
        one.check([found], [bank])
    done = threading.Event()
    served = [0] * cameras

    def camera(number: int) -> None:
        try:
            while not done.is_set() or served[number] < 2:
                same(one.inspect([noise(20, 30, number)], [steady[number]], number)[0], expected[number])
                served[number] += 1
        finally:
            done.set()

    def clerk() -> None:
        try:
            for bank in versions:
                before = min(served)
                one.executor.load_banks([*steady, bank])
                while min(served) < before + 1 and not done.is_set():
                    time.sleep(0.001)
        finally:
            done.set()

    in_threads(clerk, *(partial(camera, i) for i in range(cameras)))
    one.check(one.inspect([noise(9, 9)], versions[-1:]), versions[-1:])


def resident_bytes() -> int:
    """Memory of this process now."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc to read this process's memory from")
    words = dict(line.split(":\t") for line in status.read_text().splitlines())
    return int(words["VmRSS"].split()[0]) * 1024


@not_interpreted
def test_thousands_of_calls_take_no_memory(line: Callable[..., Line], place: Place) -> None:
    one = line(slots=2, rows=3, side=64)
    banks = [one.enroll(0), one.enroll(1, shots=2)]
    one.executor.load_banks(banks)

    def free() -> int:
        return place.owner.run(lambda device: device.free_memory())

    def calls(count: int) -> None:
        for i in range(count):
            one.inspect([noise(20 + i % 3, 30, i % 2)], [banks[i % 2]], i % 2)

    calls(place.calls // 10)
    device, host = free(), resident_bytes()
    calls(place.calls)
    assert free() == device
    assert resident_bytes() - host < 16e6  # a map a call would be 524 MB in 2000 calls; the heap breathes


# -- inspector ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=("tensorrt", "tensorrt-rtx", "onnxruntime-cuda") if has_nvidia_driver() else ("tensorrt",))
def whole(
    request: pytest.FixtureRequest, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Inspector]:
    """The inspector with its chain on the GPU, two classes enrolled. Without a GPU: TensorRT's stand-in, kernels in numpy."""
    if not has_nvidia_driver():
        pytest.importorskip("onnx", reason="the stand-in parses with it")
        fake_tensorrt = importlib.import_module("tests.fakes.tensorrt")
        monkeypatch.setattr(DeviceThread, "_all", {})
        monkeypatch.setattr(thread, "Device", stand_in("numpy"))
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make("11"))
    else:
        _needs(request.param)
    with Inspector.open(own_model, tmp_path / "bank", backend=request.param, threads=1) as one:
        one.enroll("disc", [part(0), part(1)])
        one.enroll("grid", [part(0, kind="grid")])
        yield one
    if not has_nvidia_driver():
        DeviceThread.of(0).close()


def _given(banks: list[MemoryBank], _: F32 | None) -> list[MemoryBank]:
    return banks


def test_the_whole_chain_gives_what_the_host_gives_around_the_same_engine(whole: Inspector) -> None:
    assert isinstance(whole.pipeline, CudaPipeline) and whole.engine.info["chain"].startswith("on the GPU")
    bank = whole.bank
    assert bank is not None
    host = HostPipeline(whole.engine, whole.manifest.identity, whole.scoring, threads=1)
    large = np.repeat(np.repeat(part(4), 12, axis=0), 16, axis=1)  # 1152 x 2048: room is made for it
    allowed = GOLDEN_TOLERANCE[whole.manifest.precision]
    for bgr, kind in (
        (part(2), "disc"),
        (part(3, defect=True), "disc"),
        (part(4, kind="grid"), "grid"),
        (large, "disc"),
    ):
        rgb = np.ascontiguousarray(bgr[:, :, ::-1])
        chosen = [bank.classes[kind].rois[0]]
        (expected,) = host.run([rgb], partial(_given, chosen), class_token=True, trace=True)
        ((found, stages),) = whole.trace_batch([rgb])
        assert stages is not None and expected.images is not None and expected.patch is not None
        np.testing.assert_array_equal(stages.views, expected.images)
        np.testing.assert_allclose(stages.tokens.patch, expected.patch, rtol=0, atol=allowed)
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=0, atol=allowed)
        assert abs(found.score - expected.score) <= allowed and found.class_name == kind


def test_cameras_in_threads_give_what_each_gives_alone(whole: Inspector) -> None:
    """More cameras than the chain has places for, while a class is enrolled: the same bits."""
    images = [part(i, defect=True) for i in range(6)]
    expected = [whole.inspect(image, class_name="disc") for image in images]
    done = threading.Event()

    def camera(number: int) -> None:
        while True:
            last = done.is_set()
            found = whole.inspect(images[number], class_name="disc")
            np.testing.assert_array_equal(found.anomaly_map, expected[number].anomaly_map)
            assert found.score == expected[number].score
            if last:
                return

    def clerk() -> None:
        try:
            whole.enroll("new", [part(30, kind="grid")])
        finally:
            done.set()

    in_threads(clerk, *(partial(camera, i) for i in range(len(images))))
    found = whole.inspect(part(31, kind="grid"), class_name="new")
    assert found.class_name == "new" and np.isfinite(found.score)


# -- engines -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tiny_weights: Path) -> dict[str, Path]:
    """The tiny model in each precision. Read only."""
    return {precision: cache.export_tiny(tiny_weights, precision=precision) for precision in PRECISIONS}


def _needs(backend: str) -> None:
    """Skips what is not installed, or what this GPU is not made for."""
    runs, why = backend_spec(backend).probe()
    if not runs:
        pytest.skip(why)


def _open(backend: str, model: Path, manifest: ModelManifest) -> Engine:
    """Built where that is needed, and self-tested."""
    _needs(backend)
    if backend_spec(backend).needs_build:
        assert run(["build", str(model), "--backend", backend]) == 0
    elif manifest.precision == "fp32" and backend != "onnxruntime-cuda":
        with pytest.raises(VisionADError, match="cannot promise fp32"):
            open_engine(model, manifest, backend)
        pytest.skip(f"{backend} refuses fp32, as it should")
    try:
        return open_engine(model, manifest, backend)
    except VisionADError as exc:
        if "fell back" in str(exc) and re.search(r"libnvinfer|libtensorrt_rtx|libnvonnxparser", str(exc)):
            pytest.skip(str(exc))  # ONNX Runtime's package brings the provider, TensorRT itself it does not
        raise


@on_hardware
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", ON_GPU)
def test_an_engine_computes_what_the_cpu_computes(backend: str, precision: str, models: dict[str, Path]) -> None:
    model = models[precision]
    manifest = read_manifest(model, ModelManifest)
    plain = models["fp32"]
    cpu = open_engine(plain, read_manifest(plain, ModelManifest), "onnxruntime-cpu", threads=1)
    engine = _open(backend, model, manifest)
    assert engine.name == backend and engine.info["self-test"]
    try:
        spec = manifest.identity.preprocess
        noise = np.random.default_rng(1).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
        images = np.stack([normalise(image, spec) for image in noise])
        found, again, expected = engine.encode(images), engine.encode(images), cpu.encode(images)
        turned = engine.encode(np.ascontiguousarray(images[::-1]))
        assert engine.encode(images, class_token=False).cls is None
        for name in ("patch", "cls"):
            one, right = getattr(found, name), getattr(expected, name)
            np.testing.assert_allclose(one, right, rtol=0, atol=GOLDEN_TOLERANCE[precision])
            np.testing.assert_array_equal(one, getattr(again, name))  # the same input, the same bits
            near = POSITION_TOLERANCE * GOLDEN_TOLERANCE[precision]
            np.testing.assert_allclose(getattr(turned, name)[::-1], one, rtol=0, atol=near)
    finally:
        engine.close()
