"""The Open Inference Protocol over HTTP: whatever JSON a client sends."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from visionad_runtime.errors import ImageError
from visionad_runtime.result import Result
from visionad_runtime.web import oip_tensors
from visionad_runtime.web.answers import error_responses
from visionad_runtime.web.oip import add_oip_endpoints
from visionad_runtime.web.oip_tensors import answer, parse_request
from visionad_runtime.web.queue import RequestError, UploadedImage, UploadQueue
from visionad_runtime.web.service import InspectionService

FILE = {"name": "file", "datatype": "BYTES", "shape": [1], "data": ["a"]}


def result(score: float = 0.5) -> Result:
    """What an answer needs of a result."""
    maps = np.zeros((256, 256), np.float32)
    facts = SimpleNamespace(score=score, verdict="ok", anomaly_map=maps, to_dict=lambda _: {"class": "gear"})
    return cast(Result, facts)


@pytest.mark.parametrize("text", ["a", "\ud800", "Zähler \U0001f600 \udfff\ud800 \\ud800 \n"])
def test_an_id_comes_back_as_it_was_sent(text: str) -> None:
    asked = parse_request(json.dumps({"id": text, "inputs": [FILE]}).encode(), None)
    body = bytes(answer(asked, [result()]).body)
    assert json.loads(body.decode("utf-8"))["id"] == text  # UTF-8, and JSON that any client reads


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"name": "\ud800"}, r"input '\\ud800': expected one of image, file, class"),
        ({"name": "image\n"}, r"input 'image\\n': expected one of"),
        ({"datatype": "\ud800"}, r"expected datatype BYTES, got '\\ud800'"),
        ({"shape": "\ud800"}, r"expected a shape of one to four whole numbers, got '\\ud800'"),
        ({"shape": ["\ud800", 1]}, r"whole numbers, got \['\\ud800', 1\]"),
        ({"parameters": {"binary_data_size": "\ud800"}}, r"got binary_data_size '\\ud800'"),
        ({"data": ["\ud800", "\ud800"]}, "expected 1 elements for its shape, got 2"),
    ],
)
def test_a_refusal_can_be_sent_whatever_the_client_wrote(field: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        parse_request(json.dumps({"inputs": [{**FILE, **field}]}).encode(), None)
    assert refused.value.status == 400 and str(refused.value).encode("utf-8").decode().isprintable()


def test_an_output_that_is_unknown_is_refused() -> None:
    with pytest.raises(RequestError, match=r"output '\\ud800': expected one of") as refused:
        parse_request(json.dumps({"inputs": [FILE], "outputs": [{"name": "\ud800"}]}).encode(), None)
    str(refused.value).encode("utf-8")


class Service(UploadQueue):
    """Notes in which order images are decoded and inspected, and how many places are taken meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, int]] = []

    def decode(self, file: bytes, _: str) -> np.ndarray:
        self.steps.append((f"decode {file.decode()}", self.waiting))
        if file == b"bad":
            raise ImageError("file: damaged")
        return np.full((1, 1, 3), int(file), np.uint8)

    async def inspect(self, upload: UploadedImage, class_name: str | None) -> Result:
        self.steps.append((f"inspect {upload.rgb[0, 0, 0]} {class_name}", self.waiting))
        return result(upload.rgb[0, 0, 0] / 10)


def infer(service: Service, inputs: list[dict[str, Any]], **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer, without sockets."""
    app = FastAPI()
    add_oip_endpoints(app, cast(InspectionService, service), error_responses)

    @app.exception_handler(RequestError)
    @app.exception_handler(ImageError)
    async def refused(_: Request, exc: Exception) -> Response:
        return JSONResponse({"error": str(exc)}, getattr(exc, "status", 400))

    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps({"inputs": inputs}).encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v2/models/visionad/infer", "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


def files(*texts: str) -> dict[str, Any]:
    return {**FILE, "shape": [len(texts)], "data": list(texts)}


def test_each_image_is_decoded_when_its_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once may fill the memory: a small file may hold a large image."""
    service = Service()
    monkeypatch.setattr(oip_tensors, "decode", service.decode)
    names = {"name": "class", "datatype": "BYTES", "shape": [3], "data": ["a", "", "c"]}
    status, body = infer(service, [files("1", "2", "3"), names])
    assert status == 200 and body["outputs"][0]["data"] == pytest.approx([0.1, 0.2, 0.3])
    assert service.steps == [
        ("decode 1", 1), ("inspect 1 a", 1), ("decode 2", 1), ("inspect 2 None", 1), ("decode 3", 1), ("inspect 3 c", 1),
    ]  # fmt: skip
    assert service.waiting == 0


def test_what_is_wrong_is_said_and_leaves_no_place_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setattr(oip_tensors, "decode", service.decode)
    assert infer(service, [files("1", "bad", "3")]) == (400, {"error": "file: damaged"})
    assert service.steps == [("decode 1", 1), ("inspect 1 None", 1), ("decode bad", 1)] and service.waiting == 0
    status, body = infer(
        service, [files(*"12"), {"name": "class", "datatype": "BYTES", "shape": [3], "data": list("abc")}]
    )
    assert status == 400 and "expected 1 or 2 names, got 3" in body["error"] and len(service.steps) == 3


def test_arrays_are_inspected_in_their_order() -> None:
    service = Service()
    image = {"name": "image", "datatype": "UINT8", "shape": [2, 1, 1, 3], "data": [4, 4, 4, 5, 5, 5]}
    assert infer(service, [image])[0] == 200
    assert service.steps == [("inspect 4 None", 1), ("inspect 5 None", 1)]


def test_a_request_that_is_compressed_is_refused_as_such() -> None:
    status, body = infer(Service(), [files("1")], content_encoding="gzip")
    assert status == 400 and body["error"].startswith("Content-Encoding 'gzip' is not read")
