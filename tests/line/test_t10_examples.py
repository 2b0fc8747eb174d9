"""T10: the example packages, installed by pip and found by their entry point, against python-snap7's server and cpppo."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.data import ROOT
from tests.line.components import CPPPO_FOLDER, ended, need, wait_for_port
from tests.ports import free_port

STATION = """
import asyncio, json, sys
from tests.fakes.line import FakeLine
from visionad_runtime.station.sink import SINKS
kind, settings = sys.argv[1], json.loads(sys.argv[2])
assert kind in SINKS.kinds(), SINKS.kinds()
leaf = SINKS.load(kind)
async def work():
    line = FakeLine()
    sink = leaf("plc", leaf.Settings(kind=kind, **settings))
    assert sink.missing() is None
    line.sinks.append(sink)
    task = asyncio.create_task(sink.run(line))
    async with asyncio.timeout(30):
        while not sink.health()["ok"]:
            await asyncio.sleep(0.02)
    for command in iter(sys.stdin.readline, ""):
        if command.startswith("ack"):
            line.acknowledge()
        else:
            line.show(phase="ready", ready=True, prepared=True, recipe=1)
            line.trigger(17, command.strip())
        await asyncio.sleep(0.3)
        print("done", flush=True)
    task.cancel()
asyncio.run(work())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages, as pip installs them."""
    folder = tmp_path_factory.mktemp("site")
    packages = [str(ROOT / "examples" / name) for name in ("visionad-s7", "visionad-logix")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def start(site: Path, kind: str, settings: dict[str, Any]) -> subprocess.Popen[str]:
    paths = [str(site), str(ROOT), str(ROOT / "runtime")]
    return subprocess.Popen(
        [sys.executable, "-c", STATION, kind, json.dumps(settings)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def say(station: subprocess.Popen[str], word: str) -> None:
    assert station.stdin is not None and station.stdout is not None
    station.stdin.write(word + "\n")
    station.stdin.flush()
    assert station.stdout.readline() == "done\n"


def until(value: Any, expected: Any) -> None:
    end = time.monotonic() + 15
    while value() != expected:
        assert time.monotonic() < end, f"expected {expected}, got {value()}"
        time.sleep(0.05)


@pytest.mark.slow(group="line")
def test_s7_data_block(site: Path) -> None:
    need("snap7")
    from snap7 import Server, SrvArea

    server, block, port = Server(), bytearray(16), free_port()
    server.register_area(SrvArea.DB, 7, block)
    server.start(tcp_port=port)
    try:
        with ended(start(site, "s7", {"host": "127.0.0.1", "port": port, "block": 7})) as station:
            until(lambda: block[0], 8)  # reject, before the first result
            say(station, "good")
            until(lambda: struct.unpack(">BBhi", block[:8]), (2 | 4, 1, 17, 1))
            assert struct.unpack(">f", block[8:12])[0] == pytest.approx(0.2)
            say(station, "ack")
            until(lambda: block[0], 1 | 8)
            say(station, "bad")
            until(lambda: struct.unpack(">BBhi", block[:8]), (2 | 8, 2, 17, 2))
    finally:
        server.stop()


def test_logix_tags(site: Path) -> None:
    need("pylogix")
    need("cpppo")
    from pylogix import PLC

    port, names = free_port(), ("Inspection", "Sequence", "Evaluation", "Valid")
    tags = [f"Press_{name}=DINT" for name in names] + ["Press_Score=REAL"]
    command = [sys.executable, "-m", "cpppo.server.enip", "--address", f"127.0.0.1:{port}", *tags]
    environment = os.environ | {"PYTHONPATH": str(CPPPO_FOLDER)}
    with ended(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)) as server:
        wait_for_port(port, server, 30)
        settings = {"host": "127.0.0.1", "port": port, "prefix": "Press"}
        with ended(start(site, "logix", settings)) as station, PLC("127.0.0.1", port=port) as reader:

            def tag(name: str) -> Any:
                return reader.Read(f"Press_{name}").Value

            say(station, "bad")
            until(lambda: tag("Valid"), 1)
            assert [tag(name) for name in ("Inspection", "Sequence", "Evaluation")] == [1, 17, 2]
            assert tag("Score") == pytest.approx(0.457)
            say(station, "ack")
            until(lambda: tag("Valid"), 0)
