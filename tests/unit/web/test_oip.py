"""The Open Inference Protocol over HTTP: whatever JSON a client sends."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from visionad_runtime.result import Result
from visionad_runtime.web.oip import answer, parse_request
from visionad_runtime.web.queue import RequestError

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
