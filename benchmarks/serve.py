"""Measure what HTTP adds to an inspection: `python benchmarks/serve.py`.

Starts `visionad serve` and sends images over kept connections. In turns with them, `Inspector.inspect` gets the same pixels in this
process. ``around`` is the time of a request beyond the inspection time in its answer: sending, decoding, queue, answer. Then
several clients send at once: images per second, beside one caller of the inspector.

`--against FOLDER` also sends the images to the service of another checkout, an older release, in turns (``against.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import against
import common
import cv2
import numpy as np
from numpy.typing import NDArray
from visionad_runtime import Inspector
from visionad_runtime._threads import drain_background
from visionad_runtime.tools.benchmark.measure import summarize
from visionad_runtime.tools.demo.rendering import render

SIZES = ((512, 512), (1024, 1024), (2448, 2048))
FORMATS = ("bgr8", "mono8", "png", "jpg")
SETTLE = 0.2
"""Seconds between measurements: threads of the one before may still spin."""
CLIENTS = 4


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/serve.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--backbone", default="deit_tiny_patch16_224")
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout to compare with")
    options.add_argument("--only-against", action="store_true", help="keep the other figures of the result file")
    args = options.parse_args()
    if args.only_against:
        if args.against is None:
            options.error("--only-against: expected --against FOLDER")
        with tempfile.TemporaryDirectory() as folder:
            found = measure_against(Path(folder), args.against, args.backbone, args.rounds, args.threads)
        print(f"written to {against.update('serve', found).relative_to(common.ROOT)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.backbone, args.rounds, args.threads)
        if args.against is not None:
            result["against"] = measure_against(Path(folder), args.against, args.backbone, args.rounds, args.threads)
    path = common.write("serve", {"backbone": args.backbone, "threads": args.threads, **result})
    print(f"written to {path.relative_to(common.ROOT)}")


def measure(folder: Path, backbone: str, rounds: int, threads: int) -> dict[str, Any]:
    """All figures."""
    model, bank = common.export_random(backbone, folder / "model"), folder / "bank"
    inspector = Inspector.open(model, bank, threads=threads)
    inspector.enroll("gear", [render("gear", 0, size=512)[0]], colour="rgb")
    command = [
        sys.executable,
        "-c",
        "from visionad_runtime.cli.entry import main; main()",
        "serve",
        str(model),
        str(bank),
    ]
    server = subprocess.Popen([*command, "--port", "0", "--threads", str(threads)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = urlparse(server.stdout.readline().split()[2]).port or 0
        cells = []
        print(f"{'image':>12} {'sent as':>8} {'kB':>7} {'inspect':>8} {'request':>8} {'around':>8} ms, medians")
        for width, height in SIZES:
            image = cv2.resize(render("gear", 1, size=max(width, height))[0], (width, height))[:, :, ::-1].copy()
            for sent_as in FORMATS:
                cell = _cell(inspector, port, image, sent_as, rounds)
                cells.append(cell)
                medians = " ".join(f"{cell[name]['p50']:>8.1f}" for name in ("inspect", "request", "around"))
                print(f"{cell['size']:>12} {sent_as:>8} {cell['kb']:>7} {medians}")
        throughput = _several_clients(inspector, port, render("gear", 1, size=512)[0], rounds)
        print(", ".join(f"{name} {value}" for name, value in throughput.items()))
    finally:
        server.terminate()
        assert server.wait(60) == 0
    return {"cells": cells, "several clients": throughput, "rounds": rounds}


def measure_against(folder: Path, checkout: Path, backbone: str, rounds: int, threads: int) -> dict[str, Any]:
    """Send images to the services of this checkout and another one in turns."""
    support = folder / "support.png"
    cv2.imwrite(str(support), render("gear", 0, size=512)[0][:, :, ::-1])
    cells = []
    with contextlib.ExitStack() as stack:
        ports, pids = dict[str, int](), dict[str, int]()
        for name, place in (("here", common.ROOT), ("there", checkout)):
            with against.inspecting(place, folder / name, backbone, support, threads):
                pass  # it has made model and bank
            command = [
                sys.executable,
                "-c",
                against.COMMAND,
                "serve",
                str(folder / name / "model"),
                str(folder / name / "bank"),
            ]
            command += ["--port", "0", "--threads", str(threads)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=against.environment(place))
            stack.callback(server.wait, 60)
            stack.callback(server.terminate)
            assert server.stdout is not None
            pids[name] = server.pid
            ports[name] = urlparse(server.stdout.readline().split()[2]).port or 0
        for width, height in SIZES:
            image = cv2.resize(render("gear", 1, size=max(width, height))[0], (width, height))[:, :, ::-1].copy()
            for sent_as in FORMATS:
                url, body = _request(image, sent_as)
                asks = {name: _client(port, url, body) for name, port in ports.items()}
                for _ in range(3):
                    for ask in asks.values():
                        ask()
                time.sleep(1)
                calls = {name: functools.partial(_timed, ask, pids[name]) for name, ask in asks.items()}
                found = against.compared(against.in_turns(calls, rounds))
                cells.append({"size": f"{width} x {height}", "sent as": sent_as, **found})
                print(cells[-1], flush=True)
    settings = {"backbone": backbone, "threads": threads, "rounds": rounds, "limit": against.LIMIT}
    ratios = {name: round(statistics.median(cell[name] for cell in cells), 4) for name in ("ratio", "CPU ratio")}
    return {"commit": against.commit(checkout), **settings, **ratios, "cells": cells}


def _timed(ask: Callable[[], object], server: int) -> against.Times:
    start, busy = time.perf_counter(), against.cpu_ms(server)
    ask()
    return (time.perf_counter() - start) * 1e3, against.cpu_ms(server) - busy


def _request(image: NDArray[np.uint8], sent_as: str) -> tuple[str, bytes]:
    height, width = image.shape[:2]
    if sent_as in ("png", "jpg"):
        return "/inspect?class=gear", cv2.imencode(f".{sent_as}", image)[1].tobytes()
    pixels = image if sent_as == "bgr8" else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return f"/inspect?class=gear&pixels={sent_as}&width={width}&height={height}", pixels.tobytes()


def _client(port: int, url: str, body: bytes) -> Callable[[], dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask() -> dict[str, Any]:
        connection.request("POST", url, body)
        response = connection.getresponse()
        result: dict[str, Any] = json.loads(response.read())
        assert response.status == 200, result
        return result

    return ask


def _cell(inspector: Inspector, port: int, image: NDArray[np.uint8], sent_as: str, rounds: int) -> dict[str, Any]:
    url, body = _request(image, sent_as)
    ask = _client(port, url, body)
    pixels = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if sent_as == "mono8" else image
    for _ in range(3):  # the bank is prepared beside the first ones
        score = ask()["score"]
        if sent_as != "jpg":
            assert inspector.inspect(pixels, class_name="gear").score == score
    drain_background()
    time.sleep(1)
    direct, request, around = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        time.sleep(SETTLE)
        start = time.perf_counter()
        inspector.inspect(pixels, class_name="gear")
        direct.append((time.perf_counter() - start) * 1e3)
        time.sleep(SETTLE)
        start = time.perf_counter()
        result = ask()
        request.append((time.perf_counter() - start) * 1e3)
        around.append(request[-1] - result["timings_ms"]["total"])
    return {
        "size": f"{image.shape[1]} x {image.shape[0]}",
        "sent as": sent_as,
        "kb": len(body) // 1000,
        "inspect": summarize(direct),
        "request": summarize(request),
        "around": summarize(around),
        "request_to_inspect": round(statistics.median(r / d for r, d in zip(request, direct, strict=True)), 3),
    }


def _several_clients(inspector: Inspector, port: int, image: NDArray[np.uint8], rounds: int) -> dict[str, float]:
    url, body = _request(image, "bgr8")
    rates: dict[str, list[float]] = {"one caller": [], "one client": [], f"{CLIENTS} clients": []}
    count = max(CLIENTS, rounds)
    for _ in range(3):
        time.sleep(SETTLE)
        start = time.perf_counter()
        for _ in range(count):
            inspector.inspect(image, class_name="gear")
        rates["one caller"].append(count / (time.perf_counter() - start))
        for name, clients in (("one client", 1), (f"{CLIENTS} clients", CLIENTS)):
            time.sleep(SETTLE)
            with ThreadPoolExecutor(clients) as pool:
                start = time.perf_counter()
                for done in [pool.submit(_burst, port, url, body, count // clients) for _ in range(clients)]:
                    done.result()
                rates[name].append(count // clients * clients / (time.perf_counter() - start))
    return {f"{name}, images/s": round(statistics.median(values), 1) for name, values in rates.items()}


def _burst(port: int, url: str, body: bytes, count: int) -> None:
    ask = _client(port, url, body)
    for _ in range(count):
        ask()


if __name__ == "__main__":
    main()
