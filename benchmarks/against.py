"""Another checkout of the project beside this one, each in processes of its own: the option ``--against FOLDER`` of two benchmarks.

Both checkouts export the same random weights with their own exporter, enroll the same support and inspect the same file. Calls are
made in turns, and each round's first is another checkout's, so that a machine's slow spells meet both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common

SETTLE = 0.2
"""Seconds between measurements: threads of the one before may still spin."""
COMMAND = """
try:
    from visionad_runtime.cli.entry import main
except ImportError:  # as releases before the command line had a folder of its own
    from visionad_runtime.entry import main
main()
"""
INSPECT = """
import json, sys, time
from pathlib import Path
import common, cv2
from visionad_runtime import Inspector
folder, backbone, support, threads = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
common.export_random(backbone, folder / "model")
inspector = Inspector.open(folder / "model", folder / "bank", threads=threads)
inspector.enroll("gear", [cv2.imread(support)], colour="bgr")
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    (one,) = inspector.inspect_files([line.strip()], class_name="gear")
    ms = (time.perf_counter() - start) * 1e3
    print(json.dumps({"ms": ms, "score": one.result.score, "stages": dict(one.result.timings)}), flush=True)
"""
LIMIT = 1.02
"""Allowed ratio of the time here to the time there."""


def environment(checkout: Path) -> dict[str, str]:
    """Return variables with which Python imports a checkout; this checkout's helpers of the benchmarks serve both."""
    parts = [checkout / name for name in ("runtime", "export", "visionad_ref")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*parts, common.ROOT / "benchmarks"]))}


def commit(checkout: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def inspecting(
    checkout: Path, folder: Path, backbone: str, support: Path, threads: int
) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """A process of a checkout that inspects files: path → milliseconds, score and stages.

    Args:
        checkout: the checkout.
        folder: gets ``model`` and ``bank``.
        backbone: the backbone.
        support: image file to enroll.
        threads: CPU threads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", INSPECT, str(folder), backbone, str(support), str(threads)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(checkout), text=True, **pipes) as process:  # type: ignore[call-overload]
        said = iter(process.stdout.readline, "")
        if not any(line == "ready\n" for line in said):  # what an exporter prints comes before
            raise SystemExit(f"{checkout}: the process has ended with status {process.wait()}")

        def inspect(path: Path) -> dict[str, Any]:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(next(said))
            return answer

        try:
            yield inspect
        finally:
            process.stdin.close()
            process.wait(60)


def in_turns(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each of two in turn and return the milliseconds that they return."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            time.sleep(SETTLE)
            times[name].append(calls[name]())
    return times


def compared(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Return medians, and the median over rounds of the ratio of ``here`` to ``there``."""
    ratio = statistics.median(h / t for h, t in zip(times["here"], times["there"], strict=True))
    medians = {f"{name}, ms": round(statistics.median(values), 2) for name, values in times.items()}
    return {**medians, "ratio": round(ratio, 4)}
