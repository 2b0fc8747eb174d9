"""Run: the operator's screen."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.browser.conftest import Watched
from tests.browser.station import BITS, CELL, RunningStation

Tabs = Callable[..., Watched]
NUMBER = f"""() => {{
  const canvas = document.getElementById('image');
  if (!canvas?.dataset.drawn || !canvas.dataset.part) return null;
  const [left, top, scale] = canvas.dataset.drawn.split(',').map(Number);
  const context = canvas.getContext('2d');
  let number = 0;
  for (let bit = 0; bit < {BITS}; bit += 1) {{
    const x = Math.round(left + (bit + 0.5) * {CELL} * scale), y = Math.round(top + {CELL / 2} * scale);
    if (context.getImageData(x, y, 1, 1).data[1] > 127) number += 1 << bit;
  }}
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
    tab.until_verdict("OK")
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
    assert seconds < 4, f"{seconds:.1f} s"  # 2 s on a quiet machine
