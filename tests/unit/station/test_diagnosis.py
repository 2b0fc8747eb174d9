"""Cameras and buses are tried step by step; what comes after a step that fails is not known."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionad_runtime.cli.main import run
from visionad_runtime.station.camera import CameraFacts, CameraGone, Frame, NoFrame, SettingRefused
from visionad_runtime.station.diagnosis import diagnosis_of, try_camera, try_sink
from visionad_runtime.station.plc import SimulatedPlc
from visionad_runtime.station.rehearsal import RehearsalLine
from visionad_runtime.station.settings import read_station
from visionad_runtime.station.sink import SinkError
from visionad_runtime.station.worker.camera_holder import CameraHolder

from tests.ports import free_port


class Camera:
    """A camera that fails at one step."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.closed = fails, False

    def missing(self) -> str | None:
        return "needs pypylon: pip install" if self.fails == "installed" else None

    def open(self) -> CameraFacts:
        if self.fails == "found":
            raise CameraGone("camera top: no camera at 192.168.1.9; check cable and power")
        if self.fails == "settings":
            raise SettingRefused("camera top: gain: expected 40, got 24 from Gain")
        return CameraFacts("acA1300", "Mono8", 1280, 1024, simulated=False)

    def arm(self) -> int:
        return 7

    def trigger(self) -> None:
        pass

    def grab(self, after: int, deadline: float) -> Frame:
        del deadline
        if self.fails == "image":
            raise NoFrame("camera top: no image in 5 s; check the trigger's line")
        return Frame(np.zeros((1024, 1280), np.uint8), after + 1, 0.0)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("fails", "expected", "words"),
    [
        ("", [True, True, True, True], "8: 1280 x 1024"),
        ("installed", [False, None, None, None], "pypylon"),
        ("found", [True, False, None, None], "check cable and power"),
        ("settings", [True, True, False, None], "expected 40, got 24"),
        ("image", [True, True, True, False], "check the trigger's line"),
    ],
)
def test_the_first_step_that_fails_says_why(fails: str, expected: list[bool | None], words: str) -> None:
    camera: Any = Camera(fails)
    steps = try_camera(CameraHolder("top", camera, lambda *_: None))
    assert [step.ok for step in steps] == expected
    assert [step.step for step in steps] == ["installed", "found", "settings", "image"]
    assert words in (steps[-1] if not fails else next(step for step in steps if step.ok is False)).detail
    assert camera.closed


def test_a_camera_that_came_back_has_no_image_yet() -> None:
    camera: Any = Camera()
    holder = CameraHolder("top", camera, lambda *_: None)
    holder.open(again=False)
    holder.grab(0, 0.0)
    holder.note(NoFrame("camera top: no image in 5 s"))
    assert [step.ok for step in holder.steps()] == [True, True, True, False]
    holder.open(again=False)
    assert holder.steps()[-1] == ("image", None, "no image since the start: trigger a part")
    holder.close()


@pytest.fixture
def station(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((32, 48), 90, np.uint8))
    path = tmp_path / "station.yaml"
    path.write_text(
        "station: press-3\nmodel: model\nbank: bank\ncameras: {top: {kind: folder, path: images}}\n"
        "recipes: {3: {name: gear, class: gear}}\n"
        f"sinks: [{{kind: modbus, port: {free_port()}}}, {{kind: files, folder: out}}]\n"
    )
    return path


def test_the_command_tries_all_and_records_nothing(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pymodbus")
    before = sorted(station.parent.rglob("*"))
    assert run(["station", str(station), "--diagnose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] if line.startswith("camera") else line.split()[1] for line in lines] == [
        "installed", "found", "settings", "image", "installed", "connected", "bus", "installed", "connected",
    ]  # fmt: skip
    assert "48 x 32" in lines[3] and "a simulated PLC wrote a recipe and a trigger" in lines[6]
    assert "DOES NOT WORK" not in "".join(lines)
    assert sorted(station.parent.rglob("*")) == before


def test_a_camera_that_fails_and_a_port_in_use_are_named(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pymodbus")
    (station.parent / "images" / "a.png").unlink()
    port = read_station(station).sinks["modbus"]._settings.port  # type: ignore[attr-defined]
    with socket.create_server(("127.0.0.1", port)):
        assert run(["station", str(station), "--diagnose"]) == 1
    out = capsys.readouterr().out
    assert out.count("DOES NOT WORK") == 2 and f"cannot listen at 127.0.0.1:{port}" in out


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0"])
def test_a_server_is_tried_at_its_own_address(station: Path, capsys: pytest.CaptureFixture[str], host: str) -> None:
    pytest.importorskip("pymodbus")
    station.write_text(station.read_text().replace("kind: modbus", f"kind: modbus, host: {host}"))
    assert run(["station", str(station), "--diagnose"]) == 0
    assert f"it listens at {host}:" in capsys.readouterr().out


def test_a_sink_that_breaks_is_a_step_that_does_not_work(station: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = read_station(station).sinks["modbus"]

    async def run_badly(line: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(sink, "run", run_badly)
    assert try_sink(sink, [3])[-1] == ("connected", False, "no such thing")


def test_no_part_passes_in_a_rehearsal(station: Path) -> None:
    """A real PLC may be connected while the handshake is rehearsed."""
    pytest.importorskip("pymodbus")
    sink = read_station(station).sinks["modbus"]

    async def rehearse() -> list[dict[str, Any]]:
        running = asyncio.create_task(sink.run(RehearsalLine(sink)))
        plc = SimulatedPlc("127.0.0.1", sink._settings.port)  # type: ignore[attr-defined]
        await plc.connect()
        await plc.prepare(3)
        results = [await plc.inspect(f"SN-{number}") for number in range(3)]
        plc.close()
        running.cancel()
        return results

    for result in asyncio.run(rehearse()):
        assert (result["pass"], result["reject"], result["evaluation"]) == (False, True, 3)


def test_a_running_station_says_the_same_without_a_trigger(station: Path) -> None:
    class Running:
        def __init__(self, answer: Any) -> None:
            self.station, self.answer = read_station(station), answer

        async def ask_worker(self, command: str, *values: Any) -> Any:
            assert (command, values) == ("diagnose", ())
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        def health(self) -> dict[str, Any]:
            return {
                "sinks": {
                    "modbus": {"ok": False, "detail": "the PLC's heartbeat is missing"},
                    "files": {"ok": True, "detail": "", "backlog": 3},
                }
            }

    found = asyncio.run(diagnosis_of(Running({"top": []})))
    assert [(one["step"], one["ok"]) for one in found["sinks"]["files"]] == [
        ("installed", True), ("connected", True), ("delivered", False),
    ]  # fmt: skip
    assert found["sinks"]["modbus"][1]["detail"] == "the PLC's heartbeat is missing"
    gone = asyncio.run(diagnosis_of(Running(SinkError("the worker is not there"))))
    assert gone["cameras"]["top"] == [{"step": "installed", "ok": None, "detail": "the worker is not there"}]
