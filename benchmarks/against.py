"""Another checkout of the project beside this one, each in processes of its own: the option ``--against FOLDER`` of two benchmarks.

Both checkouts export the same random weights with their own exporter, enroll the same support and inspect the same file. Calls are
made in turns, and each round's first is another checkout's, so that a machine's slow spells meet both. CPU time is measured too: on
a shared machine, with one thread, it says more than the time.
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
    start, busy = time.perf_counter(), time.process_time()
    (one,) = inspector.inspect_files([line.strip()], class_name="gear")
    ms, cpu = (time.perf_counter() - start) * 1e3, (time.process_time() - busy) * 1e3
    print(json.dumps({"ms": ms, "cpu_ms": cpu, "score": one.result.score, "stages": dict(one.result.timings)}), flush=True)
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
    """A process of a checkout that inspects files: path → milliseconds, CPU milliseconds, score and stages.

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


Times = tuple[float, float]
"""Milliseconds, and CPU milliseconds, of a call."""


def in_turns(calls: Mapping[str, Callable[[], Times]], rounds: int) -> dict[str, list[Times]]:
    """Call ``here`` and ``there`` in turns."""
    times: dict[str, list[Times]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            time.sleep(SETTLE)
            times[name].append(calls[name]())
    return times


def compared(times: Mapping[str, list[Times]]) -> dict[str, float]:
    """Return medians, and the ratios of ``here`` to ``there``: the median over rounds for the time, of medians for CPU time."""
    found = dict[str, float]()
    for name, values in times.items():
        found[f"{name}, ms"], found[f"{name}, CPU ms"] = (
            round(statistics.median(one[i] for one in values), 2) for i in (0, 1)
        )
    ratio = statistics.median(here[0] / there[0] for here, there in zip(times["here"], times["there"], strict=True))
    return {**found, "ratio": round(ratio, 4), "CPU ratio": round(found["here, CPU ms"] / found["there, CPU ms"], 4)}


def cpu_ms(pid: int) -> float:
    """Return the CPU milliseconds that the living threads of a process have used (Linux)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def update(name: str, found: Mapping[str, Any]) -> Path:
    """Put a comparison into a result file, beside what it holds, with the environment of the comparison."""
    path = common.RESULTS / f"{name}.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "against": {"environment": common.environment(), **found}}, indent=1) + "\n")
    return path
