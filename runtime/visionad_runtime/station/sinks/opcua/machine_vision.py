"""OPC 40100-1: one vision system with its state machine, recipes, results and the event of a result.

Parts of the specification that are optional and that a station has not (transfer of files, products, safety state, step models) are
taken out of the address space again, so that a client sees what works.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncua import Node, Server, ua

from ...sink import Line, Outcome, StationState
from .hub import Hub

URI = "http://opcfoundation.org/UA/MachineVision"
OK, NOT_SUPPORTED, NOT_READY, UNKNOWN_RECIPE, UNKNOWN_RESULT, UNKNOWN_CONFIGURATION, REFUSED = 0, -1, -2, -3, -4, -5, -6
"""Values of ``error`` that methods return: 0, and ours, which are negative."""
PREPARE_S = 30.0
"""How long ``PrepareRecipe`` waits for the recipe. It returns ``isCompleted`` false then."""
REMOVED = (
    "DiagnosticLevel",
    "SafetyStateManagement",
    "ConfigurationManagement/AddConfiguration",
    "ConfigurationManagement/RemoveConfiguration",
    "ConfigurationManagement/ReleaseConfigurationHandle",
    "ConfigurationManagement/ConfigurationTransfer",
    "ConfigurationManagement/Configurations",
    "RecipeManagement/AddRecipe",
    "RecipeManagement/RemoveRecipe",
    "RecipeManagement/ReleaseRecipeHandle",
    "RecipeManagement/RecipeTransfer",
    "RecipeManagement/Recipes",
    "RecipeManagement/Products",
    "RecipeManagement/PrepareProduct",
    "RecipeManagement/UnprepareProduct",
    "RecipeManagement/UnlinkProduct",
    "ResultManagement/ReleaseResultHandle",
    "ResultManagement/ResultTransfer",
    "ResultManagement/Results",
    "VisionStateMachine/ConfirmAll",
    "VisionStateMachine/ErrorStepModel",
    "VisionStateMachine/HaltedStepModel",
    "VisionStateMachine/PreoperationalStepModel",
    "VisionStateMachine/AutomaticModeStateMachine/SimulationMode",
    "VisionStateMachine/AutomaticModeStateMachine/ContinuousExecutionStepModel",
    "VisionStateMachine/AutomaticModeStateMachine/InitializedStepModel",
    "VisionStateMachine/AutomaticModeStateMachine/ReadyStepModel",
    "VisionStateMachine/AutomaticModeStateMachine/SingleExecutionStepModel",
)
STATES = {
    "starting": ("Preoperational", None, 6),
    "idle": ("Operational", "Initialized", 2),
    "preparing": ("Operational", "Initialized", 4),
    "ready": ("Operational", "Ready", 2),
    "busy": ("Operational", "SingleExecution", 1),
    "valid": ("Operational", "SingleExecution", 1),
    "fault": ("Error", None, 5),
    "stopping": ("Halted", None, 6),
    "off": ("Halted", None, 6),
}
"""Phase → state of the vision system, state of its automatic mode, and system state by SEMI E10 (PRD 1, SBY 2, ENG 3, SDT 4, UDT 5,
NST 6)."""
E10 = {
    1: "productive",
    2: "standby",
    3: "engineering",
    4: "scheduled downtime",
    5: "unscheduled downtime",
    6: "not scheduled",
}
STATE_MACHINES, RESULT_READY = (1017, 1021), 1024
"""Numbers of types in the nodeset: both state machines, and the event of a result."""
COMPLETED = 1
"""``ResultState``: the result is complete."""


class MachineVision:
    """The object of a vision system under ``Objects``.

    Args:
        server: that has it.
        namespace: index of our namespace.
        name: of the station.
        hub: the state, and the way to the station.
    """

    def __init__(self, server: Server, namespace: int, name: str, hub: Hub) -> None:
        self._server, self._namespace, self._name, self._hub = server, namespace, name, hub
        self._mv = 0
        self._states: dict[str, ua.NodeId] = {}
        self._shown: tuple[str, str | None, int] | None = None
        self._current: dict[str, tuple[Node, Node]] = {}
        self._events: list[Any] = []
        self._jobs: dict[int, str] = {}  # inspection → measurement id that the client gave

    async def build(self, xml: str) -> None:
        """Import the nodeset and make the vision system.

        Args:
            xml: the nodeset.
        """
        server = self._server
        await server.import_xml(xmlstring=xml)
        await server.load_data_type_definitions()
        self._mv = await server.get_namespace_index(URI)
        kind = await server.nodes.base_object_type.get_child(f"{self._mv}:VisionSystemType")
        self._system = await server.nodes.objects.add_object(
            ua.NodeId("VisionSystem", self._namespace),
            ua.QualifiedName(self._name, self._namespace),
            objecttype=kind.nodeid,
            instantiate_optional=True,
        )
        for path in REMOVED:
            await server.delete_nodes([await self._child(path)], recursive=True)
        machine, automatic = "VisionStateMachine", "VisionStateMachine/AutomaticModeStateMachine"
        for which, path in (("machine", machine), ("automatic", automatic)):
            current = await self._child(f"{path}/0:CurrentState")
            self._current[which] = current, await current.get_child("0:Id")
        await self._read_states()
        for path, call in {
            f"{machine}/Reset": self._reset,
            f"{machine}/Halt": self._not_supported,
            f"{machine}/SelectModeAutomatic": self._select_automatic,
            f"{automatic}/StartSingleJob": self._start_single_job,
            f"{automatic}/StartContinuous": self._no_job,
            f"{automatic}/Stop": self._not_supported,
            f"{automatic}/Abort": self._not_supported,
            "RecipeManagement/GetRecipeListFiltered": self._recipe_list,
            "RecipeManagement/PrepareRecipe": self._prepare_recipe,
            "RecipeManagement/UnprepareRecipe": self._unprepare_recipe,
            "ResultManagement/GetResultById": self._result_by_id,
            "ResultManagement/GetResultComponentsById": self._components_by_id,
            "ResultManagement/GetResultListFiltered": self._result_list,
            "ConfigurationManagement/GetConfigurationList": self._configuration_list,
            "ConfigurationManagement/GetConfigurationById": self._configuration_by_id,
            "ConfigurationManagement/ActivateConfiguration": self._activate_configuration,
        }.items():
            server.link_method(await self._child(path), call)
        event = server.get_node(ua.NodeId(RESULT_READY, self._mv))
        for emitter in (self._system.nodeid, ua.ObjectIds.Server):
            self._events.append(await server.get_event_generator(event, emitter))
        await self.show(self._hub.state)

    async def _child(self, path: str) -> Node:
        steps = [step if step.startswith("0:") else f"{self._mv}:{step}" for step in path.split("/")]
        return await self._system.get_child(steps)

    async def _read_states(self) -> None:
        """Learn the node ids of the states that ``CurrentState/Id`` names. They belong to the types."""
        for number in STATE_MACHINES:
            for child in await self._server.get_node(ua.NodeId(number, self._mv)).get_children():
                self._states[(await child.read_browse_name()).Name] = child.nodeid

    # -- states and events --------------------------------------------------------------------------------------------

    async def show(self, state: StationState) -> None:
        """Show a state in both state machines and as SEMI E10 state."""
        system, automatic, e10 = STATES[state.phase]
        if state.control == "page" and e10 in (1, 2):
            e10 = 3
        if (system, automatic, e10) == self._shown:
            return
        self._shown = system, automatic, e10
        for which, name in (("machine", system), ("automatic", automatic)):
            current, identity = self._current[which]
            await current.write_value(ua.LocalizedText(name or ""), ua.VariantType.LocalizedText)
            await identity.write_value(self._states[name] if name else ua.NodeId(), ua.VariantType.NodeId)
        described = ua.SystemStateDescriptionDataType(State=ua.SystemStateDataType(e10), StateDescription=E10[e10])
        await (await self._child("SystemState")).write_value(described)

    async def send_result(self, outcome: Outcome) -> None:
        """Send ``ResultReadyEvent`` from the vision system and from the server."""
        result = self._result(outcome)
        plain = {
            "IsPartial": ua.VariantType.Boolean,
            "IsSimulated": ua.VariantType.Boolean,
            "ResultState": ua.VariantType.Int32,
        }
        for generator in self._events:
            event = generator.event
            for name, kind in plain.items():
                event.add_property(name, getattr(result, name), kind)
            for name in (
                "ResultId", "MeasId", "PartId", "ExternalRecipeId", "InternalRecipeId", "ProductId",
                "ExternalConfigurationId", "InternalConfigurationId", "JobId", "ProcessingTimes",
            ):  # fmt: skip
                event.add_property(name, getattr(result, name), ua.VariantType.ExtensionObject)
            event.add_property("CreationTime", result.CreationTime, ua.VariantType.DateTime)
            event.add_property("ResultContent", result.ResultContent, ua.VariantType.Variant)
            event.Severity = 100 if outcome.evaluation == 1 else 500
            event.SourceName = self._name
            event.SourceNode = self._system.nodeid
            await generator.trigger(
                message=f"part {outcome.part}: {outcome.reason if outcome.evaluation != 1 else 'ok'}"
            )

    def _result(self, outcome: Outcome) -> Any:
        """Return a result as the specification's structure."""
        taken = datetime.fromisoformat(outcome.time_utc).astimezone(UTC)
        recipe = self._recipe_id(ua.RecipeIdExternalDataType, outcome.recipe, outcome.recipe_digest)
        return ua.ResultDataType(
            ResultId=ua.ResultIdDataType(Id=str(outcome.id)),
            HasTransferableDataOnFile=False,
            IsPartial=False,
            IsSimulated=outcome.simulated,
            ResultState=COMPLETED,
            MeasId=ua.MeasIdDataType(Id=self._jobs.get(outcome.id, str(outcome.sequence))),
            PartId=ua.PartIdDataType(Id=outcome.part),
            ExternalRecipeId=recipe,
            InternalRecipeId=self._recipe_id(ua.RecipeIdInternalDataType, outcome.recipe, outcome.recipe_digest),
            ProductId=ua.ProductIdDataType(Id=""),
            ExternalConfigurationId=self._configuration_id(),
            InternalConfigurationId=self._configuration_id(),
            JobId=ua.JobIdDataType(Id=str(outcome.id)),
            CreationTime=taken + timedelta(milliseconds=outcome.latency_ms),
            ProcessingTimes=ua.ProcessingTimesDataType(
                StartTime=taken,
                EndTime=taken + timedelta(milliseconds=outcome.latency_ms),
                AcquisitionDuration=0.0,
                ProcessingDuration=outcome.latency_ms,
            ),
            ResultContent=content(outcome),
        )

    @staticmethod
    def _recipe_id(kind: Any, number: int, digest: str = "") -> Any:
        fields = {"Hash": bytes.fromhex(digest), "HashAlgorithm": "SHA-256"} if digest else {}
        return kind(Id=str(number), **fields)

    def _configuration_id(self) -> Any:
        return ua.ConfigurationIdDataType(Id=self._name)

    # -- methods: state machine ---------------------------------------------------------------------------------------

    async def _not_supported(self, _parent: Any, *_: ua.Variant) -> list[ua.Variant]:
        """Refuse: the service manager halts a station, and a part in hand is always judged to its end."""
        return [_error(NOT_SUPPORTED)]

    async def _reset(self, _parent: Any, *_: ua.Variant) -> list[ua.Variant]:
        return [_error(OK if await self._hub.ask(lambda line: line.clear_fault()) else REFUSED)]

    async def _select_automatic(self, _parent: Any) -> list[ua.Variant]:
        """Succeed where the mode is automatic already, which it is once the station has started."""
        return [_error(OK if STATES[self._hub.state.phase][0] == "Operational" else NOT_READY)]

    async def _no_job(self, _parent: Any, *_: ua.Variant) -> list[ua.Variant]:
        return [ua.Variant(ua.JobIdDataType(Id="")), _error(NOT_SUPPORTED)]

    async def _start_single_job(
        self, _parent: Any, meas: ua.Variant, part: ua.Variant, recipe: ua.Variant, *_: ua.Variant
    ) -> list[ua.Variant]:
        """Trigger. A recipe that is given must be the one that is prepared."""
        asked, name = _id(recipe.Value), _id(meas.Value)
        if asked and asked != str(self._hub.state.recipe):
            return [ua.Variant(ua.JobIdDataType(Id="")), _error(UNKNOWN_RECIPE)]
        sequence = int(name) if name.isdecimal() and len(name) < 10 else 0
        number = await self._hub.ask(lambda line: line.trigger(sequence, _id(part.Value)))
        if number is None:
            return [ua.Variant(ua.JobIdDataType(Id="")), _error(NOT_READY)]
        self._jobs[number] = name
        for old in [n for n in self._jobs if n < number - 1000]:
            del self._jobs[old]
        return [ua.Variant(ua.JobIdDataType(Id=str(number))), _error(OK)]

    # -- methods: recipes ---------------------------------------------------------------------------------------------

    async def _recipe_list(
        self,
        _parent: Any,
        external: ua.Variant,
        _product: Any,
        prepared: ua.Variant,
        most: ua.Variant,
        start: ua.Variant,
        _t: Any,
    ) -> list[ua.Variant]:
        numbers = [n for n in await self._hub.ask(_recipes) if _id(external.Value) in ("", str(n))]
        state = self._hub.state
        wanted = None if prepared.Value is None else int(prepared.Value)
        if wanted in (0, 1):
            numbers = [n for n in numbers if (n == state.recipe and state.prepared) == bool(wanted)]
        page, complete = _page(numbers, most.Value, start.Value)
        ids = [self._recipe_id(ua.RecipeIdInternalDataType, n) for n in page]
        return [_flag(complete), _count(len(page)), _handle(), _structures(ids), _error(OK)]

    async def _prepare_recipe(self, _parent: Any, external: ua.Variant, internal: ua.Variant) -> list[ua.Variant]:
        """Prepare a recipe. Return once it is prepared."""
        text = _id(external.Value) or _id(internal.Value)
        number = int(text) if text.isdecimal() and len(text) < 10 else -1
        out = ua.Variant(self._recipe_id(ua.RecipeIdInternalDataType, max(number, 0)))
        known = await self._hub.ask(_recipes)
        if number < 0 or (known and number not in known):
            return [out, _flag(False), _error(UNKNOWN_RECIPE)]
        before = self._hub.state.phase
        why, self._hub.state = await self._hub.ask(lambda line: (line.prepare(number), line.state))
        if why is not None:
            return [out, _flag(False), _error(UNKNOWN_RECIPE if before in ("idle", "ready") else NOT_READY)]
        ended = await self._hub.wait_until(lambda state: state.phase != "preparing", PREPARE_S)
        state = self._hub.state
        done = ended and state.prepared and state.recipe == number
        return [out, _flag(done), _error(REFUSED if ended and not done else OK)]

    async def _unprepare_recipe(self, _parent: Any, *_: ua.Variant) -> list[ua.Variant]:
        return [ua.Variant(self._recipe_id(ua.RecipeIdInternalDataType, self._hub.state.recipe)), _error(NOT_SUPPORTED)]

    # -- methods: results ---------------------------------------------------------------------------------------------

    def _find(self, asked: str) -> Outcome | None:
        return next((one for one in reversed(self._hub.results) if str(one.id) == asked), None)

    async def _result_by_id(self, _parent: Any, result: ua.Variant, *_: ua.Variant) -> list[ua.Variant]:
        found = self._find(_id(result.Value))
        if found is None:
            return [_handle(), ua.Variant(ua.ResultDataType()), _error(UNKNOWN_RESULT)]
        return [_handle(), ua.Variant(self._result(found)), _error(OK)]

    async def _components_by_id(self, _parent: Any, result: ua.Variant, *_: ua.Variant) -> list[ua.Variant]:
        found = self._find(_id(result.Value))
        whole = ua.ResultDataType() if found is None else self._result(found)
        names = (
            "MeasId", "PartId", "ExternalRecipeId", "InternalRecipeId", "ProductId", "ExternalConfigurationId",
            "InternalConfigurationId", "JobId",
        )  # fmt: skip
        return [
            _flag(False),
            _handle(),
            _flag(False),
            _flag(bool(found and found.simulated)),
            ua.Variant(COMPLETED if found else 0, ua.VariantType.Int32),
            *(ua.Variant(getattr(whole, name)) for name in names),
            ua.Variant(whole.CreationTime, ua.VariantType.DateTime),
            ua.Variant(whole.ProcessingTimes),
            ua.Variant(whole.ResultContent, ua.VariantType.Variant, is_array=True),
            _error(OK if found else UNKNOWN_RESULT),
        ]

    async def _result_list(self, _parent: Any, state: ua.Variant, *rest: ua.Variant) -> list[ua.Variant]:
        meas, part, external, internal, _ec, _ic, _product, job, most, start, _timeout = (each.Value for each in rest)
        recipe = _id(external) or _id(internal)
        found = [
            one
            for one in self._hub.results
            if state.Value in (None, 0, COMPLETED)
            and _id(part) in ("", one.part)
            and _id(job) in ("", str(one.id))
            and recipe in ("", str(one.recipe))
            and _id(meas) in ("", self._jobs.get(one.id, str(one.sequence)))
        ]
        page, complete = _page(found, most, start)
        return [
            _flag(complete),
            _count(len(page)),
            _handle(),
            _structures([self._result(one) for one in page]),
            _error(OK),
        ]

    # -- methods: the one configuration, the station file -------------------------------------------------------------

    def _configuration(self) -> Any:
        identity = self._configuration_id()
        return ua.ConfigurationDataType(HasTransferableDataOnFile=False, ExternalId=identity, InternalId=identity)

    async def _configuration_list(self, _parent: Any, most: ua.Variant, start: ua.Variant, _t: Any) -> list[ua.Variant]:
        page, complete = _page([self._configuration()], most.Value, start.Value)
        return [_flag(complete), _count(len(page)), _handle(), _structures(page), _error(OK)]

    async def _configuration_by_id(self, _parent: Any, asked: ua.Variant, _t: Any) -> list[ua.Variant]:
        error = OK if _id(asked.Value) == self._name else UNKNOWN_CONFIGURATION
        return [_handle(), ua.Variant(self._configuration()), _error(error)]

    async def _activate_configuration(self, _parent: Any, asked: ua.Variant) -> list[ua.Variant]:
        return [_error(OK if _id(asked.Value) == self._name else UNKNOWN_CONFIGURATION)]


def content(outcome: Outcome) -> list[ua.Variant]:
    """Return ``ResultContent``: evaluation, reason, score, threshold, bank version, and the cameras' results as JSON."""
    number = ua.VariantType.Double
    return [
        ua.Variant(outcome.evaluation, ua.VariantType.Int32),
        ua.Variant(outcome.reason, ua.VariantType.String),
        ua.Variant(math.nan if outcome.score is None else outcome.score, number),
        ua.Variant(math.nan if outcome.threshold is None else outcome.threshold, number),
        ua.Variant(outcome.bank_version, ua.VariantType.UInt32),
        ua.Variant(json.dumps(outcome.cameras, ensure_ascii=False, default=str), ua.VariantType.String),
    ]


def _recipes(line: Line) -> list[int]:
    """Return the numbers of the recipes, where the station tells them; else the prepared one."""
    known = getattr(line, "recipes", None)
    return sorted(known) if known else [line.state.recipe] if line.state.prepared else []


def _id(value: Any) -> str:
    """Return the id in an argument; empty without one."""
    return str(getattr(value, "Id", None) or "").strip()


def _page(found: list[Any], most: int | None, start: int | None) -> tuple[list[Any], bool]:
    """Return the part of a list that was asked for, and whether nothing comes after it. ``most`` 0 means all."""
    first = start or 0
    end = first + most if most else len(found)
    return found[first:end], end >= len(found)


def _error(number: int) -> ua.Variant:
    return ua.Variant(number, ua.VariantType.Int32)


def _flag(value: bool) -> ua.Variant:
    return ua.Variant(value, ua.VariantType.Boolean)


def _count(value: int) -> ua.Variant:
    return ua.Variant(value, ua.VariantType.UInt32)


def _handle() -> ua.Variant:
    """Return handle 0: results and recipes need no release."""
    return ua.Variant(0, ua.VariantType.UInt32)


def _structures(values: list[Any]) -> ua.Variant:
    return ua.Variant(values, ua.VariantType.ExtensionObject, is_array=True)
