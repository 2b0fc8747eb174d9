"""A station that could never do its work is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from visionad_runtime.station.preflight import problems_of
from visionad_runtime.station.settings import read_station

from tests.ports import free_port
from tests.stations import teach, write_images, write_station

CAMERA = "  top: {kind: folder, path: images, interval_ms: 100}"
GPIO = "  - {kind: gpio, chip: /dev/gpiochip0, lines: {pass: 27, reject: 22}%s}"


@pytest.mark.parametrize(
    ("sinks", "more", "problem"),
    [
        ("  - {kind: files, folder: results}", "", "nothing can trigger"),
        ("  - {kind: files, folder: results}", "trigger: free", ""),
        ("  - {kind: files, folder: results}", "web: {port: PORT}", ""),
        ("  - {kind: tcp, port: PORT}", "", ""),
        (GPIO % "", "trigger: hardware", "set acknowledge_after_ms of the sink gpio"),
        (GPIO % ", acknowledge_after_ms: 200", "trigger: hardware", ""),
        (GPIO % "" + "\n  - {kind: tcp, port: PORT}", "", ""),
    ],
)
def test_somebody_must_trigger_and_acknowledge(
    tiny_model: Path, tmp_path: Path, sinks: str, more: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionad_runtime.station.preflight.page_missing", lambda: None)
    monkeypatch.setattr("visionad_runtime.station.sinks.gpio.find_spec", lambda name: name)
    teach(tiny_model, tmp_path / "bank")
    write_images(tmp_path / "images")
    port = str(free_port())
    path = write_station(tmp_path, tiny_model, CAMERA, sinks.replace("PORT", port), more.replace("PORT", port))
    found = problems_of(read_station(path))
    assert len(found) == bool(problem) and all(problem in line for line in found)


def test_model_and_bank_are_both_looked_at(tmp_path: Path) -> None:
    path = write_station(tmp_path, tmp_path / "nosuch", CAMERA, f"  - {{kind: tcp, port: {free_port()}}}")
    write_images(tmp_path / "images")
    model, bank = problems_of(read_station(path))
    assert str(tmp_path / "nosuch") in model and str(tmp_path / "bank") in bank


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("backend: nosuch", "backend: expected auto or one of "),
        ("precision: fp7", "precision 'fp7': expected one of fp32"),
        ("preset: nosuch", "preset 'nosuch': expected "),
        ("preset: nosuch.toml", "preset nosuch.toml cannot be read"),
        ("{backend: auto, precision: fp32}", ""),
    ],
)
def test_what_the_engine_does_not_know(tiny_model: Path, tmp_path: Path, more: str, problem: str) -> None:
    teach(tiny_model, tmp_path / "bank")
    write_images(tmp_path / "images")
    more = "\n".join(more.strip("{}").split(", "))
    path = write_station(tmp_path, tiny_model, CAMERA, f"  - {{kind: tcp, port: {free_port()}}}", more)
    found = problems_of(read_station(path))
    assert len(found) == bool(problem) and all(problem in line for line in found)
