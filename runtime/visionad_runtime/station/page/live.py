"""Looks at a camera without a part: who may, when the camera allows it, and one question to the worker for all who look."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..camera import sight_of
from .commands import ROLES_OF, FrontSide
from .users import Refused, Users, may

LOOK_SECONDS = 5.0
"""An image that does not come in this time is not a live one."""


class LiveView:
    """Live images of the station's cameras.

    The line comes first: a camera that waits for the PLC's trigger is left alone while the PLC has control.

    Args:
        front: the station.
        users: of the page.
    """

    def __init__(self, front: FrontSide, users: Users) -> None:
        self._front, self._users = front, users
        self._going: dict[tuple[str, str | None], asyncio.Task[dict[str, Any]]] = {}
        self._newest = 0  # number of the newest frame, also of an earlier worker

    async def look(self, m: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """Return a camera's newest image: facts of it, and its JPEG. It does not count as use of the session.

        Args:
            m: ``session``, ``camera``, and ``class``, whose light it is compared with.

        Raises:
            Refused: The role may not, there is no such camera, or it cannot be looked at now.
            SinkError: The worker is not there.
            TimeoutError: It did not answer in time.
        """
        may(self._users.session(str(m.get("session") or "")), ROLES_OF, "look")
        camera = str(m.get("camera") or next(iter(self._front.station.cameras)))
        class_name = str(m["class"]) if m.get("class") else None
        command = self._command(camera)
        key = camera, class_name
        if key not in self._going:  # all who look meanwhile get the same image
            task = self._going[key] = asyncio.create_task(self._ask(command, camera, class_name))
            task.add_done_callback(partial(self._ended, key))
        facts = dict(await asyncio.shield(self._going[key]))
        return facts, [facts.pop("jpeg"), b""]

    def _command(self, camera: str) -> str:
        """Return the worker's command for a look."""
        station, state = self._front.station, self._front.state
        if camera not in station.cameras:
            raise Refused("no_camera", f"the station has no camera {camera}; it has {', '.join(station.cameras)}")
        if station.settings.trigger != "line":
            return "look"  # the newest frame of those that begin parts
        sight = sight_of(station.cameras[camera])
        if sight == "never":
            raise Refused(
                "own_trigger", f"camera {camera} takes an image at its own trigger only; look at the newest part"
            )
        if sight != "always" and state.control != "page":
            raise Refused(
                "line_trigger", f"camera {camera} waits for the PLC's trigger; take control to see live images"
            )
        return "look_by_trigger" if sight == "trigger" else "look"

    async def _ask(self, command: str, camera: str, class_name: str | None) -> dict[str, Any]:
        asking = self._front.ask_worker(command, camera, self._newest, class_name)
        facts: dict[str, Any] = await asyncio.wait_for(asking, LOOK_SECONDS)
        self._newest = max(self._newest, int(facts["frame"]))
        return facts

    def _ended(self, key: tuple[str, str | None], task: asyncio.Task[dict[str, Any]]) -> None:
        del self._going[key]
        if not task.cancelled():
            task.exception()  # those who asked may be gone: nobody else fetches it


async def live_pixels(front: FrontSide, frame: int) -> tuple[NDArray[np.uint8], str]:
    """Return the pixels of a frame that somebody looked at, uint8 (H, W, 3) RGB or (H, W) gray, and where they came from.

    Raises:
        Refused: The frame is not kept any more.
        SinkError: The worker is not there.
    """
    try:
        found = await front.ask_worker("frame_pixels", frame)
    except Refused as exc:
        raise Refused(exc.code, str(exc), frame=frame) from None
    station = front.station.settings.station
    return found["rgb"], f"live frame {frame} of {station}, camera {found['camera']}, at {found['time_utc']}"
