"""Flat variables and methods in a namespace of our own, for a PLC that knows no companion specification.

Node ids are names, such as ``ns=2;s=Ready``. Nothing is writable: a PLC calls methods.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from asyncua import Server, ua

from ...sink import Outcome, StationState
from .hub import Hub


class Flat(NamedTuple):
    """A variable.

    Attributes:
        kind: type of the value.
        value: of a state and its newest result, which is ``None`` before the first one.
        bit: whether it says which other variables count. Bits are written first when they fall, last when they rise.
    """

    kind: ua.VariantType
    value: Callable[[StationState, Outcome | None], Any]
    bit: bool = False


def _of_result(name: str, without: Any) -> Callable[[StationState, Outcome | None], Any]:
    return lambda _, result: without if result is None or getattr(result, name) is None else getattr(result, name)


def _passed(state: StationState) -> bool:
    return state.offered is not None and state.offered.evaluation == 1


_T = ua.VariantType
FLAT: dict[str, Flat] = {
    "InspectionId": Flat(_T.UInt32, _of_result("id", 0)),
    "Sequence": Flat(_T.Int64, _of_result("sequence", 0)),
    "Part": Flat(_T.String, _of_result("part", "")),
    "Evaluation": Flat(_T.Int32, _of_result("evaluation", 0)),
    "Reason": Flat(_T.String, _of_result("reason", "")),
    "ResultRecipe": Flat(_T.UInt32, _of_result("recipe", 0)),
    "Score": Flat(_T.Double, _of_result("score", math.nan)),
    "Threshold": Flat(_T.Double, _of_result("threshold", math.nan)),
    "LatencyMs": Flat(_T.Double, _of_result("latency_ms", 0.0)),
    "BankVersion": Flat(_T.UInt32, _of_result("bank_version", 0)),
    "Phase": Flat(_T.String, lambda state, _: state.phase),
    "Recipe": Flat(_T.UInt32, lambda state, _: state.recipe),
    "Prepared": Flat(_T.Boolean, lambda state, _: state.prepared),
    "Busy": Flat(_T.Boolean, lambda state, _: state.phase == "busy"),
    "AcquisitionId": Flat(_T.UInt32, lambda state, _: state.acquisition),
    "Waiting": Flat(_T.UInt32, lambda state, _: state.waiting),
    "Missed": Flat(_T.UInt32, lambda state, _: state.missed),
    "Overrun": Flat(_T.UInt32, lambda state, _: state.overrun),
    "Late": Flat(_T.UInt32, lambda state, _: state.late),
    "Fault": Flat(_T.String, lambda state, _: state.fault),
    "CheckDue": Flat(_T.Boolean, lambda state, _: state.check_due),
    "Simulated": Flat(_T.Boolean, lambda state, _: state.simulated),
    "Control": Flat(_T.String, lambda state, _: state.control),
    "Reject": Flat(_T.Boolean, lambda state, _: not _passed(state)),
    "Pass": Flat(_T.Boolean, lambda state, _: _passed(state), bit=True),
    "Valid": Flat(_T.Boolean, lambda state, _: state.offered is not None, bit=True),
    "Ready": Flat(_T.Boolean, lambda state, _: state.ready and state.alive, bit=True),
}
"""Variables by name. ``Heartbeat`` comes beside them."""


class FlatVariables:
    """The folder ``VisionAD`` under ``Objects``.

    Args:
        server: that has it.
        namespace: index of our namespace.
        hub: the state, and the way to the station.
    """

    def __init__(self, server: Server, namespace: int, hub: Hub) -> None:
        self._server, self._namespace, self._hub = server, namespace, hub
        self._shown: dict[str, Any] = {}
        self._count = 0

    async def build(self) -> None:
        """Make the folder, its variables and methods."""
        folder = await self._server.nodes.objects.add_folder(self._id("VisionAD"), self._name("VisionAD"))
        for name, flat in FLAT.items():
            value = flat.value(self._hub.state, None)
            await folder.add_variable(self._id(name), self._name(name), value, flat.kind)
            self._shown[name] = value
        await folder.add_variable(self._id("Heartbeat"), self._name("Heartbeat"), 0, ua.VariantType.UInt32)
        text, number, flag = ua.VariantType.String, ua.VariantType.UInt32, ua.VariantType.Boolean
        for name, call, inputs, outputs in (
            ("Trigger", self._trigger, {"Sequence": ua.VariantType.Int64, "Part": text}, {"InspectionId": number}),
            ("Prepare", self._prepare, {"Recipe": number}, {"Error": text}),
            ("Acknowledge", self._acknowledge, {"InspectionId": number}, {"Acknowledged": flag}),
            ("ClearFault", self._clear_fault, {}, {"Cleared": flag}),
        ):
            await folder.add_method(self._id(name), self._name(name), call, _arguments(inputs), _arguments(outputs))

    async def show(self, state: StationState, result: Outcome | None) -> None:
        """Write what has changed: falling bits, then data, then rising bits."""
        values = {name: flat.value(state, result) for name, flat in FLAT.items()}
        changed = [name for name, value in values.items() if repr(value) != repr(self._shown[name])]  # NaN is NaN
        falling = [name for name in changed if FLAT[name].bit and not values[name]]
        data = [name for name in changed if not FLAT[name].bit]
        rising = [name for name in changed if FLAT[name].bit and values[name]]
        for name in (*reversed(falling), *data, *rising):
            await self._write(name, values[name], FLAT[name].kind)
        self._shown = values

    async def beat(self, seconds: float) -> None:
        """Count the heartbeat up while the worker answers."""
        while True:
            if self._hub.state.alive:
                self._count = (self._count + 1) & 0xFFFFFFFF
                await self._write("Heartbeat", self._count, ua.VariantType.UInt32)
            await asyncio.sleep(seconds)

    async def _write(self, name: str, value: Any, kind: ua.VariantType) -> None:
        now = datetime.now(UTC)
        data = ua.DataValue(ua.Variant(value, kind), SourceTimestamp=now, ServerTimestamp=now)
        await self._server.write_attribute_value(self._id(name), data)

    def _id(self, name: str) -> ua.NodeId:
        return ua.NodeId(name, self._namespace)

    def _name(self, name: str) -> ua.QualifiedName:
        return ua.QualifiedName(name, self._namespace)

    # -- methods ------------------------------------------------------------------------------------------------------

    async def _trigger(self, _parent: Any, sequence: ua.Variant, part: ua.Variant) -> list[ua.Variant]:
        """Trigger. Return the number of the inspection, 0 if the trigger was missed."""
        number = await self._hub.ask(lambda line: line.trigger(int(sequence.Value or 0), part.Value or ""))
        return [ua.Variant(number or 0, ua.VariantType.UInt32)]

    async def _prepare(self, _parent: Any, recipe: ua.Variant) -> list[ua.Variant]:
        """Begin to change the recipe. Return why not, or an empty text."""
        return [ua.Variant(await self._hub.ask(lambda line: line.prepare(recipe.Value)) or "", ua.VariantType.String)]

    async def _acknowledge(self, _parent: Any, inspection: ua.Variant) -> list[ua.Variant]:
        """Take a result away, 0 the oldest. Return whether it was offered."""
        done = await self._hub.ask(lambda line: line.acknowledge(inspection.Value or None))
        return [ua.Variant(done, ua.VariantType.Boolean)]

    async def _clear_fault(self, _parent: Any) -> list[ua.Variant]:
        return [ua.Variant(await self._hub.ask(lambda line: line.clear_fault()), ua.VariantType.Boolean)]


def _arguments(kinds: dict[str, ua.VariantType]) -> list[ua.Argument]:
    arguments = []
    for name, kind in kinds.items():
        argument = ua.Argument()
        argument.Name, argument.DataType, argument.ValueRank = name, ua.NodeId(kind.value), -1
        argument.ArrayDimensions, argument.Description = [], ua.LocalizedText(name)
        arguments.append(argument)
    return arguments
