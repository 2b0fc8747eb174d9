"""The front's side of the page: which message of a part goes out when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from visionad_runtime.station.page import link, users
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


class Someone:
    """A setter at the panel, and what the station was told to do for them."""

    def __init__(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.now = 1000.0
        self.link = side.link
        monkeypatch.setattr(users.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(users, "_SCRYPT", {"n": 16, "r": 8, "p": 1})
        link_users = side.link.users
        link_users.add("anna", "correct horse", "setter")
        self.key = link_users.login(
            "anna", "correct horse", "127.0.0.1", link_users.login_panel(link_users.panel_token)
        )

        async def change(command: str, m: Any, session: Any) -> Any:
            self.done.append(command)
            return {"did": command}

        async def read(command: str, m: Any) -> Any:
            return {}, []

        monkeypatch.setattr(side.link._commands, "change", change)
        monkeypatch.setattr(side.link._drafting, "read", read)

    def ask(self, command: str, **values: Any) -> Any:
        return asyncio.run(self.link._command(command, {"do": command, "ask": 1, "session": self.key, **values}, []))

    def tell(self, **values: Any) -> Any:
        return asyncio.run(self.link._open_command("session", {"session": self.key, **values}, []))


@pytest.fixture
def someone(side: Side, monkeypatch: pytest.MonkeyPatch) -> Someone:
    return Someone(side, monkeypatch)


def test_a_page_that_reads_by_itself_keeps_nobody_logged_in(someone: Someone) -> None:
    """A draft that collects is read each second. The panel falls back all the same, 15 minutes after a person's last action."""
    someone.now += users.PANEL_IDLE_S - 10
    someone.tell(touch=True)  # a hand on the page
    for _ in range(90):
        someone.now += 10
        someone.ask("draft_facts", **{"class": "disc"})
    assert someone.tell()["role"] == "setter"
    someone.now += 1
    assert someone.tell()["role"] == "operator"


def test_a_change_is_an_action(someone: Someone) -> None:
    someone.now += users.PANEL_IDLE_S - 10
    someone.ask("recipe", number=1)
    someone.now += users.PANEL_IDLE_S - 10
    assert someone.tell()["role"] == "setter"


def test_a_key_is_good_for_one_command(someone: Someone) -> None:
    assert someone.ask("recipe", number=1, key="k") == someone.ask("recipe", number=1, key="k") == {"did": "recipe"}
    for command, values in (
        ("recipe", {"number": 2}),
        ("control", {"to": "page"}),
        ("recipe", {"number": 1, "content": ["00"]}),
    ):
        with pytest.raises(users.Refused) as refused:
            someone.ask(command, key="k", **values)
        assert refused.value.code == "key_reused"
    assert someone.ask("control", to="page", key="other") == {"did": "control"}
    assert someone.done == ["recipe", "control"]


def test_parts_go_out_in_their_order(side: Side) -> None:
    async def line() -> None:
        await side.link._open_command("watch", {"on": True}, [])
        for part in (1, 2, 3):
            side.link.observe("outcome", outcome(part))
        side.link.on_images(2, [image(2)])  # the worker was too busy for the first one
        side.link.on_images(3, [image(3)])

    asyncio.run(line())
    assert side.shown() == [(1, b""), (2, b"2"), (3, b"3")]
