"""Teach: the camera is seen live between the line's parts, and the frame on the screen is the one that is taken."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from visionad_runtime.bank.store import Bank
from visionad_runtime.bank.supports import read_kept
from visionad_runtime.images.pixels import pixel_digest

from tests.browser.conftest import Watched
from tests.browser.station import DRAWN_NUMBER, RunningStation, numbered
from tests.browser.test_pushed import png, push, station_of
from tests.browser.test_screens import OVERFLOW, violations
from tests.browser.test_teach import SETTER, call, draft, number_of, open_draft, place, said

Tabs = Callable[..., Watched]
pytestmark = pytest.mark.slow(group="browser")
PAUSE = 0.1
"""Between two images of the camera: ten a second."""
SEEN = f"""() => {{
  const canvas = document.getElementById('teach-image');
  if (!canvas?.dataset.drawn || !canvas.dataset.frame) return null;
  {DRAWN_NUMBER}
  return {{number, frame: Number(canvas.dataset.frame), caption: document.getElementById('live-caption').textContent}};
}}"""
"""Reads the number that is drawn into the live image, from the canvas, with its frame's number."""
TAKE = f"""() => {{
  const seen = ({SEEN})();
  document.getElementById('take').click();
  return seen;
}}"""
"""Reads the screen and presses *Take this part* in the same moment."""


class Pushing:
    """A camera that runs freely: a program pushes a numbered image every tenth of a second."""

    def __init__(self, station: RunningStation) -> None:
        self.station, self.number = station, 0
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(PAUSE):
            if self.goes_on.is_set():
                self.number = self.number % 1000 + 1
                assert push(self.station, png(self.number))[0] == 200

    def close(self) -> None:
        self._ended.set()
        self._thread.join(20)


def with_setter(station: RunningStation) -> RunningStation:
    cookie = station.login(code=station.code(), name="admin", password="admin 123")
    assert station.request("POST", "/api/1/users", {**SETTER, "role": "setter"}, {"Cookie": cookie})[0] == 200
    return station


@pytest.fixture
def station(tmp_path: Path, model: Path) -> Iterator[RunningStation]:
    """A station whose only camera gets pushed images, with a setter."""
    running = with_setter(station_of(tmp_path, model, "{kind: http}"))
    yield running
    running.stop()


@pytest.fixture
def pushing(station: RunningStation) -> Iterator[Pushing]:
    one = Pushing(station)
    yield one
    one.close()


def taught(station: RunningStation, name: str = "disc") -> Any:
    """The draft's newest part: its record in the bank, and its pixels."""
    bank = Bank.open(station.folder / "drafts" / name / "bank")
    record = bank.classes[name].entry.images[-1]
    rgb = read_kept(bank.folder, record.kept, None)
    assert rgb is not None and pixel_digest(rgb) == record.pixels
    return rgb


def test_s10_the_live_frame_on_the_screen_is_the_one_that_is_taken(
    station: RunningStation, pushing: Pushing, tabs: Tabs
) -> None:
    """Ten images a second come. The taught pixels are those of the frame whose number the screen showed at the press."""
    tab = open_draft(station, tabs)
    tab.until(f"() => ({SEEN})() !== null", 20)
    frame = 0
    for count in range(5, 8):
        tab.until("() => !document.getElementById('take').disabled", 20)
        tab.until("last => Number(document.getElementById('teach-image').dataset.frame) > last + 2", 20, frame)
        seen = tab.page.evaluate(TAKE)
        frame = seen["frame"]
        tab.until(
            "count => document.querySelectorAll('.parts > li').length === count"
            " || document.getElementById('notice').dataset.problem === 'true'", 20, count
        )  # fmt: skip
        assert tab.page.locator("#notice[data-problem=true]").count() == 0, tab.page.inner_text("#notice")
        source = draft(station)["parts"][-1]["source"]
        assert source.startswith(f"live frame {frame} of press-3, camera top, at 20")
        rgb = taught(station)
        assert number_of(rgb) == seen["number"]
        assert pixel_digest(rgb) == pixel_digest(numbered(seen["number"])[..., ::-1].copy())
        assert seen["caption"].startswith("camera top · live · ")
    assert [text for text in tab.complaints if "Canvas2D" not in text] == []  # the test reads the canvas, not the page


def test_s10_a_live_frame_that_is_gone_is_not_replaced_by_another(
    station: RunningStation, pushing: Pushing, tabs: Tabs
) -> None:
    tab = open_draft(station, tabs)
    tab.until(f"() => ({SEEN})() !== null", 20)
    tab.until("() => !document.getElementById('take').disabled", 20)
    before = draft(station)
    tab.page.evaluate(
        """async () => { const { live } = await import('/static/live.js'); live.frame.frame += 1000000;
        document.getElementById('take').click(); }"""
    )
    said(tab, "The frame is gone: take again.")
    status, problem = call(station, SETTER, "draft/parts?class=disc", {"version": before["version"], "frame": 10**6})
    assert status == 404 and problem["code"] == "image_gone" and problem["values"] == {"frame": 10**6}
    for both in ({"frame": 1, "record": 1}, {}):
        status, _ = call(station, SETTER, "draft/parts?class=disc", {"version": before["version"], **both})
        assert status == 400
    assert draft(station)["version"] == before["version"]


def test_the_line_goes_on_while_somebody_looks(station: RunningStation, pushing: Pushing, tabs: Tabs) -> None:
    """Each part gets a result with an image of its own that came after its trigger, and the newest one can be shown."""
    tab = open_draft(station, tabs)
    tab.until(f"() => ({SEEN})() !== null", 20)
    tab.page.click("#see-live")  # a part of the line does not take the screen
    numbers = []
    for _ in range(8):
        before = pushing.number
        assert station.inspect().split()[2] == "1"
        image = call(station, SETTER, "records?before=0", method="GET")[1]["records"][0]
        assert image["reason"] == "none"
        numbers.append(before)
    assert len(set(numbers)) > 4
    first = tab.page.evaluate(SEEN)["frame"]
    tab.until(f"first => ({SEEN})()?.frame > first + 3", 20, first)  # and live images go on
    tab.page.click("#see-part")
    tab.until("() => document.getElementById('teach-part')?.textContent === 'SN-0008'", 8)
    tab.until("() => document.getElementById('teach-image').dataset.part === '8'", 8)
    assert tab.page.locator("#live-caption").count() == 0
    tab.page.click("#take")
    said(tab, "Part SN-0008 is taken.")
    assert [text for text in tab.complaints if "Canvas2D" not in text] == []  # the test reads the canvas, not the page


def test_what_is_not_live_is_not_taken(station: RunningStation, pushing: Pushing, tabs: Tabs) -> None:
    """An image older than 2 s is frozen and says so; a hidden tab shows and asks nothing."""
    tab = open_draft(station, tabs)
    tab.until("() => document.getElementById('take').disabled === false", 20)
    pushing.goes_on.clear()
    said(tab, "camera top · frozen, no new image comes · ", 10)
    assert tab.page.is_disabled("#take") and tab.page.get_attribute(".view", "data-frozen") == "true"
    pushing.goes_on.set()
    said(tab, "camera top · live · ", 10)
    tab.until("() => document.getElementById('take').disabled === false", 20)

    frames: list[bool] = []
    tab.page.on(
        "websocket", lambda socket: socket.on("framereceived", lambda data: frames.append(isinstance(data, bytes)))
    )
    tab.page.reload()
    tab.until(f"() => ({SEEN})() !== null", 20)
    assert any(frames)
    for how, back in (
        ("Object.defineProperty(document, 'visibilityState', { value: 'hidden', configurable: true });"
         "document.dispatchEvent(new Event('visibilitychange'));",
         "Object.defineProperty(document, 'visibilityState', { value: 'visible', configurable: true });"
         "document.dispatchEvent(new Event('visibilitychange'));"),
        ("location.hash = '#/settings'", "location.hash = '#/teach?class=disc&step=parts'"),
        ("location.hash = '#/teach?class=disc&step=threshold'", "location.hash = '#/teach?class=disc&step=parts'"),
    ):  # fmt: skip
        tab.page.evaluate(how)
        tab.page.wait_for_timeout(1000)  # what was under way
        frames.clear()
        tab.page.wait_for_timeout(1500)
        assert frames and not any(frames), how  # beats, and no image
        tab.page.evaluate(back)
        tab.until(f"() => ({SEEN})() !== null", 20)


ON_REGIONS = """() => {
  const canvas = document.getElementById('region-image');
  if (!canvas?.dataset.place || !canvas.dataset.frame) return null;
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0;
  for (let i = 0; i < pixels.length; i += 4) sum = (sum * 31 + pixels[i]) % 1000000007;
  return {sum, frame: Number(canvas.dataset.frame), caption: document.getElementById('live-caption').textContent};
}"""
"""Reads the image that regions are drawn on, and its frame's number."""


def test_regions_are_drawn_on_the_live_image(station: RunningStation, pushing: Pushing, tabs: Tabs) -> None:
    """A drag moves the point that it began at, under a magnifier. A frozen image, and one of another size, say so."""
    tab = open_draft(station, tabs, "regions")
    tab.until("() => document.getElementById('region-image')?.dataset.place", 20)
    assert tab.page.locator("#live-caption").count() == 0  # the taught part, until somebody asks
    tab.page.click("#see-live")
    tab.until(f"() => ({ON_REGIONS})()?.frame > 0", 20)
    first = tab.page.evaluate(ON_REGIONS)
    tab.until(f"first => {{ const now = ({ON_REGIONS})(); return now.frame > first.frame && now.sum !== first.sum; }}",
              20, first)  # fmt: skip
    assert tab.page.evaluate(ON_REGIONS)["caption"].startswith("camera top · live · ")

    tab.page.click("#ignore-rectangle")
    for corner in ((30, 40), (60, 70)):
        tab.page.mouse.click(*place(tab, *corner))
    tab.until("() => document.querySelectorAll('.points tr').length === 4", 8)
    start, end = place(tab, 60, 70), place(tab, 90, 80)
    tab.page.mouse.move(*start)
    tab.page.mouse.down()
    tab.page.mouse.move(*end, steps=4)
    lens = """([x, y]) => { const box = document.getElementById('region-image').getBoundingClientRect();
      const up = y - box.top - 2 * 56 > 0 ? -1 : 1;
      return [...document.getElementById('region-image').getContext('2d')
        .getImageData(Math.round(x - box.left), Math.round(y - box.top + up * 1.6 * 56), 1, 1).data]; }"""
    cross = tab.page.evaluate(lens, end)
    assert min(cross) > 200
    tab.page.mouse.up()
    tab.until(
        "([script, end, cross]) => eval(script)(end).some((one, i) => Math.abs(one - cross[i]) > 40)",
        8,
        [lens, end, cross],
    )
    tab.until("() => document.querySelector(\"[data-point='2x']\").value === '90'", 8)
    assert tab.page.input_value("[data-point='2y']") == "80"
    assert tab.page.input_value("[data-point='0x']") == "30"

    pushing.goes_on.clear()
    said(tab, "camera top · frozen, no new image comes · ", 10)
    assert tab.page.get_attribute(".view", "data-frozen") == "true"
    larger = cv2.resize(numbered(1), None, fx=2, fy=2)
    assert push(station, bytes(cv2.imencode(".png", larger)[1]))[0] == 200
    said(tab, "it is not shown", 10)
    tab.page.click("#see-taught")
    tab.until("() => !document.getElementById('live-caption')", 8)
    assert tab.page.get_attribute(".view", "data-frozen") == "false"
    assert [text for text in tab.complaints if "Canvas2D" not in text] == []  # the test reads the canvas, not the page


def test_a_camera_that_waits_for_the_plc_is_left_alone(tmp_path: Path, model: Path, tabs: Tabs) -> None:
    """The page says why; with control at the page the image is seen, and the next part still gets it."""
    running = RunningStation(tmp_path, model, [numbered(number) for number in range(1, 60)])
    with_setter(running.start())
    try:
        tab = open_draft(running, tabs)
        said(tab, "The camera waits for the PLC’s trigger: take control to see live images.")
        assert tab.page.is_disabled("#take")
        running.inspect()
        tab.until("() => document.getElementById('teach-part')?.textContent === 'SN-0001'", 8)
        assert call(running, SETTER, "control", {"to": "page"})[0] == 200
        tab.until(f"() => ({SEEN})()?.number === 2", 20)
        first = tab.page.evaluate(SEEN)["frame"]
        tab.until(f"first => ({SEEN})()?.frame > first + 3", 20, first)
        tab.until("() => !document.getElementById('take').disabled", 20)
        assert tab.page.evaluate(TAKE)["number"] == 2
        said(tab, "The live image is taken.")
        assert number_of(taught(running)) == 2
        assert call(running, SETTER, "trigger", {})[0] == 200
        tab.until(f"() => ({SEEN})()?.number === 3", 20)
        tab.page.click("#see-part")
        tab.until("() => document.getElementById('teach-image').dataset.part === '2'", 8)
        tab.page.click(
            "#take"
        )  # the part of the trigger had the image that was seen before it: the draft has it already
        said(tab, "already")
        assert call(running, SETTER, "control", {"to": "line"})[0] == 200
        assert running.inspect().split()[2] == "1"
    finally:
        running.stop()


def test_s18_the_live_image_in_all_languages(station: RunningStation, pushing: Pushing, tabs: Tabs, axe: str) -> None:
    tab, found = open_draft(station, tabs), {}
    for language in ("en", "de", "zh", "pseudo"):
        for size in ((320, 640), (1280, 800)):
            tab.page.set_viewport_size({"width": size[0], "height": size[1]})
            tab.page.goto(f"{station.url}/?language={language}#/teach?class=disc&step=parts")
            tab.until("() => document.getElementById('sharpness')?.value > 0", 20)
            if wide := tab.page.evaluate(OVERFLOW):
                found[language, size] = wide
        if problems := violations(tab, axe):
            found[language, size] = problems
    assert found == {}


@pytest.mark.parametrize("role", ["operator", "viewer", "setter", "admin"])
def test_s17_who_may_look(tmp_path: Path, model: Path, role: str) -> None:
    """A look goes over the tab's connection, so no table of addresses names it."""
    websockets = pytest.importorskip("websockets.sync.client")
    running = with_setter(station_of(tmp_path, model, "{kind: http}"))
    try:
        assert push(running, png(5))[0] == 200
        admin = running.login(name="admin", password="admin 123")
        user = {"name": "somebody", "password": "word 1234", "role": role}
        assert running.request("POST", "/api/1/users", user, {"Cookie": admin})[0] == 200
        cookie = running.login(name="somebody", password="word 1234")
        address = f"ws://127.0.0.1:{running.port}/ws"
        with websockets.connect(address, origin=running.url, additional_headers={"Cookie": cookie}) as socket:
            for camera, n in (("top", 1), ("bottom", 2)):
                socket.send(json.dumps({"send": "look", "camera": camera, "class": "disc", "n": n}))
                deadline = time.monotonic() + 20
                while True:
                    assert time.monotonic() < deadline
                    message = socket.recv(20)
                    size = int.from_bytes(message[:4], "big") if isinstance(message, bytes) else 0
                    event = json.loads(message[4 : 4 + size] if isinstance(message, bytes) else message)
                    if event["event"] in ("frame", "no_frame"):
                        break
                assert event["n"] == n
                if role != "setter":
                    assert (event["event"], event["code"]) == ("no_frame", "role_missing")
                elif camera == "top":
                    assert event["event"] == "frame" and event["frame"] == 1 and event["lengths"][0] > 100
                else:
                    assert (event["event"], event["code"]) == ("no_frame", "no_camera")
    finally:
        running.stop()
