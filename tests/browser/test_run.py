"""Run: the operator's screen."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.browser.conftest import Watched, chromium_path
from tests.browser.station import DRAWN_NUMBER, RunningStation

Tabs = Callable[..., Watched]
pytestmark = pytest.mark.slow(group="browser")
NUMBER = f"""() => {{
  const canvas = document.getElementById('image');
  if (!canvas?.dataset.drawn || !canvas.dataset.part) return null;
  {DRAWN_NUMBER}
  return {{number, id: Number(canvas.dataset.part), part: document.getElementById('part')?.textContent,
    word: document.getElementById('verdict').textContent}};
}}"""
"""Reads the number that is drawn into the image, from the canvas, and what the screen says of it in the same moment."""


def test_s01_open_the_panel(station: RunningStation, tabs: Tabs) -> None:
    for _ in range(4):
        assert station.inspect().split()[2] == "1"
    tab = tabs(station)
    begin = time.monotonic()
    tab.page.reload()
    tab.until_verdict("OK")
    tab.until("() => document.getElementById('count-ok')?.textContent === '4'")
    seconds = time.monotonic() - begin
    assert tab.page.text_content("#phase") == "Running"
    assert tab.page.evaluate(NUMBER) == {"number": 4, "id": 4, "part": "SN-0004", "word": "OK"}
    assert "Recipe 1 gear" in tab.page.text_content("header")
    # Reading the canvas back, as this test does, is what chromium warns of.
    assert [text for text in tab.complaints if "willReadFrequently" not in text] == []
    assert {url.split("/")[2] for url in tab.requests} == {f"127.0.0.1:{station.port}"}
    assert seconds < 4, f"{seconds:.1f} s"  # 1.5 s on a quiet machine


def test_s02_number_image_and_outline_belong_together(station: RunningStation, tabs: Tabs) -> None:
    tab = tabs(station)
    station.inspect()
    tab.until_verdict("OK", "REJECT")
    seen = []
    for number in range(200):
        if number in (60, 140):
            tab.page.reload()
        station.inspect()
        time.sleep(0.05)
        found = tab.page.evaluate(NUMBER)
        if found is not None:
            seen.append(found)
    assert len(seen) > 150
    for found in seen:
        assert found["number"] == found["id"], found
        assert found["part"] == f"SN-{found['id']:04d}"
        assert found["word"] == ("REJECT" if found["id"] % 5 == 0 else "OK")
    assert len({found["id"] for found in seen}) >= 8  # rejects stay for two seconds


def test_the_counts_of_the_shift_outlive_a_cleared_fault(station: RunningStation, tabs: Tabs) -> None:
    """The PLC's own counts are cleared with it; those of the shift are the records'."""
    tab = tabs(station)
    headers = {"Cookie": station.login(panel=station.panel_token())}

    def do(path: str, **body: str) -> None:
        assert station.request("POST", f"/api/1/{path}", body, headers)[0] == 200

    do("control", to="page")
    assert station.inspect().startswith("ERROR")
    do("control", to="line")
    tab.until("() => document.getElementById('count-missed')?.textContent === '1'", 8)
    do("fault/clear")
    tab.until("async () => (await import('/static/feed.js')).station.state.missed === 0", 8)
    tab.page.reload()
    tab.until("() => document.getElementById('count-missed')?.textContent === '1'", 8)


@pytest.mark.parametrize("which", ["worker", "front", "page"])
def test_s03_stopped_process(station: RunningStation, tabs: Tabs, which: str) -> None:
    tab = tabs(station)
    station.inspect()
    tab.until_verdict("OK", "REJECT")
    process = station.process(which)
    station.signal(process, signal.SIGSTOP)
    try:
        seconds = tab.until_verdict("OFFLINE", seconds=6)
        assert not tab.page.evaluate("() => document.getElementById('image').dataset.part")
        assert "REJECT" not in tab.page.inner_text("main") and "Part SN" not in tab.page.inner_text("main")
        assert tab.page.evaluate("() => [...document.querySelectorAll('.actions button')].every(b => b.disabled)")
    finally:
        station.signal(process, signal.SIGCONT)
    tab.until_verdict("OK", "REJECT", seconds=9)
    station.until(station.ready)
    assert seconds < 3, f"{seconds:.1f} s"  # 2 s on a quiet machine


def test_s04_endless_loop_in_the_page(station: RunningStation, chromium: object, tmp_path: Path) -> None:
    """A real window on a virtual screen, photographed from outside: the page's own code hangs, the compositor goes on."""
    tools = {name: shutil.which(name) for name in ("Xvfb", "import")}
    if None in tools.values():
        pytest.skip(
            f"needs {', '.join(name for name, path in tools.items() if path is None)}: apt-get install xvfb imagemagick"
        )
    station.until(station.ready)
    station.inspect()
    display = f":{os.getpid() % 1000 + 90}"
    environment = {**os.environ, "DISPLAY": display}
    screen = subprocess.Popen([str(tools["Xvfb"]), display, "-screen", "0", "1280x800x24"], stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        browser = chromium.browser_type.launch(  # type: ignore[attr-defined]
            executable_path=chromium_path(), headless=False, env=environment,
            args=["--no-sandbox", "--window-size=1280,800", "--window-position=0,0"],
        )  # fmt: skip
        tab = Watched(browser.new_page(viewport={"width": 1280, "height": 700}))
        tab.page.goto(f"{station.url}/#panel={station.panel_token()}")
        tab.until_verdict("OK", "REJECT")
        before = photograph(environment, tmp_path / "before.png")
        tab.page.evaluate("() => { setTimeout(() => { for (;;); }, 0); }")
        time.sleep(3.5)
        after = photograph(environment, tmp_path / "after.png")
        # Hatched dark gray from edge to edge, nothing red or light gray, and large white letters.
        middle = after[150:650, 50:1230].astype(int)
        gray = np.abs(middle - middle.mean(axis=2, keepdims=True)).max(axis=2) < 16
        assert gray.mean() > 0.98, f"{gray.mean():.3f}"
        assert ((middle.mean(axis=2) < 80) | (middle.mean(axis=2) > 160)).mean() > 0.95
        assert (middle.mean(axis=2) < 80).mean() > 0.8
        assert (before[150:650, 50:1230].mean(axis=2) < 80).mean() < 0.75
        browser.close()
    finally:
        screen.kill()
        screen.wait()


def photograph(environment: dict[str, str], path: Path) -> NDArray[np.uint8]:
    subprocess.run(["import", "-window", "root", str(path)], env=environment, check=True, timeout=30)
    return np.asarray(cv2.imread(str(path)), np.uint8)


def test_s05_killed_processes(station: RunningStation, tabs: Tabs) -> None:
    """Page and worker die; the line answers unharmed while only the page does."""
    tab = tabs(station)
    station.until(station.ready)
    for which, times in (("page", 4), ("worker", 2)):
        for _ in range(times):
            station.until(station.ready, 30)
            station.inspect()
            tab.until_verdict("OK", "REJECT", seconds=15)
            process = station.process(which)
            station.signal(process, signal.SIGKILL)
            if which == "page":
                begin = time.monotonic()
                assert station.inspect().startswith("RESULT")
                assert time.monotonic() - begin < 2
            tab.until_verdict("OFFLINE", "FAULT", seconds=4)
            tab.until_verdict("OK", "REJECT", "NO PART", seconds=15)


def test_s05_killed_front(station: RunningStation, tabs: Tabs) -> None:
    """Another start of the station: nothing of the old one is shown, and the page asks who is there."""
    tab = tabs(station)
    station.inspect()
    tab.until_verdict("OK", "REJECT", seconds=8)
    children = station.children()
    station.signal(station.front, signal.SIGKILL)
    tab.until_verdict("OFFLINE", seconds=4)
    station.forget()
    station.until(lambda: not any(Path(f"/proc/{one}").exists() for one in children), 10)
    station.start()
    tab.until("() => document.body.innerText.includes('Log in')", 20)  # its session ended with the front
    assert "REJECT" not in tab.page.inner_text("body")
    again = tabs(station)
    again.until_verdict("NO PART")
    assert "No part since the start" in again.page.inner_text("main")


def test_s06_many_tabs(station: RunningStation, tabs: Tabs) -> None:
    first = tabs(station)
    first.until_verdict("OK", "REJECT", "NO PART")
    context = first.page.context
    others = [tabs(station, context=context) for _ in range(7)]
    for _ in range(5):
        station.inspect()
    number = str(station.inspect().split()[1])
    for tab in (first, *others):
        tab.page.bring_to_front()
        tab.until(f"() => document.getElementById('part')?.textContent.endsWith('{int(number):04d}')", 8)
        assert tab.page.evaluate("() => Number(document.getElementById('image').dataset.part) > 0")


def test_s06_hidden_tab(station: RunningStation, tabs: Tabs) -> None:
    """It gets no image, and shows nothing old when it is shown again: the newest part, after a beat."""
    tab = tabs(station)
    station.inspect()
    tab.until_verdict("OK", "REJECT", seconds=8)
    frames: list[bool] = []
    tab.page.on(
        "websocket", lambda socket: socket.on("framereceived", lambda data: frames.append(isinstance(data, bytes)))
    )
    tab.page.reload()
    tab.until_verdict("OK", "REJECT", seconds=8)
    assert any(frames)
    hide = """hidden => {
      Object.defineProperty(document, 'visibilityState', { value: hidden ? 'hidden' : 'visible', configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
      return [document.getElementById('verdict').textContent, document.getElementById('image').dataset.part];
    }"""
    tab.page.evaluate(hide, True)
    tab.page.wait_for_timeout(1500)  # what was under way
    frames.clear()
    for _ in range(4):
        station.inspect()
    tab.page.wait_for_timeout(1000)
    assert frames and not any(frames)  # beats, and no image
    assert tab.page.evaluate(hide, False)[1] != str(station.sequence - 4)
    tab.until(f"() => document.getElementById('part')?.textContent.endsWith('{station.sequence:04d}')", 8)


def test_s08_fast_line(station: RunningStation, tabs: Tabs) -> None:
    """The word changes at most twice a second, a reject stays for two seconds, and every part is in the strip."""
    tab = tabs(station)
    station.until(station.ready)
    tab.until_verdict("OK", "REJECT", "NO PART", seconds=8)
    tab.page.evaluate(
        """() => {
          window.words = [];
          new MutationObserver(() => {
            const word = document.getElementById('verdict').textContent;
            if (word !== window.words.at(-1)?.[1]) window.words.push([performance.now(), word]);
          }).observe(document.getElementById('app'), {subtree: true, childList: true, characterData: true});
        }"""
    )
    first = station.sequence + 1
    for _ in range(60):
        station.inspect()
    time.sleep(3)
    words = tab.page.evaluate("() => window.words")
    # The first entry is no change: it is what was there when the first thing changed.
    gaps = [(b[0] - a[0], a[1]) for a, b in itertools.pairwise(words[1:])]
    assert len(words) >= 2
    assert all(gap >= 480 for gap, word in gaps if word != "NO PART"), words
    assert all(gap >= 1950 for gap, word in gaps if word == "REJECT"), words
    strip = tab.page.evaluate("() => [...document.querySelectorAll('.strip li')].map(one => one.title)")
    expected = [f"SN-{n:04d}" for n in range(first, station.sequence + 1)][-12:]
    assert [title.split()[0] for title in strip] == expected


def test_s08_a_late_image_holds_its_part_no_longer(station: RunningStation, tabs: Tabs) -> None:
    """The second message of a part, with its image, is shown at once and does not begin its two seconds anew."""
    tab = tabs(station)
    shown = tab.page.evaluate(
        """async () => {
          const { Banner } = await import('/static/banner.js');
          let now = 0;
          const shown = [];
          const banner = new Banner((part) => shown.push([now, part.id, part.image]), () => now, () => {});
          banner.put({ id: 1, evaluation: 2, image: false });
          now = 1500;
          banner.put({ id: 2, evaluation: 1, image: false });
          banner.put({ id: 1, evaluation: 2, image: true });
          now = 2000;
          banner.look();
          return shown;
        }"""
    )
    assert shown == [[0, 1, False], [1500, 1, True], [2000, 2, False]]


def test_s16_double_tap(station: RunningStation, tabs: Tabs) -> None:
    """However often *Seen* is tapped, it is done once, and audited once."""
    tab = tabs(station)
    station.until(station.ready)
    cookie = {one["name"]: one["value"] for one in tab.page.context.cookies()}["__Host-visionad"]
    headers = {"Cookie": f"__Host-visionad={cookie}"}
    while station.inspect().split()[2] != "2":
        pass
    tab.until("() => document.getElementById('seen')?.disabled === false", 8)
    tab.page.evaluate("() => { const b = document.getElementById('seen'); b.click(); b.click(); b.click(); }")
    tab.until("() => document.getElementById('seen')?.disabled", 5)
    entries = station.request("GET", "/api/1/audit", headers=headers)[1]["entries"]
    last = max(entry["new"]["to"] for entry in entries if entry["what"] == "seen")
    assert sum(entry["what"] == "seen" and entry["new"]["to"] == last for entry in entries) == 1
    status, _, _ = station.request("POST", "/api/1/control", {"to": "page"}, {**headers, "Idempotency-Key": "once"})
    assert status == 200
    once = {**headers, "Idempotency-Key": "part"}
    station.until(lambda: station.request("POST", "/api/1/trigger", {}, once)[0] == 200)
    numbers = {station.request("POST", "/api/1/trigger", {}, once)[1]["id"] for _ in range(3)}
    assert len(numbers) == 1
    tab.until("() => document.getElementById('control').textContent.includes('Hand back')", 5)
    station.until(lambda: station.request("POST", "/api/1/control", {"to": "line"}, headers)[0] == 200)
