"""Browser tests: Debian's chromium, driven by Playwright, at a real station. Each looks as a person does: at the screen."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.station import RunningStation, numbered

WHAT = "install chromium (Debian: `apt-get install chromium`) and `pip install playwright websockets`"


def _missing(why: str) -> None:
    if os.environ.get("VISIONAD_DEMAND_LINE") == "1":
        pytest.fail(f"{why}: {WHAT}")
    pytest.skip(f"{why}: {WHAT}")


def chromium_path() -> str:
    """Where chromium lies. Without one, the tests are skipped, or fail where it is demanded."""
    path = os.environ.get("VISIONAD_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        _missing("there is no chromium")
    return str(path)


def browser(path: str) -> Iterator[Any]:
    """Start a browser, and end it."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("Playwright is not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser. Playwright keeps an event loop in this thread, so it ends with each module: others need their own."""
    yield from browser(chromium_path())


@pytest.fixture(scope="session", autouse=True)
def bundle() -> None:
    """The page's templates."""
    pytest.importorskip("fastapi", reason="the page needs the extra page")
    from visionad_runtime.web.station import bundle as own

    if own.missing_bundle(own.HERE / "static") is not None:
        problem = own.bundle()
        if problem:
            _missing(problem)


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm by the lockfile."""
    from visionad_runtime.web.station import bundle as own

    command = own.npm()
    if command is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(own.HERE / "npm" / name, folder)
    subprocess.run(
        [*command, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True
    )
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    """A small model folder."""
    return tiny_model


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[RunningStation]:
    """A station whose camera takes the numbers 1, 2, 3 and so on; every fifth part has a defect."""
    images = [numbered(number, defect=number % 5 == 0) for number in range(1, 301)]
    running = RunningStation(tmp_path_factory.mktemp("station"), model, images).start()
    yield running
    running.stop()


class Watched:
    """A tab, and whatever it complained about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def until(self, script: str, seconds: float = 5.0, value: Any = None) -> float:
        """Wait until a script is true; the seconds that it took. Playwright's own waiting is refused by the page's policy."""
        begin = time.monotonic()
        while not self.page.evaluate(script, value):
            assert time.monotonic() < begin + seconds, (
                f"not in {seconds} s: {script}; {self.page.inner_text('body')[:500]}"
            )
            time.sleep(0.02)
        return time.monotonic() - begin

    def until_verdict(self, *words: str, seconds: float = 5.0) -> float:
        """Wait until the banner says one of some words; the seconds that it took."""
        script = "words => words.includes(document.getElementById('verdict')?.textContent)"
        return self.until(script, seconds, list(words))


@pytest.fixture
def tabs(chromium: Any) -> Iterator[Callable[..., Watched]]:
    """Opens tabs: ``tabs(station)`` the panel's, ``tabs(station, login)`` a user's, ``tabs(station, context=…)`` one more of it."""
    contexts = []

    def open_tab(station: RunningStation, login: dict[str, str] | None = None, context: Any = None) -> Watched:
        own = context or chromium.new_context(viewport={"width": 1280, "height": 800}, locale="en")
        contexts.append(own)
        watched = Watched(own.new_page())
        if context is not None:
            watched.page.goto(station.url)
        elif login is None:
            watched.page.goto(f"{station.url}/#panel={station.panel_token()}")
            watched.until(
                "() => document.querySelector('header') !== null", 15
            )  # a reload would lose the token's cookie
        else:
            watched.page.goto(station.url)
            answer = watched.page.evaluate(
                "async login => (await (await import('/static/api.js')).post('login', login)).role", login
            )
            assert answer
            watched.page.reload()
            watched.complaints.clear()
        return watched

    yield open_tab
    for context in contexts:
        context.close()
