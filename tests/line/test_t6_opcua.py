"""T6: the OPC UA server against clients of asyncua and node-opcua: OPC 40100-1, flat variables, encryption and passwords."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.line import FakeLine
from tests.line.components import INSTALL, need
from tests.ports import free_port

MV = "http://opcfoundation.org/UA/MachineVision"
OWN = "urn:visionad:station"


@pytest.fixture(autouse=True)
def components() -> None:
    need_server()


def need_server() -> None:
    """Skip or fail the test where the server cannot run."""
    need("asyncua")
    from visionad_runtime.station.sinks.opcua import nodeset

    if not nodeset.PATH.is_file():
        INSTALL["the nodeset of OPC 40100-1"] = nodeset.COMMAND
        need("the nodeset of OPC 40100-1")
    logging.getLogger("asyncua").setLevel(logging.ERROR)


@contextlib.asynccontextmanager
async def running(line: FakeLine, **settings: Any) -> AsyncIterator[tuple[Any, str]]:
    from visionad_runtime.station.sinks.opcua.settings import OpcUaSettings
    from visionad_runtime.station.sinks.opcua.sink import OpcUaSink

    port = free_port()
    settings = settings or {"security": "none"}
    sink = OpcUaSink("plc", OpcUaSettings(kind="opcua", port=port, **settings))
    assert sink.missing() is None
    line.sinks.append(sink)
    task = asyncio.create_task(sink.run(line))
    try:
        async with asyncio.timeout(60):
            while not sink.health()["ok"]:
                assert not task.done(), task.exception()
                await asyncio.sleep(0.02)
        yield sink, f"opc.tcp://127.0.0.1:{port}"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def connected(address: str) -> Any:
    from asyncua import Client

    client = Client(address, timeout=15)
    await client.connect()
    await client.load_data_type_definitions()
    return client


async def until(true: Any, seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


class Events:
    """Keeps the events that a subscription sends."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def event_notification(self, event: Any) -> None:
        self.got.append(event)


class Vision:
    """A client's view of the vision system."""

    def __init__(self, client: Any, mv: int, own: int) -> None:
        self.client, self.mv, self.own = client, mv, own
        from asyncua import ua

        self.system = client.get_node(ua.NodeId("VisionSystem", own))

    @classmethod
    async def of(cls, client: Any) -> Vision:
        return cls(client, await client.get_namespace_index(MV), await client.get_namespace_index(OWN))

    async def node(self, path: str) -> Any:
        steps = [step if step[1:2] == ":" else f"{self.mv}:{step}" for step in path.split("/")]
        return await self.system.get_child(steps)

    async def call(self, path: str, *arguments: Any) -> Any:
        parent, _, name = path.rpartition("/")
        return await (await self.node(parent)).call_method(f"{self.mv}:{name}", *arguments)

    async def states(self) -> tuple[str, str]:
        machine, automatic = "VisionStateMachine", "VisionStateMachine/AutomaticModeStateMachine"
        nodes = [await self.node(f"{path}/0:CurrentState") for path in (machine, automatic)]
        return (await nodes[0].read_value()).Text, (await nodes[1].read_value()).Text

    async def prepare(self, recipe: str) -> Any:
        from asyncua import ua

        given = ua.RecipeIdExternalDataType(Id=recipe)
        return await self.call("RecipeManagement/PrepareRecipe", given, ua.RecipeIdInternalDataType(Id=""))

    async def start(self, part: str, recipe: str = "1", meas: str = "17") -> Any:
        from asyncua import ua

        return await self.call(
            "VisionStateMachine/AutomaticModeStateMachine/StartSingleJob",
            ua.MeasIdDataType(Id=meas),
            ua.PartIdDataType(Id=part),
            ua.RecipeIdExternalDataType(Id=recipe),
            ua.ProductIdDataType(Id=""),
            ua.Variant([], ua.VariantType.Variant, is_array=True),
        )

    async def flat(self, name: str) -> Any:
        from asyncua import ua

        return await self.client.get_node(ua.NodeId(name, self.own)).read_value()

    async def flat_call(self, name: str, *arguments: Any) -> Any:
        from asyncua import ua

        return await self.client.get_node(ua.NodeId("VisionAD", self.own)).call_method(f"{self.own}:{name}", *arguments)


def test_a_job_of_opc_40100_1_from_recipe_to_result() -> None:
    async def scenario() -> None:
        from asyncua import ua

        line = FakeLine()
        async with running(line) as (_, address):
            client = await connected(address)
            try:
                vision = await Vision.of(client)
                assert await vision.states() == ("Operational", "Initialized")
                assert (await vision.start("SN-0", ""))[1] == -2  # nothing is prepared

                # A recipe that is not there, and one that is.
                assert (await vision.prepare("9"))[1:] == [False, -3]
                out, completed, error = await vision.prepare("1")
                assert (out.Id, completed, error) == ("1", True, 0)
                assert await vision.states() == ("Operational", "Ready")
                empty = (ua.RecipeIdExternalDataType(Id=""), ua.ProductIdDataType(Id=""))
                listed = await vision.call(
                    "RecipeManagement/GetRecipeListFiltered", *empty, ua.TriStateBooleanDataType.DONTCARE_2,
                    ua.Variant(0, ua.VariantType.UInt32), ua.Variant(0, ua.VariantType.UInt32), ua.Variant(0, ua.VariantType.Int32),
                )  # fmt: skip
                assert (listed[0], listed[1], [one.Id for one in listed[3]], listed[4]) == (True, 2, ["1", "2"], 0)

                events = Events()
                subscription = await client.create_subscription(20, events)
                await subscription.subscribe_events(vision.system, ua.NodeId(1024, vision.mv))
                assert (await vision.start("SN-1", "2"))[1] == -3  # another recipe than the prepared one
                job, error = await vision.start("SN-bad-1")
                assert (job.Id, error) == ("1", 0)
                await until(lambda: events.got)
                event = events.got[0]
                assert (event.PartId.Id, event.ResultId.Id, event.JobId.Id, event.MeasId.Id) == (
                    "SN-bad-1",
                    "1",
                    "1",
                    "17",
                )
                assert (event.ResultState, event.IsSimulated, event.ExternalRecipeId.Id) == (1, True, "1")
                evaluation, reason, score, threshold, bank, cameras = (
                    getattr(v, "Value", v) for v in event.ResultContent
                )
                assert (evaluation, reason, score, threshold, bank) == (2, "anomalous", 0.457, 0.402, 7)
                assert json.loads(cameras)["top"]["regions"]
                assert await vision.states() == ("Operational", "SingleExecution")
                assert (await vision.start("SN-2"))[1] == -2  # the result is not acknowledged yet

                timeout = ua.Variant(0, ua.VariantType.Int32)
                _, result, error = await vision.call(
                    "ResultManagement/GetResultById", ua.ResultIdDataType(Id="1"), timeout
                )
                assert (result.PartId.Id, result.ResultContent[0].Value, error) == ("SN-bad-1", 2, 0)
                parts = await vision.call(
                    "ResultManagement/GetResultComponentsById", ua.ResultIdDataType(Id="1"), timeout
                )
                assert (parts[6].Id, parts[-1]) == ("SN-bad-1", 0)
                unknown = await vision.call("ResultManagement/GetResultById", ua.ResultIdDataType(Id="77"), timeout)
                assert unknown[2] == -4

                assert await vision.flat_call("Acknowledge", ua.Variant(1, ua.VariantType.UInt32)) is True
                await until(lambda: line.state.ready)
                for number in (2, 3):
                    await asyncio.sleep(0.1)
                    assert (await vision.start(f"SN-{number}"))[1] == 0
                    await until(lambda number=number: len(events.got) == number)
                    await vision.flat_call("Acknowledge", ua.Variant(0, ua.VariantType.UInt32))
                assert [event.ResultId.Id for event in events.got] == ["1", "2", "3"]
                filters = [
                    ua.Variant(0, ua.VariantType.Int32),
                    ua.MeasIdDataType(Id=""),
                    ua.PartIdDataType(Id="SN-3"),
                    empty[0],
                ]
                filters += [
                    ua.RecipeIdInternalDataType(Id=""),
                    ua.ConfigurationIdDataType(Id=""),
                    ua.ConfigurationIdDataType(Id=""),
                ]
                filters += [
                    empty[1],
                    ua.JobIdDataType(Id=""),
                    ua.Variant(5, ua.VariantType.UInt32),
                    ua.Variant(0, ua.VariantType.UInt32),
                ]
                listed = await vision.call("ResultManagement/GetResultListFiltered", *filters, timeout)
                assert [one.ResultId.Id for one in listed[3]] == ["3"]
            finally:
                await client.disconnect()

    asyncio.run(scenario())


def test_flat_variables_methods_and_nothing_writable() -> None:
    async def scenario() -> None:
        from asyncua import ua

        line = FakeLine()
        async with running(line) as (_, address):
            client = await connected(address)
            try:
                vision = await Vision.of(client)
                assert [await vision.flat(n) for n in ("Ready", "Valid", "Pass", "Reject")] == [
                    False,
                    False,
                    False,
                    True,
                ]
                assert math.isnan(await vision.flat("Score"))
                assert (
                    await vision.flat_call("Prepare", ua.Variant(7, ua.VariantType.UInt32))
                    == "no recipe 7: expected one of 1, 2"
                )
                assert await vision.flat_call("Prepare", ua.Variant(2, ua.VariantType.UInt32)) == ""
                await until(lambda: line.state.ready)
                for part, sequence, expected in (
                    ("a", 5, (1, True, False)),
                    ("bad", 6, (2, False, True)),
                    ("odd", 7, (3, False, True)),
                ):
                    number = await vision.flat_call("Trigger", ua.Variant(sequence, ua.VariantType.Int64), part)
                    async with asyncio.timeout(10):
                        while not await vision.flat("Valid"):
                            await asyncio.sleep(0.01)
                    got = tuple([await vision.flat(n) for n in ("Evaluation", "Pass", "Reject")])
                    assert (*got, await vision.flat("InspectionId"), await vision.flat("Sequence")) == (
                        *expected,
                        number,
                        sequence,
                    )
                    assert await vision.flat("ResultRecipe") == 2
                    assert await vision.flat_call("Trigger", ua.Variant(99, ua.VariantType.Int64), "x") == 0
                    assert await vision.flat_call("Acknowledge", ua.Variant(number, ua.VariantType.UInt32)) is True
                    async with asyncio.timeout(10):
                        while await vision.flat("Valid") or not await vision.flat("Ready"):
                            await asyncio.sleep(0.01)
                    assert await vision.flat("Reject") is True
                assert await vision.flat("Missed") == 3
                first = await vision.flat("Heartbeat")
                await asyncio.sleep(0.5)
                assert await vision.flat("Heartbeat") > first
                line.show(alive=False)
                async with asyncio.timeout(10):
                    while await vision.flat("Ready"):
                        await asyncio.sleep(0.01)
                stopped = await vision.flat("Heartbeat")
                await asyncio.sleep(0.4)
                assert await vision.flat("Heartbeat") <= stopped + 1
                for name in ("Ready", "Pass", "Recipe", "Heartbeat"):
                    node = client.get_node(ua.NodeId(name, vision.own))
                    with pytest.raises(ua.UaStatusCodeError):
                        await node.write_value(await node.read_data_value())
                with pytest.raises(ua.UaStatusCodeError):
                    await client.nodes.objects.add_folder(vision.own, "mine")
            finally:
                await client.disconnect()

    asyncio.run(scenario())


def test_faults_show_and_are_reset() -> None:
    async def scenario() -> None:
        from asyncua import ua

        line = FakeLine()
        async with running(line) as (_, address):
            client = await connected(address)
            try:
                vision = await Vision.of(client)
                line.show(phase="fault", ready=False, fault="camera top is gone")
                async with asyncio.timeout(10):
                    while await vision.flat("Fault") == "":
                        await asyncio.sleep(0.01)
                assert (await vision.states())[0] == "Error"
                assert int((await (await vision.node("SystemState")).read_value()).State) == 5
                cause = (ua.Variant(0, ua.VariantType.Int32), "")
                assert await vision.call("VisionStateMachine/SelectModeAutomatic") == -2
                assert await vision.call("VisionStateMachine/Halt", *cause) == -1
                assert await vision.call("VisionStateMachine/Reset", *cause) == 0
                async with asyncio.timeout(10):
                    while (await vision.states())[0] != "Operational":
                        await asyncio.sleep(0.01)
                own = ua.ConfigurationIdDataType(Id="press-3")
                assert await vision.call("ConfigurationManagement/ActivateConfiguration", own) == 0
                numbers = (ua.Variant(0, ua.VariantType.UInt32),) * 2
                listed = await vision.call(
                    "ConfigurationManagement/GetConfigurationList", *numbers, ua.Variant(0, ua.VariantType.Int32)
                )
                assert [one.InternalId.Id for one in listed[3]] == ["press-3"]
            finally:
                await client.disconnect()

    asyncio.run(scenario())


def test_auto_acknowledge_serves_a_client_of_the_specification_alone() -> None:
    async def scenario() -> None:
        line = FakeLine()
        async with running(line, security="none", auto_acknowledge=True) as (sink, address):
            client = await connected(address)
            try:
                vision = await Vision.of(client)
                await vision.prepare("1")
                for number in range(1, 6):
                    await until(lambda: line.state.ready)
                    async with asyncio.timeout(10):
                        while (await vision.start(f"SN-{number}"))[1]:
                            await asyncio.sleep(0.01)
                await until(lambda: sink.health()["events"] == 5)
            finally:
                await client.disconnect()

    asyncio.run(scenario())
