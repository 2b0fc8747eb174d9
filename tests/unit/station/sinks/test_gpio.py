"""The GPIO sink with a stand-in for gpiod: no kernel with GPIO lines is at hand, so no test of it has touched a real line."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.station.sink import SINKS, SinkError
from visionad_runtime.station.sinks.gpio import OUTPUTS, GpioSettings, GpioSink, levels

from tests.fakes.line import START, FakeLine, outcome

LINES = {"ready": 4, "pass": 5, "reject": 6, "fault": 7}


class Value(Enum):
    """As in gpiod.line."""

    INACTIVE = 0
    ACTIVE = 1


class Chip:
    """Keeps what is requested and written, as the kernel would."""

    def __init__(self) -> None:
        self.values: dict[int, Value] = {}
        self.history: list[dict[int, Value]] = []
        self.config: dict[int, Any] = {}
        self.released = False
        self.error: OSError | None = None

    def request_lines(self, path: str, consumer: str, config: dict[int, Any]) -> Chip:
        if self.error:
            raise self.error
        self.config = config
        self.values = {number: line.output_value for number, line in config.items()}
        self.history = [dict(self.values)]
        return self

    def set_values(self, values: dict[int, Value]) -> None:
        if self.error:
            raise self.error
        self.values |= values
        self.history.append(dict(self.values))

    def release(self) -> None:
        self.released = True

    def on(self, name: str) -> bool:
        return self.values[LINES[name]] is Value.ACTIVE


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Chip:
    one = Chip()
    module, line = ModuleType("gpiod"), ModuleType("gpiod.line")
    line.Value, line.Direction = Value, SimpleNamespace(OUTPUT="output")  # type: ignore[attr-defined]
    module.request_lines, module.line = one.request_lines, line  # type: ignore[attr-defined]
    module.LineSettings = lambda **settings: SimpleNamespace(**settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gpiod", module)
    monkeypatch.setitem(sys.modules, "gpiod.line", line)
    return one


@contextlib.asynccontextmanager
async def running(line: FakeLine, **settings: Any) -> AsyncIterator[GpioSink]:
    sink = GpioSink("gate", GpioSettings(kind="gpio", **({"lines": LINES} | settings)))
    line.sinks.append(sink)
    task = asyncio.create_task(sink.run(line))
    await asyncio.sleep(0)
    try:
        yield sink
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_the_registry_has_it() -> None:
    assert SINKS.load("gpio") is GpioSink


def test_outputs_follow_the_cycle_and_end_at_reject(chip: Chip) -> None:
    async def scenario() -> None:
        line = FakeLine(takes_s=0.001)
        async with running(line) as sink:
            assert sink.health()["ok"]
            assert [chip.on(name) for name in OUTPUTS] == [False, False, True, False]
            for part, passed in (("good", True), ("bad", False), ("odd", False)):
                line.show(phase="ready", ready=True, prepared=True)
                await asyncio.sleep(0.002)
                assert chip.on("ready")
                line.trigger(1, part)
                while line.state.offered is None:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.002)
                assert [chip.on(name) for name in OUTPUTS] == [False, passed, not passed, False]
                line.acknowledge()
                await asyncio.sleep(0.002)
                assert [chip.on(name) for name in OUTPUTS] == [True, False, True, False]
            line.show(phase="fault", ready=False, fault="x")
            await asyncio.sleep(0.002)
            assert chip.on("fault")
        assert [chip.on(name) for name in OUTPUTS] == [False, False, True, True]
        assert chip.released

    asyncio.run(scenario())
    assert all((step[5] is Value.ACTIVE) != (step[6] is Value.ACTIVE) for step in chip.history)


def test_before_the_first_state_it_rejects(chip: Chip) -> None:
    async def scenario() -> None:
        async with running(FakeLine(), active_low=["reject"]):
            pass

    asyncio.run(scenario())
    assert {number: line.output_value for number, line in chip.config.items()} == {
        4: Value.INACTIVE,
        5: Value.INACTIVE,
        6: Value.ACTIVE,
        7: Value.ACTIVE,
    }
    assert [line.active_low for line in chip.config.values()] == [False, False, True, False]


def test_it_acknowledges_after_a_time_if_asked(chip: Chip) -> None:
    async def scenario() -> None:
        line = FakeLine(takes_s=0.001)
        async with running(line, acknowledge_after_ms=20):
            line.show(phase="ready", ready=True, prepared=True)
            line.trigger(1, "good")
            while ("acknowledge", 1) not in line.asked:
                await asyncio.sleep(0.005)
            assert line.state.offered is None

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_used_lines_and_a_broken_board_are_one_line(chip: Chip) -> None:
    async def scenario() -> None:
        async with running(FakeLine()) as sink:
            chip.error = OSError(5, "Input/output error")
            with pytest.raises(SinkError, match="check the board"):
                await sink.tell(replace(START, ready=True))
            assert not sink.health()["ok"]
            chip.error = None

    asyncio.run(scenario())
    chip.error = OSError(16, "Device or resource busy")
    with pytest.raises(SinkError, match=r"free lines \[4, 5, 6, 7\] .*gpioinfo"):
        asyncio.run(GpioSink("gate", GpioSettings(kind="gpio", lines=LINES)).run(FakeLine()))


@given(st.sampled_from([0, 1, 2, 3]), st.booleans(), st.booleans(), st.booleans())
def test_only_an_ok_result_passes(evaluation: int, ready: bool, alive: bool, offered: bool) -> None:
    state = replace(
        START, ready=ready, alive=alive, offered=replace(outcome(1), evaluation=evaluation) if offered else None
    )
    on = levels(state)
    assert on["pass"] == (offered and evaluation == 1)
    assert on["reject"] != on["pass"]
    assert on["ready"] <= alive


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lines": {"pass": 1}}, "line for reject too"),
        ({"lines": {"pass": 1, "reject": 1}}, "line of its own"),
        ({"lines": LINES | {"lamp": 9}}, "got lamp"),
        ({"lines": {"pass": 1, "reject": 2}, "active_low": ["fault"]}, "that have a line"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GpioSettings(kind="gpio", **settings)
