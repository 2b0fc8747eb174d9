"""The front's side of the page: which message of a part goes out when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from visionad_runtime.station.page import link
from visionad_runtime.station.page.link import PageLink
from visionad_runtime.station.sink import Outcome


def image(part: int) -> dict[str, Any]:
    return {"camera": "top", "width": 8, "height": 6, "crop": None, "jpeg": b"%d" % part, "heat": b""}


def outcome(part: int) -> Outcome:
    cameras = {"top": {"class": "disc", "verdict": "ok", "regions": []}}
    return Outcome(part, "2026-01-01T00:00:00.000+00:00", part, f"SN-{part}", 1, 1, "none", 0.5, 1.0, 5.0, 1, cameras)


class Side:
    """A page link that a page process is connected to, with what it sends and what the worker is told."""

    def __init__(self, folder: Path) -> None:
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []
        self.told: list[tuple[Any, ...]] = []
        settings = SimpleNamespace(records=folder / "records", station="s")
        front: Any = SimpleNamespace(
            station=SimpleNamespace(settings=settings, path=folder / "station.toml"), simulate=True,
            state=SimpleNamespace(control="line"), tell_worker=lambda *message: self.told.append(message) or True,
        )  # fmt: skip
        self.link = PageLink(front, lambda text: None)
        self.link._writer = SimpleNamespace()  # type: ignore[assignment]
        self.counted: list[list[dict[str, Any]]] = []
        self.link._send = self.take  # type: ignore[method-assign]

    def take(self, header: Any, blobs: list[bytes] | None = None) -> None:
        if header["event"] == "inspected":
            self.counted.append(header["images"])
        else:
            self.sent.append((dict(header), blobs or []))

    def shown(self) -> list[tuple[int, bytes]]:
        """The parts that were sent, each with its image."""
        return [(header["id"], b"".join(blobs)) for header, blobs in self.sent]


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    monkeypatch.setattr(link, "IMAGE_SECONDS", 0.05)
    yield Side(tmp_path)


def test_a_part_goes_out_once_with_its_image(side: Side) -> None:
    async def line() -> None:
        await side.link._open_command("watch", {"on": True}, [])
        side.link.observe("outcome", outcome(1))
        assert not side.sent
        side.link.on_images(1, [image(1)])
        await asyncio.sleep(0.2)

    asyncio.run(line())
    assert side.shown() == [(1, b"1")]
    assert side.told == [("watch", True)]


def test_a_late_image_follows_its_part(side: Side) -> None:
    async def line() -> None:
        await side.link._open_command("watch", {"on": True}, [])
        side.link.observe("outcome", outcome(1))
        await asyncio.sleep(0.08)
        assert side.shown() == [(1, b"")]  # the verdict does not wait for long
        side.link.on_images(1, [image(1)])
        await asyncio.sleep(0.2)

    asyncio.run(line())
    assert side.shown() == [(1, b""), (1, b"1")]
    assert ("images", 1) not in side.told  # it came by itself
    assert [[image["verdict"] for image in images] for images in side.counted] == [["ok"]]  # once, though sent twice


def test_an_image_that_does_not_come_is_asked_for_once(side: Side) -> None:
    """A part that is judged while the first tab subscribes: the worker encodes nothing as long as nobody looks."""

    async def line() -> None:
        await side.link._open_command("watch", {"on": True}, [])
        side.link.observe("outcome", outcome(1))
        await asyncio.sleep(0.3)
        side.link.on_images(1, [])  # it is not kept any more
        await asyncio.sleep(0.2)

    asyncio.run(line())
    assert side.told.count(("images", 1)) == 1
    assert side.shown() == [(1, b"")]


def test_who_begins_to_look_gets_the_image_of_the_part_before(side: Side) -> None:
    async def line() -> None:
        side.link.observe("outcome", outcome(1))
        await side.link._open_command("watch", {"on": True}, [])
        side.link.on_images(1, [image(1)])

    asyncio.run(line())
    assert side.told == [("watch", True), ("images", 1)]
    assert side.shown() == [(1, b""), (1, b"1")]


def test_a_late_image_of_an_older_part_is_not_shown(side: Side) -> None:
    async def line() -> None:
        await side.link._open_command("watch", {"on": True}, [])
        side.link.observe("outcome", outcome(1))
        await asyncio.sleep(0.08)
        side.link.observe("outcome", outcome(2))
        side.link.on_images(2, [image(2)])
        side.link.on_images(1, [image(1)])
        await asyncio.sleep(0.2)

    asyncio.run(line())
    assert side.shown() == [(1, b""), (2, b"2")]
    assert ("images", 1) not in side.told


def test_a_late_image_is_not_that_of_the_next_part(side: Side) -> None:
    """It comes while the next part waits for its own."""

    async def line() -> None:
        await side.link._open_command("watch", {"on": True}, [])
        side.link.observe("outcome", outcome(1))
        await asyncio.sleep(0.08)
        side.link.observe("outcome", outcome(2))
        side.link.on_images(1, [image(1)])
        side.link.on_images(2, [image(2)])

    asyncio.run(line())
    assert side.shown() == [(1, b""), (1, b"1"), (2, b"2")]


def test_parts_go_out_in_their_order(side: Side) -> None:
    async def line() -> None:
        await side.link._open_command("watch", {"on": True}, [])
        for part in (1, 2, 3):
            side.link.observe("outcome", outcome(part))
        side.link.on_images(2, [image(2)])  # the worker was too busy for the first one
        side.link.on_images(3, [image(3)])

    asyncio.run(line())
    assert side.shown() == [(1, b""), (2, b"2"), (3, b"3")]
