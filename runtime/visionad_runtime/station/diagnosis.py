"""What works of each camera and each way out, step by step: of a running station for the page, of a stopped one for the console."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ..errors import VisionADError
from .plc import SimulatedPlc
from .rehearsal import RehearsalLine
from .settings import Station
from .sink import Sink, SinkError
from .worker.camera_holder import CameraHolder, Step

IMAGE_SECONDS = 5.0
"""How long a camera may take for an image. One with a hardware trigger waits for the line's."""
BUS_SECONDS = 10.0


class RunningStation(Protocol):
    """What the diagnosis needs of a running station."""

    station: Station

    async def ask_worker(self, command: str, *values: Any) -> Any:
        """Ask the worker."""

    def health(self) -> dict[str, Any]:
        """Return its health."""


async def diagnosis_of(running: RunningStation) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the steps of each camera and each sink of a running station, JSON types. Nothing is triggered or sent.

    Returns:
        ``cameras`` and ``sinks``: name → steps with the keys of :class:`Step`.
    """
    health = running.health()
    try:
        cameras = await running.ask_worker("diagnose")
    except SinkError as exc:
        cameras = {name: [Step("installed", None, str(exc))._asdict()] for name in running.station.cameras}
    sinks = {name: _of_sink(sink, health["sinks"][name]) for name, sink in running.station.sinks.items()}
    return {"cameras": cameras, "sinks": {name: [one._asdict() for one in steps] for name, steps in sinks.items()}}


def _of_sink(sink: Sink, health: Mapping[str, Any]) -> list[Step]:
    missing = sink.missing()
    steps = [Step("installed", missing is None, missing or "")]
    if missing is not None:
        return [*steps, Step("connected", None)]
    steps.append(Step("connected", bool(health.get("ok")), str(health.get("detail", ""))))
    backlog = health.get("backlog")
    if backlog is not None:
        steps.append(Step("delivered", backlog == 0, f"{backlog} records wait" if backlog else "all records"))
    return steps


def diagnose(station: Station, say: Callable[[str], object]) -> bool:
    """Try each camera and each way out of a station that does not run, and say of each step whether it works.

    Each camera takes one image. A simulated PLC writes and reads the registers of each Modbus server: one part, whose result is
    never a pass. No model is loaded and nothing is recorded.

    Args:
        station: the station file. The station must be stopped, since cameras and ports have one owner.
        say: told a line for each step.

    Returns:
        Whether all steps work.
    """
    good = True
    for name, camera in station.cameras.items():
        good &= _told(f"camera {name}", try_camera(CameraHolder(name, camera, lambda *_: None)), say)
    for name, sink in station.sinks.items():
        good &= _told(name, try_sink(sink, station.settings.recipes), say)
    return good


def _told(what: str, steps: Iterable[Step], say: Callable[[str], object]) -> bool:
    good = True
    for one in steps:
        word = {True: "works", False: "DOES NOT WORK", None: "not known"}[one.ok]
        say(f"{what:<16} {one.step:<10} {word}{': ' if one.detail else ''}{one.detail}")
        good &= one.ok is not False
    return good


def try_camera(holder: CameraHolder) -> list[Step]:
    """Open a camera, take one image, and close it. Return the steps."""
    try:
        holder.open(again=False)
        if holder.facts is not None:
            after = holder.arm()
            holder.trigger()
            holder.try_grab(after, time.monotonic() + IMAGE_SECONDS)
        return holder.steps()
    finally:
        holder.close()


def try_sink(sink: Sink, recipes: Iterable[int]) -> list[Step]:
    """Run a live sink without a station, and let a simulated PLC use it, if it is a Modbus server. Return the steps.

    Stored sinks are not run: they would deliver.
    """
    missing = sink.missing()
    steps = [Step("installed", missing is None, missing or "")]
    if missing is not None:
        return [*steps, Step("connected", None)]
    if not sink.live:
        return [
            *steps,
            Step("connected", None, "the running station tells: Settings on the page, or GET /health with a session"),
        ]
    settings: Any = getattr(sink, "_settings", None)
    server = (settings.host, settings.port) if getattr(settings, "kind", "") == "modbus" else None
    return [*steps, *asyncio.run(_rehearse(sink, server, min(recipes, default=1)))]


async def _rehearse(sink: Sink, server: tuple[str, int] | None, recipe: int) -> list[Step]:
    running = asyncio.create_task(sink.run(RehearsalLine(sink)))
    try:
        await asyncio.wait([running], timeout=0.5)
        if running.done():
            return [Step("connected", False, str(running.exception() or "it ended"))]
        if server is None:
            return [Step("connected", True, "it runs; no PLC is simulated for this kind")]
        host, port = server
        plc = SimulatedPlc({"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host), port)
        connected = Step("connected", True, f"it listens at {host}:{port}")
        try:
            await plc.connect(BUS_SECONDS)
            await plc.prepare(recipe, BUS_SECONDS)
            result = await plc.inspect("DIAGNOSIS", BUS_SECONDS)
        except VisionADError as exc:
            return [connected, Step("bus", False, str(exc))]
        finally:
            plc.close()
        return [
            connected,
            Step("bus", not result["pass"], "a simulated PLC wrote a recipe and a trigger, and read the result"),
        ]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)  # what it raised is told above
