"""An inspector under load: `python benchmarks/gpu_chain.py MODEL --backend B --out FILE`, on a GPU or a CPU.

* sizes: time before the backbone by image size: decoding, OpenCV's resize and the runtime's on the host, and the stages of the
  pipeline;
* cameras: threads that inspect through one inspector: latency and images per second;
* steady: one camera, call after call: percentiles, in which stages the slowest calls are slow, and whether memory of the GPU and of
  the process grows;
* enrollment: cameras continue while classes are enrolled: latency during and before;
* pauses: parts with pauses between them, as on a slow line: latency after each pause, without and with ``keep_alive``.

Images are rendered and come from memory, as those of a camera; the class is given. `visionad bench` compares with the bare engine.
Each part gets its fraction of ``--seconds`` and reports its number of calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np
from gpu_table import figure, told_aim
from numpy.typing import NDArray
from visionad_runtime import Inspector, preprocess
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.engine.base import NVIDIA_GPU
from visionad_runtime.engine.registry import backend_spec
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import PreprocessSpec
from visionad_runtime.images import decode
from visionad_runtime.pipeline.cuda.pipeline import CudaPipeline
from visionad_runtime.system import environment
from visionad_runtime.tools.benchmark import measure
from visionad_runtime.tools.benchmark.nvml import Nvml, open_nvml
from visionad_runtime.tools.demo.rendering import render

U8 = NDArray[np.uint8]
SIZES = ((480, 640), (1024, 1024), (1080, 1920), (2048, 2448), (3000, 4000))
SHARES = {"sizes": 0.1, "cameras": 0.2, "steady": 0.45, "enrollment": 0.1, "pauses": 0.15}
"""Parts of ``--seconds``."""
REPEATS = 20
STEADY_CALLS, GROWTH_CALLS = 10_000, 100_000
"""Calls over which the percentiles are expected, and over which memory may not grow."""
STEADY_RATIO = 1.3
HEAP = 16e6
"""Bytes that a process's memory moves by without anything being kept. A map kept from each call would be 262 kB a call."""
CHECKPOINTS = 10
PAUSES, KEEP_ALIVE = (0.1, 1.0), 0.02
"""Seconds between two parts, and without one until the engine is run to stay awake."""
CLASS = "part"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write ``--out``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model", type=Path, help="model folder")
    options.add_argument("--backend", default="auto")
    options.add_argument(
        "--threads", type=int, default=None, help="CPU threads of engine and search (default: all cores)"
    )
    options.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4, 8])
    options.add_argument("--calls", type=int, default=GROWTH_CALLS, help="most calls of the steady part")
    options.add_argument("--seconds", type=float, default=600, help="for all parts together")
    options.add_argument("--side", type=int, default=1024, help="pixels of an image's side, but for the part by size")
    options.add_argument("--out", type=Path, help="JSON file")
    args = options.parse_args(argv)
    try:
        report = measure_all(args)
    except VisionADError as exc:
        print(f"gpu_chain: {exc}", file=sys.stderr)
        return 2
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(table(report)))
    return 0


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """All parts of one model on one backend."""
    images = [in_bgr(render("gear", seed, size=args.side)[0]) for seed in range(4)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def opened(keep_alive: float | None) -> Inspector:
            return Inspector.open(
                args.model, folder / "bank", backend=args.backend, threads=args.threads, keep_alive=keep_alive
            )

        inspector = stack.enter_context(opened(None))
        inspector.enroll(CLASS, images[:1])
        line = Line(inspector, images[1:])
        seconds = {part: share * args.seconds for part, share in SHARES.items()}
        gpu_used = _meter(inspector, stack.enter_context(open_nvml()))
        report = {
            "environment": environment(),
            "model": inspector.manifest.identity.describe(),
            "precision": inspector.manifest.precision,
            "backend": inspector.engine.name,
            "details": dict(inspector.engine.info),
            "sizes": sizes(inspector, folder, seconds["sizes"]),
            "cameras": [cameras(line, n, seconds["cameras"] / len(args.cameras)) for n in args.cameras],
            "steady": steady(line, args.calls, seconds["steady"], gpu_used),
            "enrollment": enrollment(line, 2, seconds["enrollment"]),
            "pauses": {"plain": pauses(line, seconds["pauses"] / 2)},
        }
        if isinstance(inspector.pipeline, CudaPipeline):
            inspector.close()  # or the memory would have to hold both
            with opened(KEEP_ALIVE) as awake:
                report["pauses"]["kept_alive"] = pauses(Line(awake, line.images), seconds["pauses"] / 2)
    return {**report, "aims": aims(report)}


def _meter(inspector: Inspector, nvml: Nvml | str) -> Callable[[], int] | str:
    """Bytes of GPU memory in use, or why they are not known."""
    if backend_spec(inspector.engine.name).device != NVIDIA_GPU:
        return "the backend uses no GPU"
    if inspector.engine.requires_device_pipeline:  # no other library allocates there
        owner = DeviceThread.of(0)
        return lambda: owner.run(lambda device: device.total_memory - device.free_memory())
    return nvml if isinstance(nvml, str) else nvml.used


class Line:
    """An inspector, and the images that pass it in turn."""

    def __init__(self, inspector: Inspector, images: Sequence[U8]) -> None:
        self.inspector, self.images = inspector, list(images)

    def inspect(self, number: int) -> Mapping[str, float]:
        """The image of this number. Milliseconds by stage."""
        image = self.images[number % len(self.images)]
        return self.inspector.inspect(image, class_name=CLASS).timings

    def calls(
        self, threads: int, go_on: Callable[[int], bool], note: Callable[[Mapping[str, float]], None] = lambda _: None
    ) -> list[list[tuple[float, float]]]:
        """Inspect from as many threads, each until ``go_on`` (its calls so far) says no; ``note`` gets each call's stages.
        Start and end of each call, in seconds, by thread.

        Raises:
            Exception: what a thread raised first; the others are stopped.
        """
        spans: list[list[tuple[float, float]]] = [[] for _ in range(threads)]
        errors: list[BaseException] = []

        def camera(own: list[tuple[float, float]], number: int) -> None:
            try:
                while not errors and go_on(len(own)):
                    start = time.perf_counter()
                    stages = self.inspect(number + len(own))
                    own.append((start, time.perf_counter()))
                    note(stages)
            except BaseException as exc:
                errors.append(exc)

        workers = [threading.Thread(target=camera, args=(own, i)) for i, own in enumerate(spans)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if errors:
            raise errors[0]
        return spans


def sizes(inspector: Inspector, folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds by image size (medians): of each step on the host, and of the chain's stages before the backbone."""
    part = render("gear", 9, size=1024)[0]
    return [
        one_size(inspector, folder, np.ascontiguousarray(cv2.resize(part, (width, height))), seconds / len(SIZES))
        for height, width in SIZES
    ]


def one_size(inspector: Inspector, folder: Path, rgb: U8, seconds: float) -> dict[str, Any]:
    """:func:`sizes` of one image."""
    height, width = rgb.shape[:2]
    jpg, png = (folder / f"{height}x{width}.{kind}" for kind in ("jpg", "png"))
    for path in (jpg, png):
        cv2.imwrite(str(path), in_bgr(rgb))
    spec, views = inspector.manifest.identity.preprocess, inspector.views
    stages: list[Mapping[str, float]] = []
    image = in_bgr(rgb)
    steps: dict[str, Callable[[], object]] = {
        "decode jpg": lambda: decode.load(jpg),
        "decode png": lambda: decode.load(png),
        "OpenCV": lambda: preprocess.query_views(by_opencv(rgb, spec), views),
        "host": lambda: preprocess.query_views(preprocess.prepare(rgb, spec), views),
        "inspect": lambda: stages.append(inspector.inspect(image, class_name=CLASS).timings),
    }
    times = {name: _median(step, seconds / len(steps)) for name, step in steps.items()}
    chain = {
        s: round(statistics.median(t[s] for t in stages[1:]), 4) for s in ("upload", "preprocess") if s in stages[0]
    }
    return {"height": height, "width": width, **times, "chain": chain}


def in_bgr(rgb: U8) -> U8:
    """As OpenCV and most cameras deliver it."""
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)  # type: ignore[return-value]


def by_opencv(rgb: U8, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Resize, crop and normalise as pipelines around OpenCV do it: as fast, not the method's own pixels."""
    at = preprocess.crop_offset(spec.resize, spec.crop)
    resized = cv2.resize(rgb, (spec.resize, spec.resize), interpolation=cv2.INTER_LINEAR)
    cropped = resized[at : at + spec.crop, at : at + spec.crop].astype(np.float32) / np.float32(255)
    normal = (cropped - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def _median(step: Callable[[], object], seconds: float) -> float:
    """Of up to :data:`REPEATS` calls, at least two; one more warms up."""
    step()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or (len(times) < REPEATS and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return round(statistics.median(times), 4)


def cameras(line: Line, threads: int, seconds: float) -> dict[str, Any]:
    """Latency and throughput of as many cameras."""
    line.calls(threads, lambda calls: calls < 1)
    until = time.perf_counter() + seconds
    spans = [span for own in line.calls(threads, lambda _: time.perf_counter() < until) for span in own]
    if not spans:
        raise VisionADError(f"no time for a call of {threads} cameras; give more --seconds")
    elapsed = max(end for _, end in spans) - min(start for start, _ in spans)
    return {"cameras": threads, **measure.summarize(_ms(spans)), "pictures_per_s": round(len(spans) / elapsed, 2)}


class Stages:
    """Milliseconds by stage of the first so many calls, in memory taken beforehand: what grows is to be the inspector's."""

    def __init__(self, most: int, one: Mapping[str, float]) -> None:
        self._names = list(one)
        self._rows = np.zeros((most, len(one)))
        self._calls = 0

    def note(self, stages: Mapping[str, float]) -> None:
        """One more call."""
        if self._calls < len(self._rows):
            self._rows[self._calls] = [stages[name] for name in self._names]
            self._calls += 1

    def slowest(self) -> dict[str, dict[str, float]]:
        """Each stage's median over all calls, and over the slowest hundredth of them: what makes these slow."""
        rows = self._rows[: self._calls]
        slow = np.argsort(rows[:, self._names.index("total")])[-max(1, len(rows) // 100) :]
        both = zip(self._names, np.median(rows, axis=0), np.median(rows[slow], axis=0), strict=True)
        return {name: {"p50": round(usual, 4), "slowest": round(late, 4)} for name, usual, late in both}


def steady(line: Line, calls: int, seconds: float, gpu_used: Callable[[], int] | str) -> dict[str, Any]:
    """One camera. Memory is read ten times; what it grew by is between the first time, a tenth of the calls in, and the last."""
    stages = Stages(STEADY_CALLS, line.inspect(0))
    start = time.perf_counter()
    spans: list[tuple[float, float]] = []
    memory: list[dict[str, Any]] = []
    for number in range(1, CHECKPOINTS + 1):
        until, most = start + seconds * number / CHECKPOINTS, -(-calls * number // CHECKPOINTS) - len(spans)
        (own,) = line.calls(1, partial(_within, until, most), stages.note)
        spans += own
        gpu = None if isinstance(gpu_used, str) else gpu_used()
        memory.append({"calls": len(spans), "host_bytes": round(common.memory("VmRSS") * 1e6), "gpu_bytes": gpu})
    first, last = memory[0], memory[-1]
    reason = {"gpu_why_null": gpu_used} if isinstance(gpu_used, str) else {}
    return {
        **measure.summarize(_ms(spans)),
        "stages": stages.slowest(),
        "memory": memory,
        "host_grew": last["host_bytes"] - first["host_bytes"],
        "gpu_grew": None if last["gpu_bytes"] is None else last["gpu_bytes"] - first["gpu_bytes"],
        **reason,
    }


def _within(until: float, most: int, done: int) -> bool:
    """Whether one more call is to be made: at least one, at most ``most``."""
    return done < most and (not done or time.perf_counter() < until)


def enrollment(line: Line, threads: int, seconds: float) -> dict[str, Any]:
    """Cameras inspect; after half the time images are enrolled in another class, one after the other."""
    begin = time.perf_counter()
    busy: list[tuple[float, float]] = []
    done = threading.Event()

    def clerk() -> None:
        try:
            time.sleep(seconds / 2)
            while not busy or time.perf_counter() - begin < seconds:
                good = render("pcb", len(busy), size=512)[0]
                start = time.perf_counter()
                line.inspector.enroll("new", [good], colour="rgb")
                line.inspect(0)  # the first that comes sees to it that the bank is on the GPU
                busy.append((start, time.perf_counter()))
        finally:
            done.set()

    worker = threading.Thread(target=clerk)
    worker.start()
    spans = [span for own in line.calls(threads, lambda calls: not done.is_set() or not calls) for span in own]
    worker.join()
    if not busy:
        raise VisionADError("enrolling beside the cameras failed")
    during = [(s, e) for s, e in spans if any(s < end and e > start for start, end in busy)]
    before = [(s, e) for s, e in spans if e <= busy[0][0]]
    return {
        "cameras": threads,
        "enrolled": len(busy),
        "enrollment_ms": round(statistics.median(_ms(busy)), 2),
        "before": measure.summarize(_ms(before)) if before else None,
        "during": measure.summarize(_ms(during)) if during else None,
    }


def pauses(line: Line, seconds: float) -> list[dict[str, Any]]:
    """Latency of calls that come after a pause, at least two for each of :data:`PAUSES`."""
    rows = []
    for pause in PAUSES:
        spans: list[tuple[float, float]] = []
        line.inspect(0)
        until = time.perf_counter() + seconds / len(PAUSES)
        while len(spans) < 2 or time.perf_counter() < until:
            time.sleep(pause)
            start = time.perf_counter()
            line.inspect(len(spans))
            spans.append((start, time.perf_counter()))
        rows.append({"pause_s": pause, **measure.summarize(_ms(spans))})
    return rows


def _ms(spans: Sequence[tuple[float, float]]) -> list[float]:
    return [(end - start) * 1e3 for start, end in spans]


def aims(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the aims: ``aim``, ``found``, and ``pass`` (true, false, or ``None`` if not measured or over too few calls)."""
    row, results = report["steady"], []
    calls, p50, p99 = row["calls"], row["p50"], row["p99"]
    ratio = None if p99 is None else p99 / p50
    results.append({
        "aim": f"p99 at most {STEADY_RATIO} p50 over {STEADY_CALLS} calls",
        "found": f"{ratio:.3f} over {calls}" if ratio is not None else f"{calls} calls",
        "pass": None if ratio is None or calls < STEADY_CALLS else ratio <= STEADY_RATIO,
    })  # fmt: skip
    for where, most in (("host", HEAP), ("gpu", 0)):
        grew = row[f"{where}_grew"]
        results.append({
            "aim": f"{GROWTH_CALLS} calls without growth of {where} memory",
            "found": row.get("gpu_why_null") if grew is None else f"{grew / 1e6:+.2f} MB over {calls}",
            "pass": None if grew is None else False if grew > most else True if calls >= GROWTH_CALLS else None,
        })  # fmt: skip
    return results


def table(report: Mapping[str, Any]) -> list[str]:
    """Format the report as text."""
    lines = [f"{report['model']}, {report['precision']}, {report['backend']}; ms"]
    lines.append(
        f"{'image':<12}{'decode jpg':>11}{'decode png':>11}{'OpenCV':>9}{'host':>9}{'upload':>9}{'preprocess':>11}"
    )
    for row in report["sizes"]:
        cells = [row["decode jpg"], row["decode png"], row["OpenCV"], row["host"]]
        cells += [row["chain"].get("upload"), row["chain"].get("preprocess")]
        size = f"{row['width']} x {row['height']}"
        lines.append(
            f"{size:<12}" + "".join(f"{figure(c):>{w}}" for c, w in zip(cells, (11, 11, 9, 9, 9, 11), strict=True))
        )
    lines += [
        f"{row['cameras']} cameras: p50 {figure(row['p50'])}, p99 {figure(row['p99'])}, {row['pictures_per_s']:g} images/s "
        f"({row['calls']} calls)"
        for row in report["cameras"]
    ]
    steady_row, enrolling = report["steady"], report["enrollment"]
    lines.append(
        f"steady: p50 {figure(steady_row['p50'])}, p99 {figure(steady_row['p99'])} ({steady_row['calls']} calls)"
    )
    late = sorted(steady_row["stages"].items(), key=lambda item: item[1]["p50"] - item[1]["slowest"])
    stages = ", ".join(f"{name} {figure(s['slowest'])} for {figure(s['p50'])}" for name, s in late[:5])
    lines.append(f"the slowest hundredth of them: {stages}")
    for when in ("before", "during"):
        if (row := enrolling[when]) is not None:
            lines.append(
                f"{enrolling['cameras']} cameras {when} enrollment: p50 {figure(row['p50'])}, p99 {figure(row['p99'])} "
                f"({row['calls']} calls; {enrolling['enrolled']} enrolled, {enrolling['enrollment_ms']} ms each)"
            )
    for how, rows in report["pauses"].items():
        latencies = "; ".join(f"{r['pause_s']:g} s: p50 {figure(r['p50'])} ({r['calls']} calls)" for r in rows)
        lines.append(f"after a pause, {how.replace('_', ' ')}: {latencies}")
    return lines + [told_aim(aim) for aim in report["aims"]]


if __name__ == "__main__":
    sys.exit(main())
