"""Reloads and exports for a long time: the page process stays small, and the PLC does not notice.

``VISIONAD_PAGE_MINUTES=10`` runs it as long as page.md asks for, with a million parts in the records; CI runs it for half a minute.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.browser.conftest import Watched, browser, chromium_path
from tests.browser.station import RunningStation, numbered
from tests.line.components import note
from tests.ports import free_port

Tabs = Callable[..., Watched]
pytestmark = pytest.mark.slow(group="browser")
ROOT = Path(__file__).parents[2]
MINUTES = float(os.environ.get("VISIONAD_PAGE_MINUTES", "0.5"))
LONG = MINUTES >= 10
ROWS = 1_000_000 if LONG else 100_000
MAX_MB, MAX_GROWTH_MB = 80, 5
FIRST = ["chrt", "--reset-on-fork", "--rr", "10"]
"""As ``CPUSchedulingPolicy`` of the station's service: the front answers the PLC before anything else runs, its children do not."""


@pytest.fixture
def station(tmp_path: Path, model: Path) -> Iterator[RunningStation]:
    """A station with many parts in its records, and a PLC's address."""
    running = RunningStation(tmp_path, model, [numbered(number) for number in range(1, 41)])
    if not subprocess.run([*FIRST, "true"], stderr=subprocess.DEVNULL).returncode:  # it takes root
        running.under = FIRST
    running.modbus = free_port()  # type: ignore[attr-defined]
    text = running.file.read_text().replace(
        f"{{kind: tcp, port: {running.tcp}}}",
        f"{{kind: tcp, port: {running.tcp}}}, {{kind: modbus, port: {running.modbus}}}",  # type: ignore[attr-defined]
    )
    running.file.write_text(text)
    running.start()
    running.inspect()
    running.stop()
    with sqlite3.connect(running.folder / "records.sqlite") as db:
        (columns,) = [",".join(row[1] for row in db.execute("PRAGMA table_info(parts)"))]
        names = columns.split(",")
        values = ", ".join({"id": "n", "delivery": "n", "part": "'SN-' || n"}.get(name, name) for name in names)
        db.execute(
            f"WITH RECURSIVE many(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM many WHERE n <= {ROWS}) "
            f"INSERT INTO parts ({columns}) SELECT {values} FROM many, (SELECT * FROM parts WHERE id = 1)"
        )
    yield running.start()
    running.stop()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A browser of low priority on one core, as the guide of the page says for a panel on the station's own computer.

    A session of its own has its own share of the processor, whatever its processes' ``nice`` (sched(7), autogroup).
    """
    path = tmp_path_factory.mktemp("nice") / "chromium"
    core = max(os.sched_getaffinity(0))
    path.write_text(f'#!/bin/sh\necho 19 > /proc/self/autogroup\nexec nice taskset -c {core} {chromium_path()} "$@"\n')
    path.chmod(0o755)
    yield from browser(str(path))


def poll(port: int, seconds: float) -> subprocess.Popen[str]:
    """Begin to poll a station's registers in another process; it prints the 99th percentile in milliseconds."""
    command = [sys.executable, "-m", "tests.browser.modbus_poll", str(port), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def polled(process: subprocess.Popen[str]) -> float:
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return float(said)


def test_s20_reloads_beside_an_export(station: RunningStation, tabs: Tabs) -> None:
    ended = threading.Event()

    def line() -> None:
        while not ended.is_set():
            station.inspect()
            time.sleep(0.5)

    parts = threading.Thread(target=line)
    parts.start()
    try:
        measure(station, tabs)
    finally:
        ended.set()
        parts.join(60)


def measure(station: RunningStation, tabs: Tabs) -> None:
    port: int = station.modbus  # type: ignore[attr-defined]
    alone = polled(poll(port, 10))
    tab = tabs(station)
    tab.until_verdict("OK", "NO PART", seconds=10)
    cookie = station.login(panel=station.panel_token())
    page = station.process("page")
    poller = poll(port, MINUTES * 60 - 5)
    command = [sys.executable, "-m", "tests.browser.export_reader", str(station.port), cookie]
    exporter = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    samples, end = [], time.monotonic() + MINUTES * 60
    try:
        while time.monotonic() < end:
            for screen in ("run", "history", "teach", "statistics"):
                tab.page.goto(f"{station.url}/#/{screen}")
                tab.page.reload()
                time.sleep(0.3)
            samples.append(station.resident_mb(page))
    finally:
        assert exporter.stdout is not None
        first = (
            exporter.stdout.readline()
        )  # an export has the lowest priority, so a loaded machine may not have ended one yet
        exporter.kill()
        exported = [int(line) for line in (first + exporter.communicate()[0]).split()]
    assert station.process("page") == page, "the page process was replaced"
    assert exported and min(exported) > ROWS
    settled = samples[len(samples) // 4 :]
    beside = polled(poller)
    figures = {
        "minutes": MINUTES, "parts": ROWS, "exports": len(exported), "page_mb": [samples[0], max(samples)],
        "growth_mb": max(settled) - min(settled), "modbus_p99_ms": [alone, beside],
    }  # fmt: skip
    note("S20", {name: np.round(value, 2).tolist() for name, value in figures.items()})
    assert max(settled) - min(settled) < MAX_GROWTH_MB and max(samples) < MAX_MB + 10, figures
    if LONG:
        assert max(samples) < MAX_MB, figures
