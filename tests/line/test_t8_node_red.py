"""T8: Node-RED with the flow of ``examples/node-red`` as PLC (Modbus) and MES (webhook), over 100 cycles."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime.station.front.front import Front

from tests.data import ROOT
from tests.line.components import NPM_FOLDER, free_port, need, path_of
from tests.stations import CYCLE, EVALUATIONS, rows_of, run, teach, until, write_images, write_station

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]
FLOW = ROOT / "examples" / "node-red" / "flow.json"
PARTS = 100


def test_the_flow_is_one_that_node_red_loads() -> None:
    flow = json.loads(FLOW.read_text("utf-8"))
    ids = {node["id"] for node in flow}
    assert len(ids) == len(flow)
    for node in flow:
        assert {target for wires in node.get("wires", []) for target in wires} <= ids
        # Without a position, Node-RED takes a node for a configuration, and does not run it.
        assert node["type"] in ("tab", "modbus-client") or (isinstance(node["x"], int) and isinstance(node["y"], int))


def write_workplace(folder: Path, modbus_port: int, port: int) -> None:
    """Write Node-RED's folder: the shipped flow with another port, and settings without telemetry."""
    folder.mkdir()
    flow = json.loads(FLOW.read_text("utf-8"))
    (client,) = (node for node in flow if node["type"] == "modbus-client")
    client["tcpPort"] = str(modbus_port)
    (folder / "flow.json").write_text(json.dumps(flow))
    settings = {
        "uiHost": "127.0.0.1",
        "uiPort": port,
        "flowFile": "flow.json",
        "fileWorkingDirectory": str(folder),
        "telemetry": {"enabled": False, "updateNotification": False},
        "disableEditor": True,
        "externalModules": {"autoInstall": False, "palette": {"allowInstall": False}},
    }
    (folder / "settings.js").write_text(f"module.exports = {json.dumps(settings)};\n")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file of JSON lines."""
    raw = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in raw.splitlines(True) if line.endswith(b"\n")]


def test_t8_node_red_is_plc_and_mes(tiny_model: Path, tmp_path: Path) -> None:
    if os.environ.get("VISIONAD_TEST_NODE_RED") != "1":
        pytest.skip("Node-RED's Modbus client stalls on a loaded machine; `make test-line` runs it")
    need("node-red", "node-red-contrib-modbus")
    teach(tiny_model, tmp_path / "bank")
    write_images(tmp_path / "images")
    modbus_port, port, folder = free_port(), free_port(), tmp_path / "node-red"
    write_workplace(folder, modbus_port, port)
    path = write_station(
        tmp_path,
        tiny_model,
        "  top: {kind: folder, path: images}",
        f"  - {{kind: modbus, port: {modbus_port}, heartbeat_s: 10}}\n"
        f"  - {{kind: webhook, url: 'http://127.0.0.1:{port}/visionad/results'}}",
        "deadline_ms: 4000",
    )
    seconds = 0.0

    async def play(front: Front) -> None:
        nonlocal seconds
        await until(lambda: front.state.phase not in ("starting", "fault"))
        program = str(NPM_FOLDER / "node_modules" / "node-red" / "red.js")
        environment = {**os.environ, "VISIONAD_PARTS": str(PARTS)}
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                str(path_of("node")), program, "--userDir", str(folder), env=environment, stdout=log, stderr=log
            )
        try:
            try:
                await until(lambda: lines_of(folder / "plc.jsonl"), 90)
            except AssertionError:
                pytest.fail((folder / "log").read_text())
            start = time.monotonic()
            try:
                for name in ("mes.jsonl", "plc.jsonl"):
                    await until(lambda name=name: len(lines_of(folder / name)) >= PARTS, 240)
            except AssertionError:
                counts = [len(lines_of(folder / name)) for name in ("plc.jsonl", "mes.jsonl")]
                pytest.fail(f"PLC and MES have {counts} of {PARTS}; {front.health()}; {(folder / 'log').read_text()}")
            seconds = time.monotonic() - start
            await asyncio.sleep(0.3)  # more than 100 would show
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), 10)
                except TimeoutError:
                    process.kill()
                    await process.wait()

    run(path, play, 420)
    expected = [EVALUATIONS[number % len(CYCLE)] for number in range(PARTS)]
    parts = [f"SN-{number}" for number in range(1, PARTS + 1)]
    plc, mes, rows = lines_of(folder / "plc.jsonl"), lines_of(folder / "mes.jsonl"), rows_of(path)
    for name, got in (("PLC", plc), ("MES", mes), ("records", rows)):
        assert [row["part"] for row in got] == parts, name
    assert [r["evaluation"] for r in plc] == [r["evaluation"] for r in mes] == expected
    assert [r["good"] for r in plc] == [evaluation == 1 for evaluation in expected]
    assert [r["inspection"] for r in plc] == [r["id"] for r in mes] == list(range(1, PARTS + 1))
    assert [r["sequence"] for r in plc] == list(range(1, PARTS + 1))
    logging.getLogger("tests.line").warning(f"T8: {PARTS} cycles with Node-RED in {seconds:.1f} s")
