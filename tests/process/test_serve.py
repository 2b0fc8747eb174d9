"""The service: what it answers is what the inspector says, whoever asks, and every mistake has its status and one line."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from visionad_runtime import Inspector, VisionADError
from visionad_runtime.bank.history import remove_offline
from visionad_runtime.bank.store import Bank
from visionad_runtime.cli.main import run
from visionad_runtime.formats.files import sha256_bytes
from visionad_runtime.visualization.overlay import overlay_png

from tests.data import part

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from visionad_runtime.web import answers, http, queue, server, service, uploads
from visionad_runtime.web.log import bounded_log


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    app: Any,
    method: str,
    url: str,
    body: bytes = b"",
    *,
    chunk: int = 1 << 16,
    gone: bool = False,
    stuck: bool = False,
    origin: str | None = None,
) -> Answer:
    """One request, without a network in between. ``gone``: the sender goes away after the first piece; ``stuck``: it sends no more,
    and waits."""
    path, _, query = url.partition("?")
    headers = [(b"content-length", str(len(body)).encode()), (b"host", b"localhost:8000")]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": urllib.parse.unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": headers, "client": ("test", 1), "server": ("test", 2), "state": {},
    }  # fmt: skip
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces)} for i, piece in enumerate(pieces)
    ]
    if gone or stuck:
        messages = [{"type": "http.request", "body": pieces[0], "more_body": True}]
    if gone:
        messages.append({"type": "http.disconnect"})
    sent: list[Any] = []

    async def talk() -> None:
        done = asyncio.Event()

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            await done.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                done.set()

        await app(scope, receive, send)

    asyncio.run(talk())
    told = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], told, b"".join(m.get("body", b"") for m in sent[1:]))


def png(image: NDArray[np.uint8]) -> bytes:
    ok, data = cv2.imencode(".png", image)
    assert ok
    return data.tobytes()


@pytest.fixture(scope="module")
def filled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of two classes."""
    folder = tmp_path_factory.mktemp("serve") / "bank"
    with Inspector.open(tiny_model, folder) as inspector:
        inspector.enroll("disc", [part(0), part(1)])
        inspector.enroll("grid", [part(0, kind="grid")])
        assert inspector.bank is not None
    return folder


@pytest.fixture
def bank(filled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(filled, tmp_path / "bank")


@pytest.fixture
def line(tiny_model: Path, bank: Path) -> Iterator[service.InspectionService]:
    with Inspector.open(tiny_model, bank) as inspector:
        opened = service.InspectionService(inspector)
        yield opened
        opened.close()


@pytest.fixture
def app(line: service.InspectionService) -> Any:
    return http.make_app(line)


def untimed(facts: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "timings_ms": 0}


def test_an_answer_is_what_the_inspector_says(app: Any, line: service.InspectionService) -> None:
    for seed in range(3):
        image = part(seed, defect=seed == 1, kind="grid" if seed == 2 else "disc")
        for class_name in (None, "disc"):
            expected = line.inspector.inspect(image, class_name=class_name).to_dict(f"{seed}.png")
            answer = ask(
                app, "POST", f"/inspect?name={seed}.png&{f'class={class_name}' if class_name else ''}", png(image)
            )
            assert answer.status == 200
            assert untimed(answer.json) == untimed(json.loads(json.dumps(expected)))
            assert set(answer.json["timings_ms"]) == set(expected["timings_ms"])


def test_bare_pixels_are_the_same_image(app: Any) -> None:
    image = part(3, defect=True)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    size = "width=128&height=96"
    file, grey_file = (ask(app, "POST", "/inspect", png(i)).json for i in (image, grey))
    for pixels, data, expected in (
        ("bgr8", image, file),
        ("rgb8", image[:, :, ::-1], file),
        ("mono8", grey, grey_file),
    ):
        result = ask(app, "POST", f"/inspect?pixels={pixels}&{size}", np.ascontiguousarray(data).tobytes(), chunk=1000)
        assert untimed(result.json) == untimed(expected)


def test_an_overlay_is_a_image(app: Any, line: service.InspectionService) -> None:
    image = part(4, defect=True)
    result = line.inspector.inspect(image)
    answer = ask(app, "POST", "/overlay", png(image))
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert answer.body == overlay_png(np.ascontiguousarray(image[:, :, ::-1]), result)
    grey = ask(app, "POST", "/overlay?pixels=mono8&width=128&height=96", image[:, :, 0].tobytes())
    assert Image.open(io.BytesIO(grey.body)).mode == "RGB"


def test_a_class_is_enrolled_while_others_are_inspected(app: Any, line: service.InspectionService, bank: Path) -> None:
    image, data = part(5), png(part(5))
    image[:, :, 0] = 0
    assert ask(app, "POST", "/inspect?class=new%20one", data).status == 409
    answer = ask(app, "POST", "/classes/new%20one?name=first.png", data)
    assert (answer.status, answer.json) == (201, {"class": "new one", "bank_version": 3})
    assert ask(app, "POST", "/inspect?class=new%20one", data).json["bank_version"] == 3
    again = ask(app, "POST", "/classes/new%20one", data)
    assert again.status == 409 and "enrolled already" in again.json["error"]
    assert ask(app, "POST", "/classes/new%20one", png(image)).status == 201
    answer = ask(app, "GET", "/classes").json
    assert answer["bank_version"] == 4
    assert {name: facts["shots"] for name, facts in answer["classes"].items()} == {"disc": 2, "grid": 1, "new one": 2}
    assert answer["classes"]["grid"]["threshold"] is None
    assert answer["classes"]["new one"]["threshold"] > 0  # from the second part on
    images = Bank.open(bank).classes["new one"].entry.images
    assert [i.source for i in images] == ["first.png", "sent to visionad serve"]
    assert images[0].sha256 == sha256_bytes(data)  # as a file's, so that `bank add` knows it again
    assert ask(app, "POST", "/classes/%20", data).status == 409
    # Another process takes it out again.
    remove_offline(bank, "new one")
    assert list(ask(app, "GET", "/classes").json["classes"]) == ["disc", "grid"]
    assert ask(app, "POST", "/inspect", data).json["bank_version"] == 5
    locked = http.make_app(line, read_only=True)
    refused = ask(locked, "POST", "/classes/more", data)
    assert refused.status == 403 and "--read-only" in refused.json["error"]
    assert ask(locked, "POST", "/inspect", data).status == 200


@pytest.mark.parametrize(
    ("url", "body", "status", "message"),
    [
        ("/inspect", b"", 400, "got nothing"),
        ("/inspect?name=a.png", b"notes", 400, "a.png: is no image"),
        ("/inspect", png(part(0))[:300], 400, "truncated"),
        ("/inspect?class=bolt", png(part(0)), 409, "no class 'bolt'"),
        ("/inspect?pixels=mono8&width=3&height=4", b"x" * 11, 400, "expected 12 bytes for 3 x 4"),
        ("/inspect?pixels=rgb8&width=3", b"x" * 12, 400, "need width and height"),
        ("/inspect?pixels=mono8&width=3&height=4&bit_depth=12", b"x" * 12, 400, "8 bits"),
        ("/inspect?pixels=bayer&width=3&height=4", b"x" * 12, 400, "query.pixels"),
        ("/inspect?pixels=mono8&width=0&height=4", b"", 400, "query.width"),
        ("/inspect?width=3&height=4", png(part(0)), 400, "go with bare pixels"),
        ("/inspect?bit_depth=12", png(part(0)), 400, "8 bits"),
        ("/overlay?class=bolt", png(part(0)), 409, "no class 'bolt'"),
        ("/nothing", b"", 404, "Not Found; there are /inspect"),
    ],
)
def test_mistakes_have_a_status_and_a_line(app: Any, url: str, body: bytes, status: int, message: str) -> None:
    answer = ask(app, "POST", url, body)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert message in answer.json["error"] and "\n" not in answer.json["error"]
    assert ask(app, "POST", "/inspect", png(part(0))).status == 200
    assert f'visionad_refused_total{{status="{status}"}} 1.0' in ask(app, "GET", "/metrics").body.decode()


def test_too_much_and_too_many_are_refused(
    app: Any, line: service.InspectionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png(part(0))
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 1000)
    assert ask(app, "POST", "/inspect", b"x" * 1_000_000).status == 413
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 1 << 20)
    monkeypatch.setattr(queue, "MAX_QUEUE", 2)
    with line.place(), line.place():
        answer = ask(app, "POST", "/inspect", data)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "2 images wait" in answer.json["error"]
    assert ask(app, "POST", "/inspect", data, gone=True).status == 400
    monkeypatch.setattr(uploads, "UPLOAD_TIMEOUT", 0.2)
    assert ask(app, "POST", "/inspect", data, stuck=True).status == 408
    assert ask(app, "POST", "/inspect", data).status == 200  # and all places are free again
    assert "visionad_waiting 0.0" in ask(app, "GET", "/metrics").body.decode()


def test_a_page_of_another_site_cannot_enroll(app: Any) -> None:
    """Whoever reads a web page on the line's box would otherwise enroll what that page sends."""
    data = png(part(0))
    for origin in ("https://elsewhere.example", "null", "http://localhost:9000"):
        for url in ("/classes/disc", "/inspect", "/overlay"):
            answer = ask(app, "POST", url, data, origin=origin)
            assert answer.status == 403 and origin in answer.json["error"]
    assert ask(app, "POST", "/inspect", data, origin="http://localhost:8000").status == 200
    assert ask(app, "GET", "/classes").json["bank_version"] == 2


def test_an_engine_that_fails_is_the_services_fault(
    app: Any, line: service.InspectionService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise VisionADError("the GPU is gone")

    monkeypatch.setattr(line.inspector, "trace_batch", broken)
    answer = ask(app, "POST", "/inspect", png(part(0)))
    assert (answer.status, answer.json) == (500, {"error": "the GPU is gone"})
    assert "the GPU is gone" in caplog.text


def test_health_and_metrics(app: Any, line: service.InspectionService, bank: Path) -> None:
    health = ask(app, "GET", "/health")
    assert health.status == 200
    assert health.json["ready"] and health.json["bank_version"] == 2 and health.json["backend"] == "onnxruntime-cpu"
    assert line.inspector.bank is not None
    before = line.inspector.bank.snapshot.digest
    assert (health.json["model_digest"], health.json["bank_digest"]) == (line.inspector.digest, before)
    low = {"threshold": 1e-9, "map_scale": (0.0, 1.0), "calibration": None}
    line.inspector.bank.update("disc", "calibrate disc", lambda held: held.entry.model_copy(update=low))
    for i in range(2):
        assert ask(app, "POST", "/inspect?class=disc", png(part(i))).json["verdict"] == "anomalous"
    assert ask(app, "POST", "/inspect?class=grid", png(part(2, kind="grid"))).json["verdict"] == "review"  # one support
    text = ask(app, "GET", "/metrics").body.decode()
    for row in (
        'visionad_pictures_total{class_name="disc",verdict="anomalous"} 2.0',
        'visionad_pictures_total{class_name="grid",verdict="review"} 1.0',
        "visionad_inspection_seconds_count 3.0",
        'visionad_stage_seconds_count{stage="search"} 3.0',
        'visionad_score_ratio_count{class_name="disc"} 2.0',
        "visionad_bank_version 3.0",
        "visionad_waiting 0.0",
    ):
        assert row in text.splitlines(), row
    info = [row for row in text.splitlines() if row.startswith("visionad_info{")]
    digest = line.inspector.bank.snapshot.digest
    assert digest != before
    assert len(info) == 1 and f'bank="{digest}"' in info[0] and f'model="{line.inspector.digest}"' in info[0]
    for name in ("disc", "grid"):
        remove_offline(bank, name)
    health = ask(app, "GET", "/health")
    assert health.status == 503 and health.json["notes"] == ["no class is enrolled"]
    answer = ask(app, "POST", "/inspect", png(part(0)))
    assert answer.status == 409 and "holds no class yet" in answer.json["error"]


def test_answers_are_as_described(app: Any) -> None:
    """Each endpoint's description holds its parameters, and a schema for each of its answers, which fits them."""
    document = ask(app, "GET", "/openapi.json").json
    data = png(part(77))  # which no class holds
    for method, url, path, model in (
        ("POST", "/inspect", "/inspect", answers.Inspection),
        ("POST", "/classes/more", "/classes/{class_name}", answers.Enrolled),
        ("GET", "/classes", "/classes", answers.Classes),
        ("GET", "/health", "/health", answers.Health),
    ):
        answer = ask(app, method, url, data if method == "POST" else b"")
        described = document["paths"][path][method.lower()]["responses"]
        assert described[str(answer.status)]["content"]["application/json"]["schema"]["$ref"].endswith(model.__name__)
        assert model.model_validate(answer.json).model_dump(by_alias=True, mode="json") == answer.json
    for path, methods in document["paths"].items():
        for facts in methods.values():
            assert facts["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("Error"), path
            assert all("schema" in p for p in facts.get("parameters", ()))
    inspected = document["paths"]["/inspect"]["post"]
    assert {p["name"] for p in inspected["parameters"]} == {"class", "name", "pixels", "width", "height", "bit_depth"}
    assert {"application/octet-stream", "multipart/form-data"} <= set(inspected["requestBody"]["content"])
    assert "image/png" in document["paths"]["/overlay"]["post"]["responses"]["200"]["content"]


def test_a_full_queue_is_not_healthy(
    app: Any, line: service.InspectionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_QUEUE", 1)
    with line.place():
        health = ask(app, "GET", "/health")
        assert (health.status, health.json["ready"], health.json["waiting"]) == (503, False, 1)
    assert ask(app, "GET", "/health").status == 200


def test_bodies_that_arrive_have_a_bound_together(
    app: Any, line: service.InspectionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png(part(0))
    monkeypatch.setattr(queue, "MAX_RECEIVED_BYTES", len(data) + 10)
    with line.receiving() as count:
        count(20)
        assert ask(app, "POST", "/inspect", data).status == 503
    assert ask(app, "POST", "/inspect", data).status == 200


def test_a_failure_is_answered_and_logged_once(
    app: Any, line: service.InspectionService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(line.inspector, "trace_batch", broken)
    with bounded_log():
        for _ in range(5):
            answer = ask(app, "POST", "/inspect", png(part(0)))
            assert answer.status == 500 and "ZeroDivisionError" in answer.json["error"]
    assert caplog.text.count("Traceback") == 1 and "ZeroDivisionError" in caplog.text


def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """Clients' sockets have TCP_NODELAY, or the second packet of each answer comes 40 ms late."""

    async def look() -> int:
        result: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def client(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            result.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with server.listen("127.0.0.1", 0) as waiting:
            started = await asyncio.start_server(client, sock=waiting)
            await asyncio.open_connection(*waiting.getsockname())
            option = await asyncio.wait_for(result, 30)
            started.close()
            return option

    assert asyncio.run(look())


def test_a_place_to_listen_that_is_not_to_be_had_is_said() -> None:
    with server.listen("127.0.0.1", 0) as waiting, pytest.raises(VisionADError, match=r"cannot listen .* --port"):
        server.listen("127.0.0.1", waiting.getsockname()[1])
    with pytest.raises(VisionADError, match="no such address"):
        server.listen("no such host.invalid", 0)


def test_what_is_missing_is_named(
    tiny_model: Path, bank: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "visionad_runtime.web.http")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert run(["serve", str(tiny_model), str(bank)]) == 2
    assert capsys.readouterr().err == "visionad: serving needs fastapi: pip install 'visionad[serve]'\n"


def test_the_service_from_start_to_stop(tiny_model: Path, bank: Path) -> None:
    command = [sys.executable, "-c", "from visionad_runtime.cli.entry import main; main()", "serve", tiny_model, bank]
    process = subprocess.Popen(
        [*map(str, command), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        ready = process.stdout.readline()
        assert "bank version 2 (disc, grid)" in ready, process.stderr.read()
        address = urllib.parse.urlparse(ready.split()[2])
        assert address.hostname == "127.0.0.1" and address.port is not None
        images = [png(part(i)) for i in range(12)]

        def connect() -> HTTPConnection:
            return HTTPConnection("127.0.0.1", address.port or 0, timeout=60)

        def inspect(number: int) -> dict[str, Any]:
            connection = connect()
            connection.request("POST", f"/inspect?name={number}", images[number])
            response = connection.getresponse()
            assert response.status == 200
            return dict(json.loads(response.read()))

        alone = [inspect(i) for i in range(12)]
        with ThreadPoolExecutor(6) as clients:
            together = list(clients.map(inspect, range(12)))
        assert list(map(untimed, alone)) == list(map(untimed, together))

        # What is under way when the service is stopped is still answered.
        late, asking = connect(), connect()
        late.putrequest("POST", "/inspect?name=0")
        late.putheader("Content-Length", str(len(images[0])))
        late.endheaders(images[0][:100])
        for _ in range(600):
            asking.request("GET", "/metrics")
            if b"visionad_receiving 1.0" in asking.getresponse().read():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        late.send(images[0][100:])
        assert untimed(json.loads(late.getresponse().read())) == untimed(alone[0])
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert process.stderr.read() == ""
