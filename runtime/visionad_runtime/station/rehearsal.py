"""A line without cameras and model, for a rehearsal of the handshake: whatever is triggered, no part passes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from .front.cycle import NOT_DECIDABLE
from .records.records import utc_now
from .sink import Control, Outcome, Sink, StationState

_IDLE = StationState(
    phase="idle", ready=False, recipe=0, prepared=False, offered=None, waiting=0, missed=0, overrun=0, late=0, fault="",
    check_due=False, simulated=True, control="line", alive=True, acquisition=0,
)  # fmt: skip


class RehearsalLine:
    """See :class:`~visionad_runtime.station.sink.Line`. Each part is not decidable, so that a real PLC rejects it too.

    Args:
        sink: that is told each state.
    """

    station_name = "rehearsal"

    def __init__(self, sink: Sink) -> None:
        self.state = _IDLE
        self._sink = sink
        self._tasks: set[asyncio.Task[None]] = set()

    def trigger(self, sequence: int, part: str, source: Control = "line") -> int | None:
        """See the interface."""
        del source
        if not self.state.ready:
            self._show(missed=self.state.missed + 1)
            return None
        number, recipe = self.state.acquisition + 1, self.state.recipe
        self._show(phase="busy", ready=False, acquisition=number)
        result = Outcome(
            number, utc_now(), sequence, part, recipe, NOT_DECIDABLE, "internal", None, None, 0.0, 0, {}, simulated=True
        )
        self._later(phase="valid", offered=result, waiting=1)
        return number

    def prepare(self, recipe: int, source: Control = "line") -> str | None:
        """See the interface."""
        del source
        self._show(phase="preparing", ready=False, prepared=False)
        self._later(phase="ready", ready=True, prepared=True, recipe=recipe)
        return None

    def acknowledge(self, inspection: int | None = None, source: Control = "line") -> bool:
        """See the interface."""
        del inspection, source
        if self.state.offered is None:
            return False
        self._show(phase="ready", ready=True, offered=None, waiting=0)
        return True

    def clear_fault(self, source: Control = "line") -> bool:
        """See the interface."""
        del source
        return True

    def line_lost(self, why: str) -> None:
        """See the interface."""

    def line_back(self) -> None:
        """See the interface."""

    def _show(self, **fields: Any) -> None:
        self.state = replace(self.state, **fields)
        self._start(self._sink.tell(self.state))

    def _later(self, **fields: Any) -> None:
        async def show() -> None:
            await asyncio.sleep(0.02)
            self._show(**fields)

        self._start(show())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
