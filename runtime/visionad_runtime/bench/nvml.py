"""The NVIDIA driver's own meter (NVML): GPU memory in use and energy."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import VisionADError


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Nvml:
    """The driver's own meter of one GPU. It comes with every NVIDIA driver, so it is asked directly."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        """Use :func:`open_nvml`."""
        self._library, self._handle = library, handle

    def used(self) -> int:
        """Bytes of GPU memory in use, by anybody."""
        memory = _Memory()
        _check(self._library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)), "GPU memory")
        return int(memory.used)

    def joules(self) -> float:
        """Energy since the driver was loaded.

        Raises:
            VisionADError: this GPU does not count it.
        """
        energy = ctypes.c_ulonglong()
        status = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(energy))
        _check(status, "the energy used")
        return energy.value / 1e3


@contextmanager
def open_nvml() -> Iterator[Nvml | str]:
    """The meter of the box's one GPU, or why there is none.

    With several GPUs it is not known here which of them CUDA calls the first, and a wrong meter is worse than none.
    """
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        yield "no NVIDIA driver here (NVML does not load)"
        return
    try:
        _check(library.nvmlInit_v2(), "to start")
    except VisionADError as exc:
        yield str(exc)
        return
    try:
        yield _only_gpu(library)
    finally:
        library.nvmlShutdown()


def _only_gpu(library: ctypes.CDLL) -> Nvml | str:
    count, handle = ctypes.c_uint(), ctypes.c_void_p()
    try:
        _check(library.nvmlDeviceGetCount_v2(ctypes.byref(count)), "the number of GPUs")
        if count.value != 1:
            return f"NVML sees {count.value} GPUs; measured where there is one"
        _check(library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)), "GPU 0")
    except VisionADError as exc:
        return str(exc)
    return Nvml(library, handle)


def _check(status: int, what: str) -> None:
    if status:
        raise VisionADError(f"NVML does not give {what} here (status {status})")


def energy(nvml: Nvml | str, call: Callable[[int], object], batch: int, seconds: float) -> dict[str, Any]:
    """Joules a picture and mean watts of the whole GPU board, idle share included, over ``seconds`` of calls in a row.

    NVML's counter moves about ten times a second, so the time is at least two seconds.
    """
    missing = {"joules_per_picture": None, "watts": None}
    if isinstance(nvml, str):
        return {**missing, "why_null": nvml}
    try:
        begin, start_j, calls = time.perf_counter(), nvml.joules(), 0
        while time.perf_counter() - begin < max(2.0, seconds):
            call(calls)
            calls += 1
        used, took = nvml.joules() - start_j, time.perf_counter() - begin
    except VisionADError as exc:
        return {**missing, "why_null": str(exc)}
    return {"joules_per_picture": round(used / (calls * batch), 4), "watts": round(used / took, 1), "calls": calls}
