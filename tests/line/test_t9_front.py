"""T9: the front is killed while it delivers its records: a broker gets each at least once, in order, and a file exactly once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime.station.front.cycle import Job
from visionad_runtime.station.records.records import Records

from tests.data import ROOT
from tests.fakes.line import outcome
from tests.line.components import ended, need
from tests.line.test_t9_mqtt import TOPIC, Broker, Mes, first_seen

FRONT = """
import asyncio, sys
from pathlib import Path
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.settings import read_station
if __name__ == "__main__":
    asyncio.run(Front(read_station(Path(sys.argv[1]))).run())
"""
RECORDS = 200


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    need("paho", "mosquitto", "yaml")
    one = Broker(tmp_path, "persistence true\nmax_queued_messages 0\n")
    one.start()
    assert one.process is not None
    with ended(one.process):
        yield one


@pytest.mark.slow(group="line")
def test_a_killed_front_delivers_each_record(tmp_path: Path, broker: Broker) -> None:
    folder = tmp_path / "station"
    (folder / "images").mkdir(parents=True)
    # There is no model: records are delivered whatever state the worker is in.
    (folder / "station.yaml").write_text(
        "station: press-3\nmodel: model\nbank: bank\nrecords: records.sqlite\n"
        "cameras: {top: {kind: folder, path: images}}\nrecipes: {1: {name: gear, class: gear}}\n"
        f"sinks:\n  - {{kind: mqtt, host: 127.0.0.1, port: {broker.port}, topic: {TOPIC}, reconnect_max_s: 1}}\n"
        "  - {kind: files, folder: out, format: jsonl}\n"
    )
    (folder / "front.py").write_text(FRONT)
    records = Records(folder / "records.sqlite")
    records.complete([outcome(number, f"SN-{number}") for number in range(1, RECORDS + 1)])
    in_hand = outcome(RECORDS + 1, "in-hand")
    records.accept(Job(in_hand.id, 1, in_hand.part, 1, 0.0, 0.0, in_hand.time_utc))
    records.close()
    expected = list(range(1, RECORDS + 2))
    mes = Mes(broker.port, f"{TOPIC}/result")

    def written() -> list[int]:
        lines = [
            line for path in sorted((folder / "out").glob("*.jsonl")) for line in path.read_bytes().splitlines(True)
        ]
        return [json.loads(line)["id"] for line in lines if line.endswith(b"\n")]

    try:
        for _ in range(4):  # each run is killed after some records
            seen = len(set(mes.ids()))
            process = start(folder)
            with ended(process):
                wait(lambda seen=seen: len(set(mes.ids())) > seen + 20 or len(set(mes.ids())) == len(expected))
                process.kill()
                process.wait()
        with ended(start(folder)):
            wait(lambda: set(mes.ids()) == set(expected) and len(written()) == len(expected))
    finally:
        mes.close()
    assert first_seen(mes.ids()) == expected
    assert written() == expected
    last = next(payload for _, payload, _ in reversed(mes.got) if payload["id"] == RECORDS + 1)
    assert (last["part"], last["evaluation"]) == ("in-hand", 3)


def start(folder: Path) -> subprocess.Popen[bytes]:
    log = (folder / "log").open("ab")
    return subprocess.Popen(
        [sys.executable, folder / "front.py", folder / "station.yaml"], cwd=ROOT, stdout=log, stderr=log
    )


def wait(true: object, seconds: float = 40) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_the_broker_has_the_state_of_the_front(tmp_path: Path, broker: Broker) -> None:
    folder = tmp_path / "station"
    (folder / "images").mkdir(parents=True)
    (folder / "station.yaml").write_text(
        "station: press-3\nmodel: model\nbank: bank\n"
        "cameras: {top: {kind: folder, path: images}}\nrecipes: {1: {name: gear, class: gear}}\n"
        f"sinks:\n  - {{kind: mqtt, host: 127.0.0.1, port: {broker.port}, topic: {TOPIC}, reconnect_max_s: 1}}\n"
    )
    (folder / "front.py").write_text(FRONT)
    mes = Mes(broker.port, f"{TOPIC}/state")
    try:
        with ended(start(folder)) as process:
            # The worker finds no model. The state says so, and not only that the station is online.
            wait(lambda: any(state.get("fault") for state in mes.states()))
            process.terminate()
            wait(lambda: mes.states()[-1] == {"online": False, "station": "press-3"})
            assert process.wait(20) == 0
    finally:
        mes.close()
