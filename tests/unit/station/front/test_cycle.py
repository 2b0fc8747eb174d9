"""T13: the trigger cycle against a PLC that loses, repeats and delays, for all orders of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from visionad_runtime.station.front.cycle import (
    MAX_WAITING,
    NOT_DECIDABLE,
    Cycle,
    Effect,
    Job,
    Late,
    Note,
    Prepare,
    Publish,
    Settings,
    Take,
)

DEADLINE, ACK = 0.5, 2.0
UTC = "2026-11-30T00:00:00.000+00:00"


class StationMachine(RuleBasedStateMachine):
    """All events in any order, with a clock that only goes forward."""

    acknowledges = True

    def __init__(self) -> None:
        super().__init__()
        self.cycle = Cycle(Settings(DEADLINE, ACK, {1: "a", 2: "b"}, acknowledges=self.acknowledges))
        self.now = 100.0
        self.jobs: dict[int, Job] = {}  # accepted
        self.answers: dict[int, tuple[int, float]] = {}  # id -> evaluation, when
        self.late: set[int] = set()
        self.at_worker: list[int] = []
        self.preparing: list[int] = []
        self.offered_once: dict[int, int] = {}
        self.missed_before = 0
        self.truth: dict[int, int] = {}

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Take):
                assert effect.job.id not in self.jobs
                assert effect.job.id == max(self.jobs, default=0) + 1, "numbers count up without a gap"
                self.jobs[effect.job.id] = effect.job
                self.at_worker.append(effect.job.id)
            elif isinstance(effect, Prepare):
                self.preparing.append(effect.recipe)
            elif isinstance(effect, Publish):
                one = effect.outcome
                assert one.id in self.jobs and one.id not in self.answers, "F3: exactly one result"
                job = self.jobs[one.id]
                assert (one.sequence, one.part, one.recipe) == (job.sequence, job.part, job.recipe), "F4"
                self.answers[one.id] = one.evaluation, self.now
                if one.evaluation == 1:
                    assert self.truth.get(one.id) == 1, "F6: a pass is what the worker judged to be good"
            elif isinstance(effect, Late):
                assert effect.outcome.id in self.answers and effect.outcome.id not in self.late
                assert self.answers[effect.outcome.id][0] == NOT_DECIDABLE
                self.late.add(effect.outcome.id)
            else:
                assert isinstance(effect, Note)

    @rule(sequence=st.integers(0, 5), page=st.booleans())
    def trigger(self, sequence: int, page: bool) -> None:
        was_ready, missed, control = self.cycle.ready, self.cycle.missed, self.cycle.control
        source = "page" if page else "line"
        effects = self.cycle.trigger(sequence, f"part {sequence}", self.now, UTC, source)  # type: ignore[arg-type]
        accepted = any(isinstance(effect, Take) for effect in effects)
        assert accepted == (was_ready and source == control), "F12, and a trigger while not ready is missed"
        assert self.cycle.missed == missed + (not accepted)
        self.take(effects)

    @rule(seconds=st.sampled_from([0.01, 0.1, DEADLINE, ACK]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.cycle.next_deadline) is not None and due <= end:
            self.now = max(self.now, due)
            before = self.cycle.next_deadline
            self.take(self.cycle.tick(self.now))
            if self.cycle.next_deadline == before:
                break
        self.now = end

    @precondition(lambda self: self.at_worker)
    @rule(data=st.data(), evaluation=st.sampled_from([1, 2, 3]))
    def worker_answers(self, data: st.DataObject, evaluation: int) -> None:
        job = data.draw(st.sampled_from(self.at_worker))
        if data.draw(st.booleans()):
            self.at_worker.remove(job)  # otherwise it repeats itself
        self.truth.setdefault(job, evaluation)
        reason = ("none", "anomalous", "review")[self.truth[job] - 1]
        self.take(
            self.cycle.outcome(job, {"evaluation": self.truth[job], "reason": reason, "bank_version": 3}, self.now)
        )

    @rule(recipe=st.sampled_from([1, 1, 2, 9]), page=st.booleans())
    def prepare(self, recipe: int, page: bool) -> None:
        busy = self.cycle.is_busy
        effects = self.cycle.prepare(recipe, "page" if page else "line")
        if isinstance(effects, str):
            return
        assert not busy and not self.cycle.ready, "F8: a recipe changes only while idle, and ready drops first"
        self.take(effects)

    @precondition(lambda self: self.preparing)
    @rule(data=st.data(), fails=st.booleans())
    def prepared(self, data: st.DataObject, fails: bool) -> None:
        recipe = data.draw(st.sampled_from(self.preparing))
        self.preparing.remove(recipe)
        self.take(self.cycle.prepared(recipe, "no such class" if fails else ""))

    @rule()
    def worker_ready(self) -> None:
        self.take(self.cycle.worker_ready())

    @rule()
    def worker_lost(self) -> None:
        self.take(self.cycle.worker_lost("it died", self.now))
        self.at_worker.clear()
        assert not self.cycle.ready

    @rule(alive=st.booleans())
    def ping(self, alive: bool) -> None:
        self.cycle.worker_alive(alive)

    @rule(page=st.booleans(), given=st.one_of(st.none(), st.integers(1, 20)))
    def acknowledge(self, page: bool, given: int | None) -> None:
        waiting = [one.id for one in self.cycle.state.unacknowledged]
        done = self.cycle.acknowledge(given, "page" if page else "line")
        left = [one.id for one in self.cycle.state.unacknowledged]
        assert (len(waiting) - len(left)) == int(done)
        if done:
            assert set(waiting) - set(left) == {waiting[0] if given is None else given}

    @rule()
    def clear_fault(self) -> None:
        self.take(self.cycle.clear_fault())

    @rule()
    def fault(self) -> None:
        self.take(self.cycle.raise_fault("the light is off", self.now))

    @rule(lost=st.booleans())
    def line(self, lost: bool) -> None:
        self.take(self.cycle.line_lost("no heartbeat") if lost else self.cycle.line_back())

    @rule(page=st.booleans())
    def control(self, page: bool) -> None:
        busy = self.cycle.is_busy
        assert self.cycle.take_control("page" if page else "line") == (not busy)

    @rule(due=st.booleans(), blocks=st.booleans())
    def golden(self, due: bool, blocks: bool) -> None:
        self.cycle.check_due, self.cycle.check_blocks = due, blocks

    @invariant()
    def every_accepted_trigger_has_its_result_in_time(self) -> None:
        for number, job in self.jobs.items():
            if number in self.answers:
                assert self.answers[number][1] <= job.deadline + 1e-9, "F3"
            else:
                assert self.now <= job.deadline + 1e-9
                assert self.cycle.is_busy

    @invariant()
    def the_state_is_safe(self) -> None:
        state = self.cycle.state
        assert state.waiting <= MAX_WAITING
        if state.ready:
            assert state.phase == "ready" and state.recipe and state.alive and not self.cycle.is_busy
        if state.phase in ("fault", "starting", "idle", "preparing", "busy", "valid", "stopping", "off"):
            assert not state.ready
        ids = [one.id for one in state.unacknowledged]
        assert ids == sorted(set(ids)) and set(ids) <= set(self.answers)
        assert state.offered is None or state.offered.id == ids[0]


class StationWithoutLiveSink(StationMachine):
    """Nobody acknowledges."""

    acknowledges = False

    @invariant()
    def no_result_waits(self) -> None:
        assert self.cycle.state.waiting == self.cycle.overrun == 0 and self.cycle.phase != "valid"


TestStation = StationMachine.TestCase
TestStation.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestStationWithoutLiveSink = StationWithoutLiveSink.TestCase
TestStationWithoutLiveSink.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def started(recipe: int = 1) -> Cycle:
    cycle = Cycle(Settings(DEADLINE, ACK, {1: "a", 2: "b"}, {2: 3.0}))
    cycle.worker_ready()
    cycle.prepare(recipe)
    cycle.prepared(recipe)
    return cycle


def judged(cycle: Cycle, now: float = 1.0) -> None:
    (take,) = cycle.trigger(1, "a", now, UTC)
    assert isinstance(take, Take)
    cycle.outcome(take.job.id, {"evaluation": 1, "reason": "none"}, now + 0.1)


def test_a_recipe_has_its_own_deadline() -> None:
    cycle = started(2)
    (take,) = cycle.trigger(1, "a", 10.0, UTC)
    assert isinstance(take, Take) and take.job.deadline == 13.0


def test_results_are_held_until_they_are_acknowledged() -> None:
    cycle = started()
    for number in range(MAX_WAITING):
        judged(cycle, 10.0 * (number + 1))
        cycle.tick(10.0 * (number + 1) + 5)
    assert cycle.state.waiting == MAX_WAITING and not cycle.ready
    assert cycle.overrun == MAX_WAITING
    missed = cycle.trigger(9, "", 200.0, UTC)
    assert cycle.missed == 1 and isinstance(missed[0], Note)
    assert [cycle.acknowledge(None) for _ in range(MAX_WAITING + 1)] == [True] * MAX_WAITING + [False]
    assert cycle.ready


def test_an_unknown_recipe_leaves_the_station_not_ready() -> None:
    cycle = started()
    assert cycle.prepare(9) == "there is no recipe 9; the station has 1, 2"
    assert not cycle.ready and cycle.state.recipe == 0


def test_after_a_fault_the_recipe_is_prepared_again() -> None:
    cycle = started()
    cycle.raise_fault("light", 1.0)
    assert not cycle.ready and cycle.state.fault == "light"
    assert cycle.clear_fault() == [Prepare(1)]
    cycle.prepared(1)
    assert cycle.ready


def test_a_stopping_station_ends_the_part_in_hand() -> None:
    cycle = started()
    (take,) = cycle.trigger(1, "a", 1.0, UTC)
    assert isinstance(take, Take)
    cycle.stop()
    assert cycle.phase == "stopping" and cycle.trigger(2, "b", 1.1, UTC)
    cycle.outcome(take.job.id, {"evaluation": 2, "reason": "anomalous"}, 1.2)
    assert cycle.state.offered is not None
    cycle.acknowledge(None)
    cycle.tick(1.3)
    assert cycle.phase == "off" and cycle.state.offered is None


def test_without_anybody_who_acknowledges_parts_go_on_and_a_stop_ends_with_the_part_in_hand() -> None:
    cycle = Cycle(Settings(DEADLINE, ACK, {1: "a"}, acknowledges=False))
    cycle.worker_ready()
    cycle.prepare(1)
    cycle.prepared(1)
    for number in range(3 * MAX_WAITING):
        judged(cycle, float(number))
        assert cycle.ready and cycle.overrun == 0
    (take,) = cycle.trigger(2, "b", 100.0, UTC)
    assert isinstance(take, Take)
    cycle.stop()
    assert cycle.phase == "stopping"
    cycle.outcome(take.job.id, {"evaluation": 2, "reason": "anomalous"}, 100.2)
    assert cycle.phase == "off"
