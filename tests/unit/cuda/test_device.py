"""The GPU's owner thread, kernel arguments, and what is said where there is no GPU. On the fake device; no GPU needed."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Iterator
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.cuda import device, driver, thread
from visionad_runtime.cuda.device import Device as RealDevice
from visionad_runtime.cuda.device import kernel_argument
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.errors import VisionADError

from tests.data import in_threads
from tests.fakes.gpu import FakeDevice, FakeEvent


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceThread]:
    FakeDevice.reset()
    monkeypatch.setattr(thread, "Device", FakeDevice)
    yield DeviceThread.of(0)
    DeviceThread.of(0).close()


def test_all_threads_share_one_owner(owner: DeviceThread) -> None:
    seen: list[tuple[int, int]] = []

    def work(_: FakeDevice) -> None:
        seen.append((threading.get_ident(), DeviceThread.of(0).run(lambda d: d.index)))  # work may hand in work

    threads = [threading.Thread(target=lambda: DeviceThread.of(0).run(work)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(seen) == 8 and len(set(seen)) == 1 and seen[0][0] != threading.get_ident()


def test_an_error_reaches_the_caller_and_the_owner_lives_on(owner: DeviceThread) -> None:
    def fail(_: FakeDevice) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        owner.run(fail)
    assert owner.run(lambda d: d.name) == "Fake L4"


def test_a_device_refuses_other_threads(owner: DeviceThread) -> None:
    device = owner.run(lambda d: d)
    with pytest.raises(AssertionError, match="does not own"):
        device.alloc(4)


def test_closing_frees_and_the_next_use_opens_again(owner: DeviceThread) -> None:
    first = owner.run(lambda d: (d.alloc(8), d)[1])
    owner.close()
    assert not first._buffers and not FakeDevice._open
    for late in (owner.run, partial(owner.submit, lambda _: None)):
        with pytest.raises(VisionADError, match="GPU 0: its owner thread has ended"):  # nobody waits for ever
            late(lambda _: None)
    again = DeviceThread.of(0)
    assert again is not owner and again.run(lambda d: d) is not first


def test_results_are_stale_until_somebody_waits(owner: DeviceThread) -> None:
    def work(d: FakeDevice) -> tuple[list[float], list[float]]:
        host, back, buffer, stream = d.pinned(4, np.float32), d.pinned(4, np.float32), d.alloc(16), d.stream()
        host[:], back[:] = [1, 2, 3, 4], 0
        with d.capture(stream) as graph:
            d.upload(buffer, host, stream)
            d.download(back, buffer, stream)
        graph.launch(stream)
        early = back.tolist()
        stream.synchronize()
        return early, back.tolist()

    assert owner.run(work) == ([0, 0, 0, 0], [1, 2, 3, 4])


def test_an_event_tells_without_waiting(owner: DeviceThread) -> None:
    def work(d: FakeDevice) -> list[bool]:
        host, buffer, stream, event = d.pinned(4, np.float32), d.alloc(16), d.stream(), d.event()
        d.upload(buffer, host, stream)
        event.record(stream)
        return [event.query() for _ in range(3)]

    assert owner.run(work) == [False, True, True]


def test_others_are_served_while_the_gpu_works(owner: DeviceThread) -> None:
    """Three pieces of GPU work, begun in the order handed in; each caller sleeps until its own has ended."""
    begun, between = [], threading.Event()

    def serve(number: int) -> tuple[int, list[float]]:
        def begin(d: FakeDevice) -> FakeEvent:
            begun.append(number)
            stream, event = d.stream(), d.event()
            host, buffer = d.pinned(4, np.float32), d.alloc(16)
            host[:], back[:] = number, 0
            for _ in range(30 if number == 0 else 1):  # the first takes longest
                d.upload(buffer, host, stream)
            d.download(back, buffer, stream)
            event.record(stream)
            return event

        back = owner.run(lambda d: d.pinned(4, np.float32))

        def end(d: FakeDevice) -> list[float]:
            if number == 0:
                assert between.is_set() and len(begun) == 3
            between.set()
            return back.tolist()

        return number, owner.submit(begin, end)

    found: dict[int, list[float]] = {}
    FakeDevice.gpu["pace"] = 1
    ready = threading.Barrier(3)

    def caller(number: int) -> None:
        ready.wait()
        found.update([serve(number)])

    # the owner is busy until all three have been handed in
    held = threading.Thread(target=lambda: owner.run(lambda _: time.sleep(0.1)))
    held.start()
    in_threads(*(partial(caller, i) for i in range(3)))
    held.join()
    assert found == {i: [float(i)] * 4 for i in range(3)}


def test_an_error_while_serving_is_the_callers_alone(owner: DeviceThread) -> None:
    def begin(d: FakeDevice) -> FakeEvent:
        stream, event = d.stream(), d.event()
        event.record(stream)
        return event

    def fail(_: FakeDevice) -> None:
        raise ValueError("no")

    for pair in ((fail, fail), (begin, fail)):
        with pytest.raises(ValueError, match="no"):
            owner.submit(*pair)
    assert owner.submit(begin, lambda d: d.name) == "Fake L4"
    assert owner.run(lambda _: owner.submit(begin, lambda d: d.name)) == "Fake L4"  # by the owner itself


def test_closing_finishes_what_is_under_way(owner: DeviceThread) -> None:
    ended: list[str] = []

    def begin(d: FakeDevice) -> FakeEvent:
        closer.start()
        stream, event = d.stream(), d.event()
        event.record(stream)
        return event

    closer = threading.Thread(target=owner.close)
    ended.append(owner.submit(begin, lambda d: d.name))
    closer.join()
    assert ended == ["Fake L4"] and not FakeDevice._open


@given(st.integers(-(2**31), 2**31 - 1), st.floats(width=32, allow_nan=False))
def test_kernel_arguments(i: int, f: float) -> None:
    assert (kernel_argument(i).dtype, int(kernel_argument(i))) == (np.int32, i)
    assert (kernel_argument(f).dtype, float(kernel_argument(f))) == (np.float32, f)
    wide = kernel_argument(np.int64(i))
    assert (wide.dtype, int(wide)) == (np.int64, i)


def test_a_number_beyond_32_bits_is_refused() -> None:
    with pytest.raises(VisionADError, match=r"numpy\.int64"):
        kernel_argument(2**31)


def fake_pycuda(monkeypatch: pytest.MonkeyPatch, **names: object) -> None:
    package, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    vars(driver).update(names)
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)


def libcuda(monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    def load() -> object:
        if here:
            return object()
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(driver, "load_libcuda", load)


@pytest.mark.parametrize("driver", [True, False])
def test_without_pycuda(monkeypatch: pytest.MonkeyPatch, driver: bool) -> None:
    """Nobody should compile it on a box without a driver, only to be told of that next."""
    libcuda(monkeypatch, driver)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(VisionADError, match="pycuda, which is missing: pip install pycuda") as caught:
        device.Device.open()
    assert ("no NVIDIA driver is here either: install that first" in str(caught.value)) is not driver


@pytest.mark.parametrize(
    ("error", "driver", "said"),
    [
        ("libcuda.so.1: cannot open shared object file", True, r"no NVIDIA driver here \(libcuda"),
        ("undefined symbol: cuSomething_v2", False, r"no NVIDIA driver here \(libcuda"),
        ("undefined symbol: cuSomething_v2", True, "pycuda does not load: undefined.* --no-cache-dir pycuda"),
    ],
)
def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, error: str, driver: bool, said: str) -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name.startswith("pycuda"):
                warnings.warn("Failed to import the CUDA driver interface", stacklevel=1)  # as pycuda itself
                raise ImportError(error)

    libcuda(monkeypatch, driver)
    monkeypatch.delitem(sys.modules, "pycuda", raising=False)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with warnings.catch_warnings(record=True) as warned, pytest.raises(VisionADError, match=said):
        device.Device.open()
    assert not warned


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Error(Exception):
        pass

    def init() -> None:
        raise Error("cuInit failed: no CUDA-capable device is detected")

    fake_pycuda(monkeypatch, Error=Error, init=init)
    with pytest.raises(VisionADError, match="finds no GPU it can use"):
        device.Device.open()


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        @staticmethod
        def count() -> int:
            return 1

    fake_pycuda(monkeypatch, Error=RuntimeError, init=lambda: None, Device=Gpu)
    with pytest.raises(VisionADError, match="expected GPU 2, got 1"):
        device.Device.open(2)


class FakeGpu:
    """pycuda's device and, of as much use, its context."""

    count, pop = staticmethod(lambda: 1), staticmethod(lambda: None)

    def __init__(self, index: int) -> None:
        assert index == 0

    name, total_memory = (lambda self: "L4"), (lambda self: 1 << 30)
    compute_capability, retain_primary_context = (lambda self: (8, 9)), (lambda self: self)
    push = detach = lambda self: None

    def get_attribute(self, which: object) -> int:
        return 58


def test_multiprocessors_and_events_by_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        answers = iter([False, True])

        def query(self) -> bool:
            for answer in self.answers:
                return answer
            raise RuntimeError("cuEventQuery failed: an illegal memory access was encountered")

    class OutOfMemoryError(RuntimeError):
        pass

    fake_pycuda(
        monkeypatch, Error=RuntimeError, MemoryError=OutOfMemoryError, init=lambda: None, Device=FakeGpu, Context=FakeGpu,
        Event=Event, get_driver_version=lambda: 13000, mem_get_info=lambda: (1, 2),
        device_attribute=SimpleNamespace(MULTIPROCESSOR_COUNT="MULTIPROCESSOR_COUNT"),
    )  # fmt: skip
    with RealDevice.open() as device:
        assert device.multiprocessors == 58
        event = device.event()
        assert [event.query(), event.query()] == [False, True]
        with pytest.raises(VisionADError, match=r"failed running on L4: .*illegal memory access"):
            event.query()


def test_what_was_taken_is_given_back_on_the_owners_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """pycuda frees with an object's last reference, and nothing where another thread drops that."""
    gone: list[tuple[str, int]] = []

    class Taken:
        handle = 7

        def __init__(self, *_: object) -> None:
            pass

        def __del__(self) -> None:
            gone.append((type(self).__name__, threading.get_ident()))

        def get_function(self, name: str) -> Kernel:
            return Kernel(self)

    class Stream(Taken):
        pass

    class Event(Taken):
        pass

    class Module(Taken):
        pass

    class Kernel(Taken):
        def __init__(self, module: object) -> None:
            self.module = module  # as pycuda's functions do

    class PageLocked:
        def __init__(self) -> None:
            self.memory = np.zeros(3, np.float32)
            self.__array_interface__ = self.memory.__array_interface__

        def free(self) -> None:
            gone.append(("PageLocked", threading.get_ident()))

    fake_pycuda(
        monkeypatch, Error=RuntimeError, MemoryError=type("MemoryError", (RuntimeError,), {}), init=lambda: None,
        Device=FakeGpu, Context=FakeGpu, Stream=Stream, Event=Event, module_from_buffer=Module,
        pagelocked_empty=lambda *_: np.asarray(PageLocked()), get_driver_version=lambda: 13000,
        device_attribute=SimpleNamespace(MULTIPROCESSOR_COUNT=0),
    )  # fmt: skip
    with RealDevice.open() as device:
        array, stream, event, module = device.pinned(3, np.float32), device.stream(), device.event(), device.load(b"")
        kernel = module.function("pack")
        assert not gone
        device.unpin(array)
        for thing in (stream, event, module):
            thing.close()
            thing.close()
        assert sorted(name for name, _ in gone) == ["Event", "Kernel", "Module", "PageLocked", "Stream"]
        assert {thread for _, thread in gone} == {threading.get_ident()}
        del kernel
