"""A simulated PLC: the station's Modbus handshake from the other side, for demos and tests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ..errors import VisionADError
from .sinks import modbus_map as registers

POLL_SECONDS = 0.002


class SimulatedPlc:
    """A PLC that triggers a station over Modbus TCP, one part after another.

    Args:
        host: of the station.
        port: of the station.
        say: told of each step of the handshake.
    """

    def __init__(self, host: str, port: int, say: Callable[[str], object] = lambda _: None) -> None:
        from pymodbus.client import AsyncModbusTcpClient

        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # it logs each attempt while the station starts
        self._client = AsyncModbusTcpClient(host, port=port, timeout=3)
        self._say = say
        self._control = 0
        self._heartbeat = 0
        self._sequence = 0

    async def connect(self, seconds: float = 30.0) -> None:
        """Connect, and set the bit ``enable``.

        Raises:
            VisionADError: The station does not listen in time.
        """
        deadline = time.monotonic() + seconds
        while not await self._client.connect():
            if time.monotonic() > deadline:
                raise VisionADError("the station does not listen; is it running?")
            await asyncio.sleep(0.1)
        await self._set("enable", True)

    async def read(self) -> dict[str, Any]:
        """Return the station's registers by name."""
        answer = await self._client.read_input_registers(0, count=registers.READ_COUNT, device_id=1)
        if answer.isError():
            raise VisionADError(f"the station answers {answer}")
        return registers.decode(answer.registers)

    async def wait(self, condition: Callable[[dict[str, Any]], bool], seconds: float, what: str) -> dict[str, Any]:
        """Poll until a condition holds.

        Raises:
            VisionADError: It does not hold in time: the PLC's own timer.
        """
        deadline = time.monotonic() + seconds
        while True:
            values = await self.read()
            if condition(values):
                return values
            if time.monotonic() > deadline:
                raise VisionADError(f"PLC: no {what} within {seconds:g} s; the part is rejected")
            await asyncio.sleep(POLL_SECONDS)

    async def prepare(self, recipe: int, seconds: float = 30.0) -> None:
        """Have a recipe prepared."""
        await self._write(2, [recipe])
        await self._set("prepare_recipe", True)
        await self.wait(lambda v: bool(v["prepared"]) and v["recipe"] == recipe, seconds, f"recipe {recipe}")
        await self._set("prepare_recipe", False)
        self._say(f"PLC      recipe {recipe} is prepared")

    async def inspect(self, part: str, seconds: float = 5.0) -> dict[str, Any]:
        """Trigger one part, and return the registers of its result after acknowledging it.

        Raises:
            VisionADError: The station did not keep to the handshake.
        """
        while (shown := await self.wait(lambda v: bool(v["ready"]), 30.0, "ready"))["valid"]:
            await self._acknowledge(shown, seconds)  # of a part that was given up
        self._sequence = self._sequence % 32767 + 1
        sequence = self._sequence
        self._say(f"PLC      part {part}: ready is 1, so trigger with sequence {sequence}")
        self._control |= 1 << registers.CONTROL_BITS.index("trigger")
        await self._write(0, [self._control, self._heartbeat, 0, sequence, *registers.part_registers(part)])
        await self.wait(lambda v: bool(v["trigger_ack"]), seconds, "trigger ack")
        self._say("station  trigger ack, busy")
        await self._set("trigger", False)
        result = await self.wait(lambda v: bool(v["valid"]) and v["result_sequence"] == sequence, seconds, "result")
        verdict = ("undefined", "ok", "anomalous", "not decidable")[result["evaluation"]]
        self._say(
            f"station  result {result['inspection']} valid: {verdict}, score {result['score']:.4f} / {result['threshold']:.4f}, "
            f"{result['milliseconds']} ms; pass {int(result['pass'])}, reject {int(result['reject'])}"
        )
        await self._acknowledge(result, seconds)
        self._say("PLC      acknowledged")
        return result

    async def beat(self) -> None:
        """Change the PLC's heartbeat."""
        self._heartbeat = (self._heartbeat + 1) & 0xFFFF
        await self._write(1, [self._heartbeat])

    async def _acknowledge(self, result: dict[str, Any], seconds: float) -> None:
        await self._set("ack", True)
        await self.wait(lambda v: v["inspection"] != result["inspection"] or not v["valid"], seconds, "end of valid")
        await self._set("ack", False)

    async def _set(self, bit: str, up: bool) -> None:
        mask = 1 << registers.CONTROL_BITS.index(bit)
        self._control = self._control | mask if up else self._control & ~mask
        await self._write(0, [self._control])

    async def _write(self, address: int, values: list[int]) -> None:
        answer = await self._client.write_registers(address, values, device_id=1)
        if answer.isError():
            raise VisionADError(f"the station refuses a write at register {address}: {answer}")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
