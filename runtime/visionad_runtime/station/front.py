"""Front process of a station: cycle, sinks, records. It touches no camera and no engine, so it answers in time."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import signal
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from . import cycle as cycles
from . import worker as worker_process
from .alarms import Alarms, clock_is_synchronized
from .cycle import Cycle, Effect, Job, Late, Note, Prepare, Publish, Take
from .golden import GoldenSchedule
from .page_link import PageLink
from .records import Records, result_object, utc_now
from .settings import Station
from .sink import Control, Outcome, Sink, SinkError, StationState
from .systemd import notify

log = logging.getLogger("visionad")

PING_SECONDS = 0.25
"""Pause between two pings of the worker."""
SILENT_SECONDS = 1.0
"""Silence of an idle worker after which the heartbeat stops and no trigger is accepted."""
STUCK_SECONDS = 3.0
"""Silence after which the worker is replaced, counted from the deadline of the part in hand."""
START_SECONDS = 300.0
"""How long a worker may take to open model, bank and cameras."""
RESTART_SECONDS = (0.0, 0.5, 2.0, 5.0, 15.0)
"""Pauses before the worker is started again, by the number of failures in a row."""
MAX_UNWRITTEN = 100_000
"""Records that wait in memory while the disk is full."""
MAX_RETRY_SECONDS = 30.0
"""Longest pause between two attempts of a stored sink."""


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
        self.station, self._simulate, self._say, self._observe = station, simulate, say, observe
        settings = station.settings
        self.records = Records(settings.records)
        interrupted = self.records.finish_interrupted()
        self._cycle = Cycle(
            cycles.Settings(
                deadline_s=settings.deadline_ms / 1e3,
                ack_s=settings.ack_ms / 1e3,
                recipe_digests={number: recipe.digest() for number, recipe in settings.recipes.items()},
                deadlines={n: r.deadline_ms / 1e3 for n, r in settings.recipes.items() if r.deadline_ms is not None},
            ),
            self.records.last_id() + 1,
        )
        self.alarms = Alarms(self._on_alarm)
        self.facts: dict[str, Any] = {}
        self.cameras: dict[str, dict[str, Any]] = {
            name: {"ok": False, "detail": "not opened yet"} for name in station.cameras
        }
        self.recent: deque[Outcome] = deque(maxlen=200)
        self._acknowledged = 0
        self._writer = ThreadPoolExecutor(1, "visionad-records")
        self._unwritten: deque[Outcome] = deque()
        self._told: dict[str, asyncio.Event] = {}
        self._stored = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._worker: _WorkerHandle | None = None
        self._failures = 0
        self._uploads: dict[int, asyncio.Future[Any]] = {}
        self._sink_failures: dict[str, str] = {}
        if interrupted:
            self._note(
                "interrupted",
                f"{interrupted} parts were in hand when the station was killed: recorded as not decidable",
            )
        self.page = PageLink(self, say) if settings.web is not None else None
        golden = settings.checks.golden
        passed = self.records.last_event("golden-passed")
        self._golden = (
            None
            if golden is None
            else GoldenSchedule(
                golden, settings.shifts, None if passed is None else datetime.fromisoformat(passed["time_utc"])
            )
        )
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
    def station_name(self) -> str:
        """See :class:`~visionad_runtime.station.sink.Line`."""
        return self.station.settings.station

    def trigger(self, sequence: int, part: str, source: Control = "line") -> int | None:
        """See :class:`~visionad_runtime.station.sink.Line`."""
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

    # -- for pages and commands ---------------------------------------------------------------------------------------

    def take_control(self, control: Control, who: str) -> bool:
        """Hand control to the line or the page. Refused while a part is in hand."""
        old = self._cycle.control
        if not self._cycle.take_control(control):
            return False
        self._write(lambda: self.records.audit(who, "control", old, control))
        self._do([])
        return True

    def run_golden(self, who: str) -> str | None:
        """Have the golden parts of the prepared recipe judged. Return why not, or ``None`` if it has begun."""
        golden, recipe = self._golden, self._cycle.recipe
        if golden is None:
            return "the station file names no golden parts (checks.golden)"
        if golden.who:
            return "they are being judged"
        if self._cycle.phase != "ready" or self._worker is None or not self._worker.ready:
            return f"the station is {self._cycle.phase}; prepare a recipe first"
        golden.who = who
        self._worker.send("golden", recipe)
        return None

    def tell_worker(self, *message: Any) -> bool:
        """Send the worker a message of the page. Return whether the worker is there."""
        if self._worker is None or not self._worker.ready:
            return False
        self._worker.send(*message)
        return True

    def restart_worker(self, why: str) -> None:
        """Replace the worker by a new process."""
        if self._worker is not None:
            self._replace_worker(why)

    async def write(self, work: Callable[[], Any]) -> Any:
        """Do something with the records in their thread, and return what it returns."""
        return await self._loop.run_in_executor(self._writer, work)

    async def inspect(self, rgb: Any, class_name: str | None, name: str, overlay: bool = False) -> Any:
        """Inspect an image that was sent, beside the line's parts. With ``overlay``, return a PNG that shows the result.

        Raises:
            VisionADError: It could not be inspected.
        """
        if self._worker is None:
            raise SinkError("the worker is not there; try again in a moment")
        ticket = max(self._uploads, default=0) + 1
        future = self._uploads[ticket] = asyncio.get_running_loop().create_future()
        self._worker.send("overlay" if overlay else "inspect", ticket, rgb, class_name, name)
        return await asyncio.wait_for(future, 30)

    def health(self) -> dict[str, Any]:
        """Return what ``GET /health`` says."""
        state = self.state
        sinks = {}
        for name, sink in self.station.sinks.items():
            facts = dict(sink.health())
            if not sink.live:
                facts["backlog"] = self.records.backlog(name)
            if name in self._sink_failures:
                facts |= {"ok": False, "detail": self._sink_failures[name]}
            sinks[name] = facts
        return {
            "ready": state.ready,
            "phase": state.phase,
            "fault": state.fault,
            "recipe": state.recipe,
            "control": state.control,
            "simulated": state.simulated,
            "check_due": state.check_due,
            "missed": state.missed,
            "late": state.late,
            "overrun": state.overrun,
            "waiting": state.waiting,
            "worker": self.facts,
            "cameras": self.cameras,
            "sinks": sinks,
            "alarms": self.alarms.active(),
            "golden": None if self._golden is None else self._golden.facts(),
            "unwritten": len(self._unwritten),
            "clock_synchronized": clock_is_synchronized(),
        }

    def stop(self) -> None:
        """Stop after the part in hand. Any thread may call it."""
        self._loop.call_soon_threadsafe(self._stop)

    # -- running ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until :meth:`stop`, SIGINT or SIGTERM.

        Raises:
            SinkError: A sink could not start.
        """
        self._loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM"):
            with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
                self._loop.add_signal_handler(getattr(signal, name), self._stop)
        await self._audit_start()
        self._start_worker()
        self._tasks = [self._loop.create_task(self._watch_worker()), self._loop.create_task(self._keep_house())]
        starting = []
        for name, sink in self.station.sinks.items():
            if sink.live:
                self._told[name] = asyncio.Event()
                self._tasks.append(self._loop.create_task(self._tell(name, sink)))
            else:
                self._tasks.append(self._loop.create_task(self._deliver(name, sink)))
            task = self._loop.create_task(self._serve(name, sink))
            self._tasks.append(task)
            starting.append(task)
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
        self._cycle.stop()
        notify("STOPPING=1")
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
        if self._worker is not None:
            await self._loop.run_in_executor(None, self._worker.end)
        self._writer.shutdown()
        self.records.close()

    async def _serve(self, name: str, sink: Sink) -> None:
        """Run a sink. One that ends for another reason than a start that failed is started again, and delays no other."""
        pause = 0.5
        started = False
        while True:
            begun = time.monotonic()
            try:
                await sink.run(self)
            except asyncio.CancelledError:
                raise
            except SinkError as exc:
                if not started and sink.live and time.monotonic() < begun + 5:
                    raise  # such as an occupied port: say it at once
                self._sink_trouble(name, str(exc))
            except Exception as exc:
                log.exception("sink %s", name)
                self._sink_trouble(name, f"{type(exc).__name__}: {exc}")
            started = True
            await asyncio.sleep(pause)
            pause = min(MAX_RETRY_SECONDS, 2 * pause)

    async def _tell(self, name: str, sink: Sink) -> None:
        """Show each newest state to a live sink."""
        event = self._told[name]
        while True:
            await event.wait()
            event.clear()
            try:
                await asyncio.wait_for(sink.tell(self.state), 1.0)
            except asyncio.CancelledError:
                raise
            except Exception as exc:
                self._sink_trouble(name, f"{type(exc).__name__}: {exc}")

    async def _deliver(self, name: str, sink: Sink) -> None:
        """Give a stored sink its records, in order, each until it has it."""
        pause = 0.5
        await self._loop.run_in_executor(self._writer, self.records.register, name)
        while True:
            rows = await self._loop.run_in_executor(self._writer, self.records.undelivered, name)
            if not rows:
                self._stored.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stored.wait(), 5)
                continue
            for row in rows:
                try:
                    await sink.store(result_object(row, self.station_name))
                except asyncio.CancelledError:
                    raise
                except Exception as exc:
                    self._sink_trouble(name, str(exc) if isinstance(exc, SinkError) else f"{type(exc).__name__}: {exc}")
                    await asyncio.sleep(pause)
                    pause = min(MAX_RETRY_SECONDS, 2 * pause)
                    break
                pause = 0.5
                if self._sink_failures.pop(name, None) is not None:
                    self.alarms.clear("sink", name)
                    self._note("sink-back", f"sink {name} delivers again")
                await self._loop.run_in_executor(self._writer, self.records.delivered, name, row["delivery"])

    def _sink_trouble(self, name: str, why: str) -> None:
        self._sink_failures[name] = why
        self.alarms.set("sink", f"sink {name}: {why}", key=name)

    # -- effects ------------------------------------------------------------------------------------------------------

    def _do(self, effects: list[Effect]) -> None:
        """Carry out what the cycle asks for, then show the state."""
        for effect in effects:
            if isinstance(effect, Take):
                self._take(effect.job)
            elif isinstance(effect, Prepare):
                if self._worker is not None:
                    self._worker.send("prepare", effect.recipe)
            elif isinstance(effect, Publish):
                self._publish(effect.outcome)
            elif isinstance(effect, Late):
                late = cycles.as_late(effect.outcome)
                self._write(partial(self.records.add_late, late))
                self._note("late", f"the result of part {late.id} came after its deadline, and was offered to nobody")
            elif isinstance(effect, Note):
                self._note(effect.code, effect.text)
        self._set_timer()
        self._show()
        if self._cycle.phase == "off":
            self._stopping.set()

    def _take(self, job: Job) -> None:
        if self._worker is not None:
            self._worker.send("take", tuple(job))

        def written(future: Any) -> None:
            error = future.exception()
            if error is not None:
                self._loop.call_soon_threadsafe(self._disk_trouble, error)
            self._loop.call_soon_threadsafe(self._acknowledge_job, job.id)

        self._writer.submit(self.records.accept, job).add_done_callback(written)

    def _acknowledge_job(self, job_id: int) -> None:
        self._acknowledged = max(self._acknowledged, job_id)
        self._show()

    def _publish(self, outcome: Outcome) -> None:
        self.recent.append(outcome)
        self._tell_watchers("outcome", outcome)
        self._unwritten.append(outcome)
        if len(self._unwritten) > MAX_UNWRITTEN:
            self._unwritten.popleft()
            self.alarms.set("disk", "records are lost: the disk has been full for too long")
        for code in outcome.alarms:
            self.alarms.set(code, f"part {outcome.id}")
        if "light-fault" in outcome.alarms:
            self._do(
                self._cycle.raise_fault("light or focus was out of limits several times in a row", time.monotonic())
            )
        self._flush()

    def _flush(self) -> None:
        """Write the outcomes that wait, in a thread, all at once."""

        def work() -> None:
            waiting = list(self._unwritten)
            if waiting:
                self.records.complete(waiting)
                self._loop.call_soon_threadsafe(self._written, len(waiting))

        self._write(work)

    def _written(self, count: int) -> None:
        for _ in range(min(count, len(self._unwritten))):
            self._unwritten.popleft()
        self.alarms.clear("disk", "records")
        self._stored.set()

    def _write(self, work: Callable[[], object]) -> None:
        def done(future: Any) -> None:
            error = future.exception()
            if error is not None:
                self._loop.call_soon_threadsafe(self._disk_trouble, error)

        with suppress(RuntimeError):  # after the end
            self._writer.submit(work).add_done_callback(done)

    def _disk_trouble(self, error: BaseException) -> None:
        """The disk is full or away: inspection goes on, and the records wait in memory."""
        if not isinstance(error, (sqlite3.Error, OSError)):
            log.error("records: %s: %s", type(error).__name__, error)
        self.alarms.set("disk", f"records cannot be written: {error}; they wait in memory", key="records")
        self._loop.call_later(1.0, self._flush)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._cycle.next_deadline
        if due is not None:
            self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._do(self._cycle.tick(time.monotonic()))

    def _show(self) -> None:
        for event in self._told.values():
            event.set()
        self._tell_watchers("state", self.state)

    def _tell_watchers(self, kind: str, value: Any) -> None:
        self._observe(kind, value)
        if self.page is not None:
            self.page.observe(kind, value)

    def _note(self, code: str, text: str) -> None:
        self._say(f"{code}: {text}")
        self._tell_watchers("event", (code, text))
        self._write(lambda: self.records.note(code, text))

    def _on_alarm(self, code: str, text: str, active: bool) -> None:
        self._note(f"alarm-{code}" if active else f"alarm-{code}-over", text)

    # -- worker -------------------------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        self._worker = _WorkerHandle(
            self.station.path, self._simulate, self._loop, self._on_message, self._on_worker_end
        )

    def _on_worker_end(self, handle: _WorkerHandle) -> None:
        if handle is not self._worker or self._stopping.is_set():
            return
        self._replace_worker("it died")

    def _replace_worker(self, why: str) -> None:
        assert self._worker is not None
        self._worker.kill()
        self._worker = None
        for future in self._uploads.values():
            if not future.done():
                future.set_exception(SinkError("the worker was replaced; try again in a moment"))
        self._uploads.clear()
        self._do(self._cycle.worker_lost(why, time.monotonic()))
        pause = RESTART_SECONDS[min(self._failures, len(RESTART_SECONDS) - 1)]
        self._failures += 1
        self._loop.call_later(pause, self._start_again)

    def _start_again(self) -> None:
        if not self._stopping.is_set() and self._worker is None:
            self._start_worker()

    async def _watch_worker(self) -> None:
        """Ping the worker. Without an answer the heartbeat stops; after longer, the process is replaced."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            self._look_at_golden()
            handle = self._worker
            if handle is None:
                continue
            now = time.monotonic()
            if not handle.ready:
                if now > handle.started + START_SECONDS:
                    self._replace_worker(f"it did not start in {START_SECONDS:.0f} s")
                continue
            handle.send("ping", now)
            since = handle.heard if not self._cycle.is_busy else max(handle.heard, self._cycle.next_deadline or 0.0)
            was_alive = self._cycle.alive
            self._cycle.worker_alive(now < since + SILENT_SECONDS)
            if self._cycle.alive != was_alive:
                self._show()
            if self._cycle.alive:
                notify("WATCHDOG=1")
                if self._failures and now > handle.started + 10:
                    self._failures = 0
            elif now > since + STUCK_SECONDS:
                self._replace_worker(f"it did not answer for {now - since:.1f} s")

    def _on_message(self, handle: _WorkerHandle, message: tuple[Any, ...]) -> None:
        if handle is not self._worker:
            return
        kind, *rest = message
        handle.heard = time.monotonic()
        if kind == "pong":
            return
        if kind == "ready":
            handle.ready = True
            self.facts = rest[0]
            simulated = any(camera["simulated"] for camera in self.facts["cameras"].values())
            self._cycle.set_simulated(simulated)
            self._note("worker-ready", f"{self.facts['backend']}, bank version {self.facts['bank_version']}")
            for warning in self.facts["warnings"]:
                self._note("calibration", warning)
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
            self._replace_worker(rest[0])
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
            self._on_frame(*rest)
        elif kind == "archived":
            self._write(lambda: self.records.add_archived(*rest))
        elif kind == "alarm":
            self.alarms.set(rest[0], rest[1])
        elif kind == "images" and self.page is not None:
            self.page.on_images(*rest)
        elif kind == "inspected":
            future = self._uploads.pop(rest[0], None)
            if future is not None and not future.done():
                if rest[1] is None:
                    future.set_exception(SinkError(rest[2]))
                else:
                    future.set_result(rest[1])

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
        self._write(lambda: self.records.audit(who, "golden parts", None, new))
        self._look_at_golden()

    def _on_frame(self, camera: str, frame: int, lost: int) -> None:
        """A camera that starts the cycle has taken a frame. Frames that were lost are parts that nobody looked at."""
        for _ in range(lost):
            self._cycle.missed += 1
        if lost:
            self._note(
                "frames-lost", f"camera {camera}: {lost} frames before frame {frame} were lost; reject their parts"
            )
        self.trigger(self._cycle.acquisition + 1, "", self._cycle.control)

    # -- housekeeping -------------------------------------------------------------------------------------------------

    async def _audit_start(self) -> None:
        settings = self.station.settings
        digest = {number: recipe.digest() for number, recipe in settings.recipes.items()}

        def work() -> None:
            rows = self.records.audit_rows(1000)
            last = next((row["new"] for row in rows if row["what"] == "station file"), "null")
            new = {
                "deadline_ms": settings.deadline_ms,
                "recipes": digest,
                "model": str(settings.model),
                "bank": str(settings.bank),
            }
            if json.loads(last) != json.loads(json.dumps(new)):
                self.records.audit("station", "station file", json.loads(last), new)

        await self._loop.run_in_executor(self._writer, work)

    async def _keep_house(self) -> None:
        """Every minute: forget what is too old, look at the clock."""
        days = self.station.settings.retention_days
        while True:
            if days is not None:
                before = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
                self._write(partial(self.records.forget, before))
            if clock_is_synchronized() is False:
                self.alarms.set("clock", "the system clock is not synchronized")
            else:
                self.alarms.clear("clock")
            await asyncio.sleep(60)


class _WorkerHandle:
    """The worker process, seen from the front.

    Attributes:
        ready: whether it has opened everything.
        started: monotonic seconds.
        heard: monotonic seconds of its last message.
    """

    def __init__(
        self,
        path: Path,
        simulate: bool,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[_WorkerHandle, tuple[Any, ...]], object],
        on_end: Callable[[_WorkerHandle], object],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=worker_process.main, args=(theirs, str(path), simulate), name="visionad-worker", daemon=True
        )
        self.process.start()
        theirs.close()
        self.ready, self.started = False, time.monotonic()
        self.heard = self.started
        self._outbox: deque[tuple[Any, ...]] = deque()
        self._wake = threading.Event()
        self._ended = False
        self._reader = threading.Thread(target=self._read, args=(self._pipe, loop, on_message, on_end), daemon=True)
        self._sender = threading.Thread(target=self._send, args=(self._pipe,), daemon=True)
        self._reader.start()
        self._sender.start()

    def send(self, *message: Any) -> None:
        """Send a message. A worker that is stopped or stuck does not delay the front."""
        if message[0] == "ping" and any(waiting[0] == "ping" for waiting in self._outbox):
            return
        self._outbox.append(message)
        self._wake.set()

    def kill(self) -> None:
        """End the process at once."""
        self._ended = True
        self._wake.set()
        with suppress(OSError, AttributeError, ValueError):
            self.process.kill()
        self.process.join(5)
        self._pipe.close()

    def end(self) -> None:
        """Ask it to stop, and end it if it does not."""
        self.send("stop")
        self.process.join(3)
        self.kill()

    def _send(self, pipe: Connection) -> None:
        while not self._ended:
            self._wake.wait()
            self._wake.clear()
            while self._outbox:
                try:
                    pipe.send(self._outbox.popleft())
                except (OSError, ValueError):
                    return

    def _read(
        self,
        pipe: Connection,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[_WorkerHandle, tuple[Any, ...]], object],
        on_end: Callable[[_WorkerHandle], object],
    ) -> None:
        while True:
            try:
                message = pipe.recv()
            except (EOFError, OSError, ValueError, TypeError):
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(on_end, self)
                return
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(on_message, self, message)


def run_station(station: Station, **options: Any) -> None:
    """Run a station until SIGINT or SIGTERM.

    Raises:
        SinkError: A sink could not start.
        VisionADError: The records cannot be used.
    """

    async def main() -> None:
        await Front(station, **options).run()

    runner: Coroutine[Any, Any, None] = main()
    asyncio.run(runner)
