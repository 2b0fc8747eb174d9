"""What the page may have the station do: each command with its roles, done in the front and audited."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...errors import VisionADError
from ..front.alarms import Alarms
from ..records.records import Records
from ..settings import Station
from ..sink import Control, Line
from .users import Refused, Session, Users

EVERYONE = ("operator", "viewer", "setter", "admin")
HANDS = ("operator", "setter", "admin")
"""Who may operate the line from the page."""
TEACHES = ("setter",)
"""Who may change what the line judges by."""
ROLES_OF = {
    "seen": HANDS,
    "recipe": HANDS,
    "control": HANDS,
    "clear": HANDS,
    "trigger": HANDS,
    "keep": HANDS,
    "review": EVERYONE,
    "health": EVERYONE,
    "diagnosis": EVERYONE,
    "image": EVERYONE,
    "drafts": EVERYONE,
    "draft_facts": EVERYONE,
    "draft_image": EVERYONE,
    "draft_raster": EVERYONE,
    "draft_replay": EVERYONE,
    "draft_what_if": EVERYONE,
    "look": TEACHES,
    "draft_begin": TEACHES,
    "draft_discard": TEACHES,
    "draft_add": TEACHES,
    "draft_remove": TEACHES,
    "draft_decide": TEACHES,
    "draft_regions": TEACHES,
    "draft_collect": TEACHES,
    "draft_look": TEACHES,
    "draft_threshold": TEACHES,
    "draft_by_hand": ("admin",),
    "draft_effect": TEACHES,
    "draft_live": TEACHES,
    "version_back": TEACHES,
    "version_add": TEACHES,
    "users": ("admin",),
    "support": ("admin",),
    "user_add": ("admin",),
    "user_remove": ("admin",),
    "restart_worker": ("admin",),
}
"""Command → roles that may give it."""
READING = (
    "health",
    "diagnosis",
    "image",
    "users",
    "support",
    "drafts",
    "draft_facts",
    "draft_image",
    "draft_raster",
    "draft_replay",
    "draft_what_if",
)


class FrontSide(Line, Protocol):
    """What the page needs of the front."""

    station: Station
    simulate: bool
    records: Records
    alarms: Alarms
    facts: dict[str, Any]
    cameras: dict[str, dict[str, Any]]

    def take_control(self, control: Control, who: str) -> bool:
        """Hand control over."""

    def health(self) -> dict[str, Any]:
        """Return what ``GET /health`` says."""

    def tell_worker(self, *message: Any) -> bool:
        """Send the worker a message, if it is there."""

    def restart_worker(self, why: str) -> None:
        """Replace the worker."""

    async def write(self, work: Callable[[], Any]) -> Any:
        """Do something with the records, in their thread."""

    async def ask_worker(self, command: str, *values: Any) -> Any:
        """Ask the worker for something beside the line's parts."""


class PageCommands:
    """Commands of the page.

    Attributes:
        unseen: numbers of parts that were not ok and that nobody has seen yet.

    Args:
        front: the station.
        users: of the page.
        show: called when the state that pages show has changed.
        unseen: such parts from before this start.
    """

    def __init__(self, front: FrontSide, users: Users, show: Callable[[], object], unseen: Sequence[int] = ()) -> None:
        self._front, self._users, self._show = front, users, show
        self.unseen = list(unseen)

    async def change(self, command: str, m: Mapping[str, Any], session: Session) -> Any:
        """Do a command whose role was checked, and audit it.

        Args:
            command: one of :data:`ROLES_OF`.
            m: its values.
            session: of who gives it.

        Raises:
            Refused: The state of the station does not allow it.
        """
        who = session.name
        front = self._front
        if command == "seen":
            last = int(m["id"])
            seen = [one for one in self.unseen if one <= last]
            self.unseen = [one for one in self.unseen if one > last]
            if seen:
                await self.audit(who, "seen", None, {"parts": len(seen), "from": seen[0], "to": seen[-1]})
            self._show()
            return {"seen": len(seen)}
        if command == "control":
            to: Control = "page" if m["to"] == "page" else "line"
            if not front.take_control(to, who):
                raise Refused("busy", "a part is in hand; try again")
            return {"control": to}
        if command == "review":
            good, note = bool(m["good"]), str(m.get("note") or "")[:500]
            try:
                await front.write(lambda: front.records.add_review(int(m["id"]), who, good, note))
            except VisionADError:
                raise Refused("no_part", f"there is no part {int(m['id'])}") from None
            return {"id": int(m["id"]), "good": good, "who": who}
        if command in ("user_add", "user_remove"):
            return await self._change_users(command, m, who)
        if command == "keep":
            return await self._keep(int(m["id"]), who)
        if command == "restart_worker":
            await self.audit(who, "restart worker")
            front.restart_worker(f"{who} restarts it")
            return {}
        return await self._operate(command, m, who)

    async def _operate(self, command: str, m: Mapping[str, Any], who: str) -> Any:
        """Operate the line. The PLC's control is respected: the page does nothing that the line did not hand over."""
        front = self._front
        if command == "clear":
            before = front.state.fault
            if not front.clear_fault("page"):
                raise Refused("still_fault", "its cause is not gone", fault=front.state.fault)
            await self.audit(who, "clear fault", before)
            return {}
        if front.state.control != "page":
            raise Refused("plc_control", "the PLC has control; take control first")
        if command == "recipe":
            before_recipe, number = front.state.recipe, int(m["number"])
            why = front.prepare(number, "page")
            if why is not None:
                raise Refused("recipe_refused", why, number=number)
            await self.audit(who, "recipe", before_recipe, number)
            return {"number": number}
        number_or_none = front.trigger(front.state.acquisition + 1, str(m.get("part") or "")[:100], "page")
        if number_or_none is None:
            raise Refused("not_ready", "the station is not ready", phase=front.state.phase)
        return {"id": number_or_none}

    async def _keep(self, part: int, who: str) -> Any:
        """Keep the images of a part. Only what lies in the archive is called kept."""
        front = self._front
        if front.station.settings.archive is None:
            raise Refused("no_archive", "the station file has no archive: add the key `archive`")
        try:
            await front.ask_worker("keep", part)
        except Refused as exc:
            if exc.code != "not_in_memory":
                raise
            rows = await front.write(lambda: front.records.newest(1, "id = ?", (part,)))
            if not rows:
                raise Refused("no_part", f"there is no part {part}") from None
            paths = json.loads(rows[0]["archived"] or "[]")
            if not paths or not all(Path(path).is_file() for path in paths):
                raise
            return {"id": part}  # it was kept before
        await self.audit(who, "keep image", None, {"part": part})
        return {"id": part}

    async def _change_users(self, command: str, m: Mapping[str, Any], who: str) -> Any:
        loop, name = asyncio.get_running_loop(), str(m.get("name") or "").strip()
        old = next((user for user in self._users.all() if user["name"] == name), None)
        if command == "user_add":
            await loop.run_in_executor(None, self._users.add, name, str(m.get("password") or ""), str(m.get("role")))
        else:
            self._users.remove(name)
        new = next((user for user in self._users.all() if user["name"] == name), None)
        await self.audit(who, "user", old, new)
        return {"users": self._users.all()}

    async def audit(self, who: str, what: str, old: object = None, new: object = None) -> None:
        """Add a row to the audit."""
        await self._front.write(lambda: self._front.records.audit(who, what, old, new))
