"""T9: the MQTT sink against mosquitto, which is killed: each record arrives at least once, in order; will and birth are seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data import ROOT
from tests.fakes.line import FakeLine
from tests.line.components import ended, need, path_of, wait_for_port
from tests.ports import free_port

TOPIC = "plant/line1/press-3"
LOSSLESS = (
    "persistence true\nmax_queued_messages 0\nmax_inflight_messages 0\nautosave_on_changes true\nautosave_interval 1\n"
)
"""What docs/guides/sinks.md has an owner of mosquitto set."""


@pytest.fixture(autouse=True)
def components() -> None:
    need("paho")
    need("mosquitto")


class Broker:
    """A mosquitto of its own port and folder."""

    def __init__(self, folder: Path, extra: str = "", port: int | None = None) -> None:
        self.port, self.folder = port or free_port(), folder
        self.config = folder / "mosquitto.conf"
        access = "" if "allow_anonymous" in extra else "allow_anonymous true\n"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\n{access}persistence_location {folder}/\nuser root\n{extra}"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = path_of("mosquitto")
        assert program is not None
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen([program, "-c", str(self.config)], stdout=log, stderr=log)
        wait_for_port(self.port, self.process)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    one = Broker(tmp_path, LOSSLESS)
    one.start()
    yield one
    assert one.process is not None
    with ended(one.process):
        pass


class Mes:
    """A receiver with a persistent session, as a MES has one."""

    def __init__(self, port: int, *topics: str, identity: str = "mes", **login: str) -> None:
        import paho.mqtt.client as mqtt
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        self.got: list[tuple[str, dict[str, Any], bool]] = []
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=identity,
            protocol=mqtt.MQTTv5,  # type: ignore[attr-defined]
        )
        self.client.reconnect_delay_set(1, 1)
        if login:
            self.client.username_pw_set(login["user"], login["password"])
        self.client.on_message = lambda _c, _u, m: self.got.append((m.topic, json.loads(m.payload), m.retain))
        self.client.on_connect = lambda c, *_: c.subscribe([(topic, 1) for topic in topics])
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.loop_start()
        assert subscribed.wait(10)

    def ids(self) -> list[int]:
        return [payload["id"] for topic, payload, _ in list(self.got) if topic.endswith("/result")]

    def states(self) -> list[dict[str, Any]]:
        return [payload for topic, payload, _ in list(self.got) if topic.endswith("/state")]

    def events(self) -> list[dict[str, Any]]:
        return [payload for topic, payload, _ in list(self.got) if topic.endswith("/event")]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def record(number: int) -> dict[str, Any]:
    return {"id": number, "part": f"SN-{number}", "evaluation": 2, "verdict": "anomalous", "station": "press-3"}


async def until(true: Any, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(port: int, line: FakeLine | None = None, **settings: Any) -> AsyncIterator[Any]:
    from visionad_runtime.station.sinks.mqtt import MqttSettings, MqttSink

    settings = {"topic": TOPIC, "timeout_s": 2, "reconnect_max_s": 1, "keep_alive_s": 5} | settings
    sink = MqttSink("mes", MqttSettings(kind="mqtt", host="127.0.0.1", port=port, **settings))
    task = asyncio.create_task(sink.run(line or FakeLine()))
    try:
        yield sink
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def deliver(sink: Any, numbers: Iterator[int] | range, at_a_time: int = 20) -> int:
    """Deliver as the front does: in order, a batch at a time, again from the first that was not taken. Return the failures."""
    from visionad_runtime.station.sink import SinkError

    left, failures = list(numbers), 0
    while left:
        batch = left[:at_a_time]
        done = await asyncio.gather(*(sink.store(record(n)) for n in batch), return_exceptions=True)
        for error in done:
            if error is not None:
                assert isinstance(error, SinkError), error
                failures += 1
                break
            left.pop(0)
    return failures


def first_seen(ids: list[int]) -> list[int]:
    return list(dict.fromkeys(ids))


@pytest.mark.slow(group="line")
def test_a_killed_broker_loses_and_reorders_nothing(broker: Broker) -> None:
    async def scenario() -> None:
        mes = Mes(broker.port, f"{TOPIC}/result")
        try:
            async with running(broker.port) as sink:
                await until(lambda: sink.health()["ok"])
                work = asyncio.create_task(deliver(sink, range(1, 401)))
                for _ in range(3):
                    seen = len(mes.ids())
                    await until(lambda seen=seen: len(mes.ids()) > seen or work.done())
                    broker.kill()
                    await until(lambda: not sink.health()["ok"])
                    assert "127.0.0.1" in sink.health()["detail"]
                    broker.start()
                await work
                await until(lambda: len(set(mes.ids())) == 400)
        finally:
            mes.close()
        # A broker saves at most each second: what it acknowledged and lost in a kill is in no store but ours. See the guide.
        assert sorted(set(mes.ids())) == list(range(1, 401))
        assert first_seen(mes.ids()) == list(range(1, 401))

    asyncio.run(scenario())


@pytest.mark.slow(group="line")
def test_1500_results_reach_a_mes_that_was_away(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "persistence true\nmax_queued_messages 0\n")
    broker.start()

    async def scenario() -> None:
        Mes(broker.port, f"{TOPIC}/result").close()  # it subscribes, and leaves a session behind
        async with running(broker.port) as sink:
            assert await deliver(sink, range(1, 1501)) == 0
            assert sink.health()["delivered"] == 1500
            assert sink.health()["no_subscribers"] == 0
        mes = Mes(broker.port, f"{TOPIC}/result")
        try:
            await until(lambda: len(set(mes.ids())) == 1500)
        finally:
            mes.close()
        assert first_seen(mes.ids()) == list(range(1, 1501))

    assert broker.process is not None
    with ended(broker.process):
        asyncio.run(scenario())


def test_no_subscriber_is_counted_and_warned_of(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(broker.port) as sink:
            await deliver(sink, range(1, 31))
            assert sink.health()["no_subscribers"] == 30

    asyncio.run(scenario())
    assert caplog.text.count("nobody subscribes") == 1


def test_birth_state_event_and_goodbye(broker: Broker) -> None:
    async def scenario() -> None:
        line = FakeLine()
        mes = Mes(broker.port, f"{TOPIC}/state", f"{TOPIC}/event")
        try:
            async with running(broker.port, line) as sink:
                line.sinks.append(sink)
                await until(lambda: [s["online"] for s in mes.states()] == [True])
                line.prepare(1)
                await until(lambda: mes.states()[-1].get("phase") == "ready")
                for number in range(200):  # faster than a broker acknowledges: the newest state must arrive
                    line.show(missed=number + 1)
                await until(lambda: mes.states()[-1].get("missed") == 200)
                assert len(mes.states()) < 203
                line.show(fault="camera top is gone", phase="fault", ready=False)
                await until(lambda: mes.events()[-1]["event"] == "fault")
                assert mes.events()[-1]["text"] == "camera top is gone"
                assert mes.states()[-1]["station"] == "press-3"
            await until(lambda: mes.states()[-1]["online"] is False)
        finally:
            mes.close()
        late = Mes(broker.port, f"{TOPIC}/state", identity="late")
        try:
            await until(lambda: late.got)
            assert late.got[0][1:] == ({"online": False, "station": "press-3"}, True)
        finally:
            late.close()

    asyncio.run(scenario())


STATION = """
import asyncio, sys
from tests.fakes.line import FakeLine
from visionad_runtime.station.sinks.mqtt import MqttSettings, MqttSink
settings = MqttSettings(kind="mqtt", host="127.0.0.1", port=int(sys.argv[1]), topic=sys.argv[2], keep_alive_s=2)
asyncio.run(MqttSink("mes", settings).run(FakeLine()))
"""


def test_a_killed_station_leaves_its_will_and_comes_back_with_a_birth(broker: Broker) -> None:
    command = [sys.executable, "-c", STATION, str(broker.port), TOPIC]

    async def scenario() -> None:
        mes = Mes(broker.port, f"{TOPIC}/state")
        try:
            for before in (0, 2):
                process = subprocess.Popen(command, cwd=ROOT)
                with ended(process):
                    await until(lambda before=before: len(mes.states()) == before + 1)
                    os.kill(process.pid, signal.SIGKILL)
                    await until(lambda before=before: len(mes.states()) == before + 2)
        finally:
            mes.close()
        assert [state["online"] for state in mes.states()] == [True, False, True, False]

    asyncio.run(scenario())


@pytest.mark.slow(group="line")
def test_the_first_broker_may_be_away(tmp_path: Path) -> None:
    one = Broker(tmp_path, LOSSLESS)

    async def scenario() -> None:
        from visionad_runtime.station.sink import SinkError

        async with running(one.port, timeout_s=0.3) as sink:
            with pytest.raises(SinkError, match=r"broker 127\.0\.0\.1"):
                await sink.store(record(1))
            assert not sink.health()["ok"]
            one.start()
            assert one.process is not None
            with ended(one.process):
                await until(lambda: sink.health()["ok"])
                await sink.store(record(1))
                assert sink.health()["last_success_s"] < 5

    asyncio.run(scenario())


def test_a_refused_user_and_a_refused_topic_are_named(tmp_path: Path) -> None:
    passwords, rights = tmp_path / "passwords", tmp_path / "rights"
    rights.write_text("user press\ntopic write other/#\ntopic write plant/line1/press-3/state\n")
    tool = path_of("mosquitto_passwd")
    assert tool is not None
    subprocess.run([tool, "-b", "-c", str(passwords), "press", "right"], check=True)
    one = Broker(tmp_path, f"allow_anonymous false\npassword_file {passwords}\nacl_file {rights}\n")
    one.start()

    async def scenario() -> None:
        from visionad_runtime.station.sink import SinkError

        async with running(one.port, user="press", password="wrong") as sink:
            await until(lambda: "check user" in sink.health()["detail"])
        async with running(one.port, user="press", password="right") as sink:
            await until(lambda: sink.health()["ok"])
            with pytest.raises(SinkError, match=r"refuses record 1: reason 135"):
                await sink.store(record(1))

    assert one.process is not None
    with ended(one.process):
        asyncio.run(scenario())


def make_authority(folder: Path) -> None:
    """Write ca.pem, and broker.pem and press.pem with their keys, signed by it."""
    run = lambda *words: subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)  # noqa: E731
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-sha256")
    run(*new, "-x509", "-days", "2", "-subj", "/CN=plant", "-keyout", "ca.key", "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("broker", "press"):
        run(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        sign = (
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
        )
        run(*sign, "-extfile", "names", "-out", f"{name}.pem")


@pytest.mark.slow(group="line")
def test_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    need("openssl")
    make_authority(tmp_path)
    files = f"cafile {tmp_path}/ca.pem\ncertfile {tmp_path}/broker.pem\nkeyfile {tmp_path}/broker.key\n"
    one = Broker(tmp_path, f"{files}require_certificate true\n")
    one.start()

    async def scenario() -> None:
        own = {"certificate": tmp_path / "press.pem", "key": tmp_path / "press.key"}
        async with running(one.port, ca=tmp_path / "ca.pem", **own) as sink:
            await until(lambda: sink.health()["ok"])
            await sink.store(record(1))
        async with running(one.port, tls=True, **own) as sink:  # the system's authorities did not sign it
            await until(lambda: "yet" not in sink.health()["detail"])
            assert not sink.health()["ok"]
        async with running(one.port) as sink:
            await until(lambda: "yet" not in sink.health()["detail"])
            assert not sink.health()["ok"]

    assert one.process is not None
    with ended(one.process):
        asyncio.run(scenario())


def test_a_missing_certificate_is_one_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(1, ca=tmp_path / "none.pem"):
            await asyncio.sleep(0)

    from visionad_runtime.station.sink import SinkError

    with pytest.raises(SinkError, match=r"cannot read .*none\.pem"):
        asyncio.run(scenario())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"topic": "plant/#"}, "without # +"),
        ({"topic": "/plant"}, "outer /"),
        ({"certificate": "a.pem"}, "both certificate and key"),
        ({"password": "x"}, "expected a user"),
        ({"qos": 2}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], text: str) -> None:
    from visionad_runtime.station.sinks.mqtt import MqttSettings

    with pytest.raises(ValueError, match=text.replace("+", r"\+")):
        MqttSettings(kind="mqtt", host="h", **({"topic": "t"} | settings))
