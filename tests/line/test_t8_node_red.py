"""T8: Node-RED with the flow of ``examples/node-red`` as PLC (Modbus) and MES (webhook), over 100 cycles."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime.station.front.front import Front

from tests.data import ROOT
from tests.line.components import NPM_FOLDER, need, note, path_of
from tests.ports import free_port
from tests.stations import CYCLE, EVALUATIONS, rows_of, run, teach, until, write_images, write_station

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]
FLOW = ROOT / "examples" / "node-red" / "flow.json"
PARTS = 100
PAUSE_SECONDS = 2.5
"""Longer than the time-out of the flow's Modbus client."""


def test_the_flow_is_one_that_node_red_loads() -> None:
    flow = json.loads(FLOW.read_text("utf-8"))
    ids = {node["id"] for node in flow}
    assert len(ids) == len(flow)
    for node in flow:
        assert {target for wires in node.get("wires", []) for target in wires} <= ids
        # Without a position, Node-RED takes a node for a configuration, and does not run it.
        assert node["type"] in ("tab", "modbus-client") or (isinstance(node["x"], int) and isinstance(node["y"], int))


RUN_HANDSHAKE = """
const flow = JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"));
const code = flow.find((node) => node.id === "handshake").func, kept = {};
const handshake = new Function("msg", "context", "env", "node", "Buffer", code);
const context = { get: (name) => kept[name], set: (name, value) => { kept[name] = value; } };
const env = { get: (name) => process.env[name] }, node = { status() {} };
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  process.stdout.write(JSON.stringify(handshake({ payload: JSON.parse(line) }, context, env, node, Buffer)) + "\\n");
});
"""
"""Answers each line of registers with what the flow's function ``handshake`` sends."""


@pytest.mark.parametrize("seed", [0, 1])
def test_the_flow_recovers_from_lost_requests_missed_triggers_and_results_that_nobody_took(
    tiny_model: Path, tmp_path: Path, seed: int
) -> None:
    """A client that times out loses a request, or its answer. The station shows the oldest result until it is acknowledged.

    It misses a trigger if it is not ready any more once that comes, such as for a worker that did not answer in time.
    """
    need("node-red")
    from pymodbus.client import AsyncModbusTcpClient

    teach(tiny_model, tmp_path / "bank")
    write_images(tmp_path / "images")
    modbus_port, count, stale = free_port(), 15, 2
    path = write_station(
        tmp_path,
        tiny_model,
        "  top: {kind: folder, path: images}",
        f"  - {{kind: modbus, port: {modbus_port}}}",
        "deadline_ms: 4000\nack_ms: 100",
    )
    rng, results, lost, missed = random.Random(seed), [], 0, 0

    async def play(front: Front) -> None:
        nonlocal lost, missed
        for number in range(stale):
            await until(lambda: front.state.ready)
            assert front.trigger(1, f"given up {number}") is not None
            await until(lambda number=number: front.state.waiting > number)
        client = AsyncModbusTcpClient("127.0.0.1", port=modbus_port)
        assert await client.connect()
        process = await asyncio.create_subprocess_exec(
            str(path_of("node")), "-e", RUN_HANDSHAKE, str(FLOW),
            env={**os.environ, "VISIONAD_PARTS": str(count)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + 60
        while len(results) < count or front.state.waiting:
            assert time.monotonic() < deadline, (results, front.state)
            await asyncio.sleep(0.005)
            read = await client.read_input_registers(0, count=17, device_id=1)
            if rng.random() < 0.1:
                lost += 1
                continue
            process.stdin.write(json.dumps(read.registers).encode() + b"\n")
            write, _, result = json.loads(await process.stdout.readline())
            if result is not None:
                results.append(result["payload"])
            if write is not None and rng.random() < 0.3:
                lost += 1
            elif write is not None:
                trigger = write["payload"]["value"][0] & 2
                if trigger and (missed < 2 or rng.random() < 0.3):  # how often it asks depends on time
                    missed += 1
                    front._cycle.worker_alive(False)  # until its next ping
                await client.write_registers(write["payload"]["address"], write["payload"]["value"], device_id=1)
        client.close()
        process.stdin.close()
        await process.wait()

    run(path, play, 120)
    assert lost > 10 and missed > 1
    rows = rows_of(path)[stale:]
    assert [row["part"] for row in rows] == [one["part"] for one in results] == [f"SN-{n}" for n in range(1, count + 1)]
    expected = [EVALUATIONS[(stale + number) % len(CYCLE)] for number in range(count)]
    assert [one["evaluation"] for one in results] == expected == [row["evaluation"] for row in rows]
    assert [one["good"] for one in results] == [evaluation == 1 for evaluation in expected]
    assert [one["inspection"] for one in results] == [row["id"] for row in rows]


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
                await until(lambda: len(lines_of(folder / "plc.jsonl")) >= PARTS // 2, 120)
                process.send_signal(signal.SIGSTOP)  # its client times out, and opens another connection
                await asyncio.sleep(PAUSE_SECONDS)
                process.send_signal(signal.SIGCONT)
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
    note("T8", {"cycles": PARTS, "seconds": round(seconds, 1), "paused_s": PAUSE_SECONDS})
