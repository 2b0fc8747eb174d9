"""Events to browsers: one WebSocket a tab, the newest image only, and the next one only after the last was shown."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from ...station.records.shifts import shift_of
from ...station.settings import Shifts
from .history import History
from .link import CommandError, FrontLink
from .metrics import StationMetrics

STRIP = 12
"""Parts of the strip."""
MAX_PARTS = 200
"""Parts that wait for a slow client; the strip holds fewer."""
SESSION_SECONDS = 5.0
PANEL_SECONDS = 3.0
"""Silence after which a panel is reported."""
MAX_CLIENTS = 64
LOOK_SECONDS = 0.2
"""Between two live images of a tab, at least."""
_LENGTH = struct.Struct("!I")


class Client:
    """One tab.

    Attributes:
        images: whether it looks at parts; a hidden tab does not.
        free: whether it has shown the last image.
        look: its question for a live image, if one is on its way.
        looked: monotonic seconds of the last one.
    """

    def __init__(self, socket: WebSocket, session: dict[str, Any], key: str) -> None:
        self.socket, self.session, self.key = socket, session, key
        self.images, self.free = False, True
        self.skipped = 0
        self.look: asyncio.Task[None] | None = None
        self.looked = 0.0
        self.heard = time.monotonic()
        self._newest: dict[str, dict[str, Any]] = {}
        self._parts: deque[dict[str, Any]] = deque(maxlen=MAX_PARTS)
        self._reject: tuple[dict[str, Any], list[bytes]] | None = None
        self._latest: tuple[dict[str, Any], list[bytes]] | None = None
        self._frame: tuple[dict[str, Any], list[bytes]] | None = None
        self._wake = asyncio.Event()

    def put(self, event: dict[str, Any]) -> None:
        """Queue an event. Of states, beats and counts, the newest is sent; of parts, all."""
        if event["event"] == "part":
            self._parts.append(event)
        else:
            self._newest[event["event"]] = event
        self._wake.set()

    def put_outcome(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        """Queue a part with its images. A reject is not replaced by a later part that is ok."""
        if not self.images:
            return
        if header["evaluation"] == 1:
            self.skipped += self._latest is not None and self._latest[0]["id"] != header["id"]
            self._latest = (header, blobs)
        else:
            self.skipped += self._reject is not None and self._reject[0]["id"] != header["id"]
            self._reject, self._latest = (header, blobs), None
        self._wake.set()

    def put_frame(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        """Queue a live image, which the tab has asked for."""
        self._frame = header, blobs
        self._wake.set()

    def forget(self) -> None:
        """Drop what waits, as for a tab that was hidden."""
        self._reject = self._latest = self._frame = None
        self._parts.clear()
        self.free = True

    async def send(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._newest:
                name = next(iter(self._newest))
                await self.socket.send_text(json.dumps(self._newest.pop(name)))
            while self._parts:
                await self.socket.send_text(json.dumps(self._parts.popleft()))
            if self._frame is not None:
                live, self._frame = self._frame, None
                await self.socket.send_bytes(binary(*live))
            if self.free and (self._reject or self._latest):
                header, blobs = self._reject or self._latest  # type: ignore[misc]
                if self._reject:
                    self._reject = None
                else:
                    self._latest = None
                self.free = False
                skipped, self.skipped = self.skipped, 0
                await self.socket.send_bytes(binary({**header, "skipped": skipped}, blobs))

    def shown(self) -> None:
        """The last image is on the screen: the next one may come."""
        self.free = True
        self._wake.set()


class Feed:
    """All tabs, and what a new one needs to know.

    Args:
        history: the records.
        shifts: of the station file.

    Attributes:
        metrics: counts of the line's images.
    """

    def __init__(self, history: History, shifts: Shifts) -> None:
        self._history, self._shifts = history, shifts
        self.link: FrontLink
        self.metrics = StationMetrics()
        self.clients: set[Client] = set()
        self.hello: dict[str, Any] = {}
        self.state: dict[str, Any] = {}
        self.counts: dict[str, Any] = {}
        self._last: tuple[dict[str, Any], list[bytes]] | None = None
        self._watching = False
        self._dirty = asyncio.Event()
        self._lost_panels: set[str] = set()

    def on_event(self, event: dict[str, Any], blobs: list[bytes]) -> None:
        """Take an event of the front."""
        kind = event["event"]
        if kind == "inspected":
            self.metrics.add(event["images"])
            return
        if kind == "hello":
            self.hello = event
            self._dirty.set()
        elif kind == "state":
            if any(event.get(name) != self.state.get(name) for name in ("missed", "late")):
                self._dirty.set()  # no part tells of these
            self.state = event
        elif kind == "outcome":
            again = self._last is not None and self._last[0]["id"] == event["id"]  # with its images now: they were late
            self._last = (event, blobs)
            self._dirty.set()
            part = {key: event[key] for key in ("id", "part", "at", "evaluation", "reason", "score", "threshold")}
            for client in self.clients:
                if client.images and not again:
                    client.put({"event": "part", **part})
                client.put_outcome(event, blobs)
            return
        for client in self.clients:
            client.put(event)

    async def count(self) -> None:
        """Count the shift's parts, at most once a second, until cancelled."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), 30)  # a shift may have begun
            self._dirty.clear()
            await asyncio.sleep(0.1)  # the front writes the part at the same time
            shift = shift_of(self._shifts, datetime.now(UTC))
            with suppress(Exception):
                found = await asyncio.to_thread(self._history.counts, utc_text(shift.start))
                self.counts = {"event": "counts", "shift": shift.name, "since": utc_text(shift.start), **found}
                for client in self.clients:
                    client.put(self.counts)
            await asyncio.sleep(0.4)

    async def watch_panels(self) -> None:
        """Report panels that do not answer, until cancelled."""
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            panels = {c for c in self.clients if c.session["panel"] and c.images}
            lost = {c.session["name"] for c in panels if now > c.heard + PANEL_SECONDS}
            alive = {c.session["name"] for c in panels if now <= c.heard + PANEL_SECONDS}
            lost -= alive
            back = self._lost_panels & alive
            if lost - self._lost_panels or back:
                self.link.tell("panels", lost=sorted(lost - self._lost_panels), back=sorted(back))
            self._lost_panels = (self._lost_panels | lost) - back

    async def serve(self, socket: WebSocket, key: str) -> None:
        """Serve a tab until it is gone.

        Args:
            socket: not accepted yet.
            key: of its session.
        """
        await socket.accept()
        session = await self._session(key)
        if session is None:
            await socket.close(4401, "log in first")
            return
        if len(self.clients) >= MAX_CLIENTS:
            await socket.close(4429, "too many pages")
            return
        client = Client(socket, session, key)
        self.clients.add(client)
        client.put({**self.hello, "user": session})
        if self.state:
            client.put(self.state)
        if self.counts:
            client.put(self.counts)
        tasks = [
            asyncio.create_task(work())
            for work in (client.send, lambda: self._receive(client), lambda: self._check(client))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.clients.discard(client)
            self._watch()
            tasks += [client.look] if client.look is not None else []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(RuntimeError, WebSocketDisconnect):
                await socket.close()

    async def _receive(self, client: Client) -> None:
        while True:
            message = json.loads(await client.socket.receive_text())
            client.heard = time.monotonic()
            if message.get("send") == "shown":
                client.shown()
            elif message.get("send") == "used":
                self.link.tell("session", session=client.key, touch=True)
            elif message.get("send") == "look":
                if client.look is not None:
                    client.look.cancel()  # the newest question counts
                client.look = asyncio.create_task(self._look(client, message))
            elif message.get("send") == "subscribe":
                client.forget()
                client.images = "parts" in message.get("names", ())
                self._watch()
                if client.images:
                    await self._begin(client)

    async def _look(self, client: Client, m: dict[str, Any]) -> None:
        """Send a live image, or why there is none. The front checks the role; it does not count as use of the session."""
        await asyncio.sleep(max(0.0, client.looked + LOOK_SECONDS - time.monotonic()))
        client.looked = time.monotonic()
        values: dict[str, Any] = {key: str(m.get(key) or "")[:100] for key in ("camera", "class")}
        try:
            answer = await self.link.ask("look", session=client.key, **values)
        except CommandError as exc:
            client.put(
                {"event": "no_frame", "n": m.get("n"), "code": exc.code, "values": exc.values, "error": str(exc)}
            )
            return
        image = {key: answer.value.pop(key) for key in ("camera", "width", "height", "crop")}
        client.put_frame({"event": "frame", "n": m.get("n"), **answer.value, "images": [image]}, answer.blobs)

    async def _begin(self, client: Client) -> None:
        """Send what a tab shows first: the newest parts since the station's start, and the last one with its image."""
        newest = await asyncio.to_thread(self._history.newest, self.hello["started"], STRIP)
        client.put({"event": "strip", "parts": newest})
        if self._last is None:
            return
        header, blobs = self._last
        if not blobs and header["regions"]:
            with suppress(CommandError):
                answer = await self.link.ask("image", session=client.key, part=header["id"])
                if self._last is not None and self._last[0]["id"] == header["id"] and answer.blobs:
                    self._last = ({**header, "images": answer.value}, answer.blobs)
        client.put_outcome(*self._last)

    async def _check(self, client: Client) -> None:
        """End the connection with its session; tell the tab when its user changes."""
        while True:
            await asyncio.sleep(SESSION_SECONDS)
            with suppress(CommandError):
                session = await self._session(client.key)
                if session is None:
                    await client.socket.close(4401, "log in again")
                    return
                if session != client.session:
                    client.session = session
                    client.put({"event": "user", **session})

    async def _session(self, key: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = (await self.link.ask("session", session=key)).value
        return found

    def _watch(self) -> None:
        watching = any(client.images for client in self.clients)
        if watching != self._watching:
            self._watching = watching
            self.link.tell("watch", on=watching)


def binary(header: dict[str, Any], blobs: list[bytes]) -> bytes:
    """Return a message of a part: length of the header, header as JSON, then JPEG and heat PNG of each camera."""
    text = json.dumps({**header, "lengths": [len(blob) for blob in blobs]}).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *blobs))


def utc_text(moment: datetime) -> str:
    """Return a time as the records write it, so that texts compare as times."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")
