"""Worker process of a station: cameras, checks, inspector, archive. It talks to the front over one pipe.

It judges in the thread that answers the front's pings. So a ping that is not answered means that nothing is judged, whatever the
reason, and the front replaces the process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...bank.store import Bank
from ...errors import ImageError, VisionADError
from ...formats.plain_text import plain
from ...inspector import Inspector
from ...inspector.inspection import Inspection
from ...result import Result
from ...visualization.overlay import overlay_png
from ..camera import CameraError, CameraGone, Frame, PushedCamera
from ..front.cycle import ANOMALOUS, NOT_DECIDABLE, OK, Job
from ..judging.judge import Judge
from ..page.images import KeptImages
from ..process import begin_process
from ..settings import Recipe, Station
from .archive import ArchiveWriter
from .camera_holder import CameraHolder
from .checks import ImageChecks, LightLimits, RejectsInARow
from .frame_watch import FrameWatch
from .golden import GoldenRun
from .inbox import Inbox
from .judged import Judged, eight_bits
from .live_frames import LiveFrames

log = logging.getLogger("visionad")


def main(pipe: Connection, path: str, simulate: bool) -> None:
    """Run the worker until the front closes the pipe or says stop.

    Args:
        pipe: to the front.
        path: station file.
        simulate: as ``visionad station --simulate``.
    """
    worker: Worker | None = None
    try:
        worker = Worker(pipe, begin_process("worker", path, simulate))
        worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the front is gone
    except VisionADError as exc:
        _send_last(pipe, ("failed", str(exc)))
    except Exception as exc:
        log.exception("worker")
        _send_last(pipe, ("failed", f"{type(exc).__name__}: {exc}"))
    finally:
        if worker is not None:
            worker.close()
        os._exit(0)  # a camera SDK's threads must not keep a process that has nothing to do


def _send_last(pipe: Connection, message: object) -> None:
    with suppress(OSError):
        pipe.send(message)


class _Checked(NamedTuple):
    """What judges with one version of the bank, and looks at its results."""

    judge: Judge
    checks: ImageChecks


class Worker:
    """Cameras and inspector of a station.

    Args:
        pipe: to the front.
        station: the station file.
    """

    def __init__(self, pipe: Connection, station: Station) -> None:
        self._pipe, self._station = pipe, station
        self._sending = threading.Lock()
        settings = station.settings
        self._cameras = {name: CameraHolder(name, camera, self._say) for name, camera in station.cameras.items()}
        self._inspections: dict[int | None, _Checked] = {}
        self._recipe: Recipe | None = None
        self._pool = ThreadPoolExecutor(max(2, len(self._cameras)), "visionad-camera")
        self._archive = None if settings.archive is None else ArchiveWriter(settings.archive, self._say)
        self._in_a_row = RejectsInARow(settings.checks.rejects_in_a_row)
        own_start = settings.trigger != "line"
        tell = partial(self._say, "frame")
        self._watch = FrameWatch(self._cameras, tell, settings.skew_ms / 1e3) if own_start else None
        self._images = KeptImages(self._say) if settings.web is not None else None
        self._golden: GoldenRun | None = None
        self._stored: list[tuple[int, str, int]] = []
        """Inspection, camera and number of frames of stored cameras whose part is not on record yet."""
        self._live = LiveFrames(
            self._cameras, self._watch, self._answer, self._light_limits, lambda: not self._inbox.is_empty
        )
        self._inbox = Inbox(
            pipe,
            {
                "push": self._push, "pixels": self._send_pixels, "keep": self._keep, "diagnose": self._diagnose,
                "look": self._live.look, "frame_pixels": self._live.send_pixels,
            },
        )  # fmt: skip

    def run(self) -> None:
        """Open everything, then answer the front."""
        self._inbox.start()
        inspector = self._checked(None).judge.inspection
        futures = [self._pool.submit(holder.open) for holder in self._cameras.values()]
        for future in futures:
            future.result()
        assert inspector.bank is not None
        facts = {name: holder.facts._asdict() for name, holder in self._cameras.items() if holder.facts is not None}
        gone = [name for name, holder in self._cameras.items() if holder.facts is None]
        self._say(
            "ready",
            {
                "pid": os.getpid(),
                "cameras": facts,
                "gone": gone,
                "model": inspector.manifest.identity.describe(),
                "model_digest": inspector.digest,
                "backend": inspector.engine.name,
                "precision": inspector.engine.precision,
                **_bank_facts(inspector),
            },
        )
        if self._watch is not None:
            self._watch.start()
        while True:
            if self._golden is not None and self._inbox.is_empty:
                self._judge_golden(self._golden)
                continue
            message = self._inbox.get()
            if message[0] == "stop":
                return
            if message[0] == "ping":
                self._live.release()
                self._say("pong", message[1])
            elif message[0] == "prepare":
                self._prepare(message[1])
            elif message[0] == "take":
                self._take(Job(*message[1]), message[2])
            elif message[0] == "recorded":
                self._note_recorded(message[1])
            elif message[0] in ("inspect", "overlay"):
                self._inspect_upload(*message)
            elif message[0] == "look_by_trigger":
                self._live.look_by_trigger(*message[1:])
            elif message[0] == "golden":
                self._begin_golden(message[1])
            elif self._images is not None:
                self._serve_page(self._images, *message)

    def close(self) -> None:
        """Release cameras and memory."""
        if self._watch is not None:
            self._watch.close()
        for holder in self._cameras.values():
            holder.close()
        self._live.close()
        if self._images is not None:
            self._images.close()
        if self._archive is not None:
            self._archive.close()
        for checked in reversed(self._inspections.values()):  # those of pinned versions use the model of the first
            checked.judge.inspection.close()

    # -- commands -----------------------------------------------------------------------------------------------------

    def _prepare(self, number: int) -> None:
        """Prepare a recipe: its bank version, its classes, its cameras."""
        recipe = self._station.settings.recipes[number]
        self._golden = None
        try:
            checked = self._checked(recipe.bank_version)
            for name in self._names(recipe):
                class_name = recipe.class_of(name)
                checked.judge.inspection.require_class(class_name)
                checked.checks.prepare(recipe, class_name)
                if self._cameras[name].facts is None:
                    raise VisionADError(f"camera {name} is not there: {self._cameras[name].trouble}")
        except VisionADError as exc:
            self._recipe = None
            self._say("prepared", number, str(exc))
            return
        self._recipe = recipe
        self._say("prepared", number, "")

    def _take(self, job: Job, frame: int) -> None:
        recipe = self._station.settings.recipes[job.recipe]
        names = self._names(recipe)
        try:
            self._following(recipe.bank_version)
            checked = self._checked(recipe.bank_version)
            frames = self._frames(job, names, frame)
            judged = {name: self._judge(name, frames[name], job, recipe, checked) for name in names}
        except Exception as exc:  # the part is not decidable, and the next one may be
            log.exception("part %d", job.id)
            if self._watch is not None:
                self._watch.drop(frame)  # or a stored camera would wait for its part for ever
            judged = {
                "": Judged(NOT_DECIDABLE, "internal", {"error": f"{type(exc).__name__}: {exc}"}, alarms=("internal",))
            }
        outcome = combine(judged)
        outcome["alarms"] += self._in_a_row.count(outcome["evaluation"])
        if self._images is not None:
            self._images.keep(job, judged)
        self._say("outcome", job.id, outcome)
        if self._images is not None:
            self._images.show(job.id)
        if self._archive is not None:
            self._archive.add(job, judged)

    def _serve_page(self, images: KeptImages, command: str, *values: Any) -> None:
        """Do what the page asks for: ``watch`` yes or no, ``images`` of a part."""
        if command == "watch":
            images.watch(values[0])
        elif command == "images":
            images.send(values[0])

    def _inspect_upload(
        self, command: str, ticket: int, rgb: NDArray[np.uint8], class_name: str | None, name: str
    ) -> None:
        """Inspect an image that was sent to the page or the API. Answer with facts and map; for ``overlay``, with a PNG."""
        code = "unavailable"
        try:
            judge = self._following(None)
            code = "input"
            result = judge.look(rgb, class_name)
            overlay = command == "overlay"
            shown = overlay_png(rgb, result) if overlay else np.ascontiguousarray(result.anomaly_map).tobytes()
            self._answer(ticket, ({} if overlay else result.to_dict(name), [shown]))
        except VisionADError as exc:
            self._answer(ticket, None, code, str(exc))

    def _push(self, ticket: int, name: str, data: bytes) -> None:
        """Give a camera the image file that another program pushed. The thread that judges may be waiting for it."""
        camera = self._station.cameras[name]
        assert isinstance(camera, PushedCamera)
        try:
            self._answer(ticket, camera.submit(data))
        except CameraGone as exc:
            self._answer(ticket, None, "unavailable", str(exc))
        except ImageError as exc:
            self._answer(ticket, None, "input", str(exc))

    def _send_pixels(self, ticket: int, part: int) -> None:
        """Send the images of one of the newest parts, as they were judged; none if they are not kept any more."""
        found = None if self._images is None else self._images.kept(part)
        judged = {} if found is None else found[1]
        self._answer(ticket, {name: one.rgb for name, one in judged.items() if one.rgb is not None})

    def _keep(self, ticket: int, part: int) -> None:
        """Write the images of one of the newest parts to the archive. The answer follows when they lie there, or cannot."""
        found = None if self._images is None else self._images.kept(part)
        if found is None or self._archive is None:
            self._answer(ticket, None, "not_in_memory", f"the images of part {part} are not in memory any more")
            return
        failed = "the images of part {} were not kept: {}".format
        self._archive.keep(
            *found, lambda why: self._answer(ticket, None if why else True, "not_kept", failed(part, why))
        )

    def _diagnose(self, ticket: int) -> None:
        """Say of each camera which steps to an image work. Nothing is triggered: the line goes on meanwhile."""
        self._answer(ticket, {name: [step._asdict() for step in one.steps()] for name, one in self._cameras.items()})

    def _light_limits(self, class_name: str) -> LightLimits | None:
        """Return the limits of light and focus of a class of the prepared recipe, for a look beside the line's parts."""
        recipe = self._recipe
        checked = None if recipe is None else self._inspections.get(recipe.bank_version)
        return None if checked is None else checked.checks.known_limits(class_name)

    def _answer(self, ticket: int, value: object, code: str = "", problem: str = "") -> None:
        self._say("answered", ticket, value, code, problem)

    # -- golden parts -------------------------------------------------------------------------------------------------

    def _begin_golden(self, number: int) -> None:
        """Begin to judge the golden parts of a recipe. Parts of the line come first: they wait for one image at most."""
        golden = self._station.settings.checks.golden
        if golden is not None:
            recipe = self._station.settings.recipes[number]
            self._golden = GoldenRun(golden, number, self._names(recipe))

    def _judge_golden(self, run: GoldenRun) -> None:
        if not run.is_done:
            run.step(lambda camera, rgb: self._evaluate_golden(run.number, camera, rgb))
        if run.is_done:
            self._golden = None
            self._say("golden", run.number, run.findings)

    def _evaluate_golden(self, number: int, camera: str, rgb: NDArray[np.uint8]) -> tuple[int, str]:
        recipe = self._station.settings.recipes[number]
        return evaluate(self._following(recipe.bank_version).look(rgb, recipe.class_of(camera)))

    # -- frames -------------------------------------------------------------------------------------------------------

    def _frames(self, job: Job, names: list[str], number: int) -> dict[str, Future[Frame]]:
        """Trigger the cameras. Wait for the first frame here, for others in threads; or take those that began the part."""
        if self._watch is not None:
            return self._watch.take(names, number, job.deadline)
        after = {name: self._cameras[name].arm() for name in names}
        for name in names:
            self._cameras[name].trigger()
        first, *others = names
        frames = {name: self._pool.submit(self._cameras[name].grab, after[name], job.deadline) for name in others}
        return {first: _done(self._cameras[first].grab, after[first], job.deadline), **frames}

    def _note_recorded(self, job: int) -> None:
        """Tell stored cameras that a part is on record: they hand its images out no more."""
        for inspection, name, number in self._stored:
            if inspection == job:
                self._cameras[name].recorded(number)
        self._stored = [one for one in self._stored if one[0] != job]

    def _judge(self, name: str, frame: Future[Frame], job: Job, recipe: Recipe, checked: _Checked) -> Judged:
        try:
            one = frame.result()
        except CameraError as exc:
            self._cameras[name].note(exc)
            reason = "deadline" if time.monotonic() >= job.deadline else "camera"
            return Judged(NOT_DECIDABLE, reason, {"error": plain(str(exc))}, alarms=("camera",))
        if self._cameras[name].is_stored:
            self._stored.append((job.id, name, one.id))
        if self._watch is None and one.taken < job.triggered:
            text = f"camera {name}: frame {one.id} is {(job.triggered - one.taken) * 1e3:.0f} ms older than its trigger"
            return Judged(NOT_DECIDABLE, "stale", {"error": text}, alarms=("stale",))
        rgb = eight_bits(one)
        class_name = recipe.class_of(name)
        try:
            result = checked.judge.judge(rgb, class_name)
        except VisionADError as exc:
            return Judged(NOT_DECIDABLE, "internal", {"error": str(exc)}, rgb, alarms=("internal",))
        checks = checked.checks
        noted = checks.look(rgb, result)
        facts = result.to_dict(plain(one.name) or f"{name}/{one.id}")
        evaluation, reason = evaluate(result)
        if "light" in noted and checks.light_decides and evaluation != ANOMALOUS:
            evaluation, reason = NOT_DECIDABLE, "light"
        found = checks.position(recipe, rgb, result)
        if found is not None:
            facts = {**facts, **found.facts}
            if found.problem is not None:  # whatever the verdict: it is about another place of the part
                noted = (*noted, "position")
                evaluation, reason = NOT_DECIDABLE, reason if reason == "no class" else "position"
        problem = checks.code_problem(recipe, name, rgb, job.part)
        if problem is not None and evaluation != ANOMALOUS:
            evaluation, reason, noted = NOT_DECIDABLE, "code", (*noted, "code")
            facts = {**facts, "code": problem}
        return Judged(evaluation, reason, facts, rgb, result, noted)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _checked(self, version: int | None) -> _Checked:
        """Return what inspects with a bank version; the newest, and newer ones as they come, for ``None``."""
        if version not in self._inspections:
            settings = self._station.settings
            inspection: Inspection
            if version is None:
                inspection = Inspector.open(
                    settings.model, settings.bank, backend=settings.backend, precision=settings.precision,
                    preset=settings.preset, threads=settings.threads,
                )  # fmt: skip
            else:
                first = self._checked(None).judge.inspection
                bank = Bank.open(settings.bank, first.manifest.identity, version=version)
                inspection = first.with_bank(bank, first.scoring)
            self._inspections[version] = _Checked(Judge(inspection), ImageChecks(settings.checks, inspection))
        return self._inspections[version]

    def _following(self, version: int | None) -> Judge:
        """Return what judges with a bank version, with what is on disk. The front is told of a newer one, whoever notices it."""
        judge = self._checked(version).judge
        if judge.refresh():
            self._say("bank", _bank_facts(judge.inspection))
        return judge

    def _names(self, recipe: Recipe) -> list[str]:
        return list(recipe.cameras or self._cameras)

    def _say(self, *message: object) -> None:
        with self._sending:
            self._pipe.send(message)


def _bank_facts(inspection: Inspection) -> dict[str, Any]:
    """Return what the front says of the bank in force."""
    assert inspection.bank is not None
    return {
        "bank_version": inspection.bank.manifest.version,
        "bank_digest": inspection.bank.snapshot.digest,
        "classes": {name: len(bank.entry.images) for name, bank in inspection.bank.classes.items()},
        "thresholds": {name: bank.entry.threshold for name, bank in inspection.bank.classes.items()},
        "warnings": inspection.calibration_warnings(),
    }


def _done(function: Callable[..., Frame], *arguments: Any) -> Future[Frame]:
    """Return what a function returns or raises, as a future. Another thread would take its turn twice."""
    future: Future[Frame] = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as exc:
        future.set_exception(exc)
    return future


def evaluate(result: Result) -> tuple[int, str]:
    """Return evaluation and reason of a result. Nothing but the verdict ok, of the class that was asked for, is a pass."""
    if result.class_mismatch is not None:
        return NOT_DECIDABLE, "no class"
    if result.verdict == "ok":
        return OK, "none"
    if result.verdict == "anomalous":
        return ANOMALOUS, "anomalous"
    if result.verdict == "review":
        return NOT_DECIDABLE, "review" if result.threshold is not None else "no threshold"
    return NOT_DECIDABLE, "no class" if result.class_name is None else "no threshold"


def combine(judged: Mapping[str, Judged]) -> dict[str, Any]:
    """Combine the cameras of a part: anomalous if one says so, else not decidable if one is, else ok."""
    ranked = sorted(judged.items(), key=lambda item: (ANOMALOUS, NOT_DECIDABLE, OK).index(item[1].evaluation))
    if not ranked:
        return {"evaluation": NOT_DECIDABLE, "reason": "camera", "cameras": {}}
    worst = ranked[0][1]
    alarms = dict.fromkeys(code for one in judged.values() for code in one.alarms)
    return {
        "evaluation": worst.evaluation,
        "reason": worst.reason,
        "score": worst.facts.get("score"),
        "threshold": worst.facts.get("threshold"),
        "bank_version": max((int(one.facts.get("bank_version") or 0) for one in judged.values()), default=0),
        "cameras": {name: dict(one.facts) for name, one in judged.items() if name},
        "alarms": tuple(alarms),
    }
