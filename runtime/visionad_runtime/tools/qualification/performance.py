"""Latency of one class on this machine, file to verdict."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...inspector.inspection import Inspection
from ..benchmark.measure import summarize

CALLS = 120
"""Timed inspections: 99th percentiles take 100."""


def latency(
    inspector: Inspection,
    class_name: str,
    paths: Sequence[Path],
    *,
    calls: int = CALLS,
    streams: int = 1,
    bit_depth: int | None = None,
    step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time inspections of image files, each from opening the file to the verdict.

    Args:
        inspector: with the bank.
        class_name: the class.
        paths: image files, used in turn.
        calls: number of timed inspections.
        streams: inspections that run at a time, as from so many cameras.
        bit_depth: bits that the camera fills in 16-bit files.
        step: called after each inspection.

    Returns:
        Milliseconds: ``p50``, ``p95``, ``p99``, ``mean``, ``worst``; ``calls``, ``streams`` and the machine's load beside.
    """

    def one(number: int) -> float:
        start = time.perf_counter()
        next(inspector.inspect_files([paths[number % len(paths)]], class_name=class_name, bit_depth=bit_depth))
        elapsed = (time.perf_counter() - start) * 1e3
        step()
        return elapsed

    for number in range(2 * streams):  # warm up: the search index of the class is built in the background
        next(inspector.inspect_files([paths[number % len(paths)]], class_name=class_name, bit_depth=bit_depth))
    load = _load()
    if streams == 1:
        times = [one(number) for number in range(calls)]
    else:
        with ThreadPoolExecutor(streams) as pool:
            times = list(pool.map(one, range(calls)))
    return {
        **summarize(times),
        "worst": round(max(times), 4),
        "streams": streams,
        "threads": inspector.threads,
        "load_before": load,
        "load_after": _load(),
    }


def _load() -> float | None:
    """Return the number of processes that ran or waited in the last minute, ``None`` where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
