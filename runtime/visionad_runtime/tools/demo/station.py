"""``visionad station demo``: the demo's rendered parts on a simulated line, with a simulated PLC over real Modbus on loopback."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ...errors import VisionADError
from ...formats.files import atomic_write
from ...images.discover import find_images
from ...station.front.front import Front
from ...station.page.link import page_missing
from ...station.plc import SimulatedPlc
from ...station.settings import read_station
from ...station.sink import SinkError

STATION = """\
# Written by `visionad station demo`. Run it by itself with `visionad station {name}`.
station: demo
model: model
bank: bank
deadline_ms: 2000
cameras:
  top: {{kind: folder, path: line}}
recipes:
  1: {{name: {class_name}, class: {class_name}}}
sinks:
  - {{kind: modbus, host: 127.0.0.1, port: {port}}}
records: station/records.sqlite
archive: {{folder: station/archive, keep: {{not_ok: all, ok: 1 of 10}}, max_gb: 1, min_free_gb: 0}}
{web}"""
PART_SECONDS = 2.0
"""Pause between two parts while someone looks."""


def run_station_demo(
    out: Path, parts: int, say: Callable[[str], object], web_port: int | None = None
) -> dict[str, int]:
    """Run parts of the demo through a station.

    Args:
        out: folder of the demo, with its model and bank.
        parts: number of parts.
        say: called with each step of the handshake.
        web_port: port of the station's pages. With it, parts come every two seconds, again and again, until Ctrl-C.

    Returns:
        Number of parts by evaluation.

    Raises:
        VisionADError: The demo was not run, or the station did not keep to the handshake.
    """
    path = write_station(out, web_port)
    counts: Counter[str] = Counter()
    if web_port is not None and (missing := page_missing()) is not None:
        raise VisionADError(missing)

    async def main() -> None:
        front = Front(read_station(path), say=say if web_port is not None else lambda _: None)
        plc = SimulatedPlc("127.0.0.1", _port(path), say if web_port is None else lambda _: None)
        running = asyncio.create_task(front.run())
        try:
            await asyncio.wait([running, asyncio.create_task(plc.connect())], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            if front.page is not None:
                token = front.page.users.panel_token
                say(f"demo     look at it in the browser: http://127.0.0.1:{web_port}/#panel={token} ; Ctrl-C ends it")
            for number in itertools.count(1) if web_port is not None else range(1, parts + 1):
                inspecting = asyncio.create_task(plc.inspect(f"SN-{number:06d}"))
                await asyncio.wait([running, inspecting], return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    inspecting.cancel()
                    await asyncio.gather(inspecting, return_exceptions=True)
                    break
                try:
                    result = inspecting.result()
                except VisionADError:
                    if web_port is None:
                        raise
                    continue  # someone at the page has control
                counts[("undefined", "ok", "anomalous", "not decidable")[result["evaluation"]]] += 1
                if web_port is not None:
                    await asyncio.wait([running], timeout=PART_SECONDS)
        finally:
            plc.close()
            if not running.done():
                front.stop()
            await running

    try:
        asyncio.run(main())
    except SinkError as exc:
        raise VisionADError(str(exc)) from None
    say(f"demo     {sum(counts.values())} parts: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    say(f"         records in {out / 'station' / 'records.sqlite'}, images of rejects in {out / 'station' / 'archive'}")
    say(f"         the station file is {path}")
    if web_port is None:
        say(f"         look at the station in the browser: visionad station demo --out {out} --serve")
    return dict(counts)


def write_station(out: Path, web_port: int | None = None) -> Path:
    """Write a station file beside the demo's model and bank, and the parts of its line.

    Args:
        out: folder of the demo.
        web_port: port of the station's pages; no pages without it.

    Raises:
        VisionADError: The demo was not run.
    """
    tests = sorted((out / "parts").glob("*/test"))
    if not tests or not (out / "bank" / "manifest.json").is_file():
        raise VisionADError(f"{out} has no demo yet: run `visionad demo --out {out}` first")
    test = tests[0]
    groups = {folder.name: [f.path for f in find_images([folder])] for folder in sorted(test.iterdir())}
    good = groups.pop("good", [])
    bad = [path for files in zip(*groups.values(), strict=False) for path in files] if groups else []
    line = out / "line"
    line.mkdir(exist_ok=True)
    for number, source in enumerate(_mixed(good, bad)):
        target = line / f"{number:03d}-{source.parent.name}.png"
        if not target.exists():
            shutil.copyfile(source, target)
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    path = out / "station.yaml"
    web = "" if web_port is None else f"web: {{port: {web_port}}}\n"
    atomic_write(path, STATION.format(name=path.name, class_name=test.parent.name, port=port, web=web).encode())
    return path


def _mixed(good: list[Path], bad: list[Path]) -> list[Path]:
    """Return good parts with a defective one after every third."""
    mixed: list[Path] = []
    for number, path in enumerate(good):
        mixed.append(path)
        if number % 3 == 2 and number // 3 < len(bad):
            mixed.append(bad[number // 3])
    return mixed


def _port(path: Path) -> int:
    return int(getattr(read_station(path).sinks["modbus"], "port"))  # noqa: B009 - a property of this sink alone
