"""All screens in all languages: nothing overflows, and axe finds nothing (WCAG 2.2 A and AA)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from visionad_runtime.web.station import bundle

from tests.browser.conftest import Watched
from tests.browser.station import RunningStation

Tabs = Callable[..., Watched]
pytestmark = pytest.mark.slow(group="browser")
SCREENS = ("run", "history", "teach", "statistics", "audit", "settings")
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
OVERFLOW = """() => {
  const found = [];
  const width = document.documentElement.clientWidth;
  const places = '#verdict, header *, .banner p span, .actions button, .counts dd, .counts dt, h2';
  for (const one of document.querySelectorAll(places)) {
    const box = one.getBoundingClientRect();
    const style = getComputedStyle(one);
    if (!box.width || style.position === 'absolute' || one.closest('.hidden')) continue;
    if (box.right > width + 1 || box.left < -1) found.push(`${one.tagName} ${one.textContent.slice(0, 40)} beyond the screen`);
    if (one.scrollWidth > one.clientWidth + 1 && style.display !== 'inline' && style.overflow !== 'hidden') {
      found.push(`${one.tagName} ${one.textContent.slice(0, 40)} ${one.scrollWidth} > ${one.clientWidth}`);
    }
  }
  if (document.documentElement.scrollWidth > width + 1) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  return found;
}"""
"""What does not fit."""


def show(tab: Watched, station: RunningStation, screen: str, language: str) -> None:
    tab.page.goto(f"{station.url}/?language={language}#/{screen}")
    tab.until(
        "screen => document.querySelector('main')?.dataset.screen === screen && !document.querySelector('.empty')",
        8,
        screen,
    )
    tab.until("() => document.documentElement.dataset.stale === 'false'", 8)


def violations(tab: Watched, axe: str) -> list[str]:
    """What axe finds: rule and place."""
    session = tab.page.context.new_cdp_session(tab.page)  # the page's policy refuses scripts of others
    session.send("Runtime.evaluate", {"expression": axe})
    found = tab.page.evaluate(
        "async tags => (await axe.run({runOnly: tags, resultTypes: ['violations']})).violations", TAGS
    )
    return [
        f"{one['id']}: {node['html'][:160]} {node['failureSummary'][:300]}" for one in found for node in one["nodes"]
    ]


ADMIN = {"name": "admin", "password": "admin 123"}


@pytest.fixture(scope="module")
def admin(station: RunningStation) -> dict[str, str]:
    """Log in as the administrator, after some parts."""
    for _ in range(6):
        station.inspect()
    station.login(code=station.code(), **ADMIN)
    return ADMIN


@pytest.mark.parametrize("language", ["en", "de", "zh", "pseudo"])
def test_s18_nothing_overflows_and_axe_finds_nothing(
    station: RunningStation, tabs: Tabs, axe: str, admin: dict[str, str], language: str
) -> None:
    found = {}
    tab = tabs(station, admin)
    for screen in SCREENS:
        for size in ((1280, 800), (1920, 1080), (320, 640)):  # the last one is 400 % of the first
            tab.page.set_viewport_size({"width": size[0], "height": size[1]})
            show(tab, station, screen, language)
            wide = [] if size[0] == 320 else tab.page.evaluate(OVERFLOW)
            if size[0] == 320 and tab.page.evaluate("() => document.documentElement.scrollWidth") > 330:
                wide = ["two directions to scroll at 400 %", *tab.page.evaluate(OVERFLOW)]
            if wide:
                found[screen, size] = wide
        tab.page.set_viewport_size({"width": 1280, "height": 800})
        show(tab, station, screen, language)
        if problems := violations(tab, axe):
            found[screen, "axe"] = problems
    assert found == {}


@pytest.mark.parametrize("language", ["de", "zh", "pseudo"])
def test_s18_the_steps_of_teaching(
    station: RunningStation, tabs: Tabs, axe: str, admin: dict[str, str], language: str
) -> None:
    setter = {"name": "setter", "password": "set 12345"}
    cookie = station.login(**admin)
    assert station.request("POST", "/api/1/users", {**setter, "role": "setter"}, {"Cookie": cookie})[0] == 200
    cookie = station.login(**setter)
    assert station.request("POST", "/api/1/draft?class=disc", {}, {"Cookie": cookie})[0] == 200
    tab, found = tabs(station, setter), {}
    for step in ("parts", "regions", "threshold", "live"):
        for size in ((1920, 1080), (320, 640), (1280, 800)):
            tab.page.set_viewport_size({"width": size[0], "height": size[1]})
            tab.page.goto(f"{station.url}/?language={language}#/teach?class=disc&step={step}")
            tab.until("() => document.querySelector('.steps') && document.querySelector('.actions')", 30)
            tab.until("() => document.documentElement.dataset.stale === 'false'", 8)
            wide = [] if size[0] == 320 else tab.page.evaluate(OVERFLOW)
            if size[0] == 320 and tab.page.evaluate("() => document.documentElement.scrollWidth") > 330:
                wide = ["two directions to scroll at 400 %", *tab.page.evaluate(OVERFLOW)]
            if wide:
                found[step, size] = wide
        if problems := violations(tab, axe):
            found[step, "axe"] = problems
    assert found == {}


def test_s18_states_without_a_verdict(station: RunningStation, tabs: Tabs, axe: str, admin: dict[str, str]) -> None:
    """Offline, logged out, an empty filter."""
    import signal

    tab = tabs(station, admin)
    show(tab, station, "run", "de")
    worker = station.process("worker")
    station.signal(worker, signal.SIGSTOP)
    try:
        tab.until_verdict("GETRENNT", seconds=6)
        assert tab.page.evaluate(OVERFLOW) == []
        assert violations(tab, axe) == []
    finally:
        station.signal(worker, signal.SIGCONT)
    station.until(station.ready, 60)
    tab.page.goto(f"{station.url}/?language=en#/history?part=nothing")
    tab.until("() => document.body.innerText.includes('Nothing fits the filter.')", 8)
    assert violations(tab, axe) == []
    tab.page.context.clear_cookies()
    tab.page.reload()
    tab.until("() => document.body.innerText.includes('Log in')", 8)
    assert violations(tab, axe) == []


def test_s18_verdicts_are_told_apart_without_colour(station: RunningStation, tabs: Tabs, admin: dict[str, str]) -> None:
    """Contrast of word and ground of each verdict, WCAG's formula."""

    def contrast(kind: str) -> float:
        colours = tab.page.evaluate(
            """kind => {
              const banner = document.querySelector('.banner');
              const before = banner.dataset.kind;
              banner.dataset.kind = kind;
              const style = getComputedStyle(banner);
              const found = [style.color, style.backgroundColor];
              banner.dataset.kind = before;
              return found.map(text => text.match(/[\\d.]+/g).slice(0, 3).map(Number));
            }""",
            kind,
        )

        def luminance(rgb: list[float]) -> float:
            linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
            return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])

        bright, dark = sorted(map(luminance, colours), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    tab = tabs(station, admin)
    show(tab, station, "run", "en")
    for kind in ("ok", "reject", "undecided", "fault", "none"):
        assert contrast(kind) >= 4.5, kind


def test_keys(station: RunningStation, tabs: Tabs, admin: dict[str, str]) -> None:
    """Every screen, and a review, without a mouse."""
    tab = tabs(station, admin)
    show(tab, station, "run", "en")
    for index, screen in enumerate(SCREENS):
        tab.page.keyboard.press(str(index + 1))
        tab.until("screen => document.querySelector('main').dataset.screen === screen", 5, screen)
    tab.page.keyboard.press("2")
    tab.until("() => document.getElementById('bad') !== null", 8)
    tab.page.keyboard.press("b")
    tab.until("() => document.getElementById('bad').getAttribute('aria-pressed') === 'true'", 8)
    first = tab.page.text_content(".detail h2")
    tab.page.keyboard.press("ArrowDown")
    tab.until("first => document.querySelector('.detail h2').textContent !== first", 8, first)
    tab.page.keyboard.press("?")
    tab.until("() => document.querySelector('dialog[open]') !== null", 5)
    tab.page.keyboard.press("Escape")
    tab.until("() => document.querySelector('dialog') === null", 5)


def test_the_first_load_is_small(station: RunningStation, tabs: Tabs, admin: dict[str, str]) -> None:
    """Files of the page: at most 150 kB."""
    tab = tabs(station, admin)
    show(tab, station, "run", "de")
    names = {url.split("?")[0].split("#")[0].removeprefix(station.url) for url in tab.requests}
    static = Path(bundle.HERE) / "static"
    size = sum((static / name.removeprefix("/static/")).stat().st_size for name in names if name.startswith("/static/"))
    assert 40_000 < size < 150_000
