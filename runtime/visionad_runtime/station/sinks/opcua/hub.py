"""What the parts of the address space need of the server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ...sink import Line, Outcome, StationState


class Hub(Protocol):
    """Shown state, kept results, and the way to the station."""

    state: StationState
    results: deque[Outcome]

    async def ask(self, question: Callable[[Line], Any]) -> Any:
        """Ask the station something in the front's event loop. Return its answer."""

    async def wait_until(self, true: Callable[[StationState], bool], seconds: float) -> bool:
        """Return whether the shown state becomes so in time."""
