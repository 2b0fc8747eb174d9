"""S12: the shipped rules pass their tests; a real Prometheus scrapes services, and every expression of the dashboard gives data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from visionad_runtime.bank.store import Bank

from tests.data import ROOT, part
from tests.fleet.components import note, program, releases
from tests.fleet.conftest import wait_for
from tests.fleet.servers import Service, inspected
from tests.ports import free_port

pytest.importorskip("fastapi", reason="serving takes the serve extra")
RULES = ROOT / "deploy/prometheus"


def test_s12_rules_pass_their_tests() -> None:
    promtool = program("promtool")
    for command in (
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
        ["check", "config", "scrape.yml"],
    ):
        done = subprocess.run([promtool, *command], cwd=RULES, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    dashboard = json.loads((ROOT / "deploy/grafana/visionad.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(found) >= 10
    return found


def query(port: int, expression: str) -> list[Any]:
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: list[Any] = json.load(answer)["data"]["result"]
    return [one for one in found if one["value"][1] != "NaN"]


def until(what: Any, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.5)
    return found


def test_s12_a_real_prometheus(tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    prometheus = program("prometheus")
    other = shutil.copytree(filled_bank, tmp_path / "other")
    Bank.open(other).update("disc", "t", lambda held: held.entry.model_copy(update={"threshold": 9.0}))
    services = [Service(tiny_model, filled_bank), Service(tiny_model, other)]
    port = free_port()
    # The shipped files, with seconds in place of minutes.
    config = yaml.safe_load((RULES / "scrape.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{one.port}" for one in services]}]
    (tmp_path / "scrape.yml").write_text(yaml.safe_dump(config))
    rules = (RULES / "rules.yml").read_text()
    (tmp_path / "rules.yml").write_text(re.sub(r"for: \d+m", "for: 2s", rules))
    command = [prometheus, f"--config.file={tmp_path / 'scrape.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, text=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/-/ready", process)

        def all_filled() -> bool:
            for service in services:
                inspected(service.port, part(1), "?class=disc")
                inspected(service.port, part(2, defect=True), "?class=disc")
            return all(query(port, expression) for expression in expressions())

        until(all_filled)
        banks = len(query(port, "count by (bank) (visionad_info)"))
        assert banks == 2

        def firing() -> set[str]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/alerts", timeout=10) as answer:
                alerts = json.load(answer)["data"]["alerts"]
            return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

        until(lambda: "VisionADBanksDiffer" in firing())
        assert "VisionADDown" not in firing()
        services[0].process.kill()
        services[0].process.wait()
        start = time.monotonic()
        until(lambda: "VisionADDown" in firing())
        fired = round(time.monotonic() - start, 1)
        figures = {"expressions": len(expressions()), "alert_after_kill_s": fired, "banks": banks}
        note("S12", **figures, releases=releases("prometheus"))
    finally:
        process.terminate()
        process.wait(30)
        for service in services:
            if service.process.poll() is None:
                service.stop()
