"""The trigger cycle: what the station does at each event, as a table without input, output or clock.

The front calls one method for each event and gives the time; the cycle returns what is to be done. Names follow OPC 40100-1; the
handshake is that of industrial vision sensors: ready, trigger, trigger ack and busy, result valid, result ack, ready.

========== ================================================= ======================================================================
phase      meaning                                           leaves it
========== ================================================= ======================================================================
starting   worker opens cameras and model                    worker ready → idle
idle       no recipe is prepared                             prepare → preparing
preparing  the worker prepares a recipe                      done → ready; failed → idle
ready      a trigger is accepted                             trigger → busy; prepare → preparing
busy       a part is taken and judged                        outcome or deadline → valid, or ready if nobody acknowledges
valid      a result waits to be acknowledged                 ack, or none within ``ack_s`` → ready
fault      nothing is judged                                 cleared and the worker is ready → idle, or its recipe is prepared again
stopping   no trigger is accepted; the part in hand ends     → off
off        outputs are at reject
========== ================================================= ======================================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from ..sink import Control, Outcome, StationState

UNDEFINED, OK, ANOMALOUS, NOT_DECIDABLE = 0, 1, 2, 3
"""Evaluations of OPC UA's ``ResultEvaluationEnum``. Nothing but 1 is a pass."""
REASONS = (
    "none",
    "anomalous",
    "no class",
    "no threshold",
    "deadline",
    "camera",
    "stale",
    "light",
    "position",
    "code",
    "internal",
    "review",
)
"""Reasons by number, as the Modbus map has them."""
MAX_WAITING = 8
"""Results that wait for an acknowledgement. With so many the station is not ready: no result may be lost."""

Phase = Literal["starting", "idle", "preparing", "ready", "busy", "valid", "fault", "stopping", "off"]


class Job(NamedTuple):
    """A part to take and judge.

    Attributes:
        id: inspection number.
        sequence: number of the line.
        part: text of the line.
        recipe: number of the recipe.
        triggered: monotonic seconds.
        deadline: monotonic seconds; a result after it goes to nobody.
        time_utc: wall clock at the trigger, ISO 8601.
    """

    id: int
    sequence: int
    part: str
    recipe: int
    triggered: float
    deadline: float
    time_utc: str


class Take(NamedTuple):
    """Have the worker take and judge a part."""

    job: Job


class Prepare(NamedTuple):
    """Have the worker prepare a recipe."""

    recipe: int


class Publish(NamedTuple):
    """Offer a result to the line, and record it."""

    outcome: Outcome


class Late(NamedTuple):
    """Record a result that came after its deadline. It is offered to nobody."""

    outcome: Outcome


class Note(NamedTuple):
    """Record an event: ``code`` and text."""

    code: str
    text: str


Effect = Take | Prepare | Publish | Late | Note


@dataclass
class Settings:
    """What the cycle needs of the station file.

    Attributes:
        deadline_s: from the trigger to the result.
        ack_s: how long a result waits for its acknowledgement before the station is ready again.
        recipe_digests: number → sha256 of the recipe's settings.
        deadlines: number of a recipe → its own deadline in seconds.
        acknowledges: whether a result waits for the line; a station without a live sink has nobody who could acknowledge it.
    """

    deadline_s: float
    ack_s: float
    recipe_digests: Mapping[int, str]
    deadlines: Mapping[int, float] = field(default_factory=dict)
    acknowledges: bool = True


class Cycle:
    """State machine of a station. Not thread-safe: one event loop owns it.

    Args:
        settings: deadlines and recipes.
        first_id: number of the first inspection, one above the last recorded one.
    """

    def __init__(self, settings: Settings, first_id: int = 1) -> None:
        self._settings, self._next_id = settings, first_id
        self.phase: Phase = "starting"
        self.recipe = 0  # prepared
        self._wanted = 0  # to prepare, now or once the worker is back
        self._job: Job | None = None
        self._unanswered: dict[int, Job] = {}  # of the worker, after their deadline
        self._offered: deque[Outcome] = deque()
        self._offered_since = 0.0
        self._overrun_noted = False
        self._newest = 0
        self.missed = self.overrun = self.late = 0
        self.fault = ""
        self.check_due = False
        self.check_blocks = False
        self.control: Control = "line"
        self._worker_ready = self._line_silent = False
        self.alive = False
        self.simulated = False
        self.acquisition = 0

    # -- what is shown ------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a trigger is accepted now."""
        return (
            self.phase == "ready"
            and self.alive
            and not self._line_silent
            and not (self.check_due and self.check_blocks)
            and len(self._offered) < MAX_WAITING
        )

    @property
    def state(self) -> StationState:
        """What the sinks show."""
        return StationState(
            phase=self.phase,
            ready=self.ready,
            recipe=self.recipe,
            prepared=self.recipe > 0 and self.phase in ("ready", "busy", "valid"),
            offered=self._offered[0] if self._offered and self.phase != "off" else None,
            waiting=len(self._offered),
            missed=self.missed,
            overrun=self.overrun,
            late=self.late,
            fault=self.fault,
            check_due=self.check_due,
            simulated=self.simulated,
            control=self.control,
            alive=self.alive,
            acquisition=self.acquisition,
            unacknowledged=tuple(self._offered) if self.phase != "off" else (),
        )

    @property
    def next_deadline(self) -> float | None:
        """Monotonic seconds at which :meth:`tick` has something to do; ``None`` if nothing is due."""
        if self._job is not None:
            return self._job.deadline
        if self.phase in ("valid", "stopping"):
            return self._offered_since + self._settings.ack_s
        return None

    @property
    def is_busy(self) -> bool:
        """Whether a part is in hand."""
        return self._job is not None

    # -- events of the line -------------------------------------------------------------------------------------------

    def trigger(self, sequence: int, part: str, now: float, time_utc: str, source: Control = "line") -> list[Effect]:
        """Handle a trigger. It is accepted if the effects hold a :class:`Take`; otherwise it is counted as missed."""
        if not self.ready or source != self.control:
            self.missed += 1
            why = (
                "control is with the " + self.control if source != self.control else f"the station is {self._why_not()}"
            )
            return [Note("trigger-missed", f"trigger {sequence} {part!r} was missed: {why}")]
        job = Job(
            self._next_id,
            sequence,
            part,
            self.recipe,
            now,
            now + self._settings.deadlines.get(self.recipe, self._settings.deadline_s),
            time_utc,
        )
        self._next_id += 1
        self.acquisition = job.id
        self._job, self.phase = job, "busy"
        return [Take(job)]

    def acknowledge(self, inspection: int | None, source: Control = "line") -> bool:
        """Handle an acknowledgement of a result: the given one, or the oldest. Return whether there was one."""
        place = next((i for i, one in enumerate(self._offered) if inspection in (None, one.id)), None)
        if place is None or source != self.control or self.phase == "off":
            return False
        del self._offered[place]
        self._overrun_noted = False
        if self.phase == "valid" and (inspection in (None, self._newest) or not self._offered):
            self.phase = "ready"
        return True

    def prepare(self, recipe: int, source: Control = "line") -> str | list[Effect]:
        """Handle a change of the recipe. Return the effects, or why it is refused. Ready drops first."""
        if source != self.control:
            return f"control is with the {self.control}"
        if recipe not in self._settings.recipe_digests:
            known = ", ".join(map(str, sorted(self._settings.recipe_digests)))
            if self.phase in ("ready", "idle", "valid"):
                self.phase, self.recipe, self._wanted = (
                    "idle",
                    0,
                    0,
                )  # an unknown product must not be judged by another's rules
            return f"there is no recipe {recipe}; the station has {known}"
        if self.phase not in ("idle", "ready", "valid"):
            return f"the station is {self.phase}"
        self.phase, self.recipe, self._wanted = "preparing", 0, recipe
        return [Prepare(recipe)]

    def clear_fault(self) -> list[Effect]:
        """Handle an acknowledgement of faults: clear the latched counts, and leave fault if its cause is gone."""
        self.missed = self.overrun = self.late = 0
        if self.phase != "fault" or not self._worker_ready:
            return []
        self.fault = ""
        return self._restart()

    def line_lost(self, why: str) -> list[Effect]:
        """The PLC is silent: not ready until it is back."""
        if self._line_silent:
            return []
        self._line_silent = True
        return [Note("line-lost", why)]

    def line_back(self) -> list[Effect]:
        """The PLC is heard again."""
        if not self._line_silent:
            return []
        self._line_silent = False
        return [Note("line-back", "the PLC is heard again")]

    # -- events of the worker -----------------------------------------------------------------------------------------

    def worker_ready(self) -> list[Effect]:
        """The worker has opened model, bank and cameras."""
        self._worker_ready = self.alive = True
        if self.phase == "starting" or (self.phase == "fault" and self.fault.startswith(_WORKER)):
            self.fault = ""
            return self._restart()
        return []

    def worker_lost(self, why: str, now: float) -> list[Effect]:
        """The worker died or is stuck: the part in hand is not decidable, and nothing is judged until it is back."""
        self._worker_ready = self.alive = False
        self._unanswered.clear()
        effects: list[Effect] = []
        if self._job is not None:
            effects += self._publish(self._undecided(self._job, "internal", now), now)
        if self.phase in ("stopping", "off"):
            return effects
        self._wanted = self._wanted or self.recipe
        self.phase, self.recipe, self.fault = "fault", 0, f"{_WORKER}{why}"
        return [*effects, Note("worker-lost", why)]

    def worker_alive(self, alive: bool) -> None:
        """The worker answers its pings, or does not. Without an answer the heartbeat stops and no trigger is accepted."""
        self.alive = alive and self._worker_ready

    def prepared(self, recipe: int, error: str = "") -> list[Effect]:
        """The worker has prepared a recipe, or could not."""
        if self.phase != "preparing" or recipe != self._wanted:
            return []
        if error:
            self.phase, self._wanted = "idle", 0
            return [Note("recipe-failed", f"recipe {recipe}: {error}")]
        self.phase, self.recipe = "ready", recipe
        return [Note("recipe-prepared", f"recipe {recipe}")]

    def outcome(self, job_id: int, result: Mapping[str, Any], now: float) -> list[Effect]:
        """The worker has judged a part.

        Args:
            job_id: number of its job.
            result: fields of the outcome that the worker knows.
            now: monotonic seconds.
        """
        job = self._job
        if job is None or job.id != job_id:
            late = self._unanswered.pop(job_id, None)
            if late is None:
                return []
            self.late += 1
            return [Late(self._decided(late, result, now))]
        if now > job.deadline:
            effects = self._publish(self._undecided(job, "deadline", now), now)
            self.late += 1
            return [*effects, Late(self._decided(job, result, now))]
        return self._publish(self._decided(job, result, now), now)

    # -- time and operation -------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Handle what is due: the deadline of the part in hand, and of an acknowledgement."""
        if self._job is not None and now >= self._job.deadline:
            self._unanswered[self._job.id] = self._job
            while len(self._unanswered) > MAX_WAITING:
                del self._unanswered[next(iter(self._unanswered))]
            return self._publish(self._undecided(self._job, "deadline", now), now)
        if self.phase == "stopping" and (not self._offered or now >= self._offered_since + self._settings.ack_s):
            self.phase = "off"
            return []
        if self.phase == "valid" and now >= self._offered_since + self._settings.ack_s:
            if len(self._offered) < MAX_WAITING:
                self.phase = "ready"
            if not self._overrun_noted:
                self.overrun += 1
                self._overrun_noted = True
                return [
                    Note("overrun", f"result {self._offered[0].id} was not acknowledged in {self._settings.ack_s:g} s")
                ]
            self._offered_since = now  # full: look again later
        return []

    def raise_fault(self, why: str, now: float) -> list[Effect]:
        """A fault: nothing is judged until it is cleared."""
        effects: list[Effect] = []
        if self._job is not None:
            effects += self._publish(self._undecided(self._job, "internal", now), now)
        if self.phase in ("stopping", "off"):
            return effects
        self._wanted = self._wanted or self.recipe
        self.phase, self.recipe, self.fault = "fault", 0, why
        return [*effects, Note("fault", why)]

    def set_simulated(self, simulated: bool) -> None:
        """Note whether an image does not come from a lens."""
        self.simulated = simulated

    def take_control(self, control: Control) -> bool:
        """Hand control over. It is refused while a part is in hand."""
        if self._job is not None:
            return False
        self.control = control
        return True

    def stop(self) -> None:
        """Accept no trigger any more. The part in hand ends first, and its result is offered for ``ack_s``."""
        if self.phase != "off":
            self.phase = "stopping" if self._job is not None or self._offered else "off"

    # -- inside -------------------------------------------------------------------------------------------------------

    def _restart(self) -> list[Effect]:
        if self._wanted:
            self.phase, self.recipe = "preparing", 0
            return [Prepare(self._wanted)]
        self.phase = "idle"
        return []

    def _publish(self, outcome: Outcome, now: float) -> list[Effect]:
        self._job = None
        if not self._settings.acknowledges:
            self.phase = {"busy": "ready", "stopping": "off"}.get(self.phase, self.phase)  # type: ignore[assignment]
            return [Publish(outcome)]
        self._overrun_noted = False
        if not self._offered:
            self._offered_since = now
        self._offered.append(outcome)
        self._newest = outcome.id
        if self.phase in ("busy", "stopping"):
            self._offered_since = now
        if self.phase == "busy":
            self.phase = "valid"
        return [Publish(outcome)]

    def _undecided(self, job: Job, reason: str, now: float) -> Outcome:
        empty = {"evaluation": NOT_DECIDABLE, "reason": reason}
        return self._decided(job, empty, now)

    def _decided(self, job: Job, result: Mapping[str, Any], now: float) -> Outcome:
        return Outcome(
            id=job.id,
            time_utc=job.time_utc,
            sequence=job.sequence,
            part=job.part,
            recipe=job.recipe,
            evaluation=int(result["evaluation"]),
            reason=str(result["reason"]),
            score=result.get("score"),
            threshold=result.get("threshold"),
            latency_ms=round((now - job.triggered) * 1e3, 3),
            bank_version=int(result.get("bank_version") or 0),
            cameras=result.get("cameras") or {},
            alarms=tuple(result.get("alarms") or ()),
            simulated=self.simulated,
            recipe_digest=self._settings.recipe_digests[job.recipe],
        )

    def _why_not(self) -> str:
        if self.phase != "ready":
            return self.phase
        if not self.alive:
            return "waiting for its worker"
        if self._line_silent:
            return "without the PLC's heartbeat"
        if len(self._offered) >= MAX_WAITING:
            return f"holding {MAX_WAITING} results that were not acknowledged"
        return "waiting for its golden parts"


_WORKER = "worker: "


def with_acquisition(state: StationState, acquisition: int) -> StationState:
    """Return a state that shows another number of the last accepted trigger."""
    return replace(state, acquisition=acquisition)


def as_late(outcome: Outcome) -> Outcome:
    """Return a late result as it is recorded: its evaluation does not count."""
    return replace(outcome, alarms=(*outcome.alarms, "late"))
