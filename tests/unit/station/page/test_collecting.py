"""A draft collects all consecutive parts of one recipe, or its collecting ends with a reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from visionad_runtime.station.page import collecting
from visionad_runtime.station.page.collecting import Collecting
from visionad_runtime.station.page.users import Refused
from visionad_runtime.station.sink import Outcome, SinkError

from tests.fakes.line import outcome


class Line:
    """A front with two recipes, and a teaching process that may be stuck. The draft is of the class gear."""

    def __init__(self) -> None:
        recipe = SimpleNamespace(cameras=(), class_of=lambda camera: None)
        settings = SimpleNamespace(recipes={1: recipe, 2: recipe})
        self.station = SimpleNamespace(settings=settings, cameras=("top",))
        self.state = SimpleNamespace(recipe=1)
        self.pixels: list[int] = []
        self.asked: list[tuple[Any, ...]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.trouble: Exception | None = None
        self.is_on = True
        self.collecting = Collecting(self, self)  # type: ignore[arg-type]

    async def ask_worker(self, command: str, part: int) -> dict[str, np.ndarray]:
        self.pixels.append(part)
        return {"top": np.zeros((10, 10, 3), np.uint8)}

    async def ask(self, command: str, *values: Any) -> Any:
        await self.free.wait()
        if self.trouble is not None and command == "take":
            raise self.trouble
        self.asked.append((command, *values))
        if command == "ended":
            self.is_on = False
        return {"collecting": self.is_on}

    async def judge(self, *parts: Outcome) -> None:
        for one in parts:
            self.collecting.on_outcome(one)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(200):
            await asyncio.sleep(0)

    async def recipe(self, number: int) -> None:
        self.state.recipe = number
        self.collecting.on_state()
        await self.settle()

    @property
    def taken(self) -> list[int]:
        return [values[2] for values in self.asked if values[0] == "take"]

    @property
    def ended(self) -> list[str]:
        return [values[2] for values in self.asked if values[0] == "ended"]


def run(test: Callable[[Line], Coroutine[Any, Any, None]]) -> None:
    async def begun() -> None:
        await test(Line())

    asyncio.run(begun())


def test_a_part_of_the_recipe_is_collected_whether_one_was_prepared_or_not() -> None:
    async def test(line: Line) -> None:
        line.state.recipe = 0  # idle
        line.collecting.begin("gear")
        await line.recipe(1)
        await line.judge(outcome(1), outcome(2, "bad"))
        await line.recipe(0)  # such as while a worker is replaced
        await line.recipe(1)
        await line.judge(outcome(3))
        assert line.taken == [1, 2, 3] and line.ended == []
        line.state.recipe = 0
        line.collecting.begin("gear")
        await line.judge(outcome(4))
        await line.judge(outcome(5, recipe=2))
        assert line.taken == [1, 2, 3, 4] and line.ended == ["the recipe was changed"]

    run(test)


def test_another_recipe_between_two_parts_ends_it() -> None:
    async def test(line: Line) -> None:
        line.collecting.begin("gear")
        await line.judge(outcome(1))
        for number in (0, 2, 0, 1):
            await line.recipe(number)
        await line.judge(outcome(2))
        assert line.taken == [1] and line.ended == ["the recipe was changed"]

    run(test)


def test_the_light_ends_it() -> None:
    async def test(line: Line) -> None:
        line.collecting.begin("gear")
        await line.judge(replace(outcome(1), alarms=("light",)), outcome(2))
        assert line.taken == [] and line.ended == ["the light is not that of the good parts"]

    run(test)


def test_a_stuck_teaching_process_does_not_let_the_front_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MAX_WAITING", 16)

    async def test(line: Line) -> None:
        line.collecting.begin("gear")
        line.free.clear()
        await line.judge(*map(outcome, range(1, 101)))
        assert len(line.pixels) == 16
        line.free.set()
        await line.settle()
        assert line.taken == [] or line.taken == list(range(1, len(line.taken) + 1))
        assert line.ended == ["parts came faster than they could be scored"]

    run(test)


def test_large_images_end_it_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MAX_BYTES", 1000)  # three images

    async def test(line: Line) -> None:
        line.collecting.begin("gear")
        await line.judge(*(outcome(number) for number in range(1, 4)))
        assert line.taken == [1, 2, 3] and line.ended == []  # they did not wait
        line.free.clear()
        await line.judge(*(outcome(number) for number in range(4, 10)))
        line.free.set()
        await line.settle()
        assert line.ended == ["parts came faster than they could be scored"]

    run(test)


@pytest.mark.parametrize("trouble", [TimeoutError(), SinkError("it was replaced"), Refused("internal", "disk full")])
def test_a_part_that_is_lost_ends_it_with_a_reason(trouble: Exception) -> None:
    async def test(line: Line) -> None:
        line.collecting.begin("gear")
        await line.judge(outcome(1))
        line.trouble = trouble
        await line.judge(outcome(2))
        line.trouble = None
        await line.judge(outcome(3))
        assert line.taken == [1] and line.ended == ["a part could not be scored"]

    run(test)


def test_a_part_is_offered_to_the_next_process_if_one_ended() -> None:
    async def test(line: Line) -> None:
        line.collecting.begin("gear")
        heard, asked = line.ask, list[int]()

        async def ends_once(command: str, *values: Any) -> Any:
            asked.append(values[1])
            if len(asked) == 2:
                raise SinkError("the process that teaches was ended")
            return await heard(command, *values)

        line.ask = ends_once  # type: ignore[method-assign]
        await line.judge(*(outcome(number) for number in range(1, 4)))
        assert asked == [1, 2, 2, 3] and line.taken == [1, 2, 3] and line.ended == []  # one after the other

    run(test)


def test_the_reason_outlasts_a_process_that_did_not_hear_it() -> None:
    async def test(line: Line) -> None:
        line.collecting.begin("gear")

        async def silent(command: str, *values: Any) -> Any:
            raise TimeoutError

        heard, line.ask = line.ask, silent  # type: ignore[method-assign]
        await line.judge(outcome(1))
        line.ask = heard  # type: ignore[method-assign]
        facts = await line.collecting.settled("gear", {"collecting": True})
        assert line.ended == ["a part could not be scored"] and not facts["collecting"]
        line.is_on = True
        await line.collecting.settled("gear", {"collecting": True})
        assert line.ended[-1] == "the station was started again"

    run(test)


def test_parts_of_an_earlier_beginning_are_not_taken() -> None:
    async def test(line: Line) -> None:
        line.collecting.begin("gear")
        line.collecting.on_outcome(outcome(1))
        line.collecting.stop("gear")
        line.collecting.begin("gear")
        await line.judge(outcome(2))
        assert line.taken == [2] and line.ended == []

    run(test)
