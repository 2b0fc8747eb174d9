"""What ``GET /health`` says of a station."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..sink import StationState
from .alarms import clock_is_synchronized


def station_health(state: StationState, details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the health of a station, JSON types.

    Args:
        state: of the station.
        details: health of worker, cameras, sinks, alarms, golden parts and records.
    """
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
        **details,
        "clock_synchronized": clock_is_synchronized(),
    }
