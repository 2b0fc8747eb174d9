"""Interface of a sink, and the table of sinks. A sink runs in the front process, in its event loop, and must not block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from .leaf import LeafRegistry, LeafSettings

Control = Literal["line", "page"]
"""Who may trigger, prepare and acknowledge: the sinks of the line, or a person at the page."""


@dataclass(frozen=True)
class Outcome:
    """Result of one part, as it is offered to the line and recorded.

    Attributes:
        id: inspection number, which counts up by one for each accepted trigger and never repeats.
        time_utc: when the trigger was accepted, ISO 8601 with milliseconds.
        sequence: number that the line gave the part.
        part: text that the line gave the part.
        recipe: number of the recipe.
        evaluation: 0 undefined, 1 ok, 2 anomalous, 3 not decidable (OPC UA ``ResultEvaluationEnum``).
        reason: why it is not 1: a name of ``cycle.REASONS``; ``none`` for 1.
        score: of the camera that decided; ``None`` without one.
        threshold: the same.
        latency_ms: from the trigger to the result.
        bank_version: of the bank that the part was compared with; 0 without one.
        cameras: camera → the object of ``predict --json`` or ``{"error": text}``.
        alarms: codes of the alarms that the part raised.
        simulated: whether an image did not come from a lens.
        recipe_digest: sha256 of the recipe's settings.
    """

    id: int
    time_utc: str
    sequence: int
    part: str
    recipe: int
    evaluation: int
    reason: str
    score: float | None
    threshold: float | None
    latency_ms: float
    bank_version: int
    cameras: Mapping[str, Mapping[str, Any]]
    alarms: tuple[str, ...] = ()
    simulated: bool = False
    recipe_digest: str = ""


@dataclass(frozen=True)
class StationState:
    """State of the station, as sinks show it.

    Attributes:
        phase: ``starting``, ``idle``, ``preparing``, ``ready``, ``busy``, ``valid``, ``fault``, ``stopping`` or ``off``.
        ready: whether a trigger is accepted.
        recipe: number of the prepared recipe; 0 if none is.
        prepared: whether a recipe is prepared.
        offered: the oldest result that was not acknowledged; ``None`` if there is none.
        waiting: results that were not acknowledged.
        missed: triggers that were not accepted, since start.
        overrun: results that were not acknowledged in time, since start.
        late: results that came after the deadline, since start.
        fault: why the station is in fault; empty if it is not.
        check_due: whether golden parts are due.
        simulated: whether an image does not come from a lens.
        control: who holds control.
        alive: whether the worker answers; the heartbeat counts only then.
        acquisition: number of the last accepted trigger.
        unacknowledged: all results that were not acknowledged, oldest first.
    """

    phase: str
    ready: bool
    recipe: int
    prepared: bool
    offered: Outcome | None
    waiting: int
    missed: int
    overrun: int
    late: int
    fault: str
    check_due: bool
    simulated: bool
    control: Control
    alive: bool
    acquisition: int
    unacknowledged: tuple[Outcome, ...] = ()


class Line(Protocol):
    """What a sink may ask of the station. Each call returns at once, in the front's event loop."""

    @property
    def state(self) -> StationState:
        """State now."""

    @property
    def station_name(self) -> str:
        """Name in the station file."""

    def trigger(self, sequence: int, part: str, source: Control = "line") -> int | None:
        """Ask for an inspection. Return its number, or ``None`` if the trigger was missed (counted and latched)."""

    def prepare(self, recipe: int, source: Control = "line") -> str | None:
        """Change the recipe. Return why it is refused, or ``None`` if it has begun; the state says when it is done."""

    def acknowledge(self, inspection: int | None = None, source: Control = "line") -> bool:
        """Take the offered result away: the given one, or the oldest. Return whether it was offered."""

    def clear_fault(self, source: Control = "line") -> bool:
        """Clear latched bits, and leave fault if its cause is gone. Return whether the station is out of fault."""

    def line_lost(self, why: str) -> None:
        """Say that the PLC is silent. The station is not ready until :meth:`line_back`."""

    def line_back(self) -> None:
        """Say that the PLC is heard again."""


class Sink(Protocol):
    """A way out of the station.

    A live sink is told each change at once, and offers results before the deadline; it may call the :class:`Line`. A stored sink
    gets records by cursor: at least once, in order, whatever is killed. The front tells it each change too.

    Attributes:
        Settings: what the station file says of such a sink.
        live: whether it is a live sink.
        acknowledges: optional, for live sinks: whether its peer or the sink itself takes results away. Without it, it does.
    """

    Settings: ClassVar[type[LeafSettings]]
    live: ClassVar[bool]

    def __init__(self, name: str, settings: LeafSettings) -> None:
        """Take the settings. Opens nothing and imports no library."""

    def missing(self) -> str | None:
        """Return what is not installed, and the command that installs it; ``None`` if nothing is."""

    async def run(self, line: Line) -> None:
        """Serve until cancelled. A stored sink connects here, and reconnects by itself.

        Raises:
            SinkError: It cannot start, such as for an occupied port. The message says what mends it.
        """

    async def tell(self, state: StationState) -> None:
        """Show a new state. A sink that shows none does nothing. Must not wait for a peer."""

    async def store(self, record: Mapping[str, Any]) -> None:
        """Stored sinks: deliver one record. Return only when its receiver has it.

        Args:
            record: the object of ``predict --json`` of the camera that decided, plus ``id, time, part, sequence, recipe,
                evaluation, reason, camera`` and ``station``.

        Raises:
            SinkError: It was not delivered; it is offered again.
        """

    def health(self) -> Mapping[str, Any]:
        """Return ``{"ok": bool, "detail": text}`` and figures such as the age of the last success in seconds."""


class SinkError(Exception):
    """A sink cannot start or deliver. The message says which, why, and what mends it."""


SINKS = LeafRegistry[Sink](
    "sink",
    "visionad.sinks",
    {
        "modbus": "visionad_runtime.station.sinks.modbus:ModbusSink",
        "tcp": "visionad_runtime.station.sinks.tcp:TcpSink",
        "opcua": "visionad_runtime.station.sinks.opcua.sink:OpcUaSink",
        "mqtt": "visionad_runtime.station.sinks.mqtt:MqttSink",
        "webhook": "visionad_runtime.station.sinks.webhook:WebhookSink",
        "files": "visionad_runtime.station.sinks.files:FilesSink",
        "gpio": "visionad_runtime.station.sinks.gpio:GpioSink",
    },
)
"""Sinks by ``kind``. Packages add theirs by an entry point in the group ``visionad.sinks``."""
