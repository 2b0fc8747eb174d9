"""Modbus TCP: the station is the server, the PLC polls and triggers (``modbus_map.py``)."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from ..leaf import LeafSettings
from ..sink import Line, SinkError, StationState
from . import modbus_map as registers

HEARTBEAT_SECONDS = 0.1


class ModbusSettings(LeafSettings):
    """Settings of a Modbus sink.

    Attributes:
        host: address to listen at.
        port: port; 502 needs the right to bind it.
        heartbeat_s: silence of the PLC's heartbeat after which the station is not ready; ``None`` asks for none.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=502, ge=1, le=65535)
    heartbeat_s: float | None = Field(default=None, gt=0, le=3600)


class ModbusSink:
    """See :class:`~visionad_runtime.station.sink.Sink`."""

    Settings: ClassVar[type[LeafSettings]] = ModbusSettings
    live: ClassVar[bool] = True

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, ModbusSettings)
        self._name, self._settings = name, settings
        self._line: Line | None = None
        self._state: StationState | None = None
        self._control = dict.fromkeys(registers.CONTROL_BITS, False)
        self._trigger_id: int | None = None
        self._missed = False
        self._heartbeat = 0
        self._plc_heartbeat = 0
        self._heard = time.monotonic()
        self._silent = False
        self._last_request = 0.0

    @property
    def port(self) -> int:
        """Port that it listens at."""
        return self._settings.port

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        if importlib.util.find_spec("pymodbus") is None:
            return "kind modbus needs pymodbus: pip install 'visionad[modbus]'"
        return None

    async def run(self, line: Line) -> None:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice

        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # malformed frames would fill the log
        self._line, self._state, self._heard = line, line.state, time.monotonic()
        unused = SimData(0, count=1, datatype=DataType.BITS)
        device = SimDevice(
            1,
            simdata=(
                [unused],
                [unused],
                [
                    SimData(0, count=registers.WRITE_COUNT, datatype=DataType.REGISTERS),
                    SimData(
                        registers.READ_ORIGIN, count=registers.READ_COUNT, datatype=DataType.REGISTERS, readonly=True
                    ),
                ],
                [SimData(0, count=registers.READ_COUNT, datatype=DataType.REGISTERS, readonly=True)],
            ),
            action=self._request,
        )
        server = ModbusTcpServer(device, address=(self._settings.host, self._settings.port))
        try:
            await server.serve_forever(background=True)
        except (RuntimeError, OSError):
            raise SinkError(
                f"sink {self._name}: cannot listen at {self._settings.host}:{self._settings.port}; is the port in use, or below "
                "1024 without the right to bind it? choose another port"
            ) from None
        try:
            while True:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                if line.state.alive:
                    self._heartbeat = (self._heartbeat + 1) & 0xFFFF
                self._watch_plc(line)
        finally:
            await server.shutdown()  # type: ignore[no-untyped-call]

    async def tell(self, state: StationState) -> None:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        self._state = state

    async def store(self, record: Mapping[str, Any]) -> None:
        """Live sinks store nothing."""

    def health(self) -> Mapping[str, Any]:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        age = time.monotonic() - self._last_request if self._last_request else None
        detail = "no client yet" if age is None else f"last request {age:.1f} s ago"
        return {"ok": not self._silent, "detail": detail if not self._silent else "the PLC's heartbeat is missing"}

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _request(
        self,
        function_code: int,
        start_address: int,
        address: int,
        count: int,
        current: list[int],
        values: list[int] | list[bool] | None,
    ) -> None:
        """Serve one request: show the newest state, or act on what is written."""
        del count
        self._last_request = time.monotonic()
        if function_code in (1, 2, 5, 15):
            return
        if values is not None and address < registers.WRITE_COUNT:
            written = list(current[: registers.WRITE_COUNT])
            written[address : address + len(values)] = [int(value) for value in values]
            self._written(written)
        assert self._line is not None
        shown = registers.encode(
            self._line.state,
            self._heartbeat,
            {"enable": self._control["enable"], "trigger_ack": self._trigger_acked(), "missed": self._missed},
        )
        origin = registers.READ_ORIGIN - start_address if function_code != 4 else 0
        current[origin : origin + len(shown)] = shown

    def _trigger_acked(self) -> bool:
        """Whether the trigger bit is up and its trigger was accepted, and is on disk."""
        assert self._line is not None
        return (
            self._control["trigger"]
            and self._trigger_id is not None
            and self._line.state.acquisition >= self._trigger_id
        )

    def _written(self, written: list[int]) -> None:
        """Act on the rising edges of the control bits."""
        line = self._line
        assert line is not None
        before = self._control
        self._control = {name: bool(written[0] >> bit & 1) for bit, name in enumerate(registers.CONTROL_BITS)}
        rising = {name for name, up in self._control.items() if up and not before[name]}
        if written[1] != self._plc_heartbeat:
            self._plc_heartbeat, self._heard = written[1], time.monotonic()
        if "clear_fault" in rising:
            self._missed = False
            line.clear_fault()
        if "ack" in rising:
            line.acknowledge()
        if "prepare_recipe" in rising:
            line.prepare(written[2])
        if "trigger" in rising:
            self._trigger_id = None
            if self._control["enable"]:
                self._trigger_id = line.trigger(written[3], registers.part_text(written[4:]))
            else:
                self._missed = True

    def _watch_plc(self, line: Line) -> None:
        limit = self._settings.heartbeat_s
        if limit is None:
            return
        silent = time.monotonic() > self._heard + limit
        if silent and not self._silent:
            line.line_lost(f"sink {self._name}: no heartbeat of the PLC for {limit:g} s")
        elif self._silent and not silent:
            line.line_back()
        self._silent = silent
