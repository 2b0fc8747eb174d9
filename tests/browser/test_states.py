"""All screens while there is nothing to show, while the station answers with errors, and while it does not answer."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import Watched
from tests.browser.station import RunningStation, numbered
from tests.browser.test_screens import ADMIN, OVERFLOW, SCREENS, violations

Tabs = Callable[..., Watched]
pytestmark = pytest.mark.slow(group="browser")
LANGUAGES = ("en", "de", "zh", "pseudo")
SIZES = ((1280, 800), (1920, 1080), (320, 640))
"""The last one is 400 % of the first."""
SERIOUS = ("is not a function", "undefined", "[object", "NaN", "null")


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[RunningStation]:
    """A station that has judged no part yet."""
    running = RunningStation(tmp_path_factory.mktemp("empty"), model, [numbered(number) for number in range(1, 9)])
    running.start()
    running.login(code=running.code(), **ADMIN)
    yield running
    running.stop()


def looked_at(tab: Watched, station: RunningStation, axe: str, stale: bool) -> dict[tuple[str, ...], list[str]]:
    """What is wrong, by language and screen."""
    found = {}
    for language in LANGUAGES:
        for screen in SCREENS:
            tab.page.set_viewport_size({"width": SIZES[0][0], "height": SIZES[0][1]})
            tab.page.goto(f"{station.url}/?language={language}#/{screen}")
            tab.until("screen => document.querySelector('main')?.dataset.screen === screen", 8, screen)
            tab.until("stale => document.documentElement.dataset.stale === stale", 8, str(stale).lower())
            tab.page.wait_for_load_state("networkidle")  # what is read is there
            wrong = []
            for width, height in SIZES:
                tab.page.set_viewport_size({"width": width, "height": height})
                tab.page.evaluate(
                    "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
                )
                if width > 320 or tab.page.evaluate("() => document.documentElement.scrollWidth") > 330:
                    wrong += [f"{width}: {text}" for text in tab.page.evaluate(OVERFLOW)]
            tab.page.set_viewport_size({"width": SIZES[0][0], "height": SIZES[0][1]})
            text = tab.page.inner_text("main")
            wrong += [f"says {word!r}: {text[:200]}" for word in SERIOUS if word in text]
            wrong += [] if text.strip() else ["an empty screen"]
            wrong += violations(tab, axe)
            if wrong:
                found[language, screen] = wrong
    return found


def test_s18_a_station_without_a_part(station: RunningStation, tabs: Tabs, axe: str) -> None:
    assert looked_at(tabs(station, ADMIN), station, axe, stale=False) == {}


def test_s18_a_station_that_answers_with_errors(station: RunningStation, tabs: Tabs, axe: str) -> None:
    tab = tabs(station, ADMIN)
    answer = '{"error": "the front does not answer", "code": "unavailable", "values": {}}'
    tab.page.route("**/api/1/**", lambda route: route.fulfill(status=503, content_type="application/json", body=answer))
    assert looked_at(tab, station, axe, stale=False) == {}


def test_s18_a_station_that_does_not_answer(station: RunningStation, tabs: Tabs, axe: str) -> None:
    tab = tabs(station, ADMIN)
    front = station.process("front")
    tab.page.goto(f"{station.url}/?language=en#/run")
    tab.until("() => document.documentElement.dataset.stale === 'false'", 8)
    station.signal(front, signal.SIGSTOP)
    try:
        tab.until("() => document.documentElement.dataset.stale === 'true'", 8)
        found = {}
        for screen in SCREENS:
            tab.page.evaluate("screen => { location.hash = `#/${screen}`; }", screen)
            tab.until("screen => document.querySelector('main')?.dataset.screen === screen", 8, screen)
            if wrong := [*tab.page.evaluate(OVERFLOW), *violations(tab, axe)]:
                found[screen] = wrong
        assert found == {}
    finally:
        station.signal(front, signal.SIGCONT)
    station.until(station.ready, 60)
