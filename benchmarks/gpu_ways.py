"""Ways to run a model with ONNX Runtime on this GPU: `python benchmarks/gpu_ways.py MODEL --out FILE`.

The runtime takes the first that runs: operators fused, each call a CUDA graph. Here all are timed, one after the other in one
process: how long a call takes by the GPU's clock and how long it holds up the host, and how far its tokens are from those of the
file's own operators; with ``--kernels`` and torch, which kernels take the time of the first way.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray
from visionad_runtime.cuda.device import Device
from visionad_runtime.cuda.memory import ResourceScope
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.engine import Tokens
from visionad_runtime.engine.onnxruntime import cuda as leaf
from visionad_runtime.engine.onnxruntime.providers import CUDA
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.model_folder import read_model
from visionad_runtime.tools.benchmark import measure

WARM, PROFILED, MOST_KERNELS = 20, 5, 20
F32 = NDArray[np.float32]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write ``--out``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model", type=Path, help="model folder")
    options.add_argument("--seconds", type=float, default=1.5, help="for each way")
    options.add_argument("--kernels", action="store_true", help="kernels of the first way instead, by torch's profiler")
    options.add_argument("--out", type=Path, help="JSON file")
    args = options.parse_args(argv)
    try:
        report = measure_all(args.model, args.seconds, args.kernels)
    except VisionADError as exc:
        print(f"gpu_ways: {exc}", file=sys.stderr)
        return 2
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(table(report)))
    return 0


def measure_all(folder: Path, seconds: float, kernels: bool) -> dict[str, Any]:
    """The report.

    Raises:
        VisionADError: no model, no GPU, or nothing runs.
    """
    manifest = read_model(folder)
    identity, group = manifest.identity, len(manifest.views)
    side = identity.preprocess.crop
    images = np.random.default_rng(0).standard_normal((group, 3, side, side)).astype(np.float32)
    ways = leaf.session_variants(folder, manifest, None, group)
    rows: list[dict[str, Any]] = []
    plain: F32 | None = None
    for way in ways[:1] if kernels else reversed(ways):  # the file's own operators come first
        row: dict[str, Any] = {"way": way.description}
        rows.append(row)
        try:
            engine = leaf.OrtStreamEngine([way], CUDA, manifest, group)
        except VisionADError as exc:
            row["fails"] = str(exc)
            continue
        with closing(engine):
            found = engine.encode(images)
            plain = found.patch if plain is None else plain
            row |= {
                "cosine": float((found.patch * plain).sum(axis=2).min()),
                **_timed(engine, images, found, seconds, kernels),
            }
    if plain is None:
        raise VisionADError(f"{folder} runs in no way: {rows[-1]['fails']}")
    model = {"backbone": identity.backbone, "precision": manifest.precision, "rows": group, "crop": side}
    return {"environment": common.environment(), "model": model, "ways": rows}


def _timed(engine: leaf.OrtStreamEngine, images: F32, tokens: Tokens, seconds: float, kernels: bool) -> dict[str, Any]:
    def work(device: Device) -> dict[str, Any]:
        assert tokens.cls is not None
        with ResourceScope(device) as memory:
            stream, (begin, end) = memory.stream(device.stream()), (memory.own(device.event()) for _ in range(2))
            buffers = [memory.constant(a, stream).ptr for a in (images, tokens.patch, tokens.cls)]

            def call() -> tuple[float, float]:
                begin.record(stream)
                start = time.perf_counter()
                engine.enqueue(*buffers, len(images), stream)
                host = time.perf_counter() - start
                end.record(stream)
                end.synchronize()
                return end.elapsed_ms(begin), 1e3 * host

            for _ in range(WARM):
                call()
            calls, until = [call()], time.monotonic() + seconds
            while time.monotonic() < until:
                calls.append(call())
            gpu, host = zip(*calls, strict=True)
            times = {"gpu_ms": measure.summarise(gpu), "host_ms": measure.summarise(host)}
            return times | ({"kernels": _kernels(call)} if kernels else {})

    return DeviceThread.of(0).run(work)


def _kernels(call: Callable[[], object]) -> list[dict[str, Any]]:
    """Of one call: kernels by their time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            call()
    seen = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    return [
        {"name": e.key, "calls": e.count / PROFILED, "ms": e.self_device_time_total / PROFILED / 1e3}
        for e in seen[:MOST_KERNELS]
    ]


def table(report: dict[str, Any]) -> list[str]:
    """One line a way, then its kernels."""
    lines = []
    for row in report["ways"]:
        if "fails" in row:
            lines.append(f"{row['way']:60}  fails: {row['fails'][:100]}")
            continue
        gpu, host = row["gpu_ms"]["p50"], row["host_ms"]["p50"]
        lines.append(f"{row['way']:60} {gpu:8.3f} ms  host {host:7.3f} ms  cosine {row['cosine']:.6f}")
        lines += [f"{k['ms']:8.3f} ms {k['calls']:6.1f} x  {k['name'][:110]}" for k in row.get("kernels", [])]
    return lines


if __name__ == "__main__":
    sys.exit(main())
