"""The page of ``visionad serve``: an image is inspected, a good part taught, and what was inspected stays in the list."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import cv2
import pytest
from visionad_runtime import Inspector

from tests.browser.conftest import Watched
from tests.browser.station import numbered
from tests.browser.test_screens import OVERFLOW, violations
from tests.ports import free_port

pytestmark = pytest.mark.slow(group="browser")


def serve(model: Path, bank: Path, *options: str) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    command = "import sys; from visionad_runtime.cli.entry import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", str(model), str(bank), "--port", str(port), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    said = b""
    while b"http://" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return process, port


@pytest.fixture
def bank(tmp_path: Path, model: Path) -> Path:
    with Inspector.open(model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [numbered(number) for number in (0, 341, 682, 1023)])
    return tmp_path / "bank"


@pytest.fixture
def tab(chromium: Any) -> Iterator[Watched]:
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, locale="en")
    yield Watched(context.new_page())
    context.close()


def test_inspect_and_teach_by_hand(tmp_path: Path, model: Path, bank: Path, tab: Watched, axe: str) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    cv2.imwrite(str(good), numbered(5))
    cv2.imwrite(str(bad), numbered(6, defect=True))
    process, port = serve(model, bank)
    try:
        tab.page.goto(f"http://127.0.0.1:{port}/")
        tab.until("() => document.querySelector('header strong')?.textContent === 'Running'", 10)
        tab.page.select_option("#given", "disc")
        tab.page.set_input_files("#files", [str(good), str(bad)])
        tab.until("() => document.getElementById('overlay').dataset.drawn === 'bad.png'", 20)
        assert tab.page.inner_text("#verdict") == "REJECT"
        assert tab.page.evaluate("() => [...document.querySelectorAll('tbody th')].map(one => one.innerText)") == [
            "bad.png",
            "good.png",
        ]
        tab.page.click("tbody tr:last-child button")
        tab.until("() => document.getElementById('verdict').textContent === 'OK'", 8)
        tab.page.click("#teach")
        tab.until("() => document.getElementById('notice').textContent.includes('disc has one more good part')", 20)
        assert "disc (5)" in tab.page.inner_text("#given")
        assert tab.page.evaluate(OVERFLOW) == [] and violations(tab, axe) == [] and tab.complaints == []
        assert all(one.startswith(f"http://127.0.0.1:{port}/") for one in tab.requests)
        (tmp_path / "text.png").write_bytes(b"no image")
        tab.page.set_input_files("#files", str(tmp_path / "text.png"))
        tab.until("() => document.getElementById('verdict').textContent === 'ERROR'", 8)
    finally:
        process.terminate()
        process.wait(20)


def test_a_service_that_only_reads_says_so(tmp_path: Path, model: Path, bank: Path, tab: Watched) -> None:
    cv2.imwrite(str(tmp_path / "good.png"), numbered(5))
    process, port = serve(model, bank, "--read-only")
    try:
        tab.page.goto(f"http://127.0.0.1:{port}/")
        tab.until("() => document.getElementById('files') !== null", 10)
        tab.page.set_input_files("#files", str(tmp_path / "good.png"))
        tab.until("() => document.getElementById('teach') !== null", 20)
        tab.page.fill("#class", "disc")
        tab.page.click("#teach")
        tab.until("() => document.getElementById('notice').textContent.includes('--read-only')", 8)
        assert tab.page.locator("#teach").count() == 0
    finally:
        process.terminate()
        process.wait(20)


def test_pages_and_files_carry_the_policy_and_nothing_else_is_served(model: Path, bank: Path) -> None:
    process, port = serve(model, bank)
    try:
        for path, status in (
            ("/", 200),
            ("/static/service.js", 200),
            ("/static/../pages.py", 404),
            ("/static/%2e%2e/pages.py", 404),
        ):
            connection = HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == status, path
            if status == 200:
                policy = answer.getheader("content-security-policy") or ""
                assert "script-src 'self'" in policy and "unsafe" not in policy
            connection.close()
    finally:
        process.terminate()
        process.wait(20)
