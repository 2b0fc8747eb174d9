"""Stations with real processes for the tests of the line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import cv2
from visionad_runtime import Inspector
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.settings import read_station

from tests.data import part

CYCLE = (False, True, False, False, True)
"""Whether a part of the line has a defect; it repeats."""
EVALUATIONS = tuple(2 if bad else 1 for bad in CYCLE)


def write_images(folder: Path) -> list[Path]:
    """Write the parts of the line, in the order in which a camera shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, bad in enumerate(CYCLE):
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), part(20 + number, defect=bad))
    return paths


def teach(model: Path, bank: Path) -> None:
    """Enroll and confirm good parts of the class ``disc``."""
    with Inspector.open(model, bank, threads=1) as inspector:
        inspector.enroll("disc", [part(number) for number in range(4)])
        inspector.confirm("disc", [part(number) for number in range(4, 13)])


def write_station(folder: Path, model: Path, cameras: str, sinks: str, more: str = "") -> Path:
    """Write a station file with one recipe, number 7, of the class ``disc``."""
    path = folder / "station.yaml"
    path.write_text(
        f"station: press-3\nmodel: {model}\nbank: bank\ncameras:\n{cameras}\n"
        f"recipes: {{7: {{name: disc, class: disc}}}}\nsinks:\n{sinks}\n{more}\n"
    )
    return path


def run(path: Path, play: Callable[[Front], Awaitable[None]], seconds: float = 300.0) -> Front:
    """Run a station, and play a part beside it, at most so long."""

    async def main() -> Front:
        front = Front(read_station(path))
        running = asyncio.ensure_future(front.run())
        playing = asyncio.ensure_future(play(front))
        try:
            await asyncio.wait([running, playing], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            assert playing.done(), f"it took longer than {seconds} s"
            playing.result()
        finally:
            playing.cancel()
            front.stop()
            front._stopping.set()
            await asyncio.wait_for(running, 30)
        return front

    return asyncio.run(main())


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the recorded parts of a station."""
    records = Records(path.parent / "records.sqlite")
    try:
        return records.parts(limit=100_000)
    finally:
        records.close()
