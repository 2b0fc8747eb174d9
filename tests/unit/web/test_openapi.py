"""The OpenAPI description: complete, and true of the answers."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="serving takes the serve extra")

import numpy as np
from pydantic import BaseModel
from visionad_runtime.result import Promise, Result
from visionad_runtime.scoring.regions import Region
from visionad_runtime.web import answers, http
from visionad_runtime.web.image_metrics import ImageMetrics
from visionad_runtime.web.queue import UploadQueue
from visionad_runtime.web.station import app as station
from visionad_runtime.web.station.answers import Problem

from tests.unit.web.test_station_api import Got, Page, ask, page, png

__all__ = ["page"]  # a fixture


def result() -> Result:
    region = Region(bbox=(1, 2, 3, 4), score=0.5, polygon=((1, 2), (3, 4), (1, 4)))
    known = {
        "score": 0.5, "verdict": "anomalous", "class_name": "gear", "class_source": "routed", "class_margin": 0.1,
        "threshold": 0.4, "p_value": 0.05, "promise": Promise(0.01, 0.05, 0.05, 19), "class_mismatch": None, "bank_version": 3,
        "bank": "ab" * 32, "model": "cd" * 32, "regions": (region,), "anomaly_map": np.zeros((256, 256), np.float32),
        "map_scale": (0.0, 1.0), "timings": {"total": 1.0}, "backend": "onnxruntime-cpu", "precision": "fp32",
    }  # fmt: skip
    fields = inspect.signature(Result).parameters
    return Result(**{"geometry": None, "areas": (), **{k: v for k, v in known.items() if k in fields}})  # type: ignore[arg-type]


def test_the_description_of_a_result_names_each_field() -> None:
    facts = result().to_dict("a.png")
    assert {f.alias or n for n, f in answers.Inspection.model_fields.items()} == set(facts)
    assert set(answers.Region.model_fields) == set(facts["regions"][0])
    answers.Inspection.model_validate(facts)


def test_every_model_is_documented() -> None:
    models = [
        m for _, m in inspect.getmembers(answers, inspect.isclass) if issubclass(m, BaseModel) and m is not BaseModel
    ]
    assert len(models) >= 7
    assert all(m.__doc__ for m in models)


VALUES = {"number": "1", "place": "0", "class_name": "x", "name": "x"}
QUERY = {"class": "x", "version": "1", "threshold": "1", "from": "2026-11-30T00:00:00Z", "to": "2026-11-30T01:00:00Z"}
Asked = Callable[..., Got]


class Service(UploadQueue):
    """A service whose engine fails."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics, self.inspector = ImageMetrics(), None

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is broken")


def serve() -> Page:
    service: Any = Service()
    return Page(http.make_app(service), SimpleNamespace())  # type: ignore[arg-type]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, bytes, dict[str, Any]]]:
    """Method, target, body and described answers of each operation."""
    for path, methods in document["paths"].items():
        target = re.sub(r"{(\w+)}", lambda name: VALUES.get(name[1], "0" * 64), path)
        for method, facts in methods.items():
            needed = [p["name"] for p in facts.get("parameters", ()) if p["in"] == "query" and p["required"]]
            query = "&".join(f"{name}={QUERY[name]}" for name in needed)
            kinds = facts.get("requestBody", {}).get("content", {})
            body = png() if "image/*" in kinds else b"{}"
            yield method.upper(), f"{target}?{query}", body, facts["responses"]


def check_answers(app: Page, model: type[BaseModel]) -> None:
    document = json.loads(ask(app, "GET", "/openapi.json").text)
    assert "HTTPValidationError" not in json.dumps(document)
    for method, target, body, described in operations(document):
        assert "422" not in described
        for status, got in (
            (403, ask(app, method, target, body, host="elsewhere.example")),
            (400, ask(app, method, f"{target}&nosuch=1", body)),
        ):
            assert got.status == status and str(status) in described, (method, target, got)
            model.model_validate_json(got.text)
            assert described[str(status)]["content"]["application/json"]["schema"]["$ref"].endswith(model.__name__)
        got = ask(app, method, target, body)
        assert str(got.status) in described, (method, target, got)
    said = document["info"]["description"]
    for method, target, status in (("GET", "/nosuch", 404), ("GET", "/inspect", 405)):
        got = ask(app, method, target)
        assert got.status == status and str(status) in said
        model.model_validate_json(got.text)


def test_serve_describes_the_errors_that_it_answers_with() -> None:
    check_answers(serve(), answers.Error)


def test_a_station_describes_the_errors_that_it_answers_with(page: Page) -> None:
    page.link.refuses = "unavailable"
    check_answers(page, Problem)


OF_IMAGES = ("unavailable", "internal", "input")
OF_PATHS = {"/cameras/{name}/frame": ("no_camera", "sender"), "/classes/{class_name}": ("no_session", "role_missing")}


@pytest.mark.slow(group="http-fuzz")  # a request for each operation and code
def test_each_refusal_of_the_front_is_described(page: Page) -> None:
    document = json.loads(ask(page, "GET", "/openapi.json").text)
    paths = [path for path, methods in document["paths"].items() for _ in methods]
    seen = set()
    for path, (method, target, body, described) in zip(paths, operations(document), strict=True):
        codes = station.STATUS if path.startswith("/api/") else (*OF_IMAGES, *OF_PATHS.get(path, ()))
        for code in codes:
            page.link.refuses = code
            got = ask(page, method, target, body)
            assert str(got.status) in described, (method, target, code, got)
            seen.add(got.status)
    assert seen >= set(station.STATUS.values())
