"""``device.py`` and the chain with pycuda itself, on a pretended driver, in a process of its own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from visionad_runtime import Inspector
from visionad_runtime.cuda.device import Device
from visionad_runtime.cuda.kernels import choose_target, read_manifest, read_target
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.engine.onnxruntime import cuda as leaf
from visionad_runtime.errors import VisionADError
from visionad_runtime.pipeline.cuda.executor import CudaExecutor
from visionad_runtime.pipeline.cuda.pipeline import CudaPipeline
from visionad_runtime.system import has_nvidia_driver

from tests.data import ROOT, part
from tests.fakes import pretend_driver
from tests.fakes.gpu import FakeDevice
from tests.fakes.places import PRETENDED, SIZES, Line, Place

in_its_process = pytest.mark.skipif(not PRETENDED, reason="runs in a process of its own")


@pytest.mark.slow(group="pretended-driver")
@pytest.mark.skipif(has_nvidia_driver(), reason="there is a GPU")
@pytest.mark.skipif(PRETENDED, reason="this is that process")
def test_pycuda_on_a_pretended_driver() -> None:
    if not (pretend_driver.FOLDER / pretend_driver.DRIVER).exists():
        pytest.skip("pycuda was not compiled: `python -m tests.fakes.pretend_driver` says why")
    tests = [str(Path(__file__)), str(Path(__file__).with_name("test_gpu.py"))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "VISIONAD_PRETENDED_DRIVER": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "failed" not in done.stdout and "passed" in done.stdout


@pytest.fixture
def driver() -> Iterator[pretend_driver.Pretended]:
    """The driver; a test that breaks it mends it."""
    FakeDevice.reset()
    one = pretend_driver.set_up()
    yield one
    one.driver.pretend_fail_at(0)
    one.driver.pretend_break(0)
    DeviceThread.of(0).close()
    assert not one.fault() and not one.live()


def on_driver(work: Callable[[Device], Any]) -> Any:
    return DeviceThread.of(0).run(work)


@pytest.mark.parametrize("target", [t for t in read_manifest()["targets"] if t.startswith("sm_")])
def test_the_code_is_for_its_target_and_takes_what_is_passed(target: str) -> None:
    sizes = {"pointer": 8, "null": 8, "i32": 4, "fp32": 4}
    number = int(target[3:])
    assert choose_target((number // 10, number % 10), list(read_manifest()["targets"])) == target
    for name, (record, code) in read_target(target).items():
        assert pretend_driver.compute_capability(code) == (number // 10, number % 10)
        places = pretend_driver.parameters(pretend_driver.elf_sections(code)[f".nv.info.{record['entry']}"])
        assert [size for _, size in places] == [sizes[kind] for kind in record["arguments"]], name
        end = 0
        for offset, size in places:  # as pycuda packs them: each at a multiple of its size
            assert offset == -(-end // size) * size
            end = offset + size


@in_its_process
def test_a_stream_does_not_wait_for_the_default_one(driver: pretend_driver.Pretended) -> None:
    def work(device: Device) -> None:
        stream, other = device.stream(), device.stream()
        host, buffer = device.pinned(4, np.float32), device.alloc(16)
        with device.capture(stream) as graph:
            device.upload(buffer, host, other)  # refused if either waited for the other
        graph.close()
        buffer.close()
        device.unpin(host)

    on_driver(work)


@in_its_process
def test_garbage_does_not_spoil_a_recording(driver: pretend_driver.Pretended) -> None:
    """What a failure left behind, in a circle with its own traceback, is freed whenever Python collects: not while this thread
    records, when the driver frees nothing."""

    def work(device: Device) -> None:
        stream = device.stream()
        host, buffer = device.pinned(4, np.float32), device.alloc(16)
        garbage = [device.pinned(4, np.float32)]
        often = gc.get_threshold()
        try:
            with device.capture(stream) as graph:
                left: list[Any] = [garbage.pop()]
                left.append(left)
                del left
                gc.set_threshold(1)
                kept: list[list[int]] = [[] for _ in range(100)]
                device.upload(buffer, host, stream)
        finally:
            gc.set_threshold(*often)
        assert gc.isenabled() and kept
        gc.collect()
        graph.close()
        buffer.close()
        device.unpin(host)

    on_driver(work)


@in_its_process
def test_code_for_another_gpu_is_one_line(driver: pretend_driver.Pretended) -> None:
    def work(device: Device) -> None:
        for code in (read_target("sm_80")["pack"][1], b"no code at all".ljust(64)):
            with pytest.raises(VisionADError, match=r"the GPU failed loading a kernel on Pretend GPU"):
                device.load(code)

    on_driver(work)


@in_its_process
def test_what_a_recording_forbids_is_one_line_and_nothing_stays(driver: pretend_driver.Pretended) -> None:
    def work(device: Device) -> None:
        stream = device.stream()
        with (
            pytest.raises(VisionADError, match="not permitted when stream is capturing"),
            device.capture(stream) as graph,
        ):
            device.alloc(16)
        with device.capture(stream) as graph:
            pass
        graph.launch(stream)
        graph.close()

    on_driver(work)
    assert "while this thread captures" in driver.fault()


@in_its_process
def test_every_taking_that_fails_is_one_line_and_leaves_nothing(driver: pretend_driver.Pretended) -> None:
    line = Line(Place("driver", DeviceThread.of(0), **SIZES["driver"]), rows=3, side=64)
    line.executor.close()
    bank, image, live = line.enroll(0), np.full((9, 9, 3), 100, np.uint8), driver.live()

    def inspect_once() -> NDArray[np.float32]:
        with CudaExecutor(line.place.owner, line.engine, line.identity, max_image=(64, 64)) as executor:
            executor.load_banks([bank])
            (found,) = executor.match(executor.encode([image]), [bank])
            (again,) = executor.inspect([image], [bank])[1]
            np.testing.assert_array_equal(again.anomaly_map, found.anomaly_map)
            return found.anomaly_map

    driver.driver.pretend_fail_at(0)
    expected = inspect_once()
    takings = driver.driver.pretend_taken()
    assert takings > 50
    for number in range(1, takings + 1):
        driver.driver.pretend_fail_at(number)
        with pytest.raises(VisionADError, match=r"out of (GPU )?memory"):
            inspect_once()
        assert driver.live() == live, f"taking {number} of {takings}"
    driver.driver.pretend_fail_at(0)
    np.testing.assert_array_equal(inspect_once(), expected)
    line.engine.close()


@in_its_process
def test_an_inspector_with_onnx_runtime_amid_the_chain(
    driver: pretend_driver.Pretended, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of the pretended GPU is the host's, so ONNX Runtime itself computes there, bound to the chain's buffers."""
    streams: list[str] = []

    def session(
        folder: Path, _: object, provider: object, __: object, options: dict[str, str], *___: object
    ) -> ort.InferenceSession:
        streams.append(options["user_compute_stream"])
        return ort.InferenceSession(str(folder / "backbone.onnx"), providers=["CPUExecutionProvider"])

    monkeypatch.setattr(leaf, "create_session", session)
    monkeypatch.setattr(leaf, "check_provider", lambda _: None)
    runs: list[None] = []
    enqueue = leaf.OrtStreamEngine.enqueue

    def counted(*args: Any) -> None:
        runs.append(None)
        enqueue(*args)

    monkeypatch.setattr(leaf.OrtStreamEngine, "enqueue", counted)
    monkeypatch.setattr(leaf, "OrtStreamEngine", partial(leaf.OrtStreamEngine, device="cpu"))
    opened = [
        Inspector.open(tiny_model, tmp_path / b, backend=b, keep_alive=0.002)
        for b in ("onnxruntime-cuda", "onnxruntime-cpu")
    ]
    assert isinstance(opened[0].pipeline, CudaPipeline) and int(streams[0]) > 0
    for one in opened:
        one.enroll("disc", [part(0), part(1)])
        one.enroll("grid", [part(0, kind="grid")])
    for seed, kind in enumerate(["disc", "disc", "disc", "grid", "disc"]):
        found, expected = (one.inspect(part(10 + seed, defect=seed % 2 == 1, kind=kind)) for one in opened)
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=0, atol=2e-6)
        assert found.class_name == expected.class_name and abs(found.score - expected.score) < 2e-6
    before, until = len(runs), time.monotonic() + 30
    while len(runs) < before + 3 and time.monotonic() < until:
        time.sleep(0.002)
    assert len(runs) >= before + 3  # it is kept awake, and the next images are right
    images = [part(20 + i, defect=i % 2 == 1) for i in range(5)]
    for found, expected in zip(*(one.inspect_batch(images) for one in opened), strict=True):
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=0, atol=2e-6)
    for one in opened:
        one.close()
    assert driver.live() == {"contexts": 1}


BREAKS_DOWN = """
import numpy as np
from tests.fakes import pretend_driver
from tests.fakes.places import SIZES, VIEWS, Line, Place
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.cuda.kernels import Kernels
from visionad_runtime.errors import VisionADError
driver, owner = pretend_driver.set_up().driver, DeviceThread.of(0)
line = Line(Place("driver", owner, **SIZES["driver"]), rows=3, side=64)
bank, image = line.enroll(0), np.full((9, 9, 3), 100, np.uint8)
line.executor.load_banks([bank])
encoded = line.executor.encode([image])
driver.pretend_break(719)
for call in (
    lambda: line.executor.match(encoded, [bank]),
    lambda: line.executor.trace(encoded),
    lambda: line.executor.encode([image]),
    lambda: line.executor.load_banks([bank, line.enroll(1)]),
    lambda: owner.run(lambda device: device.free_memory()),
    lambda: owner.run(lambda device: device.stream()),
    lambda: owner.run(Kernels),
    line.executor.close,
):
    try:
        call()
    except VisionADError as exc:
        print(exc)
"""


@in_its_process
def test_a_gpu_that_broke_down_is_one_line_a_call_and_no_more(tmp_path: Path) -> None:
    """After a kernel that failed, the driver answers every call with that error until the process ends."""
    script = tmp_path / "breaks_down.py"
    script.write_text(BREAKS_DOWN)
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    for line in lines:
        assert "unspecified launch failure" in line and "cannot use the GPU any more: start it again" in line
