"""T1: 500 triggers over Modbus with two cameras, 200 of them by a foreign PLC: the right parts, all numbers in order."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.plc import SimulatedPlc

from tests.line.components import NPM_FOLDER, need, path_of
from tests.ports import free_port
from tests.stations import CYCLE, EVALUATIONS, rows_of, run, teach, until, write_images, write_station

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]
FOREIGN, OWN = 200, 300
MAX_ANSWER_P99 = 0.010
"""Seconds, beside a working engine."""


def test_t1_500_triggers_with_two_cameras(tiny_model: Path, tmp_path: Path) -> None:
    need("pylon", "node", "modbus-serial")
    teach(tiny_model, tmp_path / "bank")
    write_images(tmp_path / "images")
    port = free_port()
    camera = "{kind: pylon, emulated: images, format: BGR8Packed}"
    path = write_station(
        tmp_path,
        tiny_model,
        f"  top: {camera}\n  side: {{kind: folder, path: images}}",
        f"  - {{kind: modbus, port: {port}}}",
        "deadline_ms: 5000",
    )
    foreign: list[dict[str, int]] = []
    own: list[dict[str, object]] = []
    answers: list[float] = []

    async def watch(plc: SimulatedPlc) -> None:
        while True:
            start = time.perf_counter()
            await plc.read()
            answers.append(time.perf_counter() - start)
            await asyncio.sleep(0.01)

    async def play(front: Front) -> None:
        reader = SimulatedPlc("127.0.0.1", port)
        await reader.connect()
        await until(lambda: front.state.ready)
        watching = asyncio.ensure_future(watch(reader))
        environment = {**os.environ, "NODE_PATH": str(NPM_FOLDER / "node_modules")}
        script = str(Path(__file__).with_name("modbus_client.js"))
        process = await asyncio.create_subprocess_exec(
            str(path_of("node")), script, str(port), str(FOREIGN), env=environment, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        foreign.extend(json.loads(line) for line in out.splitlines())
        plc = SimulatedPlc("127.0.0.1", port)
        await plc.connect()
        own.extend([await plc.inspect(f"SN-{number}", seconds=10) for number in range(FOREIGN + 1, FOREIGN + OWN + 1)])
        watching.cancel()
        plc.close()
        reader.close()

    run(path, play, 600)
    count = FOREIGN + OWN
    expected = [EVALUATIONS[number % len(CYCLE)] for number in range(count)]
    assert [r["inspection"] for r in foreign] == list(range(1, FOREIGN + 1))
    assert [r["sequence"] for r in foreign] == [r["acquisition"] for r in foreign] == list(range(1, FOREIGN + 1))
    assert [r["evaluation"] for r in foreign] == expected[:FOREIGN]
    assert all(r["pass"] != r["reject"] and r["pass"] == (r["evaluation"] == 1) and r["recipe"] == 7 for r in foreign)
    assert [r["inspection"] for r in own] == list(range(FOREIGN + 1, count + 1))
    assert [r["evaluation"] for r in own] == expected[FOREIGN:]
    rows = rows_of(path)
    assert [row["id"] for row in rows] == list(range(1, count + 1))
    assert [row["part"] for row in rows] == [f"SN-{number}" for number in range(1, count + 1)]
    assert [row["evaluation"] for row in rows] == expected
    for row in rows:  # both cameras saw the same part, to the last bit of its score
        top, side = json.loads(row["cameras"])["top"], json.loads(row["cameras"])["side"]
        assert top["score"] == side["score"]
    p99 = float(np.percentile(answers, 99))
    logging.getLogger("tests.line").warning(
        f"T1: {count} parts; Modbus answers: median {np.median(answers) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms of {len(answers)}"
    )
    assert len(answers) > count
