"""The box and processes on it: what it is, how a fresh process starts, what NVML says about GPU memory and energy."""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..doctor import cpu_name, gpu_names, package_version
from ..errors import VisionADError
from ..workers import cores

PACKAGES = (
    "numpy",
    "pillow",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "pycuda",
    "torch",
    "timm",
)


def environment() -> dict[str, Any]:
    """Hardware, versions, and the commit where this is a checkout."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": cores(),
        "gpus": gpu_names(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "visionad": __version__,
        "versions": {name: version for name in PACKAGES if (version := package_version(name))},
        "commit": _commit(),
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


# -- a fresh process ---------------------------------------------------------------------------------------------------

_WATCH = """
import subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
line = child.stdout.readline()
print(time.perf_counter() - start if line else -1, flush=True)
sys.stdin.readline()
child.communicate()
try:
    import resource
except ImportError:
    peak = -1
else:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(child.returncode, peak, flush=True)
"""
"""Between the measured process and this one, because a child's peak counts its parent's pages up to its exec: a small parent."""

_OPEN = """
import json, sys
from visionad_runtime import Inspector
settings = json.loads(sys.argv[1])
with Inspector.open(settings.pop("model"), **settings):  # its memory is read meanwhile
    print("open", flush=True)
    sys.stdin.readline()
"""

_PREDICT = "from visionad_runtime.cli import main; main()"


class Start(NamedTuple):
    """Seconds from a process's start to its first line of output, its peak resident bytes, GPU bytes taken by then."""

    seconds: float
    peak: int | None
    gpu_bytes: int | None


def start(arguments: list[str], gpu_used: Callable[[], int] | None = None) -> Start:
    """Run Python with ``arguments`` as a process of its own.

    Raises:
        VisionADError: it failed; with its last line.
    """
    before = gpu_used() if gpu_used is not None else 0
    command = [sys.executable, "-c", _WATCH, sys.executable, *arguments]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    seconds = float(watch.stdout.readline() or -1)
    taken = gpu_used() - before if gpu_used is not None else None
    out, err = watch.communicate("\n")
    status, peak = map(int, out.split() or (1, -1))
    if status or seconds < 0:
        said = [line for line in err.splitlines() if line.strip()]
        raise VisionADError(f"a fresh process failed with status {status}: {said[-1] if said else 'it said nothing'}")
    return Start(seconds, peak if peak >= 0 else None, taken)


def cold_start(
    model: Path,
    bank: Path,
    picture: Path,
    backend: str,
    threads: int | None,
    views: list[str],
    class_name: str | None,
    repeats: int,
    gpu_used: Callable[[], int] | str,
    wishes: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Medians over ``repeats`` fresh processes each, in turn: until ``Inspector.open`` is done, and until `visionad predict` has
    given the first verdict. Files are in the system's cache. GPU memory is that of a process that has opened and tested the model.

    Args:
        wishes: precision and device to open the backend with.
        gpu_used: bytes of GPU memory in use by anybody, or why that is not known.
    """
    settings = {"model": str(model), "bank": str(bank), "backend": backend, "threads": threads, "views": views}
    asked = {name: value for name, value in (wishes or {}).items() if value is not None}
    settings |= asked
    opened = ["-c", _OPEN, json.dumps(settings)]
    predict = ["-c", _PREDICT, "predict", str(model), str(bank), str(picture), "--json", "--backend", backend]
    predict += ["--views", ",".join(views)]
    predict += ["--threads", str(threads)] if threads else []
    predict += ["--class", class_name] if class_name else []
    predict += [word for name, value in asked.items() for word in (f"--{name}", value)]
    used = None if isinstance(gpu_used, str) else gpu_used
    starts = [(start(opened, used), start(predict)) for _ in range(repeats)]
    peaks = [p.peak for _, p in starts if p.peak is not None]
    memory = [o.gpu_bytes for o, _ in starts if o.gpu_bytes is not None]
    why = {"why_null": gpu_used} if isinstance(gpu_used, str) else {}
    return {
        "open_s": round(statistics.median(o.seconds for o, _ in starts), 3),
        "first_verdict_s": round(statistics.median(p.seconds for _, p in starts), 3),
        "peak_memory_mb": round(max(peaks) / 1e6, 1) if peaks else None,
        "gpu_memory_mb": round(statistics.median(memory) / 1e6, 1) if memory else None,
        "starts": repeats,
        **why,
    }


# -- NVML --------------------------------------------------------------------------------------------------------------


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
