"""Opening and closing an inspector: nothing of a GPU stays taken, whatever fails and whoever is still inspecting."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest

from tests.fakes import cuda_provider as fake_ort
from tests.fakes import tensorrt as fake_tensorrt

pytest.importorskip("onnx", reason="the stand-in parses with it")

from visionad_runtime import Inspector
from visionad_runtime.cli.main import run
from visionad_runtime.cuda import thread as gpu_thread
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.errors import VisionADError
from visionad_runtime.pipeline.cuda import pipeline as cuda_pipeline
from visionad_runtime.tools import doctor
from visionad_runtime.tools.benchmark import run as bench

from tests.data import part, slow
from tests.fakes.gpu import FakeDevice

BACKENDS = ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"]
"""Those that can have the chain on the GPU."""
thorough = pytest.mark.parametrize("backend", [slow("close", name) for name in BACKENDS], indirect=True)
"""For tests of half a minute."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each backend that can have the chain on the GPU, on a fake one."""
    FakeDevice.reset()
    monkeypatch.setattr(gpu_thread, "Device", FakeDevice)
    monkeypatch.setattr(
        cuda_pipeline, "INITIAL_IMAGE_SIZE", (100, 130)
    )  # a part's; pages of larger ones take most of an opening's time
    if request.param == "onnxruntime-cuda":
        fake_ort.install(monkeypatch)
    else:
        module = fake_tensorrt.make({"tensorrt": "11", "tensorrt-rtx": "rtx"}[request.param])
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield request.param
    DeviceThread.of(0).close()


def gpu() -> FakeDevice:
    return cast("FakeDevice", DeviceThread.of(0).run(lambda device: device))


def left() -> dict[str, int]:
    """What is still taken of the GPU."""
    return DeviceThread.of(0).run(lambda _: gpu().live())


def test_nothing_is_left_after_close(backend: str, own_model: Path, tmp_path: Path) -> None:
    for turn in range(3):
        with Inspector.open(own_model, tmp_path / "bank", backend=backend) as inspector:
            inspector.enroll(f"disc {turn}", [part(turn)])
            inspector.inspect(part(10))
            inspector.inspect(np.repeat(np.repeat(part(11), 12, axis=0), 16, axis=1))  # room is made for it
            rgb = np.ascontiguousarray(part(12)[:, :, ::-1])
            inspector.trace_batch([rgb], f"disc {turn}", trace=True)
            assert {"buffers", "pinned", "streams", "events", "modules", "graphs"} == set(left())
            second = Inspector.open(own_model, backend=backend)
            both = left()
            second.close()
            assert all(n < both[kind] for kind, n in left().items())
        assert not left()
        inspector.close()  # twice is harmless


def test_a_closed_inspector_says_so(backend: str, own_model: Path, tmp_path: Path, good: list[Path]) -> None:
    tokens = np.zeros((1, 3, 64, 64), np.float32)
    for one in (backend, "onnxruntime-cpu"):
        with Inspector.open(own_model, tmp_path / one, backend=one, threads=1) as inspector:
            inspector.enroll_files("disc", good[:1])
            waiting = inspector.inspect_files(good)
            next(waiting)
        late: list[Callable[[], object]] = [
            partial(inspector.inspect, part(1)),
            partial(next, waiting),
            partial(inspector.enroll, "disc", [part(1)]),
            partial(inspector.encode, tokens),
            partial(inspector.enroll_supports, "disc", []),
        ]
        for call in late:
            with pytest.raises(VisionADError, match="this inspector was closed; open another"):
                call()
    with Inspector.open(own_model, backend=backend) as inspector:
        inspector.engine.close()
        with pytest.raises(VisionADError, match="this engine was closed"):
            inspector.engine.encode(tokens)


@pytest.mark.parametrize("soon", [False, True])
def test_closing_waits_for_who_inspects_and_refuses_who_comes_later(
    backend: str, own_model: Path, tmp_path: Path, soon: bool
) -> None:
    inspector = Inspector.open(own_model, tmp_path / "bank", backend=backend)
    inspector.enroll("disc", [part(0), part(1)])
    wanted = inspector.inspect(part(2), class_name="disc").score
    served = itertools.count()
    said: list[str] = []

    def until_closed(work: Callable[[int], object]) -> Callable[[], None]:
        def loop() -> None:
            try:
                for i in itertools.count():
                    work(i)
                    next(served)
            except BaseException as exc:
                said.append(str(exc))

        return loop

    def look(_: int) -> None:
        assert inspector.inspect(part(2), class_name="disc").score == wanted

    works = [look] * 4 + [lambda i: inspector.enroll("grid", [part(100 + i, kind="grid")])]
    threads = [threading.Thread(target=until_closed(work)) for work in works]
    threads += [threading.Thread(target=inspector.close) for _ in range(2 if soon else 0)]
    for thread in threads:
        thread.start()
    while not soon and not said and next(served) < 40:
        time.sleep(0.01)
    inspector.close()
    assert not left()
    for thread in threads:
        thread.join()
    assert said == ["this inspector was closed; open another with Inspector.open"] * 5


@thorough
def test_no_room_at_any_taking_leaves_nothing_behind(backend: str, own_model: Path, tmp_path: Path) -> None:
    with Inspector.open(own_model, tmp_path / "bank", backend=backend) as inspector:
        inspector.enroll("disc", [part(0)])
    device, without_graph, on_the_host = gpu(), 0, 0
    for number in itertools.count(1):
        device.made, FakeDevice.fail_at = 0, number
        try:
            with Inspector.open(own_model, tmp_path / "bank", backend=backend) as inspector:
                without_graph += inspector.engine.info.get("cuda graph") not in ("yes", None)
                on_the_host += inspector.engine.info["chain"].startswith("on the host: out of GPU memory")
        except VisionADError as exc:
            assert "out of GPU memory" in str(exc)
            assert not left(), f"while the failure at taking {number} is still being told"
        assert not left(), f"after the failure at taking {number}"
        if device.made < number:  # it got through
            break
    if backend == "onnxruntime-cuda":
        assert number > 100 and on_the_host > 80
    else:
        assert number > 100 and (without_graph, on_the_host) == (1, 0)


def test_cameras_are_served_while_a_image_is_enrolled(
    backend: str, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two groups of its encodings the owner's thread does others' work."""
    with Inspector.open(own_model, tmp_path / "bank", backend=backend) as inspector:
        order: list[str] = []
        begin = DeviceThread.submit

        def submit(owner: DeviceThread, *work: Callable[..., object]) -> object:
            if threading.current_thread() is enroller:
                order.append("group")
                inspected = threading.Thread(target=lambda: owner.run(lambda _: order.append("other")))
                inspected.start()
                inspected.join()
            return begin(owner, *work)

        monkeypatch.setattr(DeviceThread, "submit", submit)
        enroller = threading.Thread(target=lambda: inspector.enroll("disc", [part(0)]))
        enroller.start()
        enroller.join()
        groups = -(-len(inspector.bank.manifest.blocks) // inspector.engine.batch_size) if inspector.bank else 0
        assert groups > 1 and order == ["group", "other"] * groups


@thorough
def test_every_command_closes(
    backend: str, own_model: Path, tmp_path: Path, good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="parity runs the reference")
    opened: list[Inspector] = []
    init = Inspector.__init__
    monkeypatch.setattr(
        Inspector, "__init__", lambda self, *args, **more: (opened.append(self), init(self, *args, **more))[1]
    )
    monkeypatch.setattr(bench, "_cold_start", lambda *_: {})  # in other processes, which have no fake GPU
    model, bank = str(own_model), str(tmp_path / "bank")
    data = tmp_path / "data" / "disc"
    for place, count, defect in (("train/good", 1, False), ("test/good", 2, False), ("test/scratch", 2, True)):
        (data / place).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(data / place / f"{i}.png"), part(20 + 5 * len(place) + i, defect=defect))
    paths = [str(p) for p in good]
    commands = [
        *([["build", model]] if backend != "onnxruntime-cuda" else []),
        ["bank", "add", model, bank, *paths[:2], "--class", "disc", "--choose", "1"],
        ["calibrate", model, bank, *paths[:3], "--class", "disc", "--max-false-reject", "0.5"],
        ["predict", model, bank, *paths],
        ["parity", model, bank, paths[3]],
        ["eval", model, "--dataset", "folder", "--root", str(data.parent), "--shots", "1"],
        ["bench", model, bank, "--seconds", "0", "--rounds", "3", "--starts", "1", "--batch", "1", "--json"],
    ]
    for command in commands:
        assert run([*command, "--backend", backend]) == 0, command
        assert not left(), command
    assert run(["predict", model, bank, *paths, "--backend", backend, "--class", "nobody"]) == 2
    assert not left()
    assert f"passed on {backend}" in doctor._self_test(own_model, [])
    assert not left() and len(opened) == 7
