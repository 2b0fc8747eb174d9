"""What the page does with drafts: each command with its audit, and the line's parts that a draft collects."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bank.names import check_class_name
from ...errors import VisionADError
from ...images import decode
from ...teaching.draft_state import drafts_in
from ...teaching.raster import KnownDefect
from ..records.image_names import by_camera
from ..records.records import NEWEST_REVIEW, Records
from ..sink import SinkError
from ..teacher.teacher import drafts_folder
from .collecting import Collecting
from .commands import FrontSide
from .live import live_pixels
from .teacher_process import TeacherProcess
from .users import Refused

EFFECT_PARTS = 500
"""Newest kept parts of a class on which a draft is tried."""
READ_AT_ONCE = 500
"""Kept parts that are looked through in one go. The line's own records wait for it."""
MAX_READ = 50_000
"""Kept parts that are looked through in all: a class that comes rarely must not let the page wait."""
DEFECTS = 200
"""Newest parts called bad that regions are compared with."""
_VERDICTS = {1: "ok", 2: "anomalous", 3: "undecided"}

Kept = tuple[int, str, str, bool | None]
"""An archived image: number of its part, path, verdict then, and what a person said of the part."""
Audit = Callable[[str, str, object, object], Awaitable[None]]


class Drafting:
    """Drafts, as the page uses them.

    Args:
        front: the station.
        teacher: the process that works on them.
        audit: adds a row to the audit: who, what, old, new.
    """

    def __init__(self, front: FrontSide, teacher: TeacherProcess, audit: Audit) -> None:
        self._front, self._teacher, self._audit = front, teacher, audit
        self._collecting = Collecting(front, teacher)
        self.on_state, self.on_outcome, self.close = (
            self._collecting.on_state,
            self._collecting.on_outcome,
            self._collecting.close,
        )

    async def read(self, command: str, m: Mapping[str, Any]) -> tuple[Any, list[bytes]]:
        """Answer what changes nothing. Return the value, and bytes of images."""
        if command == "drafts":
            folder = drafts_folder(self._front.station)
            found = await asyncio.to_thread(lambda: list(drafts_in(folder)))
            drafts = [
                {"class": one.class_name, "version": one.version, "who": one.who, "base_version": one.base_version}
                for one in found
            ]
            return {"drafts": drafts, "classes": self._front.facts.get("classes") or {}}, []
        if command == "draft_replay":
            return await self._teacher.ask("replay", await self._archived(int(m["record"]))), []
        name = _name(m)
        if command == "draft_image":
            shown = await self._teacher.ask("image", name, str(m["which"]))
            blobs = [shown.pop("jpeg"), shown.pop("heat")]
            return shown, blobs
        if command == "draft_raster":
            defects = await self._front.write(lambda: _known_defects(self._front.records, name))
            return await self._teacher.ask("raster", name, m.get("regions"), defects), []
        if command == "draft_what_if":
            return await self._teacher.ask("what_if", name, float(m["threshold"])), []
        facts = await self._collecting.settled(name, await self._teacher.ask("facts", name))
        return self._with_line(facts), []

    async def change(self, command: str, m: Mapping[str, Any], who: str, blobs: list[bytes]) -> Any:
        """Do a command whose role was checked, and audit what counts.

        Raises:
            Refused: The draft does not allow it.
            SinkError: The teaching process ended meanwhile.
        """
        name = _name(m)
        version = int(m.get("version") or 0)
        ask = self._teacher.ask
        if command == "draft_begin":
            facts = await ask("begin", name, who)
            if facts["version"] == 1:
                await self._audit(who, "draft begun", None, {"class": name, "of version": facts["base_version"]})
            return self._with_line(await self._collecting.settled(name, facts))
        if command == "draft_discard":
            found = await ask("discard", name, version)
            self._collecting.stop(name)
            await self._audit(who, "draft discarded", None, {"class": name})
            return found
        if command == "draft_add":
            rgb, source = await self._image_of(m, blobs)
            facts = await ask("add", name, version, rgb, source, who)
        elif command == "draft_remove":
            facts = await ask("remove", name, version, str(m["support"]), who)
        elif command == "draft_decide":
            facts = await ask("decide", name, version, str(m["support"]), str(m["reason"]), who)
            await self._audit(who, "part stands out, kept", None, _facts(m, "class", "support", "reason"))
        elif command == "draft_regions":
            facts = await ask("regions", name, version, m.get("regions"), who)
        elif command == "draft_collect":
            facts = await ask("collect", name, version, bool(m["on"]), who)
            if m["on"]:
                self._collecting.begin(name)
            else:
                self._collecting.stop(name)
        elif command == "draft_look":
            facts = await ask(
                "look", name, version, str(m["pixels"]), bool(m["strike"]), str(m.get("reason") or ""), who
            )
            if m["strike"]:
                await self._audit(who, "part struck out", None, _facts(m, "class", "pixels", "reason"))
        elif command == "draft_threshold":
            facts = await ask("threshold", name, version, float(m["max_false_reject"]), who)
            await self._audit(
                who,
                "draft threshold",
                None,
                {"class": name, "threshold": facts["threshold"], "promise": facts["promise"]},
            )
        elif command == "draft_by_hand":
            facts = await ask("by_hand", name, version, float(m["value"]), str(m["reason"]), who)
            await self._audit(who, "threshold by hand, no guarantee", None, _facts(m, "class", "value", "reason"))
        elif command == "draft_effect":
            facts = await ask("effect", name, version, await self._kept_parts(name))
        elif command == "version_add":
            return await self._enroll(name, m, who, blobs)
        else:
            return await self._put_live(command, name, version, who)
        return self._with_line(await self._collecting.settled(name, facts))

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _put_live(self, command: str, name: str, version: int, who: str) -> Any:
        if command == "version_back":
            found = dict(await self._teacher.ask("version_back", name, version, who))
            await self._audit(who, "version brought back", _before(found), {**found, "as in version": version})
        else:
            found = dict(await self._teacher.ask("live", name, version, who))
            self._collecting.stop(name)
            await self._audit(who, "draft put live", _before(found), found)
        return found

    async def _kept_parts(self, name: str) -> list[Kept]:
        """Return the images of the newest archived parts of a class, oldest part first."""
        found: list[list[Kept]] = []
        before = sys.maxsize
        for _ in range(MAX_READ // READ_AT_ONCE):
            if not before or len(found) >= EFFECT_PARTS:
                break
            before, more = await self._front.write(partial(_kept_before, self._front.records, name, before))
            found += more
        return [image for part in reversed(found[:EFFECT_PARTS]) for image in part]

    async def _enroll(self, name: str, m: Mapping[str, Any], who: str, blobs: list[bytes]) -> Any:
        rgb, source = await self._image_of(m, blobs)
        found = await self._teacher.ask("enroll", name, rgb, source)
        await self._audit(who, "part enrolled", _before(found), {**found, "source": source})
        return found

    def _with_line(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Add what the line does now: whether a draft of this class would reach it."""
        recipes = self._front.station.settings.recipes
        pinned = [
            n for n, one in recipes.items() if one.bank_version is not None and self._judges(n, facts["class_name"])
        ]
        return {**facts, "pinned": pinned}

    def _judges(self, recipe: int, name: str) -> bool:
        station = self._front.station
        one = station.settings.recipes[recipe]
        return any(one.class_of(camera) in (name, None) for camera in one.cameras or station.cameras)

    async def _image_of(self, m: Mapping[str, Any], blobs: list[bytes]) -> tuple[NDArray[np.uint8], str]:
        """Return the pixels of a part of the line, a live frame or a file that was sent, and where they came from."""
        if blobs:
            return np.frombuffer(blobs[0], np.uint8).reshape(m["shape"]), f"file {m['name']}"
        if m.get("frame") is not None:
            return await live_pixels(self._front, int(m["frame"]))
        part, wanted = int(m["record"]), str(m.get("camera") or "")
        source = f"part {part} of {self._front.station.settings.station}"
        pixels: dict[str, NDArray[np.uint8]] = {}
        with suppress(SinkError, TimeoutError):
            pixels = await self._front.ask_worker("pixels", part)
        camera = wanted or next(iter(pixels), "")
        if camera in pixels:
            return pixels[camera], f"{source}, camera {camera}"
        rows = await self._front.write(lambda: self._front.records.newest(1, "id = ?", (part,)))
        found = by_camera(json.loads(rows[0]["archived"] or "[]")) if rows else {}
        camera = camera or next(iter(found), "")
        if camera not in found or not Path(found[camera]).is_file():  # never the image of another camera
            raise Refused(
                "image_gone", f"the image of part {part} is not in memory any more, and was not kept in the archive"
            )
        try:
            return await asyncio.to_thread(
                decode.load, Path(found[camera])
            ), f"{source}, camera {camera}, from the archive"
        except VisionADError as exc:
            raise Refused("input", str(exc)) from None

    async def _archived(self, part: int) -> dict[str, tuple[str, Any]]:
        """Return the archived images of a part: camera → path, and what is recorded of it."""
        rows = await self._front.write(lambda: self._front.records.newest(1, "id = ?", (part,)))
        found = {}
        paths = by_camera(json.loads(rows[0]["archived"] or "[]")) if rows else {}
        for camera, facts in json.loads(rows[0]["cameras"]).items() if rows else ():
            if camera in paths and "score" in facts:
                found[camera] = paths[camera], facts
        if not found:
            raise Refused("image_gone", f"the image of part {part} was not kept in the archive, or it had no result")
        return found


def _name(m: Mapping[str, Any]) -> str:
    try:
        return check_class_name(str(m["class"]))
    except VisionADError as exc:
        raise Refused("input", str(exc)) from None


def _before(found: Mapping[str, Any]) -> dict[str, int]:
    """Return the version that a new one follows. The station may not know of it yet."""
    return {"version": int(found["version"]) - 1}


def _facts(m: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: m.get(name) for name in names}


def _known_defects(records: Records, name: str) -> list[KnownDefect]:
    """Return what differed most in the newest parts of a class that a person called bad. A defect that was missed has no place."""
    found = []
    for row in records.newest(DEFECTS, f"id IN (SELECT part FROM reviews WHERE was_good = 0) AND {NEWEST_REVIEW} = 0"):
        for facts in json.loads(row["cameras"]).values():
            regions = facts.get("regions") or ()
            if facts.get("class") == name and regions:
                worst = max(regions, key=lambda region: float(region["score"]))
                corners = [(int(x), int(y)) for x, y in worst["polygon"]]
                found.append(KnownDefect(int(row["id"]), str(row["part"]), corners))
    return found


def _kept_before(records: Records, name: str, before: int) -> tuple[int, list[list[Kept]]]:
    """Look through the newest archived parts below a number. Return their lowest number, 0 at the end; and images by part."""
    rows = records.newest(READ_AT_ONCE, "archived IS NOT NULL AND id < ?", (before,))
    reviews = records.reviews_of(rows[-1]["id"], rows[0]["id"]) if rows else {}
    found = []
    for row in rows:
        paths = by_camera(json.loads(row["archived"]))
        images = [
            (
                int(row["id"]),
                paths[camera],
                str(facts.get("verdict") or _VERDICTS[row["evaluation"]]),
                reviews.get(row["id"]),
            )
            for camera, facts in json.loads(row["cameras"]).items()
            if facts.get("class") == name and camera in paths
        ]
        if images:
            found.append(images)
    return (int(rows[-1]["id"]) if len(rows) == READ_AT_ONCE else 0), found
