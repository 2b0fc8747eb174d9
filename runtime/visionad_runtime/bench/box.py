"""The box and processes on it: what it is, how a fresh process starts, what NVML says about GPU memory and energy."""

from __future__ import annotations

import importlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
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
from .. import Inspector
settings = json.loads(sys.argv[1])
with Inspector.open(settings.pop("model"), **settings):  # its memory is read meanwhile
    print("open", flush=True)
    sys.stdin.readline()
"""

_PREDICT = "from visionad_runtime.cli.entry import main; main()"


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
) -> dict[str, Any]:
    """Medians over ``repeats`` fresh processes each, in turn: until ``Inspector.open`` is done, and until `visionad predict` has
    given the first verdict. Files are in the system's cache. GPU memory is that of a process that has opened and tested the model.

    Args:
        gpu_used: bytes of GPU memory in use by anybody, or why that is not known.
    """
    settings = {"model": str(model), "bank": str(bank), "backend": backend, "threads": threads, "views": views}
    opened = ["-c", _OPEN, json.dumps(settings)]
    predict = ["-c", _PREDICT, "predict", str(model), str(bank), str(picture), "--json", "--backend", backend]
    predict += ["--views", ",".join(views)]
    predict += ["--threads", str(threads)] if threads else []
    predict += ["--class", class_name] if class_name else []
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
