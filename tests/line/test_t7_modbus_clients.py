"""T7: other Modbus clients, malformed frames and idle connections leave the station as it is."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from pathlib import Path

import pytest
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.plc import SimulatedPlc
from visionad_runtime.station.sinks import modbus_map

from tests.line.components import need, path_of
from tests.ports import free_port
from tests.stations import run, teach, until, write_images, write_station

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]


async def mbpoll(*arguments: str) -> tuple[int, str]:
    """Run mbpoll once."""
    process = await asyncio.create_subprocess_exec(
        str(path_of("mbpoll")),
        "-m",
        "tcp",
        "-a",
        "1",
        "-0",
        "-1",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def test_t7_mbpoll_malformed_frames_and_idle_clients(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    need("mbpoll")
    caplog.set_level(logging.DEBUG)
    teach(tiny_model, tmp_path / "bank")
    write_images(tmp_path / "images")
    port = free_port()
    path = write_station(
        tmp_path,
        tiny_model,
        "  top: {kind: folder, path: images}",
        f"  - {{kind: modbus, port: {port}}}",
        "deadline_ms: 5000",
    )

    async def play(front: Front) -> None:
        await until(lambda: front.state.ready)
        plc = SimulatedPlc("127.0.0.1", port)
        await plc.connect()
        result = await plc.inspect("SN-1", 10)
        assert result["evaluation"] == 1
        read = {}
        for kind, origin in (("3", "0"), ("4", str(modbus_map.READ_ORIGIN))):
            status, out = await mbpoll(
                "-p", str(port), "-t", kind, "-r", origin, "-c", str(modbus_map.READ_COUNT), "127.0.0.1"
            )
            assert status == 0, out
            found = re.findall(r"^\[(\d+)\]:\s+(\d+)", out, re.MULTILINE)
            read[kind] = [int(value) for _, value in found]
            assert len(read[kind]) == modbus_map.READ_COUNT
        for registers in read.values():
            registers[1] = 0  # the heartbeat counts on between the two
        assert read["3"] == read["4"]
        decoded = modbus_map.decode(read["3"])
        assert decoded["map_version"] == 1 and decoded["ready"] and decoded["recipe"] == 7
        status, out = await mbpoll("-p", str(port), "-t", "4", "-r", str(modbus_map.READ_ORIGIN), "127.0.0.1", "5")
        assert status != 0 and "Illegal data address" in out  # status registers cannot be written

        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        dice = random.Random(3)
        before = sum(1 for _ in Path("/proc/self/fd").iterdir())
        lines = len(caplog.records)
        for number in range(1500):
            _, writer = idle[number % 100]
            try:
                writer.write(dice.randbytes(dice.randint(1, 260)))
                await writer.drain()
            except OSError:
                idle[number % 100] = await asyncio.open_connection("127.0.0.1", port)
        assert (await plc.inspect("SN-2", 10))["result_sequence"] == 2
        assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before + 110
        assert len(caplog.records) - lines < 60
        for _, writer in idle:
            writer.close()
        plc.close()

    run(path, play, 120)
