"""What the station's HTTP refuses, by status and words, without a station behind it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from visionad_runtime.station.records.records import Records
from visionad_runtime.station.records.report import Source
from visionad_runtime.station.settings import Shifts
from visionad_runtime.web.access import AccessPolicy
from visionad_runtime.web.station.app import make_app
from visionad_runtime.web.station.feed import Feed
from visionad_runtime.web.station.gate import PageGate
from visionad_runtime.web.station.history import History
from visionad_runtime.web.station.link import Answer, CommandError

TOO_LARGE = (2**63, 10**30)
READY = {
    "ready": True,
    "phase": "ready",
    "missed": 0,
    "late": 0,
    "overrun": 0,
    "alarms": [],
    "unwritten": 0,
    "waiting": 0,
}
FACTS = {
    "pid": os.getpid(), "model": "tiny", "model_digest": "cd" * 32, "backend": "onnxruntime-cpu", "precision": "fp32",
    "bank_version": 4, "bank_digest": "ab" * 32, "classes": {"gear": 4}, "warnings": [],
}  # fmt: skip
"""What the worker says when it is ready."""


class Link:
    """A front that has one session, and takes each command."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def ask(self, command: str, blobs: tuple[bytes, ...] = (), **values: Any) -> Answer:
        self.asked.append((command, values))
        if command == "session":
            return Answer({"name": "anna", "role": "admin", "panel": False}, [])
        if command == "ready":
            return Answer({**READY, "facts": FACTS}, [])
        raise CommandError("no_part", "there is no such part")


class Page(NamedTuple):
    gate: PageGate
    link: Link


class Got(NamedTuple):
    status: int
    text: str


def make_page(folder: Path, feed: Feed) -> Page:
    """A page with records in a folder, and a front that does nothing."""
    records = folder / "records.sqlite"
    link: Any = Link()
    settings: Any = SimpleNamespace(archive=None, bank=folder / "bank", log=None, station="press-3")
    source = Source("press-3", records, Shifts(), {1: "gear"})
    app = make_app(feed, link, History(records), source, folder / "station.yaml", settings, AccessPolicy())
    return Page(app, link)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    records = tmp_path / "records.sqlite"
    Records(records).close()
    return make_page(tmp_path, Feed(History(records), Shifts()))


def ask(page: Page, method: str, target: str, body: bytes = b"{}") -> Got:
    """Send a request, and return the answer."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": query.encode("latin-1"), "root_path": "", "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 9), "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def play() -> None:
        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop()
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await page.gate(scope, receive, send)

    asyncio.run(play())
    return Got(sent[0]["status"], b"".join(one.get("body", b"") for one in sent).decode("utf-8", "replace"))


@pytest.mark.parametrize("number", TOO_LARGE)
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/api/1/records?before={}"),
        ("GET", "/api/1/records?recipe={}"),
        ("GET", "/api/1/records/{}"),
        ("GET", "/api/1/records/{}/archived/0"),
        ("GET", "/api/1/audit?before={}"),
        ("GET", "/api/1/export.csv?recipe={}"),
        ("POST", "/api/1/records/{}/review"),
        ("POST", "/api/1/draft/parts?class=gear"),
    ],
)
def test_numbers_that_the_records_cannot_have(page: Page, method: str, target: str, number: int) -> None:
    body = b'{"good": true}' if "draft" not in target else b'{"version": 1, "record": %d}' % number
    got = ask(page, method, target.format(number), body)
    assert got.status == 400, got
    assert "less than or equal to 9223372036854775807" in json.loads(got.text)["error"]


def test_the_largest_number_of_the_records_is_asked_for(page: Page) -> None:
    assert ask(page, "GET", f"/api/1/records/{2**63 - 1}").status == 404
    assert ask(page, "GET", f"/api/1/records?before={2**63 - 1}&recipe={2**63 - 1}").status == 200
    assert ask(page, "GET", f"/api/1/audit?before={2**63 - 1}").status == 200


@pytest.mark.parametrize(
    ("method", "target", "said"),
    [
        ("POST", "/inspect?Class=pcb", "/inspect: no parameter 'Class'; did you mean 'class'? (it has class, name, "),
        ("POST", "/overlay?bitdepth=12", "did you mean 'bit_depth'"),
        ("POST", "/inspect?class=a&class=b", "expected parameter 'class' once, got it 2 times"),
        ("POST", "/cameras/top/frame?nosuch=1", "it has none"),
        ("GET", "/health?nosuch=1", "/health: no parameter 'nosuch' (it has none)"),
        ("GET", "/metrics?nosuch=1", "it has none"),
        ("GET", "/classes?nosuch=1", "it has none"),
        ("GET", "/openapi.json?nosuch=1", "it has none"),
        ("GET", "/api/1/records?befor=7", "did you mean 'before'?"),
        ("GET", "/api/1/export.csv?seperator=;", "did you mean 'separator'?"),
        ("GET", "/api/1/records?part=M%FCller", "the query is not UTF-8"),
        ("POST", "/api/1/seen?id=1", "it has none"),
    ],
)
def test_misspelt_parameters(page: Page, method: str, target: str, said: str) -> None:
    got = ask(page, method, target)
    facts = json.loads(got.text)
    assert (got.status, facts["code"]) == (400, "request") and said in facts["error"], got
    assert not page.link.asked


def test_the_page_and_its_files_take_any_parameter(page: Page) -> None:
    assert ask(page, "GET", "/static/main.js?v=3").status == 200
    assert "no parameter" not in ask(page, "GET", "/?language=de").text
    assert ask(page, "GET", "/api/1/records?before=3&part=M%C3%BCller&from=2026-11-30T00:00:00Z").status == 200
    assert ask(page, "GET", "/health").status == 200
