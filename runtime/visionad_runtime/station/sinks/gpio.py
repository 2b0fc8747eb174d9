"""GPIO sink: outputs ``ready``, ``pass``, ``reject`` and ``fault`` of a Linux board, by gpiod 2.

``pass`` and ``reject`` are always opposite, so a broken wire is seen. At start, at the end and whenever there is no result,
``reject`` is on. The kernel lets the lines go when the process ends, and then the board's wiring decides: pull ``reject`` up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from ..leaf import LeafSettings
from ..sink import Line, SinkError, StationState

OUTPUTS = ("ready", "pass", "reject", "fault")


class GpioSettings(LeafSettings):
    """Settings of a GPIO sink.

    Attributes:
        chip: device of the GPIO chip.
        lines: output → number of its line on the chip. ``pass`` and ``reject`` are needed.
        active_low: outputs that are low when they are on.
        acknowledge_after_ms: how long a result stays on the outputs before the sink acknowledges it; ``None`` if another sink or
            the PLC does.
    """

    chip: Path = Path("/dev/gpiochip0")
    lines: dict[str, int]
    active_low: tuple[str, ...] = ()
    acknowledge_after_ms: float | None = Field(default=None, gt=0, le=3_600_000)

    @model_validator(mode="after")
    def _known(self) -> GpioSettings:
        unknown = {*self.lines, *self.active_low} - set(OUTPUTS)
        if unknown:
            raise ValueError(f"expected outputs of {', '.join(OUTPUTS)}, got {', '.join(sorted(unknown))}")
        absent = {"pass", "reject"} - self.lines.keys()
        if absent:
            raise ValueError(f"expected a line for {' and '.join(sorted(absent))} too: a single wire cannot fail safe")
        if set(self.active_low) - self.lines.keys():
            raise ValueError("expected active_low to name outputs that have a line")
        if len(set(self.lines.values())) < len(self.lines) or min(self.lines.values()) < 0:
            raise ValueError(f"expected a line of its own for each output, got {self.lines}")
        return self


def levels(state: StationState | None) -> dict[str, bool]:
    """Return which outputs are on in a state; without one, those of a station that is off."""
    offered = state.offered if state is not None else None
    passed = offered is not None and offered.evaluation == 1
    return {
        "ready": state is not None and state.ready and state.alive,
        "pass": passed,
        "reject": not passed,
        "fault": state is None or state.phase == "fault" or not state.alive,
    }


class GpioSink:
    """See :class:`~visionad_runtime.station.sink.Sink`. Writing an output takes microseconds, so no thread is used."""

    Settings: ClassVar[type[LeafSettings]] = GpioSettings
    live: ClassVar[bool] = True

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, GpioSettings)
        self._name, self._settings = name, settings
        self._request: Any = None
        self._line: Line | None = None
        self._on: dict[str, bool] = {}
        self._acknowledging: tuple[int, asyncio.TimerHandle] | None = None
        self._problem = "not started"
        self._last_success: float | None = None

    @property
    def acknowledges(self) -> bool:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        return self._settings.acknowledge_after_ms is not None

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        if find_spec("gpiod") is None:
            return 'gpiod is not installed: pip install "visionad[gpio]" (Linux)'
        return None

    async def run(self, line: Line) -> None:
        """Hold the outputs until cancelled. Set them to reject, not ready and fault then.

        Raises:
            SinkError: The chip cannot be opened, or a line is used by another program.
        """
        import gpiod
        from gpiod.line import Direction, Value

        settings, self._line = self._settings, line
        start = levels(None)
        try:
            self._request = gpiod.request_lines(
                str(settings.chip),
                consumer="visionad",
                config={
                    number: gpiod.LineSettings(
                        direction=Direction.OUTPUT,
                        active_low=name in settings.active_low,
                        output_value=Value.ACTIVE if start[name] else Value.INACTIVE,
                    )
                    for name, number in settings.lines.items()
                },
            )
        except (OSError, ValueError) as exc:
            raise SinkError(
                f"sink {self._name}: expected free lines {sorted(settings.lines.values())} on {settings.chip}: {exc}; see "
                "`gpioinfo` for what uses them, and give the service the group gpio"
            ) from None
        self._on, self._problem = start, ""
        try:
            await self.tell(line.state)
            await asyncio.Event().wait()
        finally:
            if self._acknowledging:
                self._acknowledging[1].cancel()
                self._acknowledging = None
            try:
                self._write(levels(None))
            except OSError as exc:
                self._problem = str(exc)
            self._request.release()
            self._request, self._problem = None, self._problem or "stopped"

    async def tell(self, state: StationState) -> None:
        """Set the outputs. What turns off does so before anything turns on.

        Raises:
            SinkError: An output cannot be written.
        """
        if self._request is None:
            return
        try:
            self._write(levels(state))
        except OSError as exc:
            self._problem = f"{self._settings.chip}: {exc}"
            raise SinkError(f"sink {self._name}: cannot set outputs of {self._problem}; check the board") from None
        self._problem, self._last_success = "", time.monotonic()
        self._acknowledge_later(state)

    def _write(self, wanted: dict[str, bool]) -> None:
        from gpiod.line import Value

        lines = self._settings.lines
        changed = [name for name in lines if wanted[name] != self._on[name]]
        # Both result lines change in one call of the kernel; ready comes last when it rises and first when it falls.
        result = [name for name in changed if name != "ready"]
        for names in (
            [n for n in changed if n == "ready" and not wanted[n]],
            result,
            [n for n in changed if n == "ready" and wanted[n]],
        ):
            if names:
                values = {lines[name]: Value.ACTIVE if wanted[name] else Value.INACTIVE for name in names}
                self._request.set_values(values)
                self._on |= {name: wanted[name] for name in names}

    def _acknowledge_later(self, state: StationState) -> None:
        after, offered = self._settings.acknowledge_after_ms, state.offered
        if after is None or offered is None or (self._acknowledging and self._acknowledging[0] == offered.id):
            return
        assert self._line is not None
        timer = asyncio.get_running_loop().call_later(after / 1000, self._line.acknowledge, offered.id)
        self._acknowledging = offered.id, timer

    async def store(self, record: Mapping[str, Any]) -> None:
        """See :class:`~visionad_runtime.station.sink.Sink`. A live sink gets no records."""

    def health(self) -> Mapping[str, Any]:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        age = None if self._last_success is None else round(time.monotonic() - self._last_success, 3)
        detail = self._problem or f"holds lines of {self._settings.chip}"
        return {"ok": not self._problem, "detail": detail, "last_success_s": age}
