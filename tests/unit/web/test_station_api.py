"""What the station's HTTP refuses, by status and words, without a station behind it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from visionad_runtime.station.records.records import Records
from visionad_runtime.station.records.report import Source
from visionad_runtime.station.settings import Shifts
from visionad_runtime.web.access import AccessPolicy
from visionad_runtime.web.answers import Classes, Health
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
    "bank_version": 4, "bank_digest": "ab" * 32, "classes": {"gear": 4, "bolt": 1}, "thresholds": {"gear": 0.37, "bolt": None},
    "warnings": ["class bolt has no threshold"],
}  # fmt: skip
"""What the worker says when it is ready."""


class Link:
    """A front that has one session, and takes each command.

    Attributes:
        refuses: code of what it refuses everything with; empty for what is usual.
        answers: command → what it answers.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refuses = ""
        self.answers: dict[str, Answer] = {}

    async def ask(self, command: str, blobs: tuple[bytes, ...] = (), **values: Any) -> Answer:
        self.asked.append((command, values))
        if self.refuses and (command != "session" or self.refuses == "no_session"):
            raise CommandError(self.refuses, "it is refused")
        if command in self.answers:
            return self.answers[command]
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


def ask(page: Page, method: str, target: str, body: bytes = b"{}", host: str = "127.0.0.1:8000") -> Got:
    """Send a request, and return the answer."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "root_path": "",
        "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode("latin-1"), "client": ("127.0.0.1", 9),
        "server": ("127.0.0.1", 8000), "headers": [(b"host", host.encode()), (b"content-type", b"application/json")],
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


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e400"])
def test_a_threshold_to_try_is_a_finite_number(page: Page, number: str) -> None:
    got = ask(page, "GET", f"/api/1/draft/what-if?class=gear&threshold={number}")
    assert got.status == 400 and "threshold" in json.loads(got.text)["error"]


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("threshold/by-hand", '{"version": 1, "reason": "x", "value": %s}'),
        ("threshold", '{"version": 1, "max_false_reject": %s}'),
        ("regions", '{"version": 1, "regions": {"image_size": [9, 9], "rois": [{"name": "x", "overlap": %s}]}}'),
        ("raster", '{"regions": {"image_size": [9, 9], "ignore": [[[0, 0], [%s, 0], [0, 9]]]}}'),
        ("raster", '{"regions": {"image_size": [9, 9], "mask": "%s"}}'),
    ],
)
@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e400", "../\\u0000"])
def test_numbers_of_a_draft_are_finite(page: Page, target: str, body: str, number: str) -> None:
    got = ask(page, "POST", f"/api/1/draft/{target}?class=gear", (body % number).encode())
    assert got.status == 400, got
    assert json.loads(got.text)["error"] and not [one for one, _ in page.link.asked if one.startswith("draft")]


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "anna", "%C3%84nne%20M."])
def test_a_user_is_removed_whatever_the_name(page: Page, name: str) -> None:
    """Older releases took a slash in a name."""
    ask(page, "POST", f"/api/1/users/{name}/remove")
    assert page.link.asked[-1] == ("user_remove", {"name": unquote(name), "session": "", "key": ""})


@pytest.mark.parametrize(
    "target", ["records?", "export.csv?", "statistics?to=2026-12-01T00:00:00Z&", "report.html?to=2026-12-01T00:00:00Z&"]
)
@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("2026-11-30T06:00:00", "timezone"),
        ("1700000000", "expected a time such as"),
        ("2026", "expected a time such as"),
        ("1.5", "expected a time such as"),
        ("0001-01-01T00:00:00%2B05:00", "expected a time from 1970 to 8999"),
        ("9999-12-31T23:59:59-05:00", "expected a time from 1970 to 8999"),
    ],
)
def test_times_are_moments(page: Page, target: str, moment: str, said: str) -> None:
    got = ask(page, "GET", f"/api/1/{target}from={moment}")
    assert (got.status, json.loads(got.text)["code"]) == (400, "request") and said in json.loads(got.text)["error"], got


def png() -> bytes:
    return cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()


def test_classes_have_the_shape_that_serve_gives_them(page: Page) -> None:
    facts = json.loads(ask(page, "GET", "/classes").text)
    assert facts == {
        "bank_version": 4,
        "classes": {"gear": {"shots": 4, "threshold": 0.37}, "bolt": {"shots": 1, "threshold": None}},
    }
    assert Classes.model_validate(facts).model_dump() == facts


def test_health_says_what_serve_says_to_who_has_a_session(page: Page) -> None:
    facts = json.loads(ask(page, "GET", "/health").text)
    assert set(Health.model_fields) <= set(facts) and facts["phase"] == "ready"
    assert (facts["bank_digest"], facts["notes"]) == (FACTS["bank_digest"], FACTS["warnings"])
    page.link.answers["session"] = Answer(None, [])
    assert json.loads(ask(page, "GET", "/health").text) == {"ready": True, "phase": "ready"}


def test_a_good_part_is_enrolled_by_who_has_a_session(page: Page) -> None:
    page.link.answers["version_add"] = Answer({"class": "M8/long", "version": 5}, [])
    got = ask(page, "POST", "/classes/M8/long?name=a.png", png())
    assert (got.status, json.loads(got.text)) == (201, {"class": "M8/long", "bank_version": 5})
    command, values = page.link.asked[-1]
    assert (command, values["class"], values["shape"], values["name"]) == ("version_add", "M8/long", [4, 6, 3], "a.png")
    for code, status in (("no_session", 401), ("role_missing", 403), ("input", 400), ("not_enrolled", 409)):
        page.link.refuses = code
        assert ask(page, "POST", "/classes/gear", png()).status == status


def test_the_open_inference_protocol_answers_as_inspect(page: Page) -> None:
    anomaly_map = np.arange(256 * 256, dtype=np.float32)
    facts = {"image": "", "class": "gear", "score": 0.25, "verdict": "ok"}
    page.link.answers["inspect"] = Answer(facts, [anomaly_map.tobytes()])
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": list(range(12))}
    names = {"name": "class", "datatype": "BYTES", "shape": [1], "data": ["gear"]}
    outputs = [{"name": name} for name in ("score", "verdict", "result", "anomaly_map")]
    body = json.dumps({"inputs": [image, names], "outputs": outputs}).encode()
    got = ask(page, "POST", "/v2/models/visionad/infer", body)
    assert got.status == 200, got
    found = {one["name"]: one for one in json.loads(got.text)["outputs"]}
    assert found["score"]["data"] == [0.25] and found["verdict"]["data"] == ["ok"]
    assert json.loads(found["result"]["data"][0]) == facts
    assert found["anomaly_map"]["shape"] == [1, 256, 256] and found["anomaly_map"]["data"] == anomaly_map.tolist()
    assert page.link.asked[-1][1]["class"] == "gear"
    assert json.loads(ask(page, "GET", "/v2/health/ready").text) == {"live": True, "ready": True}
    assert ask(page, "GET", "/v2/models/visionad").status == 200
    page.link.answers["ready"] = Answer({**READY, "facts": {}}, [])  # the worker is not there yet
    assert ask(page, "GET", "/v2/health/ready").status == 503
