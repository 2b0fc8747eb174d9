"""The worker beside the line's parts: what it answers, and what it tells the front without being asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime import Inspector
from visionad_runtime.station.settings import read_station
from visionad_runtime.station.worker.worker import Worker

from tests.data import part
from tests.stations import teach, write_images, write_station


class Pipe:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    write_images(tmp_path / "parts")
    teach(tiny_model, tmp_path / "bank")
    cameras = "  top: {kind: folder, path: parts, loop: true}"
    write_station(tmp_path, tiny_model, cameras, "  - {kind: tcp, port: 1}")
    return tmp_path


@pytest.fixture
def worker(folder: Path) -> Iterator[tuple[Worker, Pipe]]:
    pipe: Any = Pipe()
    opened = Worker(pipe, read_station(folder / "station.yaml"))
    yield opened, pipe
    opened.close()


def test_a_new_bank_is_told_whatever_notices_it(worker: tuple[Worker, Pipe], folder: Path, tiny_model: Path) -> None:
    """Else /metrics, /health and /classes name the bank before, until another one comes."""
    opened, pipe = worker
    opened._inspect_upload("inspect", 1, part(50), "disc", "a.png")
    with Inspector.open(tiny_model, folder / "bank", threads=1) as inspector:
        version = inspector.enroll("disc", [part(51)])
        assert inspector.bank is not None
        digest = inspector.bank.snapshot.digest
    assert [message[0] for message in pipe.sent] == ["answered"]
    opened._inspect_upload("inspect", 2, part(50), "disc", "a.png")
    told = [message[1] for message in pipe.sent if message[0] == "bank"]
    assert [(one["bank_version"], one["bank_digest"]) for one in told] == [(version, digest)]
    facts, (anomaly_map,) = pipe.sent[-1][2]
    assert (facts["bank"], len(anomaly_map)) == (digest, 4 * 256 * 256)
    assert set(told[0]["thresholds"]) == set(told[0]["classes"]) == {"disc"}
    assert told[0]["thresholds"]["disc"] == facts["threshold"] is not None
