"""Teach: a draft beside a running line, as a setter does it: parts, regions, threshold, put live, brought back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.store import Bank
from visionad_runtime.bank.supports import read_kept
from visionad_runtime.images.pixels import pixel_digest
from visionad_runtime.station.front.cycle import NOT_DECIDABLE
from visionad_runtime.teaching.calibrate import calibrate_class

from tests.browser.conftest import Watched
from tests.browser.station import BITS, CELL, RunningStation, numbered

Tabs = Callable[..., Watched]
pytestmark = pytest.mark.slow(group="browser")
SETTER = {"name": "setter 1", "password": "set 12345"}
OTHER = {"name": "setter 2", "password": "set 67890"}


def images() -> list[np.ndarray]:
    """Numbers 1 to 240; those that 5 divides have a defect."""
    return [numbered(number, defect=number % 5 == 0) for number in range(1, 241)]


def number_of(rgb: np.ndarray) -> int:
    """Read the number that is drawn into an image."""
    return sum(int(rgb[CELL // 2, bit * CELL + CELL // 2, 0] > 127) << bit for bit in range(BITS))


@pytest.fixture
def station(tmp_path: Path, model: Path) -> Iterator[RunningStation]:
    """A station that keeps all images, with two setters."""
    running = RunningStation(tmp_path, model, images())
    running.file.write_text(running.file.read_text().replace("ok: none", "ok: all"))
    running.start()
    cookie = running.login(code=running.code(), name="admin", password="admin 123")
    for user in (SETTER, OTHER):
        assert running.request("POST", "/api/1/users", {**user, "role": "setter"}, {"Cookie": cookie})[0] == 200
    yield running
    running.stop()


def call(
    station: RunningStation, user: dict[str, str], path: str, body: Any = None, method: str = "POST"
) -> tuple[int, Any]:
    cookie = station.login(**user)
    status, answer, _ = station.request(
        method, f"/api/1/{path}", {} if body is None and method == "POST" else body, {"Cookie": cookie}
    )
    return status, answer


def draft(station: RunningStation, name: str = "disc") -> Any:
    status, facts = call(station, SETTER, f"draft?class={name}", method="GET")
    assert status == 200, facts
    return facts


def open_draft(station: RunningStation, tabs: Tabs, step: str = "parts", name: str = "disc") -> Watched:
    assert call(station, SETTER, f"draft?class={name}")[0] == 200
    tab = tabs(station, SETTER)
    tab.page.goto(f"{station.url}/?language=en#/teach?class={name}&step={step}")
    tab.until("() => document.querySelector('.steps') !== null", 30)
    return tab


def test_the_list_names_each_draft_and_opens_it(station: RunningStation, tabs: Tabs) -> None:
    for name in ("disc", "gear"):
        assert call(station, SETTER, f"draft?class={name}")[0] == 200
    tab = tabs(station, SETTER)
    tab.page.goto(f"{station.url}/?language=en#/teach")
    tab.until("() => document.querySelectorAll('.choices button').length > 0", 15)
    texts = tab.page.evaluate(
        "() => [...document.querySelectorAll('.choices button')].map(one => one.textContent.trim())"
    )
    assert [text.split(" · ")[0] for text in texts] == ["disc", "gear"], texts  # and none to begin: both are begun
    tab.page.click("text=gear ·")
    tab.until("() => document.querySelector('.steps h2')?.textContent.includes('gear')", 30)


def test_a_draft_that_comes_late_is_not_shown_as_another(station: RunningStation, tabs: Tabs) -> None:
    """Who opens a second draft before the first one is there gets the second one, and changes it."""
    for name in ("disc", "gear"):
        assert call(station, SETTER, f"draft?class={name}")[0] == 200
    tab = tabs(station, SETTER)
    tab.page.goto(f"{station.url}/?language=en#/teach")
    tab.until("() => document.querySelectorAll('.choices button').length > 0", 15)
    tab.page.evaluate("""() => {
      const plain = window.fetch;
      window.fetch = async (...asked) => {
        const answer = await plain(...asked);
        if (asked[0].endsWith('draft?class=disc')) { await new Promise((done) => setTimeout(done, 1500)); window.late = true; }
        return answer;
      };
    }""")
    tab.page.click("text=disc ·")
    tab.page.evaluate("() => { location.hash = '#/teach?class=gear&step=parts'; }")
    tab.until("() => window.late && document.querySelector('.steps h2')?.textContent.includes('gear')", 30)
    time.sleep(0.3)
    assert tab.page.evaluate("async () => (await import('/static/draft.js')).work.facts.class_name") == "gear"
    assert tab.page.evaluate("() => document.querySelectorAll('.parts > li').length") == 0


def shown_part(tab: Watched) -> None:
    tab.until("() => document.getElementById('teach-image')?.dataset.drawn", 8)


def said(tab: Watched, text: str, seconds: float = 20) -> None:
    tab.until("text => document.body.innerText.includes(text)", seconds, text)


def keep_all(tab: Watched, reason: str) -> None:
    """Say of each part that stands out why it is good."""
    while waiting := tab.page.locator("li[data-out=true]").count():
        if tab.page.locator("#reason").count() == 0:
            tab.page.locator("li[data-out=true] button").first.click()
        tab.page.fill("#reason", reason)
        tab.page.click("form button:has-text('It is good')")
        tab.until("count => document.querySelectorAll('li[data-out=true]').length === count", 20, waiting - 1)
        tab.until("() => document.getElementById('reason') === null", 20)


def live(station: RunningStation) -> Bank:
    return Bank.open(station.folder / "bank")


def test_s9_a_bad_part_among_those_taught_stands_out(station: RunningStation, tabs: Tabs) -> None:
    """Live is refused until it is decided; the reason is in the audit."""
    tab = open_draft(station, tabs, name="new")
    for number in (1, 2, 3, 4, 5):  # the fifth has a defect
        station.inspect()
        tab.until("part => document.getElementById('teach-part')?.textContent === part", 8, f"SN-{number:04d}")
        if number in (1, 2, 3, 5):
            tab.page.click("#take")
            said(tab, f"Part SN-{number:04d} is taken.")
    bad = "li[data-out=true]:has-text('part 5 of press-3')"
    said(tab, "part 5 of press-3")
    assert tab.page.locator(bad).count() == 1
    tab.page.locator(bad).locator("button").click()
    shown_part(tab)
    status, problem = call(station, SETTER, "draft/live?class=new", {"version": draft(station, "new")["version"]})
    assert status == 409 and problem["code"] == "undecided"
    keep_all(tab, "another supplier")
    tab.page.goto(f"{station.url}/#/teach?class=new&step=live")
    tab.page.click("#live")
    tab.page.click("#confirm-live")
    said(tab, "is live.")
    assert len(live(station).classes["new"].entry.images) == 4
    _, audit = call(station, SETTER, "audit", method="GET")
    kept = [one for one in audit["entries"] if one["what"] == "part stands out, kept"]
    assert kept and all((one["new"]["reason"], one["who"]) == ("another supplier", "setter 1") for one in kept)
    assert tab.complaints == []


def test_s10_the_part_on_the_screen_is_the_one_that_is_taken(station: RunningStation, tabs: Tabs) -> None:
    """At several parts a second, the taught pixels are those of the part whose number the screen showed."""
    tab = open_draft(station, tabs)
    stopped = threading.Event()

    def line() -> None:
        while not stopped.is_set():
            station.inspect()
            time.sleep(0.1)

    running = threading.Thread(target=line)
    running.start()
    try:
        shown_part(tab)
        part = 0
        for taken in range(5, 8):
            tab.until("() => !document.getElementById('take').disabled", 8)
            script = "last => document.getElementById('teach-image').dataset.part !== last"
            tab.until(script, 8, str(part))  # a rejected part stays on the screen for 2 s
            part = tab.page.evaluate(
                """() => { const id = document.getElementById('teach-image').dataset.part;
                document.getElementById('take').click(); return Number(id); }"""
            )
            tab.until(
                "count => document.querySelectorAll('.parts > li').length === count"
                " || document.getElementById('notice').dataset.problem === 'true'", 20, taken
            )  # fmt: skip
            assert tab.page.locator("#notice[data-problem=true]").count() == 0, tab.page.inner_text("#notice")
            image = draft(station)["parts"][-1]
            assert image["source"].startswith(f"part {part} of press-3")
            bank = Bank.open(station.folder / "drafts" / "disc" / "bank")
            record = bank.classes["disc"].entry.images[-1]
            rgb = read_kept(bank.folder, record.kept, None)
            assert rgb is not None and number_of(rgb) == (part - 1) % 240 + 1
            assert pixel_digest(rgb) == record.pixels
    finally:
        stopped.set()
        running.join(20)


def test_s11_a_draft_goes_live_between_two_parts(station: RunningStation, tabs: Tabs) -> None:
    """One version, and not one part without a threshold; parts, regions and threshold switch together."""
    tab = open_draft(station, tabs)
    station.inspect()
    shown_part(tab)
    tab.page.click("#take")
    said(tab, "Part SN-0001 is taken.")
    facts = draft(station)
    regions = {"image_size": facts["image_size"], "rois": [{"name": "mid", "box": [10, 8, 110, 88]}]}
    status, facts = call(station, SETTER, "draft/regions?class=disc", {"version": facts["version"], "regions": regions})
    assert status == 200
    for one in facts["parts"]:
        if one["stands_out"]:
            body = {"version": draft(station)["version"], "reason": "good"}
            assert call(station, SETTER, f"draft/parts/{one['support']}/decide?class=disc", body)[0] == 200
    before = live(station).manifest.version
    threshold = draft(station)["threshold"]
    stopped, answers = threading.Event(), []

    def line() -> None:
        while not stopped.is_set():
            answers.append(station.inspect())
            time.sleep(0.2)

    running = threading.Thread(target=line)
    running.start()
    try:
        time.sleep(1)
        tab.page.goto(f"{station.url}/#/teach?class=disc&step=live")
        tab.until("() => document.getElementById('live')?.disabled === false", 20)
        tab.page.click("#live")
        tab.page.click("#confirm-live")
        said(tab, f"Version {before + 1} is live.")
        time.sleep(1.5)
    finally:
        stopped.set()
        running.join(20)
    assert live(station).manifest.version == before + 1
    _, page = call(station, SETTER, "records", method="GET")
    records = page["records"]
    assert len(records) == len(answers) + 1 and {one["bank_version"] for one in records} == {before, before + 1}
    assert all(one["threshold"] is not None and one["evaluation"] != NOT_DECIDABLE for one in records)
    old = {one["threshold"] for one in records if one["bank_version"] == before}
    new = {one["threshold"] for one in records if one["bank_version"] == before + 1}
    assert len(old) == 1 and new == {threshold} and old != new
    versions = [one["bank_version"] for one in records]
    assert versions == sorted(versions, reverse=True)
    for one in records:
        _, full = call(station, SETTER, f"records/{one['id']}", method="GET")
        rois = {region["roi"] for region in full["cameras"]["top"]["regions"]}
        assert rois <= ({"mid"} if one["bank_version"] > before else {"image"})


def place(tab: Watched, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the image lies on the screen."""
    left, top, scale = (
        float(one)
        for one in tab.page.evaluate("() => document.getElementById('region-image').dataset.place").split(",")
    )
    box = tab.page.locator("#region-image").bounding_box()
    return box["x"] + left + (x + 0.25) * scale, box["y"] + top + (y + 0.25) * scale


def test_regions_say_which_known_defects_they_would_hide(station: RunningStation, tabs: Tabs) -> None:
    """A part that a person called bad, whose worst place would be ignored, is named and drawn; taken back, it is not."""
    for _ in range(5):  # the fifth has a defect
        answer = station.inspect()
    assert answer.split()[2] == "2"
    _, page = call(station, SETTER, "records", method="GET")
    number = page["records"][0]["id"]
    body = {"good": False}
    assert call(station, SETTER, f"records/{number}/review", body)[0] == 200
    tab = open_draft(station, tabs, "regions")
    tab.until("() => document.getElementById('share')?.textContent", 30)
    assert tab.page.locator("#hidden-defects").count() == 0
    _, full = call(station, SETTER, f"records/{number}", method="GET")
    x, y, width, height = max(full["cameras"]["top"]["regions"], key=lambda one: one["score"])["bbox"]
    tab.page.click("#ignore-rectangle")
    for corner in ((x, y), (x + width - 1, y + height - 1)):
        tab.page.mouse.click(*place(tab, *corner))
    said(tab, "Called bad, and not found again with these regions:", 8)
    link = tab.page.locator("#hidden-defects a")
    assert (link.inner_text(), link.get_attribute("href")) == ("SN-0005", f"#/history?id={number}")
    tab.page.click("text=Undo")
    tab.until("() => !document.getElementById('hidden-defects')", 8)


VEIL = """() => {
  const canvas = document.getElementById('region-image');
  const ratio = Math.min(devicePixelRatio || 1, 2);
  const [left, top, scale] = canvas.dataset.place.split(',').map((one) => one * ratio);
  const context = canvas.getContext('2d');
  const at = (x, y) => [...context.getImageData(Math.round(left + x * scale), Math.round(top + y * scale), 1, 1).data];
  return {ignored: at(56, 51), inspected: at(108, 51)};
}"""
"""Colors of two pixels of the disc's image: one in a patch that is ignored, one in a patch that is not."""
CORNERS = ((20, 30), (90, 25), (100, 80), (30, 75))


def test_s12_the_same_polygon_by_mouse_touch_keys_and_numbers(
    station: RunningStation, tabs: Tabs, chromium: Any, model: Path
) -> None:
    """Equal each time; the veil is the station's raster; a defect planted inside *ignore* is not reported."""
    drawn: dict[str, Any] = {}
    open_draft(station, tabs, "regions")
    for way in ("mouse", "touch", "keys", "numbers"):
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, locale="en", has_touch=way == "touch")
        tab = tabs(station, None, context)
        tab.page.evaluate("async login => (await import('/static/api.js')).post('login', login)", SETTER)
        tab.page.goto(f"{station.url}/?language=en#/teach?class=disc&step=regions")
        tab.page.reload()
        tab.until(
            "() => document.getElementById('region-image')?.dataset.place && document.getElementById('share').textContent",
            30,
        )
        wanted = CORNERS if way in ("mouse", "touch") else tuple((x + 9, y - 7) for x, y in CORNERS)
        tab.page.click("#ignore-polygon")
        for x, y in wanted:
            if way == "touch":
                tab.page.touchscreen.tap(*place(tab, x, y))
            else:
                tab.page.mouse.click(*place(tab, x, y))
        tab.page.keyboard.press("Enter") if way != "touch" else tab.page.tap("#finish")
        tab.until("() => document.querySelectorAll('.points tr').length === 4", 8)
        if way == "keys":
            tab.page.evaluate("() => document.getElementById('region-image').focus()")
            for _ in CORNERS:
                for _ in range(9):
                    tab.page.keyboard.press("ArrowLeft")
                for _ in range(7):
                    tab.page.keyboard.press("ArrowDown")
                tab.page.keyboard.press("n")
        elif way == "numbers":
            for index, (x, y) in enumerate(CORNERS):
                for axis, value in (("x", x), ("y", y)):
                    tab.page.fill(f"[data-point='{index}{axis}']", str(value))
                    tab.page.keyboard.press("Tab")
        tab.until("() => !document.getElementById('use-regions').disabled", 8)
        time.sleep(0.5)  # the raster comes from the station
        veil = tab.page.evaluate(VEIL)
        assert veil["ignored"] != veil["inspected"], way
        tab.page.click("#use-regions")
        said(tab, "The draft has these regions.", 30)
        facts = draft(station)
        drawn[way] = facts["regions"]["ignore"]
        assert facts["regions"]["ignore"] == [[list(corner) for corner in CORNERS]], way
        body = {"version": facts["version"], "regions": None}
        assert call(station, SETTER, "draft/regions?class=disc", body)[0] == 200
    assert len({str(one) for one in drawn.values()}) == 1

    facts = draft(station)
    regions = {"image_size": facts["image_size"], "ignore": [[[32, 28], [110, 28], [110, 94], [32, 94]]]}
    status, facts = call(station, SETTER, "draft/regions?class=disc", {"version": facts["version"], "regions": regions})
    assert status == 200
    _, found = call(station, SETTER, "draft/raster?class=disc", {"regions": facts["regions"]})
    with Inspector.open(
        model,
        station.folder / "drafts/disc/bank",
        threads=1,
    ) as inspector:
        layout = inspector.layout_of("disc")
        assert layout is not None and layout.tiles[0].cells is not None
        assert "".join("1" if cell else "0" for cell in layout.tiles[0].cells.ravel()) == found["tiles"][0]["ignored"]
        good, planted = numbered(77), numbered(77)
        planted[45:85, 45:95] = (0, 0, 255)
        assert inspector.inspect(planted, class_name="disc").score == inspector.inspect(good, class_name="disc").score


def test_s13_collect_all_consecutive_parts(station: RunningStation, tabs: Tabs, tmp_path: Path, model: Path) -> None:
    """At 5 %, bad ones among 24 are in the list and struck out; the value is that of ``visionad calibrate`` on the others."""
    tab = open_draft(station, tabs, "threshold")
    tab.page.click("#collect")
    said(tab, "Stop collecting")
    for _ in range(24):  # numbers 1 to 24: 5, 10, 15 and 20 are bad
        station.inspect()
    tab.until("() => document.getElementById('collected').textContent.startsWith('collected 24')", 30)
    assert tab.page.evaluate("() => document.querySelector('.problem') === null")
    struck = 0
    while struck < 4:
        tab.page.click(".chips li:has(button[data-struck=false]) button")
        tab.until("() => document.getElementById('collected-image')?.dataset.drawn", 10)
        tab.page.fill("#strike-reason", "square of red")
        tab.page.click("text=Strike out")
        struck += 1
        tab.until(
            "text => document.getElementById('collected').textContent === text",
            20,
            f"collected {24 - struck}, {struck} struck out",
        )
    assert tab.page.is_disabled("#use") is False
    tab.page.click("#use")
    said(tab, "Look at the highest parts first.")
    for _ in range(5):
        tab.page.click(".chips li:has(button[data-seen=false]) button")
        tab.page.click("#good-part")
        said(tab, "Noted: it is good.")
        time.sleep(0.3)
    tab.page.click("#use")
    said(tab, "The draft has this threshold.", 60)
    facts = draft(station)
    assert {one["part"] for one in facts["collected"] if one["struck"]} == {5, 10, 15, 20} and facts["counted"] == 20

    folder = tmp_path / "good"
    folder.mkdir()
    paths = []
    for number in (n for n in range(1, 25) if n % 5):
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), numbered(number))
    with Inspector.open(model, station.folder / "bank", threads=1) as inspector:
        assert calibrate_class(inspector, "disc", paths, 0.05).threshold.value == facts["threshold"]


def test_s14_what_if_is_what_an_inspection_says(station: RunningStation, tabs: Tabs, model: Path) -> None:
    for _ in range(20):
        station.inspect()
    tab = open_draft(station, tabs, "threshold")
    time.sleep(1)
    tab.page.click("#try")
    tab.until("() => document.getElementById('effect')?.textContent.startsWith('Of 20 kept parts')", 40)
    with Inspector.open(model, station.folder / "drafts/disc/bank", threads=1) as inspector:
        scores = {n: inspector.inspect(numbered(n, defect=n % 5 == 0), class_name="disc").score for n in range(1, 21)}
    assert {one["part"]: one["score"] for one in draft(station)["effect"]["scores"]} == scores
    was = {n: "anomalous" if scores[n] > live(station).classes["disc"].entry.threshold else "ok" for n in scores}  # type: ignore[operator]
    for threshold in np.quantile(list(scores.values()), (0.0, 0.25, 0.5, 0.75, 0.95)):
        tab.page.fill("#trial", f"{threshold:.9f}".replace(".", ","))
        limit = round(float(threshold), 9)
        fewer = sum(was[n] == "anomalous" and scores[n] <= limit for n in scores)
        more = sum(was[n] == "ok" and scores[n] > limit for n in scores)
        tab.until(
            "text => document.getElementById('effect').textContent.startsWith(text)",
            8,
            f"Of 20 kept parts: {fewer} rejects fewer, {more} more.",
        )
        _, facts = call(station, SETTER, f"draft/what-if?class=disc&threshold={limit}", method="GET")
        assert (len(facts["fewer"]), len(facts["more"])) == (fewer, more)


def test_an_administrator_types_a_threshold(station: RunningStation, tabs: Tabs) -> None:
    """It is marked on each screen, promises nothing on the line, and a setter does not see the form."""
    station.inspect()
    setter = open_draft(station, tabs, "threshold")
    assert setter.page.locator("#by-hand").count() == 0
    tab = tabs(station, {"name": "admin", "password": "admin 123"})
    tab.page.goto(f"{station.url}/?language=de#/teach?class=disc&step=threshold")
    tab.until("() => document.getElementById('typed') !== null", 30)
    tab.page.fill("#typed", "0,0005")
    said(tab, f"{len(draft(station)['good_scores'])} von {len(draft(station)['good_scores'])} Gutteilen")
    tab.page.fill("#typed-reason", "Kratzer übersehen")
    tab.page.click("#use-typed")
    tab.until("() => document.getElementById('by-hand-note')?.innerText.includes('Kratzer übersehen')")
    assert tab.page.locator("#promise").count() == 0
    facts = draft(station)
    assert facts["threshold"] == 0.0005 and facts["promise"] is None and facts["by_hand"]["who"] == "admin"
    keep_all(setter, "good")
    status, _ = call(station, SETTER, "draft/live?class=disc", {"version": draft(station)["version"]})
    assert status == 200 and live(station).classes["disc"].entry.threshold == 0.0005
    station.inspect()
    found = call(station, SETTER, "records/2", method="GET")[1]["cameras"]["top"]
    assert (found["verdict"], found["threshold"], found["promise"]) == ("anomalous", 0.0005, None)
    setter.page.goto(f"{station.url}/?language=en#/history?id=2")
    said(setter, "Limit by hand: no guarantee.")
    setter.page.goto(f"{station.url}/?language=en#/audit")
    said(setter, "by hand, no guarantee")


def test_s15_two_setters(station: RunningStation, tabs: Tabs, model: Path) -> None:
    """The second one is refused with the first one's name, and nothing is lost; so for two who change one class."""
    for _ in range(2):
        station.inspect()
    first, second = open_draft(station, tabs), tabs(station, OTHER)
    second.page.goto(f"{station.url}/?language=en#/teach?class=disc&step=parts")
    second.until("() => document.querySelectorAll('.parts > li').length === 4", 30)
    seen = draft(station)["version"]
    shown_part(first)
    first.page.click("#take")
    said(first, "is taken.")
    second.page.click(".parts > li:first-child button")
    second.page.click("#take-out")
    said(second, "setter 1 changed the draft meanwhile")
    second.until("() => document.querySelectorAll('.parts > li').length === 5", 20)
    status, problem = call(station, OTHER, "draft/discard?class=disc", {"version": seen})
    assert status == 412 and problem["values"]["who"] == "setter 1" and len(draft(station)["parts"]) == 5

    with Inspector.open(model, station.folder / "bank", threads=1) as inspector:
        inspector.enroll("disc", [numbered(500)])
    version = draft(station)["version"]
    for one in draft(station)["parts"]:
        if one["stands_out"]:
            body = {"version": draft(station)["version"], "reason": "good"}
            call(station, SETTER, f"draft/parts/{one['support']}/decide?class=disc", body)
    status, problem = call(station, SETTER, "draft/live?class=disc", {"version": draft(station)["version"]})
    assert status == 412 and problem["code"] == "live_changed" and version
    assert len(live(station).classes["disc"].entry.images) == 5
    second.page.reload()
    second.until("() => document.querySelector('.steps')?.innerText.includes('class was changed since')", 30)
    assert "unchanged" not in second.page.inner_text(".steps")


def test_s19_a_version_is_brought_back(station: RunningStation, tabs: Tabs, model: Path) -> None:
    before = live(station)
    with Inspector.open(model, station.folder / "bank", threads=1) as inspector:
        inspector.enroll("disc", [numbered(500)])
    tab = tabs(station, SETTER)
    tab.page.goto(f"{station.url}/?language=en#/audit")
    tab.page.reload()
    selector = f"[data-back='{before.manifest.version} disc']"
    tab.until("selector => document.querySelector(selector) !== null", 10, selector)
    tab.page.click(selector)
    said(tab, "Nothing is deleted.")
    tab.page.click("#confirm-back")
    said(tab, f"Version {before.manifest.version + 2} is live.", 30)
    assert live(station).classes["disc"].entry == before.classes["disc"].entry
    said(tab, "version brought back")


def test_a_version_without_threshold_is_brought_back_knowingly(
    station: RunningStation, tabs: Tabs, model: Path
) -> None:
    """The dialog and the API say before what it means."""
    with Inspector.open(model, station.folder / "bank", threads=1) as inspector:
        inspector.enroll("nut", [numbered(500)])  # one good part: nothing to compare it with
        inspector.enroll("nut", [numbered(501)])
    versions = {
        one["version"]: one["classes"] for one in call(station, SETTER, "versions", method="GET")[1]["versions"]
    }
    newest = max(versions)
    assert versions[newest]["nut"]["warning"] == ""
    assert "every part is undecided" in versions[newest - 1]["nut"]["warning"]
    tab = tabs(station, SETTER)
    tab.page.goto(f"{station.url}/?language=en#/audit")
    tab.page.reload()
    selector = f"[data-back='{newest - 1} nut']"
    tab.until("selector => document.querySelector(selector) !== null", 10, selector)
    tab.page.click(selector)
    said(tab, f"In version {newest - 1}, nut has no threshold: every part will be undecided")


def test_files_are_taken_if_they_are_of_this_camera(station: RunningStation, tabs: Tabs, tmp_path: Path) -> None:
    tab = open_draft(station, tabs)
    good, small = tmp_path / "good.png", tmp_path / "small.png"
    cv2.imwrite(str(good), numbered(700))
    cv2.imwrite(str(small), numbered(701)[:48, :64])
    tab.page.set_input_files("#files", str(small))
    said(tab, "it is not from this camera")
    tab.page.set_input_files("#files", str(good))
    tab.until("() => document.querySelectorAll('.parts > li').length === 5", 20)
    assert draft(station)["parts"][-1]["source"] == "file good.png"


def test_a_draft_outlives_the_station_and_the_line_its_teacher(station: RunningStation, tabs: Tabs) -> None:
    tab = open_draft(station, tabs, "threshold")
    tab.page.click("#collect")
    said(tab, "Stop collecting")
    station.inspect()
    station.until(lambda: len(draft(station)["collected"]) == 1)
    teacher = station.process("teacher")
    station.signal(teacher, 9)
    assert " 1 " in station.inspect()
    assert len(draft(station)["parts"]) == 4
    station.stop()
    station.start()
    facts = draft(station)
    assert (
        len(facts["parts"]) == 4 and not facts["collecting"] and facts["why_ended"] == "the station was started again"
    )


def test_a_new_user_corrects_a_false_reject_in_five_minutes(tmp_path: Path, model: Path, tabs: Tabs) -> None:
    """The walk-through of the guide: four parts taught, the promise read, the station running, a false reject corrected."""
    begin = time.monotonic()
    strange = numbered(6)
    strange[60:90, 4:30] = (90, 160, 60)  # another color of tape: good, and new
    shown = [numbered(number) for number in (1, 2, 3, 4, 5)] + [strange] * 40
    running = RunningStation(tmp_path, model, shown)
    running.file.write_text(
        running.file.read_text().replace("ok: none", "ok: all").replace("class: disc", "class: cover")
    )
    with Inspector.open(model, running.folder / "bank", threads=1) as inspector:
        inspector.enroll("cover", [numbered(number) for number in (900, 901)])
    running.start()
    try:
        tab = tabs(running, {"code": running.code(), **SETTER})
        tab.page.evaluate(
            "async user => (await import('/static/api.js')).post('users', user)", {**OTHER, "role": "setter"}
        )
        tab.page.evaluate("async login => (await import('/static/api.js')).post('login', login)", OTHER)
        tab.page.goto(f"{running.url}/?language=en#/teach")
        tab.page.reload()
        tab.page.click("text=Change cover")
        tab.until("() => document.querySelector('.steps') !== null", 30)
        for number in range(1, 5):
            running.inspect()
            tab.until("part => document.getElementById('teach-part')?.textContent === part", 8, f"SN-{number:04d}")
            tab.page.click("#take")
            said(tab, f"Part SN-{number:04d} is taken.")
        said(tab, "on average at most")
        keep_all(tab, "good")
        tab.page.goto(f"{running.url}/#/teach?class=cover&step=live")
        tab.page.click("#live")
        tab.page.click("#confirm-live")
        said(tab, "is live.")
        running.inspect()
        assert running.inspect().split()[2] == "2"  # the strange part is a false reject
        tab.page.goto(f"{running.url}/#/history?verdict=reject")
        tab.until("() => document.querySelectorAll('tbody tr').length === 1", 10)
        tab.page.click("#good")
        tab.until("() => document.getElementById('good').getAttribute('aria-pressed') === 'true'", 8)
        tab.page.click("#add-to-draft")
        said(tab, "is taken.", 30)
        keep_all(tab, "the new tape")
        tab.page.goto(f"{running.url}/#/teach?class=cover&step=live")
        tab.page.click("#live")
        tab.page.click("#confirm-live")
        said(tab, "is live.")
        assert running.inspect().split()[2] == "1"
        assert time.monotonic() < begin + 300
    finally:
        running.stop()


def test_each_camera_teaches_its_own_image(tmp_path: Path, model: Path, tabs: Tabs) -> None:
    """Two cameras, one named like the other's end: from the screen, from memory, and from the archive."""
    running = RunningStation(tmp_path, model, [numbered(number) for number in range(1, 60)])
    other = running.folder / "side"
    other.mkdir()
    for number in range(1, 60):
        cv2.imwrite(str(other / f"{number:04d}.png"), numbered(500 + number))
    text = running.file.read_text().replace("ok: none", "ok: all")
    cameras = "{side-top: {kind: folder, path: side}, top: {kind: folder, path: images}}"
    running.file.write_text(text.replace("{top: {kind: folder, path: images}}", cameras))
    running.start()
    try:
        cookie = running.login(code=running.code(), name="admin", password="admin 123")
        assert running.request("POST", "/api/1/users", {**SETTER, "role": "setter"}, {"Cookie": cookie})[0] == 200
        tab = open_draft(running, tabs, name="new")
        running.inspect()
        tab.until("() => document.querySelectorAll('.side [role=group] button').length === 2", 10)
        for taken, camera in enumerate(("top", "side-top"), start=1):
            tab.page.click(f".side [role=group] button:text-is('{camera}')")
            tab.page.click("#take")
            tab.until("count => document.querySelectorAll('.parts > li').length === count", 20, taken)
        for _ in range(32):  # the second part leaves the memory
            running.inspect()
        for camera in ("top", "side-top"):
            body = {"version": draft(running, "new")["version"], "record": 2, "camera": camera}
            assert call(running, SETTER, "draft/parts?class=new", body)[0] == 200
        body = {"version": draft(running, "new")["version"], "record": 2, "camera": "op"}
        assert call(running, SETTER, "draft/parts?class=new", body)[0] == 404
        bank = Bank.open(running.folder / "drafts/new/bank")
        images = [read_kept(bank.folder, one.kept, None) for one in bank.classes["new"].entry.images]
        assert [number_of(one) for one in images if one is not None] == [1, 501, 2, 502]
        full = call(running, SETTER, "records/2", method="GET")[1]
        assert full["archived_cameras"] == ["side-top", "top"]
    finally:
        running.stop()
