"""The NVIDIA driver's own meter (NVML): GPU memory in use and energy."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ...errors import VisionADError


class Nvml:
    """The driver's meter of one GPU."""

    def __init__(self, pynvml: ModuleType, handle: object) -> None:
        """Use :func:`open_nvml`."""
        self._pynvml, self._handle = pynvml, handle

    def used(self) -> int:
        """Return the bytes of GPU memory in use, by any process.

        Raises:
            VisionADError: NVML does not tell.
        """
        with _told("GPU memory", self._pynvml):
            return int(self._pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def joules(self) -> float:
        """Return the energy used since the driver was loaded.

        Raises:
            VisionADError: this GPU does not count it.
        """
        with _told("the energy used", self._pynvml):
            return float(self._pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3


@contextmanager
def open_nvml() -> Iterator[Nvml | str]:
    """Open the meter of the machine's one GPU, or say why there is none.

    With several GPUs it is not known which of them CUDA calls the first, and a wrong meter is worse than none.
    """
    try:
        pynvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        yield "GPU memory and energy are measured by nvidia-ml-py, which is not installed: pip install 'visionad[gpu]'"
        return
    try:
        with _told("to start", pynvml):
            pynvml.nvmlInit()
    except VisionADError as exc:
        yield str(exc)
        return
    try:
        yield _only_gpu(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _only_gpu(pynvml: ModuleType) -> Nvml | str:
    try:
        with _told("the number of GPUs", pynvml):
            count = pynvml.nvmlDeviceGetCount()
        if count != 1:
            return f"NVML sees {count} GPUs; measured where there is one"
        with _told("GPU 0", pynvml):
            return Nvml(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
    except VisionADError as exc:
        return str(exc)


@contextmanager
def _told(what: str, pynvml: ModuleType) -> Iterator[None]:
    """Turn NVML's errors into a :class:`VisionADError` that says what was asked for."""
    try:
        yield
    except pynvml.NVMLError_LibraryNotFound:
        raise VisionADError("no NVIDIA driver here (NVML does not load)") from None
    except pynvml.NVMLError as exc:
        raise VisionADError(f"NVML does not give {what} here ({exc})") from None


def energy(nvml: Nvml | str, call: Callable[[int], object], batch: int, seconds: float) -> dict[str, Any]:
    """Joules an image and mean watts of the whole GPU board, idle share included, over ``seconds`` of calls in a row.

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
