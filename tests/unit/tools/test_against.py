"""The comparison of two checkouts by the benchmarks: whose turn it is, and what the ratio is of. No times are asserted."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from tests.data import ROOT


@pytest.fixture
def against(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("against")
    monkeypatch.setattr(module, "SETTLE", 0)
    return module


def test_each_round_begins_with_the_other_one(against: ModuleType) -> None:
    order: list[str] = []

    def call(name: str) -> tuple[float, float]:
        order.append(name)
        return float(len(order)), 1.0

    times = against.in_turns({name: lambda name=name: call(name) for name in ("here", "there")}, 3)
    assert order == ["here", "there", "there", "here", "here", "there"]
    assert times == {"here": [(1.0, 1.0), (4.0, 1.0), (5.0, 1.0)], "there": [(2.0, 1.0), (3.0, 1.0), (6.0, 1.0)]}


def test_a_slow_spell_of_a_round_changes_no_ratio(against: ModuleType) -> None:
    spells = (1, 50, 1)
    times = {"here": [(3.0 * s, 6.0) for s in spells], "there": [(2.0 * s, 4.0) for s in spells]}
    assert against.compared(times) == {
        "here, ms": 3.0, "here, CPU ms": 6.0, "there, ms": 2.0, "there, CPU ms": 4.0, "ratio": 1.5, "CPU ratio": 1.5,
    }  # fmt: skip
    times["here"][0] = (2.0, 6.0)
    assert against.compared(times)["ratio"] == 1.5
    times["here"][2] = (2.0, 6.0)
    assert against.compared(times)["ratio"] == 1.0


def test_a_checkout_comes_first_on_its_path(against: ModuleType, tmp_path: Path) -> None:
    parts = against.environment(tmp_path)["PYTHONPATH"].split(os.pathsep)
    assert parts == [
        *(str(tmp_path / name) for name in ("runtime", "export", "visionad_ref")),
        str(ROOT / "benchmarks"),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_cpu_time_of_a_process_is_that_of_its_threads(against: ModuleType) -> None:
    before, done = against.cpu_ms(os.getpid()), threading.Event()

    def busy() -> None:
        while against.cpu_ms(os.getpid()) - before < 50:
            pass
        done.set()

    threading.Thread(target=busy, daemon=True).start()
    assert done.wait(60)


def test_a_comparison_keeps_the_other_figures(
    against: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(against.common, "RESULTS", tmp_path)
    (tmp_path / "one.json").write_text('{"environment": {"commit": "a"}, "figure": 1, "against": {"ratio": 2}}')
    found = json.loads(against.update("one", {"ratio": 1.01}).read_text())
    assert found["figure"] == 1 and found["environment"] == {"commit": "a"}
    assert found["against"]["ratio"] == 1.01 and "commit" in found["against"]["environment"]
