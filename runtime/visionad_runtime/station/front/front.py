"""Front process of a station: cycle, sinks, records. It touches no camera and no engine, so it answers in time."""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ...formats.plain_text import plain
from ..page.link import PageLink
from ..records.record_writer import RecordWriter
from ..records.records import utc_now
from ..records.unusable import records_unusable
from ..settings import Station
from ..sink import Control, Outcome, StationState
from ..worker.golden import GoldenSchedule
from . import cycle as cycles
from .alarms import Alarms
from .cycle import Cycle, Effect, Job, Late, Note, Prepare, Publish, Take
from .frame_starts import FrameStarts
from .health import station_health
from .housekeeping import audit_settings, keep_house
from .questions import Questions
from .record_start import start_records
from .sink_runner import SinkRunner
from .supervisor import WorkerSupervisor
from .systemd import notify

log = logging.getLogger("visionad")


PREPARE_SECONDS = 120.0
"""How long a worker may take to prepare a recipe."""


class Front:
    """Runs a station until it is stopped. It is the ``Line`` that sinks see.

    Args:
        station: the station file.
        simulate: whether folder cameras replace the others.
        say: told of each event in words, for the console.
        observe: told of each state and outcome, for pages and tests.
    """

    def __init__(
        self,
        station: Station,
        *,
        simulate: bool = False,
        say: Callable[[str], object] = lambda _: None,
        observe: Callable[[str, Any], object] = lambda *_: None,
    ) -> None:
        self.station, self._say, self._observe = station, say, observe
        settings = station.settings
        self._started = started = start_records(settings.records)
        self.records = started.records
        self._cycle = Cycle(
            cycles.Settings(
                deadline_s=settings.deadline_ms / 1e3,
                ack_s=settings.ack_ms / 1e3,
                recipe_digests={number: recipe.digest() for number, recipe in settings.recipes.items()},
                deadlines={n: r.deadline_ms / 1e3 for n, r in settings.recipes.items() if r.deadline_ms is not None},
                acknowledges=any(sink.live for sink in station.sinks.values()),
            ),
            started.last_id + 1,
        )
        self.alarms = Alarms(self._on_alarm)
        self.facts: dict[str, Any] = {}
        self.cameras: dict[str, dict[str, Any]] = {
            name: {"ok": False, "detail": "not opened yet"} for name in station.cameras
        }
        self.recent: deque[Outcome] = deque(maxlen=200)
        self._acknowledged = 0
        self._writer = RecordWriter(
            self.records,
            lambda why: self.alarms.set("disk", why, key="records"),
            self._on_written,
            lambda: self.alarms.set("disk", "records are lost: the disk has been full for too long"),
        )
        self._sinks = SinkRunner(station.sinks, self, self._writer, self.alarms, self._note)
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.simulate = simulate
        self._supervisor = WorkerSupervisor(
            station.path, simulate, self._on_message, self._on_worker_lost, self._on_worker_alive, self._excused_until
        )
        self._questions = Questions(self._supervisor, "the worker")
        self._is_announced = False
        self._frame = 0  # number of the frame that began the part in hand; 0 where a trigger did
        self._starts = FrameStarts(self._cycle, self._trigger, self._note)
        self._prepared_since = 0.0
        self.page = PageLink(self, say, started.unseen) if settings.web is not None else None
        if started.interrupted:
            self._note(
                "interrupted",
                f"{started.interrupted} parts were in hand when the station was killed: recorded as not decidable",
            )
        golden = settings.checks.golden
        self._golden = None if golden is None else GoldenSchedule(golden, settings.shifts, started.golden_passed)
        self._cycle.check_blocks = golden is not None and golden.overdue == "not_ready"

    # -- Line ---------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> StationState:
        """See :class:`~visionad_runtime.station.sink.Line`. A trigger shows once it is on disk."""
        state = self._cycle.state
        if state.acquisition == self._acknowledged:
            return state
        return cycles.with_acquisition(state, self._acknowledged)

    @property
    def recipes(self) -> Mapping[int, str]:
        """Number → name of each recipe."""
        return {number: recipe.name for number, recipe in self.station.settings.recipes.items()}

    @property
    def station_name(self) -> str:
        """See :class:`~visionad_runtime.station.sink.Line`."""
        return self.station.settings.station

    def trigger(self, sequence: int, part: str, source: Control = "line") -> int | None:
        """See :class:`~visionad_runtime.station.sink.Line`."""
        if self.station.settings.trigger != "line":
            self._cycle.missed += 1
            self._do([Note("trigger-missed", f"trigger {sequence} {part!r} was missed: the cameras start the cycle")])
            return None
        return self._trigger(sequence, part, source)

    def _trigger(self, sequence: int, part: str, source: Control, frame: int = 0) -> int | None:
        self._frame = frame
        effects = self._cycle.trigger(sequence, part, time.monotonic(), utc_now(), source)
        self._do(effects)
        return next((effect.job.id for effect in effects if isinstance(effect, Take)), None)

    def prepare(self, recipe: int, source: Control = "line") -> str | None:
        """See :class:`~visionad_runtime.station.sink.Line`."""
        effects = self._cycle.prepare(recipe, source)
        if isinstance(effects, str):
            self._note("recipe-refused", f"recipe {recipe}: {effects}")
            self._show()
            return effects
        self._do(effects)
        return None

    def acknowledge(self, inspection: int | None = None, source: Control = "line") -> bool:
        """See :class:`~visionad_runtime.station.sink.Line`."""
        done = self._cycle.acknowledge(inspection, source)
        if done:
            self._do([])
        return done

    def clear_fault(self, source: Control = "line") -> bool:
        """See :class:`~visionad_runtime.station.sink.Line`."""
        if source == self._cycle.control or source == "page":
            self._do(self._cycle.clear_fault())
        return self._cycle.phase != "fault"

    def line_lost(self, why: str) -> None:
        """See :class:`~visionad_runtime.station.sink.Line`."""
        self._do(self._cycle.line_lost(why))

    def line_back(self) -> None:
        """See :class:`~visionad_runtime.station.sink.Line`."""
        self._do(self._cycle.line_back())

    @property
    def worker_pid(self) -> int | None:
        """Process number of the worker; ``None`` while there is none."""
        return None if self._supervisor.handle is None else self._supervisor.handle.process.pid

    # -- for pages and commands ---------------------------------------------------------------------------------------

    def take_control(self, control: Control, who: str) -> bool:
        """Hand control to the line or the page. Refused while a part is in hand."""
        old = self._cycle.control
        if not self._cycle.take_control(control):
            return False
        self._writer.run(lambda: self.records.audit(who, "control", old, control))
        self._do([])
        return True

    def run_golden(self, who: str) -> str | None:
        """Have the golden parts of the prepared recipe judged. Return why not, or ``None`` if it has begun."""
        golden, recipe = self._golden, self._cycle.recipe
        if golden is None:
            return "the station file names no golden parts (checks.golden)"
        if golden.who:
            return "they are being judged"
        if self._cycle.phase != "ready" or not self._supervisor.ready:
            return f"the station is {self._cycle.phase}; prepare a recipe first"
        golden.who = who
        self._supervisor.send("golden", recipe)
        return None

    def tell_worker(self, *message: Any) -> bool:
        """Send the worker a message of the page. Return whether the worker is there."""
        return self._supervisor.ready and self._supervisor.send(*message)

    def restart_worker(self, why: str) -> None:
        """Replace the worker by a new process."""
        self._supervisor.replace(why)

    async def write(self, work: Callable[[], Any]) -> Any:
        """Do something with the records in their thread, and return what it returns."""
        return await self._writer.ask(work)

    async def ask_worker(self, command: str, *values: Any) -> Any:
        """Ask the worker for something beside the line's parts: ``inspect``, ``overlay``, ``push``, ``keep`` or ``pixels``.

        Raises:
            Refused: The worker says why not.
            SinkError: The worker is not there.
        """
        return await self._questions.ask(command, *values)

    def health(self) -> dict[str, Any]:
        """Return what ``GET /health`` says."""
        details = {
            "worker": self.facts,
            "cameras": self.cameras,
            "sinks": self._sinks.health(),
            "alarms": self.alarms.active(),
            "golden": None if self._golden is None else self._golden.facts(),
            "unwritten": self._writer.waiting,
        }
        return station_health(self.state, details)

    def stop(self) -> None:
        """Stop after the part in hand. Any thread may call it."""
        self._loop.call_soon_threadsafe(self._stop)

    # -- running ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until :meth:`stop`, SIGINT, SIGTERM or SIGHUP.

        Raises:
            SinkError: A sink could not start.
        """
        self._loop = asyncio.get_running_loop()
        self._writer.start()
        names = ["SIGINT", "SIGTERM"]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            names.append("SIGHUP")
        for name in names:
            with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
                self._loop.add_signal_handler(getattr(signal, name), self._stop)
        try:
            await audit_settings(self._writer, self.station.settings)
        except sqlite3.Error as exc:
            self._close_records()
            raise records_unusable(self.station.settings.records, exc) from None
        self._supervisor.start()
        self._tasks = [
            self._loop.create_task(self._supervisor.watch()),
            self._loop.create_task(keep_house(self._writer, self.alarms, self.station.settings.retention_days)),
        ]
        starting = self._sinks.start()
        self._tasks += self._sinks.tasks
        if self.page is not None:
            self._tasks.append(self._loop.create_task(self.page.run()))
        self._show()
        starting.append(self._loop.create_task(self._wait_for_stop()))
        try:
            ended, _ = await asyncio.wait(starting, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()  # raises what kept a sink from starting
        finally:
            starting[-1].cancel()
            await self._end()

    async def _wait_for_stop(self) -> None:
        await self._stopping.wait()

    def _stop(self) -> None:
        if self._cycle.phase not in ("stopping", "off"):
            notify("STOPPING=1")
        self._cycle.stop()
        self._do([])
        if self._cycle.phase == "off":
            self._stopping.set()

    async def _end(self) -> None:
        self._cycle.stop()
        self._show()
        await asyncio.sleep(0.05)  # live sinks show that the station is off
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        await self._supervisor.end()
        self._close_records()

    def _close_records(self) -> None:
        self._writer.close()
        self._started.unlock()

    # -- effects ------------------------------------------------------------------------------------------------------

    def _do(self, effects: list[Effect]) -> None:
        """Carry out what the cycle asks for, then show the state."""
        for effect in effects:
            if isinstance(effect, Take):
                self._take(effect.job)
            elif isinstance(effect, Prepare):
                self._prepared_since = time.monotonic()
                self._supervisor.send("prepare", effect.recipe)
            elif isinstance(effect, Publish):
                self._publish(effect.outcome)
            elif isinstance(effect, Late):
                late = cycles.as_late(effect.outcome)
                self._writer.run(partial(self.records.add_late, late))
                self._note("late", f"the result of part {late.id} came after its deadline, and was offered to nobody")
            elif isinstance(effect, Note):
                self._note(effect.code, effect.text)
        self._set_timer()
        self._show()
        if self._cycle.phase == "off":
            self._stopping.set()

    def _take(self, job: Job) -> None:
        self._supervisor.send("take", tuple(job), self._frame)
        self._writer.accept(job, self._cycle.simulated, partial(self._acknowledge_job, job.id))

    def _acknowledge_job(self, job_id: int) -> None:
        self._acknowledged = max(self._acknowledged, job_id)
        self._show()
        self._supervisor.send("recorded", job_id)

    def _publish(self, outcome: Outcome) -> None:
        self.recent.append(outcome)
        self._tell_watchers("outcome", outcome)
        self._writer.complete(outcome)
        for code in outcome.alarms:
            self.alarms.set(code, f"part {outcome.id}")
        if "light-fault" in outcome.alarms:
            self._do(
                self._cycle.raise_fault("light or focus was out of limits several times in a row", time.monotonic())
            )

    def _on_written(self) -> None:
        self.alarms.clear("disk", "records")
        self._sinks.recorded()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._cycle.next_deadline
        if due is not None:
            self._timer = self._loop.call_later(
                max(0.0, due - time.monotonic()), lambda: self._do(self._cycle.tick(time.monotonic()))
            )

    def _show(self) -> None:
        self._sinks.show()
        self._tell_watchers("state", self.state)
        if self._cycle.ready:
            self._starts.begin_held()

    def _tell_watchers(self, kind: str, value: Any) -> None:
        self._observe(kind, value)
        if self.page is not None:
            self.page.observe(kind, value)

    def _note(self, code: str, text: str) -> None:
        text = plain(text)
        self._say(f"{code}: {text}")
        self._tell_watchers("event", (code, text))
        self._writer.run(lambda: self.records.note(code, text))

    def _on_alarm(self, code: str, text: str, active: bool) -> None:
        self._note(f"alarm-{code}" if active else f"alarm-{code}-over", text)

    # -- worker -------------------------------------------------------------------------------------------------------

    def _on_worker_lost(self, why: str) -> None:
        self._questions.give_up()
        self._starts.forget()
        self._do(self._cycle.worker_lost(why, time.monotonic()))

    def _on_worker_alive(self, alive: bool) -> None:
        was_alive = self._cycle.alive
        self._cycle.worker_alive(alive)
        if self._cycle.alive != was_alive:
            self._show()
        self._look_at_golden()

    def _excused_until(self) -> float:
        """Return when silence of the worker begins to say something: it answers between two parts, also golden ones.

        It is silent while it prepares a recipe, which may read a whole version of the bank.
        """
        excused = (self._cycle.next_deadline or 0.0) if self._cycle.is_busy else 0.0
        if self._cycle.phase == "preparing":
            excused = self._prepared_since + PREPARE_SECONDS
        if self._golden is not None and self._golden.who:
            excused = time.monotonic() if self._supervisor.handle is None else self._supervisor.handle.heard
            excused += self.station.settings.deadline_ms / 1e3
        return excused

    def _on_message(self, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "ready":
            self.facts = rest[0]
            simulated = any(camera["simulated"] for camera in self.facts["cameras"].values())
            self._cycle.set_simulated(simulated)
            self._note("worker-ready", f"{self.facts['backend']}, bank version {self.facts['bank_version']}")
            for warning in self.facts["warnings"]:
                self._note("calibration", warning)
            if not self._is_announced:  # once, also if the worker is replaced later
                self._is_announced = True
                notify("READY=1")
            if self._golden is not None:
                self._golden.restarted()
                self._look_at_golden()
            self._do(self._cycle.worker_ready())
            recipes = sorted(self.station.settings.recipes)
            if self._cycle.phase == "idle" and len(recipes) == 1:  # there is no choice to be made
                self.prepare(recipes[0], self._cycle.control)
        elif kind == "failed":
            self._note("worker-failed", rest[0])
            self._supervisor.replace(rest[0])
        elif kind == "prepared":
            effects = self._cycle.prepared(*rest)
            if self._golden is not None:
                self._golden.abandoned()  # the worker has dropped it
            self._look_at_golden()  # before the station is shown as ready
            self._do(effects)
        elif kind == "golden":
            self._on_golden(*rest)
        elif kind == "outcome":
            self._do(self._cycle.outcome(rest[0], rest[1], time.monotonic()))
        elif kind == "camera":
            name, facts, trouble = rest
            self.cameras[name] = {"ok": facts is not None, "detail": trouble, **(facts or {})}
            if facts is None:
                self.alarms.set("camera", trouble, key=name)
                self._note("camera-gone", trouble)
            else:
                self.alarms.clear("camera", name)
                self._note("camera-open", f"camera {name}: {facts['name']}, {facts['format']}")
        elif kind == "frame":
            self._starts.taken(*rest)
            self._show()
        elif kind == "archived":
            self._writer.run(lambda: self.records.add_archived(*rest))
        elif kind == "alarm":
            self.alarms.set(rest[0], rest[1])
        elif kind == "images" and self.page is not None:
            self.page.on_images(*rest)
        elif kind == "bank":
            self.facts.update(rest[0])
        elif kind == "answered":
            self._questions.answered(*rest)

    def _look_at_golden(self) -> None:
        """Set the bit when golden parts are due, and judge them as soon as a recipe is prepared and no part is in hand."""
        golden = self._golden
        if golden is None:
            return
        if golden.look(datetime.now(UTC), self._cycle.recipe):
            self._note("golden-due", golden.due)
        if self._cycle.check_due != bool(golden.due):
            self._cycle.check_due = bool(golden.due)
            self._show()
        if golden.may_start:
            self.run_golden("station")

    def _on_golden(self, recipe: int, findings: list[dict[str, Any]]) -> None:
        golden = self._golden
        if golden is None or not golden.who or recipe != self._cycle.recipe:
            return
        who, count = golden.who, len(findings)
        if golden.finished(findings, datetime.now(UTC)):
            self.alarms.clear("golden", "parts")
            self._note("golden-passed", f"recipe {recipe}: all {count} images were judged rightly")
        else:
            more = f" (and {len(golden.wrong) - 1} more)" if len(golden.wrong) > 1 else ""
            self.alarms.set("golden", f"recipe {recipe}: {golden.wrong[0]}{more}", key="parts")
            self._note("golden-failed", f"recipe {recipe}: {'; '.join(golden.wrong)}")
        new = {"recipe": recipe, "images": count, "wrong": golden.wrong}
        self._writer.run(lambda: self.records.audit(who, "golden parts", None, new))
        self._look_at_golden()
