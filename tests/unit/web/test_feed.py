"""Live images of a tab: asked for one by one, at most five a second, and the newest question counts."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the page needs the extra page")

from visionad_runtime.web.station.feed import LOOK_SECONDS, Client, Feed
from visionad_runtime.web.station.link import Answer, CommandError


class Socket:
    """A tab's connection: what it sends waits in a queue, what it gets is kept."""

    def __init__(self) -> None:
        self.questions: asyncio.Queue[str] = asyncio.Queue()
        self.got: list[Any] = []

    async def receive_text(self) -> str:
        return await self.questions.get()

    async def send_text(self, text: str) -> None:
        self.got.append(json.loads(text))

    async def send_bytes(self, data: bytes) -> None:
        size = int.from_bytes(data[:4], "big")
        self.got.append(json.loads(data[4 : 4 + size]))

    def look(self, n: int) -> None:
        self.questions.put_nowait(json.dumps({"send": "look", "camera": "top", "class": "disc", "n": n}))


class Link:
    """The front: it answers with a frame, or refuses."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, dict[str, Any]]] = []
        self.seconds = 0.0
        self.refusal: CommandError | None = None
        self.told: list[tuple[str, dict[str, Any]]] = []

    def tell(self, command: str, **values: Any) -> None:
        self.told.append((command, values))

    async def ask(self, command: str, **values: Any) -> Answer:
        assert command == "look"
        self.asked.append((time.monotonic(), values))
        await asyncio.sleep(self.seconds)
        if self.refusal is not None:
            raise self.refusal
        facts = {"camera": "top", "width": 8, "height": 6, "crop": None, "frame": len(self.asked), "age_s": 0.1}
        return Answer(facts, [b"jpeg", b""])


class Tab:
    def __init__(self) -> None:
        self.socket, self.link = Socket(), Link()
        self.feed = Feed(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
        self.feed.link = self.link  # type: ignore[assignment]
        self.client = Client(self.socket, {}, "key")  # type: ignore[arg-type]
        self.tasks = [asyncio.create_task(self.client.send()), asyncio.create_task(self.feed._receive(self.client))]

    async def until(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while len(self.socket.got) < count:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    def end(self) -> None:
        for task in self.tasks:
            task.cancel()


def test_five_a_second_at_most_and_one_for_each_question() -> None:
    async def play() -> Tab:
        tab = Tab()
        for n in (1, 2, 3):
            tab.socket.look(n)
            await tab.until(n)
        await asyncio.sleep(0.1)  # nothing comes that was not asked for
        tab.end()
        return tab

    tab = asyncio.run(play())
    assert [(event["event"], event["n"], event["frame"]) for event in tab.socket.got] == [
        ("frame", 1, 1), ("frame", 2, 2), ("frame", 3, 3)
    ]  # fmt: skip
    assert tab.socket.got[0]["images"] == [{"camera": "top", "width": 8, "height": 6, "crop": None}]
    times = [moment for moment, _ in tab.link.asked]
    assert all(later - earlier > LOOK_SECONDS * 0.95 for earlier, later in pairwise(times))
    assert tab.link.asked[0][1] == {"session": "key", "camera": "top", "class": "disc"}


def test_the_newest_question_counts() -> None:
    async def play() -> Tab:
        tab = Tab()
        tab.link.seconds = 0.05
        for n in range(1, 40):
            tab.socket.look(n)
        await tab.until(1)
        await asyncio.sleep(0.1)
        tab.end()
        return tab

    tab = asyncio.run(play())
    assert [event["n"] for event in tab.socket.got] == [39] and len(tab.link.asked) <= 2


def test_a_refusal_is_told_with_its_code() -> None:
    async def play() -> Tab:
        tab = Tab()
        tab.link.refusal = CommandError("line_trigger", "camera top waits for the PLC's trigger")
        tab.socket.look(7)
        await tab.until(1)
        tab.end()
        return tab

    assert asyncio.run(play()).socket.got == [
        {"event": "no_frame", "n": 7, "code": "line_trigger", "values": {}, "error": "camera top waits for the PLC's trigger"}
    ]  # fmt: skip


def test_a_tab_that_is_hidden_gets_no_frame_that_was_under_way() -> None:
    async def play() -> Tab:
        tab = Tab()
        tab.client.put_frame({"event": "frame", "images": []}, [])
        tab.client.forget()
        await asyncio.sleep(0.05)
        tab.end()
        return tab

    assert asyncio.run(play()).socket.got == []


def test_a_persons_hand_on_a_tab_renews_its_session() -> None:
    """Nothing else that a tab sends does."""

    async def play() -> Tab:
        tab = Tab()
        for one in ("shown", "alive", "used"):
            tab.socket.questions.put_nowait(json.dumps({"send": one}))
        deadline = time.monotonic() + 20
        while not tab.link.told:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        tab.end()
        return tab

    assert asyncio.run(play()).link.told == [("session", {"session": "key", "touch": True})]


def test_what_no_part_tells_of_is_counted_anew() -> None:
    """A trigger that is missed, and a result that comes late, make no part."""
    feed = Feed(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    states = ({"missed": 0, "late": 0}, {"missed": 0, "late": 0, "ready": True}, {"missed": 1, "late": 0})
    for state, is_new in zip(states, (True, False, True), strict=True):
        feed._dirty.clear()
        feed.on_event({"event": "state", **state}, [])
        assert feed._dirty.is_set() is is_new
