"""What both workers share: read a job, learn, inspect image by image against the clock, tell. NumPy and the standard library.

A worker is a process of its own, run as ``python WORKER JOB``. JOB is a folder with ``job.json``: ``options`` of the method,
``threads``, and ``units``, each with ``supports`` and ``images`` (file names). The worker adds ``N.npy`` for the N-th unit, its
raw float32 maps one after the other (several arrays in one file, as repeated ``np.save`` writes them), and ``done.json``.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

WARM_UP = 3


class Method(Protocol):
    """An open method. ``facts`` goes to the result as it is."""

    facts: dict[str, Any]

    def learn(self, supports: list[Path]) -> int:
        """Forget everything, learn these good images; returns the rows of the memory bank."""

    def read(self, path: Path) -> Any:
        """Decode an image file, with the reader that is the method's own."""

    def inspect(self, image: Any) -> tuple[float, NDArray[np.float32]]:
        """Preprocess, encode, search, score: the raw score and the raw map (H, W) of the whole input."""


def work(open_method: Callable[[dict[str, Any], int], Method], packages: tuple[str, ...]) -> None:
    """Do the job named on the command line; ``packages`` are those whose versions matter."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    method = open_method(job["options"], job["threads"])
    opened = _peak_rss_mb()
    units = [_unit(method, unit, folder / f"{i}.npy") for i, unit in enumerate(job["units"])]
    done = {
        "facts": method.facts,
        "units": units,
        "peak_rss_mb": _peak_rss_mb(),
        "peak_rss_at_open_mb": opened,
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    (folder / "done.json").write_text(json.dumps(done))


def _unit(method: Method, unit: dict[str, Any], maps: Path) -> dict[str, Any]:
    images = [Path(name) for name in unit["pictures"]]
    start = time.perf_counter()
    rows = method.learn([Path(name) for name in unit["supports"]])
    learn_ms = (time.perf_counter() - start) * 1e3
    for _ in range(WARM_UP):
        method.inspect(method.read(images[0]))
    scores, total, decode = [], [], []
    with open(maps, "wb") as file:
        for path in images:
            start = time.perf_counter()
            image = method.read(path)
            read = time.perf_counter()
            score, anomaly_map = method.inspect(image)
            end = time.perf_counter()
            scores.append(score)
            decode.append((read - start) * 1e3)
            total.append((end - start) * 1e3)
            np.save(file, anomaly_map)  # on disk, so that the maps of a run do not count as the method's memory
    return {
        "scores": scores,
        "bank_rows": rows,
        "learn_ms": learn_ms,
        "ms": statistics.median(total),
        "decode_ms": statistics.median(decode),
    }


def _peak_rss_mb() -> float:
    """Of this process since it began. ``ru_maxrss`` would not do on Linux: it starts from what the parent held at the fork."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # macOS counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
