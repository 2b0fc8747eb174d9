"""Memory, open files and rate of a process that inspects for long: `python benchmarks/soak.py --images 20000 serve`, or `watch`.

A tiny model (two blocks of DeiT-Tiny with random weights, 64 x 64 pixels), so that thousands of images take minutes: what grows
does so by the image, not by the model. `serve` sends images over kept and new connections, among them ones that are no image.
`watch` writes images into a folder, takes them away once they have their line in the journal, and counts the lines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import common
import cv2
import numpy as np
from numpy.typing import NDArray
from visionad_runtime import Inspector

FORMATS = (".png", ".jpg", ".bmp")
SAMPLES = 40
"""Measurements over a run; the first tenth of it is a warm-up."""
MAX_GROWTH = 1.05
"""Of memory, from the first measurements after the warm-up to the last ones."""
LEFT_IN_FOLDER = 50
SECONDS = 120.0


def main() -> None:
    """Measure, print, write ``benchmarks/results/soak-serve.json`` or ``soak-watch.json``. Exit status 1 if it grows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=20000)
    options.add_argument("command", choices=["serve", "watch"])
    args = options.parse_args()
    if args.images < 10 * SAMPLES:
        raise SystemExit(f"--images: expected at least {10 * SAMPLES}, got {args.images}")
    with tempfile.TemporaryDirectory() as folder:
        result = (soak_serve if args.command == "serve" else soak_watch)(Path(folder), args.images)
    print(json.dumps({name: value for name, value in result.items() if name != "samples"}))
    path = common.write(f"soak-{args.command}", result)
    print(f"written to {path.relative_to(common.ROOT)}")
    if not result["flat"]:
        raise SystemExit(1)


def image(number: int) -> NDArray[np.uint8]:
    """A disc on a noisy ground, uint8 BGR (96, 128, 3)."""
    rng = np.random.default_rng(number)
    ground = rng.integers(90, 110, (96, 128, 3)).astype(np.uint8)
    return np.asarray(cv2.circle(ground, (64, 48), 30, (180, 160, 140), -1), np.uint8)


def prepare(folder: Path) -> tuple[Path, Path]:
    """Model and bank."""
    from visionad_export.exporter import export_model

    model, bank = folder / "model", folder / "bank"
    weights = common.random_weights(common.BACKBONE, folder / "weights.safetensors")
    export_model(common.BACKBONE, model, weights=weights, resize=72, crop=64, layers=(0, 1))
    with Inspector.open(model, bank) as inspector:
        inspector.enroll("disc", [image(0), image(1)])
    return model, bank


@contextmanager
def started(*arguments: str | Path, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """A ``visionad`` process, stopped at the end."""
    command = [sys.executable, "-c", "from visionad_runtime.cli.entry import main; main()", *map(str, arguments)]
    with subprocess.Popen(command, text=True, **streams) as process:
        try:
            yield process
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


class Usage:
    """Memory and open files of a process over a run (Linux)."""

    def __init__(self, pid: int, images: int) -> None:
        self.folder, self.images = Path(f"/proc/{pid}"), images
        self.every = images // SAMPLES
        self.samples: list[dict[str, float]] = []
        self.start = time.perf_counter()

    def after(self, done: int) -> None:
        """Measure, if it is time to."""
        if done % self.every:
            return
        words = dict(line.split(":\t", 1) for line in (self.folder / "status").read_text().splitlines())
        self.samples.append(
            {
                "images": done,
                "seconds": round(time.perf_counter() - self.start, 1),
                "rss_mb": round(int(words["VmRSS"].split()[0]) * 1024 / 1e6, 1),
                "files": len(list((self.folder / "fd").iterdir())),
                "threads": int(words["Threads"]),
            }
        )

    def result(self) -> dict[str, Any]:
        """What was measured, and whether it is flat: four measurements after the warm-up beside the last four.

        Median of memory; fewest files and threads, because a connection that ends just then is still open.
        """
        warm = self.samples[SAMPLES // 10 :]
        ends: dict[str, float] = {}
        for when, part in (("first", warm[:4]), ("last", warm[-4:])):
            ends[f"rss_mb_{when}"] = round(statistics.median(s["rss_mb"] for s in part), 1)
            for name in ("files", "threads"):
                ends[f"{name}_{when}"] = min(s[name] for s in part)
        flat = ends["rss_mb_last"] <= ends["rss_mb_first"] * MAX_GROWTH and ends["files_last"] <= ends["files_first"]
        return {
            "images": self.images,
            "images_per_second": round(self.images / self.samples[-1]["seconds"], 1),
            **ends,
            "flat": flat,
            "samples": self.samples,
        }


def soak_serve(folder: Path, images: int) -> dict[str, Any]:
    """Send images to ``visionad serve``; every tenth over a connection of its own, every fiftieth no image."""
    model, bank = prepare(folder)
    bodies = [cv2.imencode(FORMATS[i % len(FORMATS)], image(i))[1].tobytes() for i in range(60)]
    statuses: dict[int, int] = {}
    with started("serve", model, bank, "--port", "0", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = urlparse(process.stdout.readline().split()[2]).port or 0
        kept = HTTPConnection("127.0.0.1", port, timeout=60)
        usage = Usage(process.pid, images)
        for number in range(1, images + 1):
            connection = kept if number % 10 else HTTPConnection("127.0.0.1", port, timeout=60)
            body = bodies[number % len(bodies)] if number % 50 else b"no image"
            connection.request("POST", f"/inspect?name={number}", body)
            response = connection.getresponse()
            response.read()
            statuses[response.status] = statuses.get(response.status, 0) + 1
            if connection is not kept:
                connection.close()
            usage.after(number)
        kept.close()
    assert statuses == {200: images - images // 50, 400: images // 50}, statuses
    return {"statuses": {str(status): count for status, count in statuses.items()}, **usage.result()}


def soak_watch(folder: Path, images: int) -> dict[str, Any]:
    """Write images into the folder of ``visionad watch --journal``; each has one line in the end."""
    model, bank = prepare(folder)
    incoming, journal, staging = folder / "in", folder / "journal.jsonl", folder / "staging"
    incoming.mkdir()
    staging.mkdir()
    with started(
        "watch", model, bank, incoming, "--journal", journal, "--settle", "0", stdout=subprocess.DEVNULL
    ) as process:
        usage = Usage(process.pid, images)
        lines = _lines(journal)
        done = written = 0
        last = time.monotonic()
        while done < images:
            while written < images and written - done < LEFT_IN_FOLDER:
                written += 1
                name = f"{written:07d}{FORMATS[written % len(FORMATS)]}"
                cv2.imwrite(str(staging / name), image(written % 60))
                (staging / name).rename(incoming / name)
            for line in lines():
                name = Path(json.loads(line)["image"]).name
                (incoming / name).unlink()
                done += 1
                last = time.monotonic()
                usage.after(done)
            if time.monotonic() - last > SECONDS:
                raise SystemExit(f"{done} of {written} images have a line in the journal, and no more come")
            time.sleep(0.01)
    names = [Path(json.loads(line)["image"]).name for line in journal.read_text().splitlines()]
    return {"lines": len(names), "images_with_one_line": len(set(names)), **usage.result()}


def _lines(journal: Path) -> Callable[[], list[str]]:
    """Return the function that gives the lines which are new since its last call."""
    position, rest = 0, ""

    def new() -> list[str]:
        nonlocal position, rest
        if not journal.exists():
            return []
        with journal.open() as file:
            file.seek(position)
            text = rest + file.read()
            position = file.tell()
        *complete, rest = text.split("\n")
        return complete

    return new


if __name__ == "__main__":
    main()
