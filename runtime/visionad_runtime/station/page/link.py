"""The front's side of the page: events go out, commands come in. The page itself is a process of its own.

Pages must never delay the line. So the page process is another one, at low priority; it reads the records itself and changes
nothing. Each change is a command to the front, which checks the role, does it and audits it. A page process that is killed,
stopped or slow is replaced, and the line does not notice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ...errors import VisionADError
from ..camera import PushedCamera
from ..diagnosis import diagnosis_of
from ..front.alarms import clock_is_synchronized
from ..records.records import deciding_camera, utc_now
from ..sink import Outcome, SinkError
from .commands import READING, ROLES_OF, FrontSide, PageCommands
from .counted import counted
from .drafting import Drafting
from .live import LiveView
from .repetition import Repetition
from .teacher_process import TeacherProcess
from .users import Refused, Users, may
from .wire import packed, receive

log = logging.getLogger("visionad")

BEAT_SECONDS = 0.5
IMAGE_SECONDS = 0.5
"""How long a result waits for its image, so that both reach the page in one message. A later image is sent in a second one."""
SILENT_SECONDS = 6.0
"""Silence after which the page process is replaced. Browsers say OFFLINE long before."""
START_SECONDS = 60.0
"""How long the page process may take to say its first word."""
RESTART_SECONDS = (0.2, 0.5, 2.0, 5.0)
MAX_BUFFER = 8 << 20
"""Bytes that wait for a page process that does not read. Beyond that, results go without images, then not at all."""
SMALL_HEAP = {"MALLOC_ARENA_MAX": "2"}
"""Variables of the page process: glibc keeps a heap for each thread, and the page has many that do little."""

_OPEN = ("session", "login", "logout", "watch", "alive", "panels", "ready", "inspect", "overlay", "push", "look")


class PageLink:
    """The page process, seen from the front.

    Args:
        front: the station.
        say: told of each event in words, for the console.
        unseen: numbers of parts that were not ok and that nobody has seen, from before this start.
    """

    def __init__(self, front: FrontSide, say: Callable[[str], object], unseen: Sequence[int] = ()) -> None:
        self._front, self._say = front, say
        self.users = Users(front.station.settings.records.parent)
        self.boot, self.started = secrets.token_hex(8), utc_now()
        self._writer: asyncio.StreamWriter | None = None
        self._heard = 0.0
        self._watched = False
        self._pending: dict[int, tuple[Outcome, asyncio.TimerHandle]] = {}
        self._asked: dict[int, list[asyncio.Future[Any]]] = {}
        self._repetition = Repetition()
        self._commands = PageCommands(front, self.users, self._send_state, unseen)
        self._live = LiveView(front, self.users)
        self._teacher = TeacherProcess(front.station.path, front.simulate)
        self._drafting = Drafting(front, self._teacher, self._commands.audit)
        self._seq = 0
        self._version = 0
        self._shown: dict[str, Any] = {}
        self._last: Outcome | None = None
        self._bare: Outcome | None = None  # the newest part that was sent, if it was without its images
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- told by the front --------------------------------------------------------------------------------------------

    def observe(self, kind: str, value: Any) -> None:
        """Take an event of the front: ``state``, ``outcome`` or ``event``. Returns at once."""
        if kind == "outcome":
            self._on_outcome(value)
        elif kind == "event":
            if value[0] == "worker-ready":
                self._front.tell_worker("watch", self._watched)
            self._send_state()
        else:
            self._drafting.on_state()
            self._send_state()

    def on_images(self, part: int, shown: list[dict[str, Any]]) -> None:
        """Take the encoded images of a part."""
        pending = self._pending.pop(part, None)
        if pending is not None:
            pending[1].cancel()
            for earlier in sorted(other for other in self._pending if other < part):
                self.on_images(earlier, [])  # the page's last part is the line's last part
            self._send_outcome(pending[0], shown)
        elif shown and self._bare is not None and part == self._bare.id:
            self._send_outcome(self._bare, shown)  # they came late: the part is sent again, with them
        for future in self._asked.pop(part, []):
            if not future.done():
                future.set_result(shown)

    # -- the process --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the page process, and start it again whenever it ends, until cancelled."""
        web = self._front.station.settings.web
        assert web is not None
        self._say(f"page: http://{web.host}:{web.port}/ ; the panel's token is in {self.users.token_path}")
        if self.users.code:
            self._say(f"page: no user yet; make the first one with the code {self.users.code}")
        beats = asyncio.create_task(self._beat())
        failures = 0
        try:
            while True:
                started = time.monotonic()
                why = await self._run_once()
                failures = 0 if time.monotonic() > started + 30 else failures + 1
                self._front.alarms.set("page", f"the page process was replaced: {why}", key="process")
                await asyncio.sleep(RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)])
        finally:
            beats.cancel()
            self._drafting.close()
            await self._teacher.end()

    async def _run_once(self) -> str:
        """Run one page process until it ends. Return why it did."""
        ours, arguments, token, passed = _connection()
        path = self._front.station.path.resolve()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "visionad_runtime.web.station", str(path), *arguments,
            stdin=subprocess.PIPE, pass_fds=[] if passed is None else [passed.fileno()], env={**SMALL_HEAP, **os.environ},
        )  # fmt: skip
        try:
            if passed is not None:
                passed.close()
            assert process.stdin is not None
            process.stdin.write(token.encode() + b"\n")
            reader, self._writer = await _accepted(ours, token, process)
            self._heard = time.monotonic() + START_SECONDS
            self._send({"event": "hello", **self._hello()})
            self._shown = {}
            self._send_state()
            if self._last is not None:
                self._send_outcome(self._last, [])
            reading = asyncio.create_task(self._read(reader))
            try:
                while not reading.done():
                    await asyncio.wait([reading], timeout=1.0)
                    if time.monotonic() > self._heard + SILENT_SECONDS:
                        return "it did not answer"
                return "it ended"
            finally:
                reading.cancel()
        except (OSError, EOFError, TimeoutError) as exc:
            return str(exc) or type(exc).__name__
        finally:
            self._set_watched(False)
            if self._writer is not None:
                self._writer.transport.abort()
                self._writer = None
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                message, blobs = await receive(reader)
            except EOFError:
                return
            self._heard = time.monotonic()
            self._front.alarms.clear("page", "process")
            task = asyncio.create_task(self._answer(message, blobs))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # -- events -------------------------------------------------------------------------------------------------------

    def _send(self, header: Mapping[str, Any], blobs: list[bytes] | None = None) -> None:
        writer = self._writer
        if writer is None or writer.is_closing():
            return
        waiting = writer.transport.get_write_buffer_size()
        if waiting > 2 * MAX_BUFFER:
            return
        writer.write(packed(header, [] if waiting > MAX_BUFFER else blobs or []))

    async def _beat(self) -> None:
        """Beat while the worker answers: by the same permission as the heartbeat to the PLC."""
        while True:
            if self._front.state.alive:
                self._seq += 1
                last = self._last
                self._send(
                    {"event": "beat", "now": utc_now(), "seq": self._seq, "judged_at": last.time_utc if last else None}
                )
            if self._seq % 4 == 0:
                self._send_state()
            await asyncio.sleep(BEAT_SECONDS)

    def _hello(self) -> dict[str, Any]:
        settings = self._front.station.settings
        recipes = [
            {"number": n, "name": r.name, "class": r.class_name, "digest": r.digest()}
            for n, r in settings.recipes.items()
        ]
        return {
            "protocol": 1, "station": settings.station, "boot": self.boot, "now": utc_now(), "started": self.started,
            "recipes": recipes, "shifts": settings.shifts.model_dump(), "archive": settings.archive is not None,
        }  # fmt: skip

    def _send_state(self) -> None:
        facts = self._state()
        if facts != self._shown:
            self._shown = facts
            self._version += 1
            self._send({"event": "state", "version": self._version, **facts})

    def _state(self) -> dict[str, Any]:
        state, unseen = asdict(self._front.state), self._commands.unseen
        for name in ("offered", "unacknowledged"):
            del state[name]
        sinks = {}
        for name, sink in self._front.station.sinks.items():
            facts = dict(sink.health())
            sinks[name] = {"ok": bool(facts.get("ok")), "detail": str(facts.get("detail", ""))}
        alarms = [{**alarm, "age_s": None, "since": alarm["age_s"]} for alarm in self._front.alarms.active()]
        now = time.time()
        for alarm in alarms:
            alarm["since"] = round(now - float(alarm["since"] or 0))
            del alarm["age_s"]
        return {
            **state,
            "cameras": {name: {"ok": bool(c.get("ok")), "detail": c.get("detail", "")} for name, c in self._front.cameras.items()},
            "sinks": sinks,
            "alarms": alarms,
            "unseen": {"count": len(unseen), "last": unseen[-1] if unseen else 0},
            "clock_ok": clock_is_synchronized(),
            "facts": {key: self._front.facts.get(key) for key in ("model", "backend", "bank_version", "classes", "warnings")},
        }  # fmt: skip

    def _on_outcome(self, outcome: Outcome) -> None:
        self._last = outcome
        self._drafting.on_outcome(outcome)
        self._send({"event": "inspected", "images": counted(outcome)})
        if outcome.evaluation != 1:
            self._commands.unseen.append(outcome.id)
            del self._commands.unseen[:-1000]
        if self._front.state.control == "page":  # nobody else takes it
            asyncio.get_running_loop().call_soon(self._front.acknowledge, outcome.id, "page")
        if self._watched and outcome.cameras and self._writer is not None:
            timer = asyncio.get_running_loop().call_later(IMAGE_SECONDS, self.on_images, outcome.id, [])
            self._pending[outcome.id] = (outcome, timer)
        else:
            self._send_outcome(outcome, [])

    def _send_outcome(self, outcome: Outcome, shown: list[dict[str, Any]]) -> None:
        camera, facts = deciding_camera(outcome.cameras)
        blobs: list[bytes] = []
        images = []
        for one in shown:
            images.append({key: one[key] for key in ("camera", "width", "height", "crop")})
            blobs += [one["jpeg"], one["heat"]]
        regions = {
            name: [{"bbox": r["bbox"], "polygon": r["polygon"], "score": r["score"]} for r in own.get("regions", ())]
            for name, own in outcome.cameras.items()
        }
        header = {
            "event": "outcome", "id": outcome.id, "sequence": outcome.sequence, "part": outcome.part, "recipe": outcome.recipe,
            "at": outcome.time_utc, "evaluation": outcome.evaluation, "reason": outcome.reason, "class": facts.get("class"),
            "score": outcome.score, "threshold": outcome.threshold, "p_value": facts.get("p_value"),
            "promise": facts.get("promise"), "bank_version": outcome.bank_version, "camera": camera, "regions": regions,
            "error": facts.get("error"), "images": images, "ms": outcome.latency_ms, "alarms": outcome.alarms,
            "simulated": outcome.simulated,
        }  # fmt: skip
        self._send(header, blobs)
        self._bare = None if shown or not outcome.cameras else outcome
        if self._bare is not None and self._watched:
            asyncio.get_running_loop().call_later(IMAGE_SECONDS, self._ask_again, self._bare)

    def _ask_again(self, bare: Outcome | None) -> None:
        """Ask for the images of the newest part, if it still has none: they were late, or it was judged before a tab looked."""
        if self._watched and bare is not None and bare is self._bare:
            self._front.tell_worker("images", bare.id)

    def _set_watched(self, watched: bool) -> None:
        self._watched = watched
        self._front.tell_worker("watch", watched)
        if watched:
            self._ask_again(self._bare)
        else:
            for part in list(self._pending):
                self.on_images(part, [])

    # -- commands -----------------------------------------------------------------------------------------------------

    async def _answer(self, message: dict[str, Any], blobs: list[bytes]) -> None:
        number, command = message.get("ask"), str(message.get("do"))
        reply: dict[str, Any]
        extra: list[bytes] = []
        try:
            if command in _OPEN:
                value = await self._open_command(command, message, blobs)
            else:
                value = await self._command(command, message, blobs)
            if isinstance(value, _WithBlobs):
                value, extra = value.value, value.blobs
            reply = {"ok": True, "value": value}
        except Refused as exc:
            reply = {"ok": False, "code": exc.code, "values": exc.values, "message": str(exc)}
        except (SinkError, VisionADError, TimeoutError) as exc:
            reply = {"ok": False, "code": "unavailable", "values": {}, "message": str(exc) or "it took too long"}
        except Exception as exc:
            log.exception("page: %s", command)
            reply = {"ok": False, "code": "internal", "values": {}, "message": f"{type(exc).__name__}: {exc}"}
        if number is not None:
            self._send({"reply": number, **reply}, extra)

    async def _open_command(self, command: str, m: dict[str, Any], blobs: list[bytes]) -> Any:
        """Do what needs no role here: the page process asks for it, or a role is what it is about, or the command looks itself."""
        key = str(m.get("session") or "")
        if command == "session":
            session = self.users.session(key)
            if session is not None and m.get("touch"):
                session.used = time.monotonic()
            return None if session is None else {"name": session.name, "role": session.role, "panel": session.panel}
        if command == "watch":
            self._set_watched(bool(m["on"]))
        elif command == "panels":
            for panel in m["lost"]:
                self._front.alarms.set("panel", f"the panel {panel} does not answer", key=panel)
            for panel in m["back"]:
                self._front.alarms.clear("panel", panel)
        elif command == "ready":
            health = self._front.health()
            return {**health, "facts": dict(self._front.facts)}
        elif command == "login":
            return await self._login(m, key)
        elif command == "logout":
            self.users.logout(key)
        elif command in ("inspect", "overlay"):
            import numpy as np

            rgb = np.frombuffer(blobs[0], np.uint8).reshape(m["shape"])
            return _WithBlobs(*await self._front.ask_worker(command, rgb, m.get("class"), m["name"]))
        elif command == "look":
            return _WithBlobs(*await self._live.look(m))
        elif command == "push":
            return await self._push(str(m["camera"]), m, blobs[0])
        return None

    async def _push(self, name: str, m: Mapping[str, Any], data: bytes) -> dict[str, Any]:
        """Take an image for a camera. It decides about a part, so not everybody may send one."""
        camera = self._front.station.cameras.get(name)
        if not isinstance(camera, PushedCamera):
            raise Refused("no_camera", f"the station has no camera {name} whose images are pushed (kind http)")
        if camera.token is None and not m["local"]:
            raise Refused(
                "sender", f"camera {name} takes images of this machine only; set its token in the station file"
            )
        if camera.token is not None and not secrets.compare_digest(str(m["token"]).encode(), camera.token.encode()):
            raise Refused(
                "sender", f"expected the header `Authorization: Bearer TOKEN` with the token of camera {name}"
            )
        return {"camera": name, "frame": await self._front.ask_worker("push", name, data)}

    async def _login(self, m: Mapping[str, Any], key: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        name, address = str(m.get("name") or ""), str(m.get("address") or "")
        if m.get("panel"):
            new = self.users.login_panel(str(m["panel"]))
        elif m.get("code"):
            new = await loop.run_in_executor(
                None, self.users.login_code, str(m["code"]), name, str(m.get("password") or "")
            )
            await self._commands.audit(name, "first user", None, {"name": name, "role": "admin"})
        else:
            new = await loop.run_in_executor(None, self.users.login, name, str(m.get("password") or ""), address, key)
        session = self.users.session(new)
        assert session is not None
        return {"session": new, "name": session.name, "role": session.role, "panel": session.panel}

    async def _command(self, command: str, m: dict[str, Any], blobs: list[bytes]) -> Any:
        """Check role and repetition, then do it."""
        session = self.users.session(str(m.get("session") or ""))
        may(session, ROLES_OF, command)
        assert session is not None
        if command in READING:  # a page reads by itself too: a person's hand on it is told by `session`
            return await self._read_command(command, m)
        session.used = time.monotonic()
        name = session.name

        async def work() -> Any:
            if command.startswith(("draft_", "version_")):
                return await self._drafting.change(command, m, name, blobs)
            return await self._commands.change(command, m, session)

        return await self._repetition.once(name, m, work)

    async def _read_command(self, command: str, m: Mapping[str, Any]) -> Any:
        if command.startswith("draft"):
            value, found = await self._drafting.read(command, m)
            return _WithBlobs(value, found) if found else value
        if command in ("health", "support"):
            return {**self._front.health(), "facts": dict(self._front.facts)}
        if command == "diagnosis":
            return await diagnosis_of(self._front)
        if command == "users":
            return {"users": self.users.all()}
        part = int(m["part"])
        future: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(part, []).append(future)
        if not self._front.tell_worker("images", part):
            raise Refused("unavailable", "the worker is not there; try again in a moment")
        shown = await asyncio.wait_for(future, 5)
        facts = [{key: one[key] for key in ("camera", "width", "height", "crop")} for one in shown]
        return _WithBlobs(facts, [blob for one in shown for blob in (one["jpeg"], one["heat"])])


class _WithBlobs:
    def __init__(self, value: Any, blobs: list[bytes]) -> None:
        self.value, self.blobs = value, blobs


def _connection() -> tuple[socket.socket, list[str], str, socket.socket | None]:
    """Return our socket, the process's arguments, its token, and the socket to pass on, if there is one.

    A pair of UNIX sockets where there are such; else a loopback port, at which only who has the token is let in.
    """
    if sys.platform != "win32":
        ours, theirs = socket.socketpair()
        theirs.set_inheritable(True)
        return ours, ["--fd", str(theirs.fileno())], "", theirs
    ours = socket.create_server(("127.0.0.1", 0))
    return ours, ["--port", str(ours.getsockname()[1])], secrets.token_hex(16), None


async def _accepted(
    ours: socket.socket, token: str, process: asyncio.subprocess.Process
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not token:
        ours.setblocking(False)
        return await asyncio.open_connection(sock=ours)
    loop = asyncio.get_running_loop()
    ours.setblocking(False)
    try:
        while process.returncode is None:
            client, _ = await asyncio.wait_for(loop.sock_accept(ours), START_SECONDS)
            reader, writer = await asyncio.open_connection(sock=client)
            message, _ = await asyncio.wait_for(receive(reader), START_SECONDS)
            if secrets.compare_digest(str(message.get("token")), token):
                return reader, writer
            writer.close()
    finally:
        ours.close()
    raise EOFError("it ended before it was connected")


def page_missing() -> str | None:
    """Return what the page needs and is not installed, and the command that installs it; ``None`` if nothing is."""
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "httptools", "websockets") if find_spec(name) is None]
    return f"web: the page needs {', '.join(missing)}: pip install 'visionad[page]'" if missing else None
