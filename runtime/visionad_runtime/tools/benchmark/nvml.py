"""GPU memory in use and energy, by NVIDIA's management library (NVML)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ...errors import VisionADError


class Nvml:
    """NVML's counters of one GPU."""

    def __init__(self, pynvml: ModuleType, handle: object) -> None:
        """Use :func:`open_nvml`."""
        self._pynvml, self._handle = pynvml, handle

    def used(self) -> int:
        """Return the bytes of GPU memory in use, by any process.

        Raises:
            VisionADError: NVML does not report it.
        """
        with _nvml_errors("GPU memory", self._pynvml):
            return int(self._pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def joules(self) -> float:
        """Return the energy used since the driver was loaded.

        Raises:
            VisionADError: this GPU does not measure it.
        """
        with _nvml_errors("the energy used", self._pynvml):
            return float(self._pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3


@contextmanager
def open_nvml() -> Iterator[Nvml | str]:
    """Open NVML for the machine's only GPU. Yield the reason if that is not possible.

    With several GPUs, it is not known which one CUDA numbers first, and a wrong measurement is worse than none.
    """
    try:
        pynvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        yield "GPU memory and energy are measured by nvidia-ml-py, which is not installed: pip install 'visionad[gpu]'"
        return
    try:
        with _nvml_errors("access", pynvml):
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
        with _nvml_errors("the number of GPUs", pynvml):
            count = pynvml.nvmlDeviceGetCount()
        if count != 1:
            return f"NVML reports {count} GPUs; measured only if there is one"
        with _nvml_errors("GPU 0", pynvml):
            return Nvml(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
    except VisionADError as exc:
        return str(exc)


@contextmanager
def _nvml_errors(what: str, pynvml: ModuleType) -> Iterator[None]:
    """Turn NVML's errors into a :class:`VisionADError` that names the requested value."""
    try:
        yield
    except pynvml.NVMLError_LibraryNotFound:
        raise VisionADError("no NVIDIA driver here (NVML does not load)") from None
    except pynvml.NVMLError as exc:
        raise VisionADError(f"NVML does not report {what} ({exc})") from None


def energy(nvml: Nvml | str, call: Callable[[int], object], batch: int, seconds: float) -> dict[str, Any]:
    """Measure the energy of the whole GPU board, its idle power included, over consecutive calls.

    NVML updates its counter about ten times per second, so the measurement takes at least two seconds.

    Args:
        nvml: the GPU's counters, or the reason why there are none.
        call: takes the number of the call.
        batch: images per call.
        seconds: time of the measurement.

    Returns:
        Joules per image, mean watts and calls; the first two are ``None`` with ``why_null`` if not measured.
    """
    missing = {"joules_per_picture": None, "watts": None}
    if isinstance(nvml, str):
        return {**missing, "why_null": nvml}
    try:
        begin, start_joules, calls = time.perf_counter(), nvml.joules(), 0
        while time.perf_counter() - begin < max(2.0, seconds):
            call(calls)
            calls += 1
        used, elapsed = nvml.joules() - start_joules, time.perf_counter() - begin
    except VisionADError as exc:
        return {**missing, "why_null": str(exc)}
    return {"joules_per_picture": round(used / (calls * batch), 4), "watts": round(used / elapsed, 1), "calls": calls}
