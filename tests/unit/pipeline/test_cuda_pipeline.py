"""The inspector with its whole chain on a GPU: TensorRT's stand-in, kernels in numpy, against the host's chain on the CPU."""

from __future__ import annotations

import hashlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.fakes import cuda_provider as fake_ort
from tests.fakes import tensorrt as fake_tensorrt

pytest.importorskip("onnx", reason="the stand-in parses with it")

from visionad_runtime import Inspector
from visionad_runtime.cuda import thread as gpu_thread
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.errors import ModelError, VisionADError
from visionad_runtime.formats.roi import make_spec, parse_roi
from visionad_runtime.pipeline.cuda import pipeline as device_chain
from visionad_runtime.pipeline.cuda.executor import CudaExecutor
from visionad_runtime.pipeline.cuda.pipeline import CudaPipeline, FairSlotPool
from visionad_runtime.pipeline.host import HostPipeline
from visionad_runtime.result import Result
from visionad_runtime.teaching.calibrate import calibrate_class
from visionad_runtime.teaching.remember import remember_file

from tests.data import part
from tests.fakes.gpu import FakeDevice


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeDevice]]:
    FakeDevice.reset()
    monkeypatch.setattr(gpu_thread, "Device", FakeDevice)
    module = fake_tensorrt.make("11")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    fake_ort.install(monkeypatch)
    yield FakeDevice
    DeviceThread.of(0).close()


@pytest.fixture(params=["tensorrt", "onnxruntime-cuda"])
def both(
    request: pytest.FixtureRequest, gpu: type[FakeDevice], own_model: Path, tmp_path: Path
) -> Iterator[tuple[Inspector, Inspector]]:
    """On the GPU and on the CPU, each with a bank of its own."""
    opened = [
        Inspector.open(own_model, tmp_path / backend, backend=backend, threads=1)
        for backend in (request.param, "onnxruntime-cpu")
    ]
    for one in opened:
        one.enroll("disc", [part(0), part(1)])
        one.enroll("grid", [part(0, kind="grid")])
    yield opened[0], opened[1]
    opened[0].pipeline.close()  # type: ignore[attr-defined]


def check(found: Result, wanted: Result) -> None:
    np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, rtol=0, atol=1e-6)
    assert abs(found.score - wanted.score) < 1e-6
    assert (found.class_name, found.class_source, found.verdict) == (
        wanted.class_name,
        wanted.class_source,
        wanted.verdict,
    )


def waiting(pool: FairSlotPool, count: int) -> None:
    while len(pool._waiting) != count:
        time.sleep(0.001)


def test_cameras_go_to_who_came_first() -> None:
    """Also where who gives one back wants it again at once."""
    pool, order = FairSlotPool(2), list[str]()
    mine = [pool.acquire(), pool.acquire()]

    def line(name: str) -> None:
        camera = pool.acquire()
        order.append(name)
        pool.release(camera)

    threads = [threading.Thread(target=line, args=(name,)) for name in "abc"]
    for number, thread in enumerate(threads, 1):
        thread.start()
        waiting(pool, number)
    pool.release(mine.pop())
    mine.append(pool.acquire())  # behind the three
    assert order == ["a", "b", "c"]
    for thread in threads:
        thread.join()
    for camera in mine:
        pool.release(camera)
    assert {pool.acquire(), pool.acquire()} == {0, 1}


@pytest.mark.parametrize("handed", [False, True], ids=["while it waits", "as it is handed one"])
def test_who_is_interrupted_keeps_no_camera(handed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FairSlotPool(1)
    camera = pool.acquire()

    class Interrupted(device_chain.queue.SimpleQueue[int]):
        first = True

        def get(self, block: bool = True, timeout: float | None = None) -> int:
            if self.first:
                self.first = False
                if handed:
                    pool.release(camera)
                raise KeyboardInterrupt
            return super().get(block, timeout)

    monkeypatch.setattr(device_chain.queue, "SimpleQueue", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire()
    if not handed:
        pool.release(camera)
    assert pool.acquire() == camera


def test_the_gpu_gives_what_the_cpu_gives(both: tuple[Inspector, Inspector]) -> None:
    on_gpu, on_cpu = both
    assert isinstance(on_gpu.pipeline, CudaPipeline) and isinstance(on_cpu.pipeline, HostPipeline)
    assert on_gpu.engine.info["chain"].startswith("on the GPU")
    images = [part(i, defect=i % 2 == 1, kind="grid" if i % 3 == 0 else "disc") for i in range(4)]
    images.append(np.repeat(np.repeat(part(4), 12, axis=0), 16, axis=1))  # 1152 x 2048: room is made for it
    images.append(part(6)[:, :, 0])  # grey
    wanted = on_cpu.inspect_batch(images)
    found = on_gpu.inspect_batch(images)  # one image a call: split
    for one, right in zip(found, wanted, strict=True):
        check(one, right)
        assert one.timings["total"] >= one.timings["wait"] and "route" in one.timings
    rgb = np.ascontiguousarray(part(5)[:, :, ::-1])
    (one, stages), (right, wanted_stages) = on_gpu.trace_batch([rgb])[0], on_cpu.trace_batch([rgb])[0]
    assert stages is not None and wanted_stages is not None
    check(one, right)
    np.testing.assert_array_equal(stages.views, wanted_stages.views)
    np.testing.assert_array_equal(stages.tokens.patch, wanted_stages.tokens.patch)
    np.testing.assert_array_equal(stages.tokens.cls, wanted_stages.tokens.cls)


def test_engine_key_one_class_are_matched_at_once_and_another_class_again(
    both: tuple[Inspector, Inspector], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu, on_cpu = both
    done: list[str] = []
    for name in ("encode", "inspect", "match"):
        plain = getattr(CudaExecutor, name)

        def told(*args: Any, _name: str = name, _plain: Callable[..., Any] = plain) -> Any:
            done.append(_name)
            return _plain(*args)

        monkeypatch.setattr(CudaExecutor, name, told)

    def look(seed: int, kind: str, class_name: str | None = None) -> list[str]:
        done.clear()
        image = part(seed, defect=seed % 2 == 1, kind=kind)
        check(on_gpu.inspect(image, class_name=class_name), on_cpu.inspect(image, class_name=class_name))
        return done.copy()

    asked, at_once, again = ["encode", "match"], ["inspect"], ["inspect", "match"]
    kinds = ["disc", "disc", "disc", "grid", "grid", "grid", "disc", "grid", "disc"]
    found = [look(60 + i, kind) for i, kind in enumerate(kinds)]
    assert found == [asked, asked, at_once, again, asked, at_once, again, asked, asked]
    assert [look(70, "grid", "disc") for _ in range(2)] == [asked, at_once]  # as it was told, whatever it looks like
    assert [look(71 + i, "disc") for i in range(2)] == [at_once, at_once]
    for one in both:
        one.enroll("disc", [part(2)])
    assert look(73, "disc") == asked  # not against what the class was before
    looked: list[list[str]] = []
    assert [look(74, "disc"), look(75, "disc")] == [asked, at_once]
    other = threading.Thread(target=lambda: looked.extend(look(80 + i, "grid") for i in range(3)))
    other.start()
    other.join()
    assert looked == [asked, asked, at_once]  # a camera of its own, which shows parts of its own
    assert look(76, "disc") == at_once


@pytest.mark.parametrize("both", ["tensorrt"], indirect=True)
def test_a_gpu_is_kept_awake_between_parts(
    both: tuple[Inspector, Inspector], own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = threading.Semaphore(0)
    plain = CudaExecutor._run

    def counted(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            runs.release()
        return plain(*args)

    monkeypatch.setattr(CudaExecutor, "_run", counted)
    with Inspector.open(own_model, tmp_path / "tensorrt", backend="tensorrt", threads=1, keep_alive=0.01) as awake:
        for image in (part(3), np.repeat(np.repeat(part(3), 12, axis=0), 20, axis=1)):  # room is made for the second
            check(awake.inspect(image), both[1].inspect(image))
            assert all(runs.acquire(timeout=30) for _ in range(3))
    left = runs._value
    time.sleep(0.05)
    assert runs._value == left  # closed with it
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(VisionADError, match=r"keep_alive .*: expected seconds above 0"):
            Inspector.open(own_model, keep_alive=wrong)


def test_the_images_of_a_call_are_under_way_together(
    both: tuple[Inspector, Inspector], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu, on_cpu = both
    assert on_gpu.pipeline.slots == 2 and on_gpu.pipeline.max_batch_size() == 1
    together, plain, calls = threading.Barrier(2), CudaExecutor.encode, itertools.count()

    def encode(*args: Any) -> Any:
        if next(calls) < 2:
            together.wait(timeout=30)
        return plain(*args)

    monkeypatch.setattr(CudaExecutor, "encode", encode)
    images = [part(i, defect=i % 2 == 1, kind="disc" if i < 6 else "grid") for i in range(9)]
    for one, right in zip(on_gpu.inspect_batch(images), on_cpu.inspect_batch(images), strict=True):
        check(one, right)
    monkeypatch.setattr(CudaExecutor, "encode", lambda *_: on_gpu.engine.no_such_thing)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no_such_thing"):
        on_gpu.inspect_batch([part(30), part(31)])


@pytest.mark.parametrize("both", ["tensorrt"], indirect=True)
def test_all_memory_is_told(both: tuple[Inspector, Inspector]) -> None:
    on_gpu, on_cpu = both
    assert not any(on_cpu.pipeline.memory().values())
    device = DeviceThread.of(0).run(lambda device: device)

    def taken() -> int:
        return device.total_memory - DeviceThread.of(0).run(lambda device: device.free_memory())

    buffers = 4 * 3 * (3 * 64 * 64 + 16 * 192 + on_gpu.manifest.identity.class_token_dim)
    assert on_gpu.engine.info["memory"] == "activation 2 x 0 MiB, weights 0 MiB"
    for _ in range(2):
        told = on_gpu.pipeline.memory()
        assert told["chain"] + told["banks"] + buffers + 8192 + 2 * 4096 == taken()
        assert told["page_locked"] + buffers == sum(array.nbytes for array in device._pinned)
        on_gpu.inspect(np.zeros((1200, 2000, 3), np.uint8))  # room is made for it
    assert told["banks"] > 3 * 6 * 16 * 192 * (4 + 2)
    on_gpu.enroll("more", [part(40)])
    on_gpu.inspect(part(40))
    assert on_gpu.pipeline.memory()["banks"] > told["banks"]
    assert on_gpu.engine.info["chain memory"].endswith("MiB page-locked on the host; banks are added")


def test_leave_one_out_calibrates_alike(both: tuple[Inspector, Inspector]) -> None:
    rgb = np.ascontiguousarray(part(1)[:, :, ::-1])
    found, wanted = (one.trace_batch([rgb], "disc", leave_out=1, trace=False)[0][0] for one in both)
    check(found, wanted)
    assert found.score > 0.001 > both[0].trace_batch([rgb], "disc", trace=False)[0][0].score


def test_remembered_defects_count_as_on_the_host(both: tuple[Inspector, Inspector], tmp_path: Path) -> None:
    bad, good = part(5, defect=True), part(5)
    image, mask = tmp_path / "bad.png", tmp_path / "mask.png"
    cv2.imwrite(str(image), bad)
    cv2.imwrite(str(mask), 255 * (np.abs(bad.astype(int) - good).max(axis=2) > 20).astype(np.uint8))
    parts = [bad, part(6, defect=True), part(7, kind="grid"), part(8)]
    before = [result.score for result in both[0].inspect_batch(parts)]
    for one in both:
        remember_file(one, "disc", image, mask)
    for found, wanted in zip(*(one.inspect_batch(parts) for one in both), strict=True):
        check(found, wanted)
    assert both[0].inspect(bad).score > 1.2 * before[0]
    assert both[0].inspect(parts[2]).score == before[2]  # a class without defects is scored on the GPU as before
    (_, traced), (_, plain) = (both[0].trace_batch([bad], "disc", trace=trace)[0] for trace in (True, False))
    assert traced is not None and plain is None


def test_calibrated_on_the_gpu_as_on_the_host_and_as_it_predicts(
    both: tuple[Inspector, Inspector], tmp_path: Path
) -> None:
    good = [tmp_path / f"good{i}.png" for i in range(4)]  # others than the fixtures' class holds
    for i, path in enumerate(good):
        cv2.imwrite(str(path), part(150 + i))
    held_out = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(held_out):
        cv2.imwrite(str(path), part(50 + i))
    done = []
    for one in both:
        one.enroll_files("part", good)
        done.append(calibrate_class(one, "part", [*good, *held_out], 0.25))
        scores = done[-1].record.scores
        for place, path in enumerate(
            [*good, *held_out]
        ):  # supports as if they were none, the others as the line sees them
            left_out = place if path in good else None
            (again,) = one.inspect_files([path], class_name="part", leave_out=left_out)
            assert again.result is not None and again.result.score == scores[place]
        over = [s > done[-1].threshold.value for s in scores[len(good) :]]
        found = list(one.inspect_files(held_out, class_name="part", batch=2))
        assert [f.result.verdict == "anomalous" for f in found if f.result is not None] == over
    on_gpu, on_cpu = done
    assert on_gpu.record.method == on_cpu.record.method == "leave-one-out+held-out"
    np.testing.assert_allclose(on_gpu.record.scores, on_cpu.record.scores, rtol=0, atol=1e-6)
    assert abs(on_gpu.threshold.value - on_cpu.threshold.value) < 1e-6
    assert on_gpu.threshold.rank == on_cpu.threshold.rank


def test_a_class_is_enrolled_while_others_inspect(both: tuple[Inspector, Inspector]) -> None:
    on_gpu, on_cpu = both
    wanted = [on_cpu.inspect(part(i, defect=True), class_name="disc") for i in range(3)]
    errors: list[BaseException] = []
    done = threading.Event()

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as exc:
                errors.append(exc)

        return run

    def camera(number: int) -> Callable[[], None]:
        def work() -> None:
            while True:
                last = done.is_set()
                check(on_gpu.inspect(part(number, defect=True), class_name="disc"), wanted[number])
                if last:
                    return

        return guarded(work)

    def clerk() -> None:
        try:
            on_gpu.enroll("new", [part(30, kind="grid")])
        finally:
            done.set()

    threads = [threading.Thread(target=t) for t in (*(camera(i) for i in range(3)), guarded(clerk))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    on_cpu.enroll("new", [part(30, kind="grid")])
    check(
        on_gpu.inspect(part(31, kind="grid"), class_name="new"), on_cpu.inspect(part(31, kind="grid"), class_name="new")
    )


@pytest.mark.parametrize(
    ("kernel", "stage"),
    [
        ("resize_down", "preprocess"),
        ("rescore", "search"),
        ("fuse_map", "map"),
        ("top_mean", "score"),
        ("top_mean", "cutoff"),
    ],
)
def test_a_wrong_kernel_is_found_when_opened(gpu: type[FakeDevice], own_model: Path, kernel: str, stage: str) -> None:
    right = gpu.kernels[kernel]
    place = {"resize_down": 6, "rescore": 7, "fuse_map": 6, "top_mean": 1}[kernel]
    which = int(stage == "cutoff")

    def wrong(device: FakeDevice, grid: Any, block: Any, *args: Any) -> None:
        right(device, grid, block, *args)
        device.read(int(args[place]), np.float64 if kernel == "top_mean" else np.float32, 2)[which] += 0.01

    gpu.kernels[kernel] = wrong
    with pytest.raises(ModelError, match=f"self-test of the GPU pipeline failed at {stage}: expected the host"):
        Inspector.open(own_model, backend="tensorrt")
    assert not DeviceThread.of(0).run(lambda device: len(device._buffers))  # all memory was given back


def test_no_room_for_a_larger_image_leaves_the_line_running(both: tuple[Inspector, Inspector]) -> None:
    on_gpu, on_cpu = both
    device = DeviceThread.of(0).run(lambda device: device)
    device.total_memory = 128 << 20
    with pytest.raises(VisionADError, match="out of GPU memory"):
        on_gpu.inspect(np.zeros((4000, 6000, 3), np.uint8))
    check(on_gpu.inspect(part(3)), on_cpu.inspect(part(3)))


def test_turing_keeps_the_hosts_chain(gpu: type[FakeDevice], own_model: Path) -> None:
    gpu.gpu["capability"] = (7, 5)
    assert isinstance(Inspector.open(own_model, backend="tensorrt").pipeline, HostPipeline)


@pytest.mark.slow(group="close")
def test_tiles_and_masks_are_the_hosts(both: tuple[Inspector, Inspector]) -> None:
    """More crops than a call takes, in a bank where another class is inspected whole."""
    file = cv2.imencode(".png", np.pad(np.full((40, 50), 255, np.uint8), ((20, 36), (40, 38))))[1].tobytes()
    rois = [parse_roi("all=0,0,128,90@3x3"), parse_roi("low=10,50;110,50;60,95")]
    for inspector in both:
        inspector.enroll(
            "tiles", [part(i) for i in (5, 6)], mask=file,
            roi=make_spec(rois, (128, 96), hashlib.sha256(file).hexdigest()),
        )  # fmt: skip
    images = [part(9, defect=True), part(8)]
    for class_name in ("tiles", "disc", None):
        found, wanted = (one.inspect_batch(images, class_name=class_name) for one in both)
        for one, other in zip(found, wanted, strict=True):
            check(one, other)
            assert [area.name for area in one.areas] == [area.name for area in other.areas]
            for area, right in zip(one.areas, other.areas, strict=True):
                np.testing.assert_allclose(area.anomaly_map, right.anomaly_map, rtol=0, atol=1e-6)
    painted = [images[0].copy(), images[0]]
    painted[0][22:58, 42:88] = 0
    one, other = both[0].inspect_batch(painted, class_name="tiles")
    assert one.score == other.score and one.anomaly_map.tobytes() == other.anomaly_map.tobytes()
    (one, stages), (other, _) = (one.trace_batch([images[0][..., ::-1]], "tiles", leave_out=1)[0] for one in both)
    assert abs(one.score - other.score) < 1e-6
    assert stages is not None and len(stages.tiles) == 10
