"""Cold start: time of a fresh process to open a model and to give its first verdict, and its memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import VisionADError

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
"""Program between this process and the measured one. A child's peak memory counts its parent's pages until exec, so the parent
must be small."""

_OPEN = """
import json, sys
from visionad_runtime import Inspector
settings = json.loads(sys.argv[1])
with Inspector.open(settings.pop("model"), **settings):  # its memory is read while it waits
    print("open", flush=True)
    sys.stdin.readline()
"""

_PREDICT = "from visionad_runtime.cli.entry import main; main()"


class Start(NamedTuple):
    """Measurements of one fresh process.

    Attributes:
        seconds: from its start to its first line of output.
        peak: peak resident bytes; ``None`` if the system does not report them.
        gpu_bytes: GPU bytes taken by its first line; ``None`` if not measured.
    """

    seconds: float
    peak: int | None
    gpu_bytes: int | None


def start(arguments: list[str], gpu_used: Callable[[], int] | None = None) -> Start:
    """Run Python in a fresh process.

    Args:
        arguments: arguments of Python.
        gpu_used: returns the bytes of GPU memory in use.

    Raises:
        VisionADError: the process failed. The message has its last line.
    """
    before = gpu_used() if gpu_used is not None else 0
    command = [sys.executable, "-c", _WATCH, sys.executable, *arguments]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    seconds = float(watch.stdout.readline() or -1)
    gpu_bytes = gpu_used() - before if gpu_used is not None else None
    out, err = watch.communicate("\n")
    status, peak = map(int, out.split() or (1, -1))
    if status or seconds < 0:
        lines = [line for line in err.splitlines() if line.strip()]
        raise VisionADError(f"a fresh process failed with status {status}: {lines[-1] if lines else 'no message'}")
    return Start(seconds, peak if peak >= 0 else None, gpu_bytes)


def cold_start(
    model: Path,
    bank: Path,
    image: Path,
    backend: str,
    threads: int | None,
    views: list[str],
    class_name: str | None,
    repeats: int,
    gpu_used: Callable[[], int] | str,
    options: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Measure the cold start with fresh processes, two per repeat.

    One process opens the model. The other runs `visionad predict` until its first verdict. Files are in the system's cache.

    Args:
        model: model folder.
        bank: bank folder.
        image: image to inspect.
        backend: backend to open.
        threads: CPU threads of the engine, ``None`` for all cores.
        views: views to inspect.
        class_name: class of the image; ``None`` routes it.
        repeats: number of repeats.
        gpu_used: returns the bytes of GPU memory in use by all processes; or the reason why they are not known.
        options: precision and device to open the backend with; ``None`` values are left out.

    Returns:
        Medians, JSON types. GPU memory is that of the process that has opened and tested the model.

    Raises:
        VisionADError: a process failed.
    """
    settings = {"model": str(model), "bank": str(bank), "backend": backend, "threads": threads, "views": views}
    chosen = {name: value for name, value in (options or {}).items() if value is not None}
    settings |= chosen
    open_model = ["-c", _OPEN, json.dumps(settings)]
    predict = ["-c", _PREDICT, "predict", str(model), str(bank), str(image), "--json", "--backend", backend]
    predict += ["--views", ",".join(views)]
    predict += ["--threads", str(threads)] if threads else []
    predict += ["--class", class_name] if class_name else []
    predict += [word for name, value in chosen.items() for word in (f"--{name}", value)]
    used = None if isinstance(gpu_used, str) else gpu_used
    starts = [(start(open_model, used), start(predict)) for _ in range(repeats)]
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
