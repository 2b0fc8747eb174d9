"""Who may what: each endpoint by role, hosts, origins, and requests that want to do harm."""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import cv2
import pytest

from tests.browser.station import RunningStation, numbered

pytestmark = pytest.mark.slow(group="browser")
USERS = {"viewer": "view 1234", "setter": "set 12345", "admin": "admin 123"}
NOBODY, OPERATOR, VIEWER, SETTER, ADMIN = "nobody", "operator", "viewer", "setter", "admin"
ALL = (NOBODY, OPERATOR, VIEWER, SETTER, ADMIN)
READING = {NOBODY: 401, OPERATOR: 200, VIEWER: 200, SETTER: 200, ADMIN: 200}
HANDS = {NOBODY: 401, OPERATOR: 200, VIEWER: 403, SETTER: 200, ADMIN: 200}
FOR_ADMIN = {NOBODY: 401, OPERATOR: 403, VIEWER: 403, SETTER: 403, ADMIN: 200}
TEACHING = {NOBODY: 401, OPERATOR: 403, VIEWER: 403, SETTER: 404, ADMIN: 403}
"""Only setters teach; there is no draft of the class that is asked for."""
PUBLIC = dict.fromkeys(ALL, 200)
DIGEST = 64 * "0"
NOW = datetime.now(UTC).replace(tzinfo=None)
TODAY = f"from={NOW - timedelta(days=1):%Y-%m-%dT%H:%M:%S}Z&to={NOW + timedelta(days=1):%Y-%m-%dT%H:%M:%S}Z"
PNG = bytes(cv2.imencode(".png", numbered(1))[1])
TABLE: list[tuple[str, str, Any, dict[str, int]]] = [
    ("GET", "/", None, PUBLIC),
    ("GET", "/static/main.js", None, PUBLIC),
    ("GET", "/health", None, PUBLIC),
    ("GET", "/metrics", None, PUBLIC),
    ("GET", "/openapi.json", None, PUBLIC),
    ("GET", "/classes", None, PUBLIC),
    ("POST", "/classes/%20", PNG, {**TEACHING, SETTER: 400}),
    ("GET", "/v2", None, PUBLIC),
    ("GET", "/v2/health/live", None, PUBLIC),
    ("GET", "/v2/health/ready", None, PUBLIC),
    ("GET", "/v2/models/visionad", None, PUBLIC),
    ("GET", "/v2/models/visionad/ready", None, PUBLIC),
    ("GET", "/v2/models/visionad/versions/1", None, PUBLIC),
    ("GET", "/v2/models/visionad/versions/1/ready", None, PUBLIC),
    ("GET", "/api/1/session", None, READING),
    ("GET", "/api/1/state", None, READING),
    ("GET", "/api/1/records", None, READING),
    ("GET", "/api/1/records/1", None, READING),
    ("GET", "/api/1/records/1/images", None, READING),
    ("GET", "/api/1/records/99999", None, {**READING, **dict.fromkeys((OPERATOR, VIEWER, SETTER, ADMIN), 404)}),
    ("GET", "/api/1/export.csv", None, READING),
    ("GET", f"/api/1/statistics?{TODAY}", None, READING),
    (
        "GET",
        "/api/1/statistics?from=1970-01-01T00:00:00Z&to=2100-01-01T00:00:00Z",
        None,
        {**dict.fromkeys(ALL, 400), NOBODY: 401},
    ),
    ("GET", f"/api/1/report.html?{TODAY}", None, READING),
    ("GET", "/api/1/audit", None, READING),
    ("GET", "/api/1/health", None, READING),
    ("GET", "/api/1/diagnosis", None, READING),
    ("GET", "/api/1/users", None, FOR_ADMIN),
    ("GET", "/api/1/log", None, FOR_ADMIN),
    ("GET", "/api/1/bundle", None, FOR_ADMIN),
    ("POST", "/api/1/seen", {"id": 0}, HANDS),
    ("POST", "/api/1/control", {"to": "line"}, HANDS),
    ("POST", "/api/1/recipe", {"number": 1}, {**HANDS, **dict.fromkeys((OPERATOR, SETTER, ADMIN), 423)}),
    ("POST", "/api/1/trigger", {}, {**HANDS, **dict.fromkeys((OPERATOR, SETTER, ADMIN), 423)}),
    ("POST", "/api/1/fault/clear", {}, HANDS),
    ("POST", "/api/1/records/1/review", {"good": True}, READING),
    ("POST", "/api/1/records/1/replay", {}, {**READING, **dict.fromkeys((OPERATOR, VIEWER, SETTER, ADMIN), 404)}),
    ("POST", "/api/1/records/99999/keep", {}, {**HANDS, **dict.fromkeys((OPERATOR, SETTER, ADMIN), 404)}),
    ("POST", "/api/1/users", {"name": "x", "password": "1234", "role": "viewer"}, {**FOR_ADMIN, ADMIN: 400}),
    ("GET", "/api/1/drafts", None, READING),
    ("GET", "/api/1/draft?class=none", None, {**READING, **dict.fromkeys((OPERATOR, VIEWER, SETTER, ADMIN), 404)}),
    (
        "GET",
        f"/api/1/draft/images/{DIGEST}?class=none",
        None,
        {**READING, **dict.fromkeys((OPERATOR, VIEWER, SETTER, ADMIN), 404)},
    ),
    (
        "GET",
        "/api/1/draft/what-if?class=none&threshold=1",
        None,
        {**READING, **dict.fromkeys((OPERATOR, VIEWER, SETTER, ADMIN), 404)},
    ),
    (
        "POST",
        "/api/1/draft/raster?class=none",
        {"regions": None},
        {**READING, **dict.fromkeys((OPERATOR, VIEWER, SETTER, ADMIN), 404)},
    ),
    ("POST", "/api/1/draft?class=%20", {}, {**TEACHING, SETTER: 400}),
    ("POST", "/api/1/draft/discard?class=none", {"version": 1}, TEACHING),
    ("POST", "/api/1/draft/parts?class=none", {"version": 1, "record": 99999}, TEACHING),
    ("POST", "/api/1/draft/parts?class=none2", {"version": 1, "frame": 99999}, TEACHING),
    ("POST", "/api/1/draft/files?class=none&version=1", PNG, TEACHING),
    ("POST", f"/api/1/draft/parts/{DIGEST}/remove?class=none", {"version": 1}, TEACHING),
    ("POST", f"/api/1/draft/parts/{DIGEST}/decide?class=none", {"version": 1, "reason": "x"}, TEACHING),
    ("POST", "/api/1/draft/regions?class=none", {"version": 1, "regions": None}, TEACHING),
    ("POST", "/api/1/draft/collect?class=none", {"version": 1, "on": True}, TEACHING),
    ("POST", f"/api/1/draft/collected/{DIGEST}?class=none", {"version": 1, "strike": False}, TEACHING),
    ("POST", "/api/1/draft/threshold?class=none", {"version": 1, "max_false_reject": 0.05}, TEACHING),
    (
        "POST",
        "/api/1/draft/threshold/by-hand?class=none",
        {"version": 1, "value": 0.3, "reason": "x"},
        {**FOR_ADMIN, ADMIN: 404},
    ),
    ("POST", "/api/1/draft/effect?class=none", {"version": 1}, TEACHING),
    ("POST", "/api/1/draft/live?class=none", {"version": 1}, TEACHING),
    ("GET", "/api/1/versions", None, READING),
    ("POST", "/api/1/versions/1/back?class=none", {}, {**TEACHING, SETTER: 400}),
    ("POST", "/api/1/users/nobody%20such/remove", {}, {**FOR_ADMIN, ADMIN: 404}),
]


@pytest.fixture(scope="module")
def sessions(station: RunningStation) -> dict[str, dict[str, str]]:
    """Role → headers."""
    cookies = {OPERATOR: station.login(panel=station.panel_token())}
    cookies[ADMIN] = station.login(code=station.code(), name="admin", password=USERS["admin"])
    for role in (VIEWER, SETTER):
        body = {"name": role, "password": USERS[role], "role": role}
        assert station.request("POST", "/api/1/users", body, {"Cookie": cookies[ADMIN]})[0] == 200
        cookies[role] = station.login(name=role, password=USERS[role])
    station.inspect()
    return {NOBODY: {}, **{role: {"Cookie": cookie} for role, cookie in cookies.items()}}


@pytest.mark.parametrize("role", ALL)
def test_s17_each_endpoint_by_role(station: RunningStation, sessions: dict[str, dict[str, str]], role: str) -> None:
    got = {(method, path): station.request(method, path, body, sessions[role])[0] for method, path, body, _ in TABLE}
    assert got == {(method, path): expected[role] for method, path, _, expected in TABLE}


def _filled(path: str) -> str:
    """A path of the description with the values that the table has."""
    values = {
        "class_name": "%20",
        "number": "1",
        "name": "nobody%20such",
        "which": DIGEST,
        "support": DIGEST,
        "pixels": DIGEST,
    }
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def test_s17_the_table_is_complete(station: RunningStation) -> None:
    described = station.request("GET", "/openapi.json")[1]["paths"]
    known = {path.split("?")[0].replace("/99999", "/1") for _, path, _, _ in TABLE} | {
        "/inspect", "/overlay", "/api/1/login", "/api/1/logout", "/api/1/worker/restart",
        "/api/1/records/{number}/archived/{place}",
        "/cameras/nobody%20such/frame",
        "/v2/models/visionad/infer", "/v2/models/visionad/versions/1/infer",
    }  # fmt: skip
    shapes = {_filled(path) for path in described}
    assert shapes - known - {"/api/1/records/1/archived/{place}"} == set()
    for path, methods in described.items():
        for method, facts in methods.items():
            answers = facts["responses"]
            content = answers.get("200", answers.get("201", {})).get("content", {})
            assert path == "/openapi.json" or content or method == "get", path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "rebound.example", "Origin": "http://rebound.example"}, 403),
        ({"Origin": "http://other.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 400),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 400),
    ],
)
def test_s17_pages_of_other_sites_change_nothing(
    station: RunningStation, sessions: dict[str, dict[str, str]], headers: dict[str, str], status: int
) -> None:
    before = station.request("GET", "/api/1/audit", headers=sessions[ADMIN])[1]["entries"][0]["id"]
    got = station.request("POST", "/api/1/seen", json.dumps({"id": 10**6}).encode(), {**sessions[ADMIN], **headers})[0]
    assert got == status
    assert station.request("GET", "/api/1/audit", headers=sessions[ADMIN])[1]["entries"][0]["id"] == before


def test_s17_nothing_is_changed_by_get(station: RunningStation, sessions: dict[str, dict[str, str]]) -> None:
    reading = {path.split("?")[0] for method, path, _, _ in TABLE if method == "GET"}
    for method, path, _, _ in TABLE:
        if method == "POST" and path.split("?")[0] not in reading:
            assert station.request("GET", path, headers=sessions[ADMIN])[0] in (404, 405), path


def test_s17_websocket(station: RunningStation, sessions: dict[str, dict[str, str]]) -> None:
    websockets = pytest.importorskip("websockets.sync.client")
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    address = f"ws://127.0.0.1:{station.port}/ws"
    for origin in ("http://other.example", None):
        with pytest.raises(InvalidStatus) as refused:
            websockets.connect(address, origin=origin, additional_headers=sessions[ADMIN])
        assert refused.value.response.status_code == 403
    with websockets.connect(address, origin=station.url) as socket, pytest.raises(ConnectionClosed) as closed:
        socket.recv(5)
    assert closed.value.rcvd.code == 4401


def test_s17_policy_and_cookie(station: RunningStation) -> None:
    _, _, headers = station.request("GET", "/")
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    _, _, headers = station.request("POST", "/api/1/login", {"panel": station.panel_token()})
    assert headers["set-cookie"].startswith("__Host-visionad=")
    assert {"HttpOnly", "Secure", "SameSite=strict", "Path=/"} <= set(headers["set-cookie"].split("; "))


def test_s17_the_panels_token_is_good_once(station: RunningStation) -> None:
    token = station.panel_token()
    assert station.request("POST", "/api/1/login", {"panel": token})[0] == 200
    assert station.request("POST", "/api/1/login", {"panel": token})[0] == 401
    assert (station.folder / "panel-token").stat().st_mode & 0o77 == 0
    assert (station.folder / "users.json").stat().st_mode & 0o77 == 0


def test_s17_passwords_are_not_guessed_and_nobody_is_locked_out(
    station: RunningStation, sessions: dict[str, dict[str, str]]
) -> None:
    got = [station.request("POST", "/api/1/login", {"name": "setter", "password": f"guess {n}"})[0] for n in range(5)]
    assert got[:3] == [401, 401, 401] and 429 in got
    assert station.request("GET", "/api/1/session", headers=sessions[SETTER])[0] == 200
    assert station.request("POST", "/api/1/login", {"name": "viewer", "password": USERS["viewer"]})[0] == 200
    assert station.request("POST", "/api/1/login", {"code": "00000000", "name": "y", "password": "12345678"})[0] == 401


def bomb() -> bytes:
    """A PNG of 40 000 x 40 000 pixels in 5 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(40_001) * 400, 9)
    head = struct.pack("!IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400), (bomb(), 400), (b"PK\3\4" + bytes(999), 400)],
)
def test_s17_images_that_are_none(station: RunningStation, body: bytes, status: int) -> None:
    got, facts, _ = station.request("POST", "/inspect", body, {"Content-Type": "application/octet-stream"})
    assert got == status, facts
    assert station.ready()


def test_inspect_as_serve_does(station: RunningStation) -> None:
    image = cv2.imencode(".png", numbered(5, defect=True))[1].tobytes()
    status, facts, _ = station.request("POST", "/inspect?class=disc", image)
    assert (status, facts["verdict"], facts["class"]) == (200, "anomalous", "disc")
    tensor = {"name": "file", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(image) + 4}}
    names = {"name": "class", "datatype": "BYTES", "shape": [1], "data": ["disc"]}
    outputs = [{"name": "result"}, {"name": "anomaly_map"}]
    asked = json.dumps({"inputs": [names, tensor], "outputs": outputs}).encode()
    length = {"Inference-Header-Content-Length": str(len(asked))}
    body = asked + struct.pack("<I", len(image)) + image
    status, found, _ = station.request("POST", "/v2/models/visionad/infer", body, length)
    result, anomaly_map = (output["data"] for output in found["outputs"])
    same = {"image": "", "timings_ms": 0}
    assert status == 200 and {**json.loads(result[0]), **same} == {**facts, **same}
    assert len(anomaly_map) == 256 * 256 and max(anomaly_map) >= facts["score"]
    status, png, headers = station.request("POST", "/overlay?class=disc", image)
    assert status == 200 and headers["content-type"] == "image/png" and png[:4] == b"\x89PNG"
    text = station.request("GET", "/metrics")[1].decode()
    assert f'bank="{facts["bank"]}"' in text and f'model="{facts["model"]}"' in text
    assert 'visionad_pictures_total{class_name="disc",verdict="ok"}' in text  # of the line
    assert "process_resident_memory_bytes" in text
    assert set(station.request("GET", "/health")[1]) == {"ready", "phase"}


def test_s07_slow_client(station: RunningStation, sessions: dict[str, dict[str, str]]) -> None:
    """Who takes 0.7 s for each image never gets an old one; who never answers gets one image only, and costs no memory."""
    websockets = pytest.importorskip("websockets.sync.client")
    address = f"ws://127.0.0.1:{station.port}/ws"

    def images(pause: float | None) -> Iterator[tuple[float, float]]:
        with websockets.connect(address, origin=station.url, additional_headers=sessions[ADMIN]) as socket:
            socket.send(json.dumps({"send": "subscribe", "names": ["parts"]}))
            first = True
            end = time.monotonic() + 6
            while time.monotonic() < end:
                station.inspect()
                try:
                    message = socket.recv(0.05)
                except TimeoutError:
                    continue
                while isinstance(message, str):
                    try:
                        message = socket.recv(0.02)
                    except TimeoutError:
                        break
                if isinstance(message, str):
                    continue
                length = struct.unpack("!I", message[:4])[0]
                facts = json.loads(message[4 : 4 + length])
                if not first:  # the first one is the last part from before
                    age = datetime.now(UTC) - datetime.fromisoformat(facts["at"])
                    yield station.sequence - facts["sequence"], age.total_seconds()
                first = False
                if pause is not None:
                    until = time.monotonic() + pause
                    while time.monotonic() < until:
                        station.inspect()
                    socket.send(json.dumps({"send": "shown"}))

    slow = list(images(0.7))
    assert len(slow) >= 3
    assert max(age for _, age in slow) < 1.2
    list(images(None))
    before = station.resident_mb(station.process("page"))
    assert list(images(None)) == []
    assert station.resident_mb(station.process("page")) < before + 2


def test_the_support_bundle_has_what_support_asks_for(
    station: RunningStation, sessions: dict[str, dict[str, str]]
) -> None:
    station.inspect()
    status, content, headers = station.request("GET", "/api/1/bundle?images=true", headers=sessions[ADMIN])
    assert status == 200 and headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(content)) as bundle:
        names = set(bundle.namelist())
        assert {
            "station.yaml",
            "health.json",
            "doctor.json",
            "bank.json",
            "model.json",
            "records.jsonl",
            "audit.json",
        } <= names
        assert json.loads(bundle.read("doctor.json"))["problems"] is not None
        assert (
            b"press-3" in bundle.read("station.yaml") and json.loads(bundle.read("records.jsonl").splitlines()[0])["id"]
        )
        assert not any(name.endswith("users.json") or "token" in name for name in names)


def test_a_setter_enrolls_as_serve_does(station: RunningStation, sessions: dict[str, dict[str, str]]) -> None:
    before = station.request("GET", "/classes")[1]
    for role, status in ((NOBODY, 401), (ADMIN, 403), (SETTER, 201)):
        got, facts, _ = station.request("POST", "/classes/more?name=new.png", PNG, sessions[role])
        assert got == status, facts
    assert facts == {"class": "more", "bank_version": before["bank_version"] + 1}
    inspected = station.request("POST", "/inspect?class=more", PNG)[1]  # the worker takes the version that it finds
    assert inspected["bank_version"] == facts["bank_version"]
    after = station.request("GET", "/classes")[1]
    assert after["classes"] == {**before["classes"], "more": {"shots": 1, "threshold": None}}
    health = station.request("GET", "/health", headers=sessions[VIEWER])[1]
    assert (health["bank_digest"], health["bank_version"]) == (inspected["bank"], facts["bank_version"])
    row = station.request("GET", "/api/1/audit", headers=sessions[ADMIN])[1]["entries"][0]
    assert (row["who"], row["what"], row["new"]["class"], row["new"]["source"]) == (
        SETTER, "part enrolled", "more", "file new.png",
    )  # fmt: skip
