"""T2: the worker is killed or stopped at random moments: each acknowledged trigger has its result in time, never a false pass."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.plc import SimulatedPlc

from tests.ports import free_port
from tests.stations import CYCLE, EVALUATIONS, rows_of, run, teach, until, write_images, write_station

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]
BLOWS = int(os.environ.get("VISIONAD_LINE_BLOWS", "10"))
"""Random moments; `make test-line` takes 50."""
DEADLINE_MS = 1500


def test_t2_worker_killed_or_stopped_at_random_moments(tiny_model: Path, tmp_path: Path) -> None:
    teach(tiny_model, tmp_path / "bank")
    write_images(tmp_path / "images")
    port = free_port()
    path = write_station(
        tmp_path,
        tiny_model,
        "  top: {kind: folder, path: images, delay_ms: 40}",
        f"  - {{kind: modbus, port: {port}}}",
        f"deadline_ms: {DEADLINE_MS}\nack_ms: 300",
    )
    dice = random.Random(7)
    results: list[dict[str, Any]] = []
    shown: list[int] = []  # place of the camera's first image after each start

    async def play(front: Front) -> None:
        plc = SimulatedPlc("127.0.0.1", port)
        await plc.connect()
        for number in range(BLOWS):
            await until(lambda: front.state.ready)
            pid = front.worker_pid
            assert pid is not None
            blow = dice.choice((signal.SIGKILL, signal.SIGSTOP))
            asyncio.get_running_loop().call_later(dice.uniform(0, 0.12), os.kill, pid, blow)
            for _ in range(3):
                try:
                    results.append(await plc.inspect(f"SN-{number}", seconds=DEADLINE_MS / 1e3 + 1))
                except VisionADError as exc:
                    assert "no ready" in str(exc)
                    break
            await until(lambda pid=pid: front.worker_pid != pid and front.state.ready, 90)
        plc.close()
        shown.append(1)

    run(path, play, 900)
    assert shown
    rows = rows_of(path)
    assert len(rows) == len(results) == len({r["inspection"] for r in results})
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(r["pass"] != r["reject"] and r["pass"] == (r["evaluation"] == 1) for r in results)
    assert all(row["latency_ms"] <= DEADLINE_MS + 100 for row in rows)
    assert any(row["evaluation"] == 3 for row in rows)
    for row in rows:  # a decided part has the verdict of the image that its camera took
        if row["evaluation"] in (1, 2):
            name = Path(json.loads(row["cameras"])["top"]["image"]).stem
            assert row["evaluation"] == EVALUATIONS[int(name) % len(CYCLE)]
    logging.getLogger("tests.line").warning(
        f"T2: {BLOWS} blows, {len(rows)} parts, {sum(row['evaluation'] == 3 for row in rows)} not decidable"
    )
