"""T6: one client of OPC 40100-1 does job after job, encrypted, for VISIONAD_LINE_SOAK_S seconds: memory of the front stays flat."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.line.components import note
from tests.line.test_t6_opcua import Events, Vision, need_server
from tests.line.test_t6_opcua_secured import PASSWORD, make_certificate, secured
from tests.ports import free_port
from tests.stations import CYCLE, EVALUATIONS, rows_of, teach, write_images, write_station

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]
SECONDS = float(os.environ.get("VISIONAD_LINE_SOAK_S", "10"))
SAMPLES = 40
FLAT_FROM_S = 120
"""In a shorter run memory is still warming up."""
MAX_GROWTH = 1.05
COMMAND = "from visionad_runtime.cli.entry import main; main()"


def usage(pid: int) -> dict[str, float]:
    """Return memory, open files and threads of a process (Linux)."""
    words = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"rss_mb": int(words["VmRSS"].split()[0]) * 1024 / 1e6, "files": files, "threads": int(words["Threads"])}


async def connect(address: str, folder: Path) -> Any:
    """Connect with a password, encrypted, as soon as the station listens."""
    from asyncua import Client

    deadline = time.monotonic() + 90
    while True:
        client = Client(address, timeout=15)
        client.application_uri = "urn:plant:plc"
        client.set_user("plc")
        client.set_password(PASSWORD)
        files = f"{folder}/plc.der,{folder}/plc.pem,{folder}/station.der"
        await client.set_security_string(f"Basic256Sha256,SignAndEncrypt,{files}")
        try:
            await client.connect()
            await client.load_data_type_definitions()
            return client
        except (OSError, TimeoutError):
            assert time.monotonic() < deadline, "the station does not listen"
            with suppress(Exception):
                await client.disconnect()
            await asyncio.sleep(0.5)


def test_t6_memory_stays_flat_over_job_after_job(tiny_model: Path, tmp_path: Path) -> None:
    need_server()
    files = secured(tmp_path)
    make_certificate(tmp_path, "plc", "urn:plant:plc")
    teach(tiny_model, tmp_path / "bank")
    write_images(tmp_path / "images")
    port = free_port()
    own = ", ".join(f"{name}: {path}" for name, path in files.items())
    sink = f"  - {{kind: opcua, port: {port}, auto_acknowledge: true, {own}}}"
    path = write_station(tmp_path, tiny_model, "  top: {kind: folder, path: images}", sink, "deadline_ms: 8000")
    samples: list[dict[str, float]] = []
    waits: list[float] = []
    events = Events()

    async def play(pid: int) -> None:
        from asyncua import ua

        client = await connect(f"opc.tcp://127.0.0.1:{port}", tmp_path)
        try:
            vision = await Vision.of(client)
            subscription = await client.create_subscription(20, events)
            await subscription.subscribe_events(vision.system, ua.NodeId(1024, vision.mv))
            start, number = time.monotonic(), 0
            while time.monotonic() < start + SECONDS:
                number += 1
                async with asyncio.timeout(60):
                    while (await vision.start(f"SN-{number}", ""))[1]:  # not ready yet
                        await asyncio.sleep(0.01)
                    began = time.monotonic()
                    while len(events.got) < number:
                        await asyncio.sleep(0.002)
                waits.append((time.monotonic() - began) * 1e3)
                if number % 10 == 0:
                    of = ua.ResultIdDataType(Id=str(number))
                    found = await vision.call("ResultManagement/GetResultById", of, ua.Variant(0, ua.VariantType.Int32))
                    assert (found[1].PartId.Id, found[2]) == (f"SN-{number}", 0)
                if time.monotonic() > start + SECONDS * len(samples) / SAMPLES:
                    samples.append(usage(pid))
        finally:
            await client.disconnect()

    with subprocess.Popen([sys.executable, "-c", COMMAND, "station", str(path)], stdout=subprocess.DEVNULL) as process:
        try:
            asyncio.run(asyncio.wait_for(play(process.pid), SECONDS + 240))
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
    rows = rows_of(path)
    assert (
        [row["part"] for row in rows]
        == [event.PartId.Id for event in events.got]
        == [f"SN-{n + 1}" for n in range(len(rows))]
    )
    expected = [EVALUATIONS[number % len(CYCLE)] for number in range(len(rows))]
    assert [row["evaluation"] for row in rows] == [event.ResultContent[0].Value for event in events.got] == expected
    warm = samples[SAMPLES // 10 :]
    first, last = (
        {key: statistics.median(one[key] for one in part) for key in warm[0]} for part in (warm[:4], warm[-4:])
    )
    shown = {key: [round(first[key], 1), round(last[key], 1)] for key in first}
    p99 = sorted(waits)[int(0.99 * len(waits))]
    note("T6", {"seconds": SECONDS, "jobs": len(rows), "events": len(events.got), **shown,
                "event_ms": {"p50": round(statistics.median(waits), 1), "p99": round(p99, 1)}})  # fmt: skip
    assert last["files"] <= first["files"] and last["threads"] <= first["threads"], shown
    if SECONDS >= FLAT_FROM_S:
        assert last["rss_mb"] <= first["rss_mb"] * MAX_GROWTH, shown
