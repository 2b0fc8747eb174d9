"""A station with real processes: folder camera, Modbus and TCP on loopback, a worker that is killed and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import cv2
import pytest
from visionad_runtime import Inspector
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.front.record_start import start_records
from visionad_runtime.station.plc import SimulatedPlc
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.settings import read_station

from tests.data import part
from tests.ports import free_port
from tests.stations import rows_of, run, until

PARTS = {"00-good": part(20), "01-bad": part(21, defect=True), "02-good": part(22)}


@pytest.fixture
def station_file(tiny_model: Path, tmp_path: Path) -> Path:
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [part(number) for number in range(4)])
        inspector.confirm("disc", [part(number) for number in range(4, 13)])
    images = tmp_path / "images"
    images.mkdir()
    for name, image in PARTS.items():
        cv2.imwrite(str(images / f"{name}.png"), image)
    path = tmp_path / "station.yaml"
    path.write_text(
        f"""
station: press-3
model: {tiny_model}
bank: bank
deadline_ms: 2000
ack_ms: 500
cameras: {{top: {{kind: folder, path: images}}}}
recipes: {{7: {{name: disc, class: disc}}}}
sinks:
  - {{kind: modbus, port: {free_port()}}}
  - {{kind: tcp, port: {free_port()}}}
archive: {{folder: archive, keep: {{not_ok: all, ok: none}}, min_free_gb: 0}}
"""
    )
    return path


def port_of(path: Path, name: str) -> int:
    return int(read_station(path).sinks[name]._settings.port)  # type: ignore[attr-defined]


def test_parts_are_judged_over_modbus(station_file: Path) -> None:
    results = []

    async def play(front: Front) -> None:
        plc = SimulatedPlc("127.0.0.1", port_of(station_file, "modbus"))
        await plc.connect()
        results.extend([await plc.inspect(f"SN-{number:04}") for number in range(9)])
        plc.close()

    run(station_file, play)
    assert [r["inspection"] for r in results] == list(range(1, 10))
    assert [r["result_sequence"] for r in results] == list(range(1, 10))
    assert [r["evaluation"] for r in results] == [1, 2, 1] * 3
    assert all(r["pass"] != r["reject"] and r["pass"] == (r["evaluation"] == 1) for r in results)
    assert all(r["simulated"] and r["result_recipe"] == 7 and r["map_version"] == 1 for r in results)
    rows = rows_of(station_file)
    assert [row["part"] for row in rows] == [f"SN-{number:04}" for number in range(9)]
    assert [row["evaluation"] for row in rows] == [1, 2, 1] * 3
    assert [row["score"] for row in rows] == pytest.approx([r["score"] for r in results], rel=1e-6)
    archived = sorted((station_file.parent / "archive").rglob("*.png"))
    assert [path.name for path in archived] == [f"{n:010d}-not-ok-top.png" for n in (2, 5, 8)]
    assert (cv2.imread(str(archived[0])) == PARTS["01-bad"]).all()


def test_plain_text(station_file: Path) -> None:
    answers = []

    async def play(front: Front) -> None:
        await until(lambda: front.state.ready)
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(station_file, "tcp"))
        for line in (
            "STATE\r\n", "TRIGGER 17 SN-0001\r", "TRIGGER 18\n", "ACK 18\r\n", "ACK 18\r\n", "RECIPE 9\n", "RECIPE 7\n", "hello\n"
        ):  # fmt: skip
            writer.write(line.encode())
            answers.append((await asyncio.wait_for(reader.readline(), 10)).decode().strip())
        writer.close()

    run(station_file, play)
    assert answers[0] == "STATE ready 1 7 0 0"
    assert answers[1].startswith("RESULT 17 1 ") and answers[1].endswith(" 7 disc SN-0001")
    assert answers[2].startswith("RESULT 18 2 ")
    assert answers[3] == "ACK 18"
    assert answers[4].startswith("ERROR 4 ")
    assert answers[5] == "ERROR 3 there is no recipe 9; the station has 7"
    assert answers[6] == "RECIPE 7"
    assert answers[7].startswith("ERROR 1 ")


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_costs_no_result(station_file: Path, blow: signal.Signals) -> None:
    text = station_file.read_text().replace("kind: folder, path: images", "kind: folder, path: images, delay_ms: 300")
    station_file.write_text(text)
    results = []

    async def play(front: Front) -> None:
        plc = SimulatedPlc("127.0.0.1", port_of(station_file, "modbus"))
        await plc.connect()
        await until(lambda: front.state.ready)
        first = front.worker_pid
        assert first is not None
        asyncio.get_running_loop().call_later(0.15, os.kill, first, blow)
        results.append(await plc.inspect("SN-1"))
        await until(lambda: front.state.phase == "fault")
        await until(lambda: front.state.ready)  # by itself
        assert front.worker_pid != first
        results.append(await plc.inspect("SN-2"))
        plc.close()

    run(station_file, play)
    assert results[0]["evaluation"] == 3 and results[0]["reject"] and not results[0]["pass"]
    assert results[0]["milliseconds"] <= 2100
    assert results[1]["evaluation"] == 1
    assert [row["part"] for row in rows_of(station_file)] == ["SN-1", "SN-2"]


def test_a_trigger_that_is_not_accepted_is_counted(station_file: Path) -> None:
    async def play(front: Front) -> None:
        assert front.trigger(1, "too early") is None
        await until(lambda: front.state.ready)
        assert front.trigger(2, "page has no control", "page") is None
        number = front.trigger(3, "right")
        assert number is not None
        assert front.trigger(4, "busy") is None
        await until(lambda: front.state.offered is not None)
        assert front.state.missed == 3
        await until(lambda: front.state.overrun == 1)  # not acknowledged in time
        assert front.state.ready and front.state.waiting == 1
        assert front.acknowledge(number) and front.state.waiting == 0
        front.clear_fault()
        assert (front.state.missed, front.state.overrun) == (0, 0)

    run(station_file, play)
    assert [row["part"] for row in rows_of(station_file)] == ["right"]


def test_a_camera_that_runs_freely_starts_the_cycle(station_file: Path) -> None:
    text = station_file.read_text().replace("path: images", "path: images, interval_ms: 150")
    station_file.write_text(text + "trigger: free\n")
    seen = []

    async def play(front: Front) -> None:
        await until(lambda: front.state.ready)
        assert front.trigger(1, "no trigger is asked for") is None
        while len(seen) < 6:
            await until(lambda: front.state.offered is not None)
            offered = front.state.offered
            assert offered is not None
            seen.append(offered)
            front.acknowledge(offered.id)

    run(station_file, play)
    names = [Path(one.cameras["top"]["image"]).stem for one in seen]
    assert [one.evaluation for one in seen] == [2 if "bad" in name else 1 for name in names]  # each part its own image
    assert {"00-good", "01-bad", "02-good"} == set(names)


def test_a_recipe_with_a_pinned_version_is_judged_by_that_version(station_file: Path) -> None:
    station_file.write_text(station_file.read_text().replace("class: disc}", "class: disc, bank_version: 1}"))
    results = []

    async def play(front: Front) -> None:
        await until(lambda: front.state.ready)
        number = front.trigger(5, "SN-5")
        await until(lambda: front.state.offered is not None)
        results.append((number, front.state.offered))

    run(station_file, play)
    ((number, offered),) = results
    assert offered is not None and (offered.id, offered.bank_version, offered.evaluation) == (number, 1, 1)
    assert offered.cameras["top"]["promise"]["normals"] == 4  # before the confirmed parts


def test_records_that_turn_out_damaged_at_the_start_are_one_line(
    station_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Records, limit: int) -> object:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    monkeypatch.setattr(Records, "audit_rows", broken)
    front = Front(read_station(station_file))
    with pytest.raises(VisionADError, match="are damaged: database disk image is malformed; put the file aside"):
        asyncio.run(front.run())
    monkeypatch.undo()
    started = start_records(station_file.parent / "records.sqlite")  # it was let go
    started.records.close()
    started.unlock()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_end_of_the_terminal_stops_after_the_part_in_hand(station_file: Path) -> None:
    text = station_file.read_text().replace("kind: folder, path: images", "kind: folder, path: images, delay_ms: 300")
    station_file.write_text(text)
    code = "from visionad_runtime.cli.entry import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "station", str(station_file)], stdout=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )  # fmt: skip
    try:
        line = connected(port_of(station_file, "tcp"))
        with line, line.makefile("rw") as words:
            deadline = time.monotonic() + 60
            while asked(words, "STATE").split()[1:3] != ["ready", "1"]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            words.write("TRIGGER 1 SN-1\n")
            words.flush()
            time.sleep(0.1)
            os.killpg(process.pid, signal.SIGHUP)  # all processes of the terminal get it
            assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    ((part, evaluation),) = [(row["part"], row["evaluation"]) for row in rows_of(station_file)]
    assert (part, evaluation) == ("SN-1", 1)


def connected(port: int, seconds: float = 60.0) -> socket.socket:
    """Return a connection to a server, once it listens."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=seconds)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def asked(words: TextIO, command: str) -> str:
    """Return the answer to a command of the TCP sink."""
    words.write(f"{command}\n")
    words.flush()
    return words.readline()
