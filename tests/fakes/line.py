"""A line for the tests of sinks: it keeps the station's cycle without cameras, worker or records.

A part whose text contains ``bad`` is anomalous, ``odd`` not decidable, any other ok.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from visionad_runtime.station.sink import Control, Outcome, Sink, StationState

RECIPES = {1: "gear", 2: "bolt"}
START = StationState(
    phase="idle",
    ready=False,
    recipe=0,
    prepared=False,
    offered=None,
    waiting=0,
    missed=0,
    overrun=0,
    late=0,
    fault="",
    check_due=False,
    simulated=True,
    control="line",
    alive=True,
    acquisition=0,
)


def outcome(number: int, part: str = "SN-1", sequence: int = 1, recipe: int = 1) -> Outcome:
    """Return what a part of this name gets."""
    evaluation, reason, score = (2, "anomalous", 0.457) if "bad" in part else (1, "none", 0.2)
    if "odd" in part:
        evaluation, reason, score = 3, "no threshold", 0.3
    verdict = {1: "ok", 2: "anomalous", 3: "unknown"}[evaluation]
    regions = [{"bbox": [1, 2, 3, 4], "score": score}] if evaluation == 2 else []
    facts = {"verdict": verdict, "class": "gear", "score": score, "threshold": 0.402, "regions": regions}
    return Outcome(
        number,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        sequence,
        part,
        recipe,
        evaluation,
        reason,
        score,
        0.402,
        12.5,
        7,
        {"top": facts},
        simulated=True,
        recipe_digest="d" * 64,
    )


class FakeLine:
    """See :class:`~visionad_runtime.station.sink.Line`.

    Args:
        name: of the station.
        takes_s: from a trigger to its result.
    """

    def __init__(self, name: str = "press-3", takes_s: float = 0.02) -> None:
        self.station_name, self.takes_s, self.recipes = name, takes_s, RECIPES
        self.state = START
        self.sinks: list[Sink] = []
        self.asked: list[tuple[str, Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def show(self, **fields: Any) -> None:
        """Change the state, and tell each sink of it."""
        self.state = replace(self.state, **fields)
        self._spawn(self._tell(self.state))

    def trigger(self, sequence: int, part: str, source: Control = "line") -> int | None:
        self.asked.append(("trigger", (sequence, part)))
        if not self.state.ready or source != self.state.control:
            self.show(missed=self.state.missed + 1)
            return None
        number = self.state.acquisition + 1
        self.show(phase="busy", ready=False, acquisition=number)
        self._spawn(self._judge(outcome(number, part, sequence, self.state.recipe)))
        return number

    def prepare(self, recipe: int, source: Control = "line") -> str | None:
        self.asked.append(("prepare", recipe))
        if recipe not in RECIPES:
            return f"no recipe {recipe}: expected one of 1, 2"
        if self.state.phase not in ("idle", "ready"):
            return f"the station is {self.state.phase}"
        self.show(phase="preparing", ready=False, prepared=False)
        self._spawn(self._prepared(recipe))
        return None

    def acknowledge(self, inspection: int | None = None, source: Control = "line") -> bool:
        self.asked.append(("acknowledge", inspection))
        offered = self.state.offered
        if offered is None or inspection not in (None, offered.id):
            return False
        self.show(phase="ready", ready=True, offered=None, waiting=0)
        return True

    def clear_fault(self, source: Control = "line") -> bool:
        self.asked.append(("clear_fault", None))
        self.show(phase="ready" if self.state.prepared else "idle", ready=self.state.prepared, fault="")
        return True

    def line_lost(self, why: str) -> None:
        self.asked.append(("line_lost", why))

    def line_back(self) -> None:
        self.asked.append(("line_back", None))

    async def _judge(self, result: Outcome) -> None:
        await asyncio.sleep(self.takes_s)
        self.show(phase="valid", offered=result, waiting=1)

    async def _prepared(self, recipe: int) -> None:
        await asyncio.sleep(self.takes_s)
        self.show(phase="ready", ready=True, prepared=True, recipe=recipe)

    async def _tell(self, state: StationState) -> None:
        for sink in self.sinks:
            await sink.tell(state)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
