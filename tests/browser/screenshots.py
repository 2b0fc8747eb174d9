"""Write docs/images/page-*.png: the screens in English and German at 1280 x 800, from the demo's station.

    python -m tests.browser.screenshots [DEMO_FOLDER]

The folder is one that ``visionad demo --out DEMO_FOLDER`` has filled; without it, ``visionad-demo``.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from visionad_runtime.tools.demo.station import write_station

from tests.browser.station import RunningStation

ADMIN = {"name": "admin 1", "password": "demonstration"}
SETTER = {"name": "setter 1", "password": "demonstration"}
IMAGES = Path(__file__).resolve().parents[2] / "docs/images"
SHOWN = ("run", "history", "statistics", "audit", "settings")


def main() -> None:
    """Start the demo's station, inspect its parts, and photograph each screen."""
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else "visionad-demo").resolve()
    shutil.rmtree(demo / "station", ignore_errors=True)
    station = RunningStation.of_file(write_station(demo))
    station.start()
    try:
        for _ in range(8):
            station.inspect()
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1280, "height": 800})
            page.goto(station.url)
            admin = {"code": station.code(), **ADMIN}
            page.evaluate("async login => (await import('/static/api.js')).post('login', login)", admin)
            user = {**SETTER, "role": "setter"}
            page.evaluate("async user => (await import('/static/api.js')).post('users', user)", user)
            for language in ("en", "de"):
                photograph(page, station, language)
                photograph_teaching(page, station, language)
            chromium.close()
    finally:
        station.stop()


def photograph(page: Page, station: RunningStation, language: str) -> None:
    """Write the images of one language."""
    for screen in SHOWN:
        address = "history?verdict=not_ok" if screen == "history" else screen
        page.goto(f"{station.url}/?language={language}#/{address}")
        if screen == "run":
            while station.inspect().split()[2] != "2":
                pass
        time.sleep(2)
        save(page, f"{screen}-{language}")
    page.goto(f"{station.url}/?language={language}#/run")
    time.sleep(2)
    worker = station.process("worker")
    station.signal(worker, signal.SIGSTOP)
    time.sleep(1.8)
    save(page, f"offline-{language}")
    station.signal(worker, signal.SIGCONT)
    station.until(station.ready, 60)


def photograph_teaching(page: Page, station: RunningStation, language: str) -> None:
    """Write the images of the steps of teaching."""
    page.evaluate("async login => (await import('/static/api.js')).post('login', login)", SETTER)
    page.goto(f"{station.url}/?language={language}#/teach")
    page.reload()
    time.sleep(2)
    save(page, f"teach-{language}")
    page.evaluate("async name => (await import('/static/draft.js')).begin(name)", "blister")
    for step in ("parts", "regions", "threshold", "live"):
        page.goto(f"{station.url}/?language={language}#/teach?class=blister&step={step}")
        while not page.evaluate("() => document.querySelector('.steps') !== null"):
            time.sleep(0.1)
        if step == "parts":
            station.inspect()
            time.sleep(1)
            if language == "en":
                page.click("#take")
                while page.inner_text("#take") != "Take this part":
                    time.sleep(0.1)
                time.sleep(5)  # what was said goes away
        elif step == "regions":
            page.click("#ignore-rectangle")
            box = page.locator("#region-image").bounding_box()
            assert box is not None
            for across, down in ((0.62, 0.55), (0.8, 0.85)):
                page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])
        elif step == "threshold":
            page.click("#collect")
            for _ in range(22):
                station.inspect()
            time.sleep(8)
            page.click("#collect")
            page.click("#try")
            page.click(".chips button")
            time.sleep(8)
        page.evaluate("() => document.querySelector('.list, .side').scrollTo(0, 0)")
        time.sleep(3)
        save(page, f"teach-{step}-{language}")
        if step == "parts":
            photograph_live(page, language)
    page.evaluate("async login => (await import('/static/api.js')).post('login', login)", ADMIN)


def photograph_live(page: Page, language: str) -> None:
    """Write the live image of the camera, which takes control from the line."""
    control = "async to => (await import('/static/api.js')).post('control', { to })"
    page.evaluate(control, "page")
    time.sleep(3)
    save(page, f"teach-camera-{language}")
    page.evaluate(control, "line")


def save(page: Page, name: str) -> None:
    """Write an image in 256 colours: a quarter of the size."""
    path = IMAGES / f"page-{name}.png"
    page.screenshot(path=str(path))
    if shutil.which("convert"):
        subprocess.run(["convert", str(path), "-colors", "256", "-strip", f"PNG8:{path}"], check=True)


if __name__ == "__main__":
    main()
