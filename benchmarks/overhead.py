"""What everything around the backbone costs: `python benchmarks/overhead.py`.

Side by side in one run, in turn: the bare ONNX Runtime session on three prepared views, and the whole way from a PNG file to a
result (decode, resize, views, the same backbone, exact search in a 1-shot bank, map, score, regions). Then, in fresh
processes, peak memory of `visionad predict` and the time from its start to the first verdict.

`--against FOLDER` also inspects the file with another checkout, an older release, in turns with this one (``against.py``).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import against
import common
import cv2
import numpy as np
import onnxruntime as ort
from visionad_runtime import Inspector
from visionad_runtime.tools.demo.rendering import render

PROMISED_RATIO = 1.10
SETTLE = 0.2
"""Seconds between measurements: the threads of a bare session keep spinning for a while and would slow the next one."""
PROMISED_MEMORY = "2 x (model + bank) + 300 MB"


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/overhead.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--backbone", default="dinov2_vits14_reg")
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout to compare with")
    options.add_argument("--only-against", action="store_true", help="keep the other figures of the result file")
    args = options.parse_args()
    if args.only_against:
        if args.against is None:
            options.error("--only-against: expected --against FOLDER")
        with tempfile.TemporaryDirectory() as folder:
            found = measure_against(Path(folder), args.against, args.backbone, args.rounds, args.threads)
        print(found, f"written to {against.update('overhead', found).relative_to(common.ROOT)}", sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args.backbone, args.rounds, args.threads)
        if args.against is not None:
            rows["against"] = measure_against(Path(folder), args.against, args.backbone, args.rounds, args.threads)
    path = common.write("overhead", {"backbone": args.backbone, "threads": args.threads, **rows})
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    print(f"written to {path.relative_to(common.ROOT)}")


def measure(folder: Path, backbone: str, rounds: int, threads: int) -> dict[str, object]:
    """Measure one backbone."""
    model = common.export_random(backbone, folder / "model")
    image = folder / "part.png"
    cv2.imwrite(str(image), render("gear", 1, size=900)[0])
    inspector = Inspector.open(model, folder / "bank", threads=threads)
    inspector.enroll("gear", [render("gear", 0, size=900)[0]], colour="rgb")

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    bare = ort.InferenceSession(str(model / "backbone.onnx"), settings, providers=["CPUExecutionProvider"])
    ((_, trace),) = inspector.trace_batch([cv2.imread(str(image))], "gear")

    def whole() -> dict[str, float]:
        (file,) = inspector.inspect_files([image], class_name="gear")
        assert file.result is not None
        return dict(file.result.timings)

    def session() -> None:
        bare.run(None, {"images": trace.views})

    def one_by_one() -> None:
        for i in range(len(trace.views)):
            bare.run(None, {"images": trace.views[i : i + 1]})

    for warm in (whole, session, one_by_one):
        warm()
    times: dict[str, list[float]] = {"whole": [], "session": [], "one_by_one": []}
    stages: list[dict[str, float]] = []
    for _ in range(rounds):
        for name, call in (("session", session), ("whole", whole), ("one_by_one", one_by_one)):
            time.sleep(SETTLE)
            start = time.perf_counter()
            timings = call()
            times[name].append((time.perf_counter() - start) * 1e3)
            if isinstance(timings, dict):
                stages.append(timings)
    median = {name: statistics.median(values) for name, values in times.items()}
    pairs = [w / s for w, s in zip(times["whole"], times["session"], strict=True)]

    size = sum(p.stat().st_size for p in (*model.iterdir(), *(folder / "bank").rglob("*.safetensors"))) / 1e6
    command = [
        sys.executable,
        "-c",
        "from visionad_runtime.cli.entry import main; main()",
        "predict",
        str(model),
        str(folder / "bank"),
    ]
    peak, first = _process([*command, str(image), "--json", "--threads", str(threads)])
    many = [str(image)] * 8
    peak_many, _ = _process([*command, *many, "--json", "--threads", str(threads)])
    return {
        "bare session, 3 views in one call, ms": round(median["session"], 1),
        "bare session, 3 calls of one view, ms": round(median["one_by_one"], 1),
        "PNG file to result, ms": round(median["whole"], 1),
        "ratio to the bare session (median of pairs)": round(statistics.median(pairs), 3),
        "ratio promised": PROMISED_RATIO,
        "stages, ms": {k: round(statistics.median([s[k] for s in stages]), 2) for k in stages[0]},
        "model + bank, MB": round(size, 1),
        "peak memory of predict, 1 image, MB": round(peak, 1),
        "peak memory of predict, 8 images, MB": round(peak_many, 1),
        f"memory promised, MB ({PROMISED_MEMORY})": round(2 * size + 300, 1),
        "process start to first verdict, s": round(first, 2),
        "rounds": rounds,
        "kernel": np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"],
    }


def measure_against(folder: Path, checkout: Path, backbone: str, rounds: int, threads: int) -> dict[str, object]:
    """Inspect a file with this checkout and another one in turns."""
    support, image = folder / "support.png", folder / "part.png"
    cv2.imwrite(str(support), render("gear", 0, size=900)[0][:, :, ::-1])
    cv2.imwrite(str(image), render("gear", 1, size=900)[0])
    with (
        against.inspecting(common.ROOT, folder / "here", backbone, support, threads) as here,
        against.inspecting(checkout, folder / "there", backbone, support, threads) as there,
    ):
        for _ in range(3):  # a bank that is searched again gets an index, beside the inspections
            scores = [side(image)["score"] for side in (here, there)]
        time.sleep(1)
        stages: dict[str, list[dict[str, float]]] = {"here": [], "there": []}

        def call(name: str) -> against.Times:
            found = (here if name == "here" else there)(image)
            stages[name].append(found["stages"])
            return found["ms"], found["cpu_ms"]

        times = against.in_turns({name: lambda name=name: call(name) for name in stages}, rounds)  # type: ignore[misc]
    medians = {
        name: {stage: round(statistics.median(one[stage] for one in each), 2) for stage in each[0]}
        for name, each in stages.items()
    }
    settings = {"backbone": backbone, "threads": threads, "rounds": rounds, "limit": against.LIMIT}
    facts = {"commit": against.commit(checkout), **settings, **against.compared(times)}
    return {**facts, "scores": scores, "stages, ms": medians}


def _process(command: list[str]) -> tuple[float, float]:
    """Return peak resident memory (MB) and seconds to the first line of output of a fresh process."""
    wrapper = (
        "import resource, subprocess, sys, time; s = time.perf_counter();"
        "p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE); p.stdout.readline(); t = time.perf_counter() - s;"
        "p.stdout.read(); assert p.wait() == 0;"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 * 1.048576, t)"
    )
    done = subprocess.run([sys.executable, "-c", wrapper, *command], capture_output=True, text=True, check=True)
    peak, first = map(float, done.stdout.split())
    return peak, first


if __name__ == "__main__":
    main()
