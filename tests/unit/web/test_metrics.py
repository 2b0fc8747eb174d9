"""The shipped rules and the dashboard read metrics and labels that a service gives, and a station as well."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from visionad_runtime.result import Promise
from visionad_runtime.station.page.counted import counted
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.settings import Shifts
from visionad_runtime.station.sink import Outcome
from visionad_runtime.web.metrics import Metrics
from visionad_runtime.web.station.feed import Feed
from visionad_runtime.web.station.history import History

from tests.data import ROOT
from tests.unit.web.test_station_api import FACTS, Page, ask, make_page

OF_PROMETHEUS = {"instance", "job", "le"}
"""Labels that the scrape or a histogram adds."""
TIMINGS = {"preprocess": 1.0, "search": 2.0, "total": 3.0}


def expressions() -> list[str]:
    """Every expression, those that rules record written out."""
    rules = [
        rule
        for group in yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    dashboard = json.loads((ROOT / "deploy/grafana/visionad.json").read_text())
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    found = [rule["expr"] for rule in rules]
    found += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [re.sub(r"visionad:[\w:]+", lambda name: f"({recorded[name[0]]})", one) for one in found]


def wanted() -> dict[str, set[str]]:
    """Metric → labels by which expressions select or group it."""
    found: dict[str, set[str]] = {}
    for one in expressions():
        labels = {name.strip() for names in re.findall(r"by \(([^)]*)\)", one) for name in names.split(",")}
        labels |= set(re.findall(r"[{,]\s*(\w+)\s*=", one))
        for name in re.findall(r"\b(?:visionad|process)_\w+", one):
            found.setdefault(name, set()).update(labels - OF_PROMETHEUS)
    return found


def of_serve() -> str:
    bank = SimpleNamespace(manifest=SimpleNamespace(version=4), snapshot=SimpleNamespace(digest=FACTS["bank_digest"]))
    engine = SimpleNamespace(name="onnxruntime-cpu", precision="fp32")
    inspector: Any = SimpleNamespace(bank=bank, engine=engine, digest=FACTS["model_digest"])
    promises: Any = SimpleNamespace(evidence=lambda: {"gear": 2.0})
    metrics = Metrics(inspector, promises)
    result: Any = SimpleNamespace(
        class_name="gear", verdict="ok", timings=TIMINGS, score=0.3, threshold=0.4,
        promise=Promise(0.01, 0.05, 0.05, 19, void=True),
    )  # fmt: skip
    metrics.add(result)
    return generate_latest(metrics.registry).decode()


@pytest.fixture
def page(tmp_path: Path) -> tuple[Page, Feed]:
    Records(tmp_path / "records.sqlite").close()
    feed = Feed(History(tmp_path / "records.sqlite"), Shifts())
    return make_page(tmp_path, feed), feed


def part(number: int, **cameras: Any) -> Outcome:
    return Outcome(number, "2026-01-01T00:00:00.000+00:00", number, "", 1, 1, "none", 0.3, 0.4, 5.0, 1, cameras)


def of_station(page: tuple[Page, Feed]) -> str:
    seen = {
        "class": "gear",
        "verdict": "ok",
        "score": 0.3,
        "threshold": 0.4,
        "timings_ms": TIMINGS,
        "promise": {"void": True},
    }
    for number in (1, 2):
        event = {"event": "inspected", "images": counted(part(number, top=seen, side={"error": "the camera is gone"}))}
        page[1].on_event(json.loads(json.dumps(event)), [])
    page[1].on_event(
        {
            "event": "inspected",
            "images": counted(part(3, top={**seen, "class": None, "promise": None, "threshold": None})),
        },
        [],
    )
    got = ask(page[0], "GET", "/metrics")
    assert got.status == 200, got
    return got.text


def samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    return [(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples]


def test_the_shipped_rules_and_dashboard_find_their_metrics_in_both(page: tuple[Page, Feed]) -> None:
    asked = wanted()
    assert len(asked) >= 8 and asked["visionad_info"] == {"bank", "model"}
    assert asked["visionad_pictures_total"] == {"class_name", "verdict"}
    for text in (of_serve(), of_station(page)):
        given = samples(text)
        for name, labels in asked.items():
            assert any(name == one and labels <= set(own) for one, own, _ in given), (name, labels)


def test_both_say_alike_what_inspects(page: tuple[Page, Feed]) -> None:
    service, station = ({name: labels for name, labels, _ in samples(text)} for text in (of_serve(), of_station(page)))
    assert service["visionad_info"] == station["visionad_info"]
    assert station["visionad_info"]["bank"] == "ab" * 32


def test_a_station_counts_each_image_that_has_a_result(page: tuple[Page, Feed]) -> None:
    text = of_station(page).splitlines()
    for row in (
        'visionad_pictures_total{class_name="gear",verdict="ok"} 2.0',
        'visionad_pictures_total{class_name="",verdict="ok"} 1.0',
        'visionad_score_ratio_count{class_name="gear"} 2.0',
        'visionad_stage_seconds_count{stage="search"} 3.0',
        "visionad_inspection_seconds_count 3.0",
        'visionad_promise_void{class_name="gear"} 1.0',
        "visionad_bank_version 4.0",
    ):
        assert row in text, row
