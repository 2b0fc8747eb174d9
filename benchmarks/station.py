"""Measure a station beyond its inspector, and what grows over many parts: `python benchmarks/station.py --cycles 50000`.

A station runs as processes of its own: `visionad station FILE` with a folder camera and Modbus. A simulated PLC triggers it.

1. Overhead: one part through the station, then the same file through `Inspector.inspect_files` in this process, in turn, with a
   tiny model (two blocks, 64 x 64 pixels). ``overhead`` is the front's time from trigger to result, minus the other.
2. Answers: a second Modbus client reads the registers while an engine of DeiT-Tiny judges part after part.
3. Growth: `--cycles` parts with the tiny model: memory, open files and threads of both processes, and
   bytes of log and database.
4. Alignment: the time that one image takes, at each of some sizes.

`--only growth` measures one of `overhead`, `answers`, `growth` and `alignment` anew, and leaves the others as the result file
has them. Each says how loaded the computer was when it began, and its own priority (`nice`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np
import soak
from visionad_runtime import Inspector
from visionad_runtime.station.plc import SimulatedPlc
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.settings import Alignment
from visionad_runtime.station.worker.alignment import Reference
from visionad_runtime.tools.benchmark.measure import summarize
from visionad_runtime.tools.demo.rendering import render

IMAGES = 8
MAX_OVERHEAD_MS = 5.0
"""Median, from the trigger to the result, beyond the inspector."""
MAX_ANSWER_MS = 10.0
"""99th percentile of a Modbus answer beside a working engine."""
MAX_DATABASE_BYTES = 4096
"""A part, in the records."""
MAX_LOG_BYTES = 4
"""A part, in the log, after the warm-up: a part that is judged leaves nothing there."""
POLL_SECONDS = 0.01
SECTIONS = ("overhead", "answers", "growth", "alignment")
SIDES = (512, 1024, 2048)
"""Pixels along the images' sides in 4."""
RUNS = 201


def main() -> None:
    """Measure, print, write ``benchmarks/results/station.json``. Exit status 1 if a promise is not kept."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--backbone", default=common.BACKBONE, help="of the working engine in 2")
    options.add_argument("--parts", type=int, default=400, help="in 1; a tenth of them in 2")
    options.add_argument("--cycles", type=int, default=2000, help="in 3")
    options.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS)
    args = options.parse_args()
    if args.cycles < 10 * soak.SAMPLES:
        raise SystemExit(f"--cycles: expected at least {10 * soak.SAMPLES}, got {args.cycles}")
    measured: dict[str, Any] = {}
    for name in args.only:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            if name == "overhead":
                one = asyncio.run(overhead(Path(folder), args.parts))
            elif name == "answers":
                one = asyncio.run(answer(Path(folder), args.backbone, max(1, args.parts // 10)))
            elif name == "growth":
                one = asyncio.run(grow(Path(folder), args.cycles))
            else:
                one = alignment()
        measured[name] = {"load": round(load, 1), "nice": os.nice(0), **one}
    known = common.RESULTS / "station.json"
    old = json.loads(known.read_text()) if known.is_file() else {}
    result = {name: measured.get(name, old.get(name)) for name in SECTIONS if name in measured or name in old}
    broken = broken_promises(result)
    path = common.write("station", {**result, "broken": broken})
    for name in args.only:
        print(name, {key: value for key, value in result[name].items() if key not in ("front", "worker")})
    if "growth" in args.only:
        for process in ("front", "worker"):
            print(process, {name: v for name, v in result["growth"][process].items() if name != "samples"})
    print(f"written to {path.relative_to(common.ROOT)}")
    if broken:
        raise SystemExit("\n".join(broken))


def broken_promises(result: dict[str, Any]) -> list[str]:
    """Return a line for each limit that the figures exceed."""
    limits = []
    if "overhead" in result:
        limits.append(("overhead, median ms", result["overhead"]["beyond"]["p50"], MAX_OVERHEAD_MS))
    if "answers" in result:
        limits.append(("Modbus answer, p99 ms", result["answers"]["p99"], MAX_ANSWER_MS))
    growth = result.get("growth")
    if growth is not None:
        limits.append(("database bytes a part", growth["database_bytes_a_part"], MAX_DATABASE_BYTES))
        limits.append(("log bytes a part", growth["log_bytes_a_part"], MAX_LOG_BYTES))
        for process in ("front", "worker"):
            for what, factor in (("rss_mb", soak.MAX_GROWTH), ("files", 1), ("threads", 1)):
                first, last = growth[process][f"{what}_first"], growth[process][f"{what}_last"]
                limits.append((f"{process}, {what}", last, first * factor))
    return [f"{name}: expected at most {limit:g}, got {value}" for name, value, limit in limits if value > limit]


def write_station(folder: Path, model: Path, bank: Path, class_name: str, more: str = "") -> int:
    """Write ``station.yaml`` with one recipe and Modbus. Return the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    (folder / "station.yaml").write_text(
        f"station: bench\nmodel: {model}\nbank: {bank}\nthreads: 1\ndeadline_ms: 10000\n"
        f"cameras: {{top: {{kind: folder, path: images}}}}\nrecipes: {{1: {{name: one, class: {class_name}}}}}\n"
        f"records: records.sqlite\nlog: station.log\nsinks:\n  - {{kind: modbus, port: {port}}}\n{more}"
    )
    return port


async def overhead(folder: Path, parts: int) -> dict[str, Any]:
    """Return the times of station and inspector, and their difference file by file."""
    model, bank = soak.prepare(folder)
    files = write_images(folder)
    direct: list[float] = []
    with Inspector.open(model, bank, threads=1) as inspector:
        teach(inspector)
        port = write_station(folder, model, bank, "gear")
        with soak.started("station", folder / "station.yaml", stdout=subprocess.DEVNULL):
            plc = SimulatedPlc("127.0.0.1", port)
            await plc.connect(60)
            for number in range(IMAGES + parts):  # the first ones are a warm-up
                await plc.inspect(f"SN-{number}", 20)
                start = time.perf_counter()
                (one,) = inspector.inspect_files([files[number % IMAGES]], class_name="gear")
                direct.append((time.perf_counter() - start) * 1e3)
                assert one.result is not None
            plc.close()
    records = Records(folder / "records.sqlite")
    station = [row["latency_ms"] for row in records.parts(limit=100_000)]
    records.close()
    assert len(station) == IMAGES + parts, len(station)
    direct, station = direct[IMAGES:], station[IMAGES:]
    return {
        "parts": parts,
        "image": "512 x 512 PNG",
        "inspector": spread(direct),
        "station": spread(station),
        "beyond": spread([s - d for s, d in zip(station, direct, strict=True)]),
    }


async def answer(folder: Path, backbone: str, parts: int) -> dict[str, Any]:
    """Return the times of a second Modbus client's reads while the engine works."""
    model, bank = common.export_random(backbone, folder / "model"), folder / "bank"
    write_images(folder)
    with Inspector.open(model, bank, threads=1) as inspector:
        teach(inspector)
    port = write_station(folder, model, bank, "gear")
    answers: list[float] = []
    with soak.started("station", folder / "station.yaml", stdout=subprocess.DEVNULL):
        plc, reader = SimulatedPlc("127.0.0.1", port), SimulatedPlc("127.0.0.1", port)
        await plc.connect(60)
        await reader.connect()
        await plc.inspect("warm-up", 20)
        watching = asyncio.ensure_future(watch(reader, answers))
        for number in range(parts):
            await plc.inspect(f"SN-{number}", 20)
        watching.cancel()
        plc.close()
        reader.close()
    return {"backbone": backbone, "parts": parts, **spread(answers)}


def write_images(folder: Path) -> list[Path]:
    """Write the images of the folder camera."""
    (folder / "images").mkdir()
    files = [folder / "images" / f"{number}.png" for number in range(IMAGES)]
    for number, file in enumerate(files):
        cv2.imwrite(str(file), render("gear", number, size=512)[0])
    return files


def teach(inspector: Inspector) -> None:
    """Enroll and confirm good parts."""
    inspector.enroll("gear", [render("gear", 50, size=512)[0]])
    inspector.confirm("gear", [render("gear", 60 + number, size=512)[0] for number in range(9)])


def spread(values: list[float]) -> dict[str, float]:
    """Return milliseconds: median and high percentiles."""
    return {
        name: round(value, 3) for name, value in summarize(values).items() if name != "why_null" and value is not None
    }


async def watch(reader: SimulatedPlc, answers: list[float]) -> None:
    """Read all registers again and again; note the milliseconds of each answer."""
    while True:
        start = time.perf_counter()
        await reader.read()
        answers.append((time.perf_counter() - start) * 1e3)
        await asyncio.sleep(POLL_SECONDS)


async def grow(folder: Path, cycles: int) -> dict[str, Any]:
    """Return what grows over many parts."""
    model, bank = soak.prepare(folder)
    with Inspector.open(model, bank) as inspector:
        inspector.confirm("disc", [soak.image(number) for number in range(100, 109)])
    (folder / "images").mkdir()
    for number in range(60):
        cv2.imwrite(str(folder / "images" / f"{number:02d}.png"), soak.image(number))
    more = "  - {kind: files, folder: out, format: jsonl}\n"
    more += "archive: {folder: archive, keep: {not_ok: 1 of 50, ok: 1 of 200}, days: 1}\n"
    port = write_station(folder, model, bank, "disc", more)
    sizes: list[dict[str, int]] = []
    with soak.started("station", folder / "station.yaml", stdout=subprocess.DEVNULL) as process:
        plc = SimulatedPlc("127.0.0.1", port)
        await plc.connect(60)
        await plc.inspect("first", 20)
        usages = {"front": soak.Usage(process.pid, cycles), "worker": soak.Usage(worker_of(process.pid), cycles)}
        for number in range(1, cycles + 1):
            await plc.inspect(f"SN-{number}", 20)
            for usage in usages.values():
                usage.after(number)
            if number % usages["front"].every == 0:
                sizes.append({"parts": number, **bytes_of(folder)})
        plc.close()
    written = [line for file in (folder / "out").glob("*.jsonl") for line in file.read_text().splitlines()]
    records = Records(folder / "records.sqlite")
    ids = [row["id"] for row in records.parts(limit=cycles + 10)]
    records.close()
    assert ids == list(range(1, cycles + 2)) and len(written) == cycles + 1, (len(ids), len(written))
    warm, last = sizes[len(sizes) // 10], sizes[-1]
    done = last["parts"] - warm["parts"]
    seconds = usages["front"].samples[-1]["seconds"]
    return {
        "cycles": cycles,
        "parts_per_second": round(cycles / seconds, 1),
        "records": len(ids),
        "lines": len(written),
        "database_bytes_a_part": round((last["database"] - warm["database"]) / done, 1),
        "log_bytes_a_part": round((last["log"] - warm["log"]) / done, 2),
        "wal_bytes_max": max(size["wal"] for size in sizes),
        **{process: usage.result() for process, usage in usages.items()},
    }


def alignment() -> dict[str, Any]:
    """Return milliseconds to align one image, by its size, on one thread. The part lies 1 % and 1° beside the enrolled one."""
    cv2.setNumThreads(1)
    rows = []
    for side in SIDES:
        enrolled = render("gear", 0, size=side)[0]
        turn = cv2.getRotationMatrix2D((side / 2, side / 2), 1, 1)
        turn[0, 2] += side / 100
        moved = np.asarray(cv2.warpAffine(enrolled, turn, (side, side), borderMode=cv2.BORDER_REPLICATE), np.uint8)
        reference, limits, times = Reference(enrolled), Alignment(max_shift_px=side), []
        for _ in range(RUNS):
            start = time.perf_counter()
            finding = reference.look(moved, limits)
            times.append((time.perf_counter() - start) * 1e3)
        assert finding.problem is None and finding.position is not None, finding
        rows.append({"side": side, "found_px": round(finding.position.shift_px, 2), **spread(times[1:])})
    return {"rows": rows}


def worker_of(pid: int) -> int:
    """Return the worker's process number: of the front's children, the one with most memory (Linux)."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return max(children, key=lambda child: int(Path(f"/proc/{child}/statm").read_text().split()[1]))


def bytes_of(folder: Path) -> dict[str, int]:
    """Return bytes of log, database and its write-ahead log."""
    size = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    return {
        "log": sum(count for name, count in size.items() if name.startswith("station.log")),
        "database": size["records.sqlite"],
        "wal": size.get("records.sqlite-wal", 0),
    }


if __name__ == "__main__":
    main()
