"""What the station's pages cost: `python benchmarks/page.py DEMO [--seconds 30] [--rate 5]`, DEMO from `visionad demo --out DEMO`.

A station of the demo, three tabs in chromium that watch it, and parts over TCP. Latency is from the result in the front to the
part's image in the browser, with the same clock; CPU and memory are those of the page process. Needs chromium and Playwright.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import common
from playwright.sync_api import Page, sync_playwright
from visionad_runtime.tools.demo.station import write_station

from tests.browser.station import RunningStation

BUDGETS = {
    "painted_ms_p50": 60,
    "painted_ms_p99": 250,
    "page_cores": 0.15,
    "page_mb": 80,
    "growth_mb": 5,
    "first_load_kb": 150,
}
MOST_PARTS = 2000
"""Newest parts that are looked at."""
WATCH = """() => {
  window.painted = [];
  const look = () => {
    const { part, drawn } = document.getElementById('image')?.dataset ?? {};
    if (part && drawn && part !== window.painted.at(-1)?.[0]) window.painted.push([part, Date.now()]);
    requestAnimationFrame(look);
  };
  look();
}"""


def main() -> None:
    """Measure, print, write ``benchmarks/results/page.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("demo", type=Path)
    options.add_argument("--seconds", type=float, default=30)
    options.add_argument("--rate", type=float, default=5, help="parts a second")
    args = options.parse_args()
    shutil.rmtree(args.demo / "station", ignore_errors=True)
    file = write_station(args.demo.resolve())
    for path in (file.parent / "line").glob("*.png"):
        if not path.stem.endswith("-good"):
            path.unlink()  # a reject stays for two seconds: what comes meanwhile is not painted
    station = RunningStation.of_file(file).start()
    try:
        result = measure(station, args.seconds, args.rate)
    finally:
        station.stop()
    path = common.write("page", result)
    print("\n".join(f"{name}: {value}" for name, value in result.items()))
    print(f"written to {path.relative_to(common.ROOT)}")


def measure(station: RunningStation, seconds: float, rate: float) -> dict[str, Any]:
    """Measure latency, CPU and memory."""
    static = Path(__file__).parents[1] / "runtime/visionad_runtime/web/station/static"
    loaded: set[str] = set()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tabs = []
        for _ in range(3):
            tab = chromium.new_page(viewport={"width": 1280, "height": 800})
            tab.on("request", lambda request: loaded.add(request.url.partition("?")[0]))
            tab.goto(f"{station.url}/#panel={station.panel_token()}")
            tab.evaluate(WATCH)
            tabs.append(tab)
        for _ in range(5):
            station.inspect()
        process = station.process("page")
        cpu, memory, begin, parts = cpu_seconds(process), resident_mb(process), time.monotonic(), 0
        while time.monotonic() < begin + seconds:
            station.inspect()
            parts += 1
            time.sleep(max(0.0, begin + parts / rate - time.monotonic()))
        wall = time.monotonic() - begin
        cores = (cpu_seconds(process) - cpu) / wall
        after = resident_mb(process)
        latencies = sorted(painted(station, tabs[0], rate))
        chromium.close()
    names = [
        url.partition("/static/")[2] for url in loaded if "/static/" in url
    ]  # other screens come when they are opened
    return {
        "parts_per_s": round(parts / wall, 2),
        "seconds": round(wall, 1),
        "tabs": 3,
        "painted": len(latencies),
        "painted_ms_p50": round(latencies[len(latencies) // 2], 1),
        "painted_ms_p99": round(latencies[int(len(latencies) * 0.99)], 1),
        "page_cores": round(cores, 3),
        "page_mb": round(after, 1),
        "growth_mb": round(after - memory, 1),
        "first_load_kb": round(sum((static / name).stat().st_size for name in names) / 1024, 1),
        "budgets": BUDGETS,
        "load_average": round(os.getloadavg()[0], 1),
    }


def painted(station: RunningStation, tab: Page, rate: float) -> list[float]:
    """Return the milliseconds from each ok part's result to its image; a reject may wait for another one's two seconds."""
    headers = {"Cookie": station.login(panel=station.panel_token())}
    known: dict[int, dict[str, Any]] = {}
    more, before = True, 0
    while more and len(known) < MOST_PARTS:
        answer = station.request("GET", f"/api/1/records?before={before}", headers=headers)[1]
        known |= {row["id"]: row for row in answer["records"]}
        more, before = answer["more"], min(known)
    found, last = [], 0
    held = int(2.5 * rate) + 1  # parts that may wait behind a reject
    for part, at in tab.evaluate("() => window.painted"):
        row = known.get(int(part))
        alone = all(known[n]["evaluation"] == 1 for n in range(int(part) - held, int(part) + 1) if n in known)
        if row is not None and alone and last:
            decided = datetime.fromisoformat(row["time_utc"]).timestamp() * 1e3 + row["latency_ms"]
            found.append(at - decided)
        last = int(part)
    return found


def cpu_seconds(process: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(process: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
