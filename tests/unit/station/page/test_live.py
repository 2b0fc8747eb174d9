"""The front's side of live images: who may look, which cameras may be asked when, and one question for all who look."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from visionad_runtime.station.camera import CameraFacts, Frame
from visionad_runtime.station.page.live import LiveView, live_pixels
from visionad_runtime.station.page.users import Refused, Users


class Seen:
    """A camera that says when it can be looked at."""

    def __init__(self, sight: str) -> None:
        self.sight = sight

    def missing(self) -> str | None: ...
    def open(self) -> CameraFacts: ...  # type: ignore[empty-body]
    def arm(self) -> int: ...  # type: ignore[empty-body]
    def trigger(self) -> None: ...
    def grab(self, after: int, deadline: float) -> Frame: ...  # type: ignore[empty-body]
    def close(self) -> None: ...
    def newest(self) -> Frame | None: ...

    Settings = object


class Plain:
    """A camera of a package that knows nothing of looks."""


class Front:
    def __init__(self, cameras: dict[str, Any], control: str = "line", trigger: str = "line") -> None:
        settings = SimpleNamespace(trigger=trigger, station="press-3")
        self.station = SimpleNamespace(cameras=cameras, settings=settings)
        self.state = SimpleNamespace(control=control)
        self.asked: list[tuple[Any, ...]] = []
        self.frame = 0
        self.answer: Any = None

    async def ask_worker(self, command: str, *values: Any) -> Any:
        self.asked.append((command, *values))
        await asyncio.sleep(0.01)
        if isinstance(self.answer, Exception):
            raise self.answer
        self.frame += 1
        return self.answer or {"frame": self.frame, "camera": values[0], "jpeg": b"jpeg"}


@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Users(tmp_path)


def session(users: Users, role: str) -> str:
    users.add("admin", "admin 123", "admin") if not users.all() else None
    users.add(role + " 1", "word 1234", role)
    return users.login(role + " 1", "word 1234", "here", "")


def look(front: Any, users: Users, camera: str = "top", role: str = "setter") -> tuple[dict[str, Any], list[bytes]]:
    return asyncio.run(
        LiveView(front, users).look({"session": session(users, role), "camera": camera, "class": "disc"})
    )


@pytest.mark.parametrize("role", ["operator", "viewer", "admin"])
def test_setters_look(users: Users, role: str) -> None:
    front = Front({"top": Seen("always")})
    with pytest.raises(Refused) as refused:
        look(front, users, role=role)
    assert refused.value.code == "role_missing" and front.asked == []
    with pytest.raises(Refused) as refused:
        asyncio.run(LiveView(front, users).look({"session": "", "camera": "top"}))  # type: ignore[arg-type]
    assert refused.value.code == "no_session" and front.asked == []


@pytest.mark.parametrize(
    ("sight", "control", "expected"),
    [
        ("always", "line", "look"),
        ("always", "page", "look"),
        ("page", "line", "line_trigger"),
        ("page", "page", "look"),
        ("trigger", "line", "line_trigger"),
        ("trigger", "page", "look_by_trigger"),
        ("never", "line", "own_trigger"),
        ("never", "page", "own_trigger"),
        ("plain", "line", "line_trigger"),
        ("plain", "page", "look_by_trigger"),
    ],
)
def test_the_line_comes_first(users: Users, sight: str, control: str, expected: str) -> None:
    """A camera that waits for the PLC's trigger is not even asked while the PLC has control."""
    front = Front({"top": Plain() if sight == "plain" else Seen(sight)}, control)
    if expected.startswith("look"):
        facts, blobs = look(front, users)
        assert front.asked == [(expected, "top", 0, "disc")]
        assert facts == {"frame": 1, "camera": "top"} and blobs == [b"jpeg", b""]
    else:
        with pytest.raises(Refused) as refused:
            look(front, users)
        assert refused.value.code == expected and front.asked == []


@pytest.mark.parametrize("sight", ["page", "trigger", "never"])
def test_where_cameras_start_the_cycle_their_frames_are_shown(users: Users, sight: str) -> None:
    front = Front({"top": Seen(sight)}, trigger="hardware")
    look(front, users)
    assert front.asked == [("look", "top", 0, "disc")]


def test_a_camera_that_is_not_there_is_refused(users: Users) -> None:
    front = Front({"top": Seen("always")})
    with pytest.raises(Refused) as refused:
        look(front, users, "bottom")
    assert refused.value.code == "no_camera" and front.asked == []


def test_all_who_look_share_an_image_and_numbers_go_on(users: Users) -> None:
    front = Front({"top": Seen("always")})
    key = session(users, "setter")

    async def tabs() -> list[int]:
        view = LiveView(front, users)  # type: ignore[arg-type]
        asked = {"session": key, "camera": "top", "class": "disc"}
        both = await asyncio.gather(view.look(asked), view.look(asked))
        front.frame = 40  # another worker would begin anew, and is told after which number
        return [facts["frame"] for facts, _ in (*both, await view.look(asked))]

    assert asyncio.run(tabs()) == [1, 1, 41]
    assert front.asked == [("look", "top", 0, "disc"), ("look", "top", 1, "disc")]


def test_a_look_is_no_use_of_a_session(users: Users) -> None:
    """A tab that is left open must not keep a person logged in."""
    front, key = Front({"top": Seen("always")}), session(users, "setter")
    found = users.session(key)
    assert found is not None
    before = found.used
    asyncio.run(LiveView(front, users).look({"session": key}))  # type: ignore[arg-type]
    assert found.used == before


def test_the_pixels_say_whose_they_are(users: Users) -> None:
    front = Front({})
    rgb = np.zeros((2, 2, 3), np.uint8)
    front.answer = {"rgb": rgb, "camera": "top", "time_utc": "2026-11-30T10:00:00.000+00:00"}
    found, source = asyncio.run(live_pixels(front, 7))  # type: ignore[arg-type]
    assert found is rgb and source == "live frame 7 of press-3, camera top, at 2026-11-30T10:00:00.000+00:00"
    front.answer = Refused("image_gone", "gone")
    with pytest.raises(Refused) as refused:
        asyncio.run(live_pixels(front, 8))  # type: ignore[arg-type]
    assert (refused.value.code, refused.value.values) == ("image_gone", {"frame": 8})
