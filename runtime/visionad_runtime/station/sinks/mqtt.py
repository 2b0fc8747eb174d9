"""MQTT sink: results at QoS 1, the station's state retained with a will, and events. It needs paho-mqtt and a broker of MQTT 5.

A record counts as delivered when the broker acknowledges it (PUBACK), never when the library queues it. paho's network runs in its
own thread; each of its callbacks is handed to the event loop, so all state of this module belongs to the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from ..leaf import LeafSettings
from ..sink import Line, SinkError, StationState

log = logging.getLogger("visionad.station")
MAX_IN_FLIGHT = 20
"""Results that the broker has not acknowledged. mosquitto accepts 20 by default."""
MAX_EVENTS = 50
"""Events that the broker has not acknowledged. Further ones are dropped and counted: they are also in the records."""
NO_SUBSCRIBERS = 16
"""Reason code of a PUBACK: the broker took the message and had nobody to give it to."""
WARN_EVERY_S = 60.0


class MqttSettings(LeafSettings):
    """Settings of an MQTT sink.

    Attributes:
        host: name or address of the broker.
        topic: base of the topics, such as ``plant/line1/press-3``.
        port: of the broker; by default 1883, with TLS 8883.
        user: user name.
        password: of the user; ``!env NAME`` reads it from the environment.
        tls: whether the connection is encrypted. ``ca``, ``certificate`` and ``key`` imply it.
        ca: PEM file of the authority that signed the broker's certificate; by default the system's authorities.
        certificate: PEM file of the client's certificate.
        key: PEM file of its key.
        keep_alive_s: after one and a half times as many seconds of silence the broker publishes the will.
        timeout_s: how long a record waits for the connection, and then for its acknowledgement.
        reconnect_max_s: longest pause between two attempts to connect. Pauses double from one second on.
    """

    host: str = Field(min_length=1)
    topic: str = Field(min_length=1, max_length=1000)
    port: int | None = Field(default=None, ge=1, le=65535)
    user: str | None = None
    password: str | None = Field(default=None, repr=False)
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    keep_alive_s: int = Field(default=15, ge=2, le=3600)
    timeout_s: float = Field(default=10.0, gt=0, le=3600)
    reconnect_max_s: int = Field(default=30, ge=1, le=3600)

    @field_validator("topic")
    @classmethod
    def _no_wildcard(cls, topic: str) -> str:
        if re.search(r"[#+\0]", topic) or topic.startswith(("/", "$")) or topic.endswith("/"):
            raise ValueError(f"expected a topic such as plant/line1/press-3, without # + $ and outer /, got {topic!r}")
        return topic

    @model_validator(mode="after")
    def _pairs(self) -> MqttSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("expected both certificate and key, or neither")
        if self.password is not None and self.user is None:
            raise ValueError("expected a user with the password")
        return self

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.tls or any((self.ca, self.certificate))


class MqttSink:
    """See :class:`~visionad_runtime.station.sink.Sink`.

    Topics: ``TOPIC/state`` (retained), ``TOPIC/result`` (QoS 1, not retained) and ``TOPIC/event`` (QoS 1, not retained).
    """

    Settings: ClassVar[type[LeafSettings]] = MqttSettings
    live: ClassVar[bool] = False

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, MqttSettings)
        self._name, self._settings = name, settings
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connected = asyncio.Event()
        self._slots, self._order = asyncio.Semaphore(MAX_IN_FLIGHT), asyncio.Lock()
        self._station = ""
        self._state: StationState | None = None
        self._state_in_flight: int | None = None  # message id
        self._state_is_old = False
        self._waiting: dict[int, asyncio.Future[int]] = {}  # message id → reason code of its PUBACK
        self._unconfirmed: dict[Any, asyncio.Future[int]] = {}  # record id → the same, kept after a timeout
        self._sent_anew: list[asyncio.Future[int]] = []
        self._events: set[int] = set()
        self._problem, self._refused = "not connected yet", False
        self._last_success: float | None = None
        self._warned = -WARN_EVERY_S
        self.delivered = self.no_subscribers = self.events_dropped = 0

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        return None if find_spec("paho") else 'paho-mqtt is not installed: pip install "visionad[mqtt]"'

    # -- connection ---------------------------------------------------------------------------------------------------

    async def run(self, line: Line) -> None:
        """Stay connected to the broker until cancelled. Publish ``online: false`` then.

        Raises:
            SinkError: A certificate, key or authority cannot be read.
        """
        self._loop, self._station = asyncio.get_running_loop(), line.station_name
        self._state = line.state
        client = self._client = self._new_client()
        settings = self._settings
        client.connect_async(
            settings.host, settings.port or (8883 if settings.encrypted else 1883), settings.keep_alive_s
        )
        client.loop_start()
        try:
            await asyncio.Event().wait()
        finally:
            if self._connected.is_set():  # a normal end has no will
                goodbye = client.publish(self._topic("state"), self._offline(), qos=1, retain=True)
                future = self._waiting[goodbye.mid] = self._loop.create_future()
                await asyncio.wait({future}, timeout=1.0)
            client.on_disconnect = None  # this end is wanted
            client.disconnect()
            # The thread may sleep up to a second in its pause before the next attempt.
            await asyncio.shield(asyncio.to_thread(client.loop_stop))
            self._connected.clear()
            self._client, self._problem = None, "stopped"
            self._fail_all()

    def _new_client(self) -> Any:
        """Return a client with will, credentials and callbacks, not connected."""
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion

        settings = self._settings
        # The client id is constant, so that a broker ends the dead connection of a restarted station.
        identity = re.sub(r"[^0-9A-Za-z_-]", "-", f"visionad-{self._station}-{self._name}")
        client = Client(CallbackAPIVersion.VERSION2, client_id=identity, protocol=MQTTv5)
        client.suppress_exceptions = True  # an exception in a callback would end the network thread
        client.max_inflight_messages_set(MAX_IN_FLIGHT)
        client.reconnect_delay_set(1, settings.reconnect_max_s)
        client.will_set(self._topic("state"), self._offline(), qos=1, retain=True)
        if settings.user is not None:
            client.username_pw_set(settings.user, settings.password)
        if settings.encrypted:
            try:
                context = ssl.create_default_context(cafile=str(settings.ca) if settings.ca else None)
                if settings.certificate and settings.key:
                    context.load_cert_chain(str(settings.certificate), str(settings.key))
            except (OSError, ssl.SSLError) as exc:
                files = ", ".join(str(path) for path in (settings.ca, settings.certificate, settings.key) if path)
                raise SinkError(
                    f"sink {self._name}: expected PEM files of a certificate and its key, cannot read {files}: {exc}"
                ) from None
            client.tls_set_context(context)
        client.on_connect = lambda _c, _u, _f, reason, _p: self._hand(self._on_connect, int(reason.value), str(reason))
        client.on_connect_fail = lambda _c, _u: self._hand(self._on_lost, "no connection")
        client.on_disconnect = lambda _c, _u, _f, reason, _p: self._hand(self._on_lost, str(reason))
        client.on_publish = lambda _c, _u, mid, reason, _p: self._hand(self._on_publish, mid, int(reason.value))
        return client

    def _hand(self, call: Callable[..., None], *arguments: Any) -> None:
        """Run a callback in the event loop. The loop may be gone when the process ends."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    def _on_connect(self, reason: int, text: str) -> None:
        if reason:
            self._refused = True
            self._on_lost(f"it refuses the connection: {text}; check user, password and certificate", refused=True)
            return
        self._refused = False
        log.info("sink %s: connected to %s", self._name, self._settings.host)
        self._problem = ""
        self._sent_anew = [future for future in self._unconfirmed.values() if not future.done()]
        self._connected.set()
        self._state_in_flight = None
        self._publish_state()  # the birth: the broker may have published the will

    def _on_lost(self, why: str, refused: bool = False) -> None:
        if self._refused and not refused:
            return  # the connection that was refused ends: the refusal says more
        if self._problem != why:
            log.warning("sink %s: broker %s: %s; it is tried again", self._name, self._settings.host, why)
        self._problem = why
        self._connected.clear()

    def _on_publish(self, mid: int, reason: int) -> None:
        self._events.discard(mid)
        future = self._waiting.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(reason)
        if mid == self._state_in_flight:
            self._state_in_flight = None
            if self._state_is_old:
                self._publish_state()

    def _fail_all(self) -> None:
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()
        self._unconfirmed.clear()
        self._sent_anew.clear()
        self._events.clear()

    # -- what is published --------------------------------------------------------------------------------------------

    def _topic(self, leaf: str) -> str:
        return f"{self._settings.topic}/{leaf}"

    def _offline(self) -> str:
        return _json({"online": False, "station": self._station})

    async def tell(self, state: StationState) -> None:
        """Publish a state, retained, and an event for each change that someone must know. Never waits.

        While the broker has not acknowledged a state, newer ones replace each other: the broker gets the newest.
        """
        before, self._state = self._state, state
        if self._client is None or not self._connected.is_set():
            return
        self._publish_state()
        for event in changes(before, state):
            if len(self._events) >= MAX_EVENTS:
                self.events_dropped += 1
                continue
            payload = _json(
                {"station": self._station, "time": datetime.now(UTC).isoformat(timespec="milliseconds")} | event
            )
            self._events.add(self._client.publish(self._topic("event"), payload, qos=1).mid)

    def _publish_state(self) -> None:
        if self._state_in_flight is not None:
            self._state_is_old = True
            return
        if self._state is None:
            return
        payload = {"online": True, "station": self._station} | state_object(self._state)
        self._state_in_flight = self._client.publish(self._topic("state"), _json(payload), qos=1, retain=True).mid
        self._state_is_old = False

    async def store(self, record: Mapping[str, Any]) -> None:
        """Publish a record on ``TOPIC/result``. Return when the broker has acknowledged it.

        At most 20 records are under way. A record that was published and not acknowledged in time is not published a second time
        over the same client: a further call waits for the first acknowledgement.

        Raises:
            SinkError: There is no connection, no acknowledgement in time, or the broker refuses the record.
        """
        async with self._slots:
            identity = record["id"]
            future = self._unconfirmed.get(identity)
            if future is None:
                future = self._unconfirmed[identity] = await self._publish_record(record)
            try:
                reason = await asyncio.wait_for(asyncio.shield(future), self._settings.timeout_s)
            except TimeoutError:
                raise SinkError(
                    f"sink {self._name}: the broker did not acknowledge record {identity} within {self._settings.timeout_s:g} s"
                    f"{': ' + self._problem if self._problem else ''}; check the broker and the network"
                ) from None
            except asyncio.CancelledError:
                if future.cancelled():
                    raise SinkError(f"sink {self._name}: stopped before record {identity} was acknowledged") from None
                raise
            self._unconfirmed.pop(identity, None)
        if reason >= 0x80:
            raise SinkError(
                f"sink {self._name}: the broker refuses record {identity}: reason {reason}; check the user's right to write "
                f"{self._topic('result')} and the broker's limits"
            )
        self.delivered += 1
        self._last_success = time.monotonic()
        if reason == NO_SUBSCRIBERS:
            self._count_no_subscribers()

    async def _publish_record(self, record: Mapping[str, Any]) -> asyncio.Future[int]:
        """Publish a record in the order of the calls, once there is a connection. Return what its acknowledgement ends."""
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._order:
                await self._connected.wait()
                # After a reconnection paho sends anew what was not acknowledged, in its own thread: that goes first.
                while pending := [future for future in self._sent_anew if not future.done()]:
                    await asyncio.wait(pending)
                assert self._loop is not None
                sent = self._client.publish(self._topic("result"), _json(record), qos=1)
                future = self._waiting[sent.mid] = self._loop.create_future()
                return future
        except TimeoutError:
            problem = self._problem or "no acknowledgement"
            raise SinkError(
                f"sink {self._name}: broker {self._settings.host}: {problem}; check the broker and the network"
            ) from None

    def _count_no_subscribers(self) -> None:
        self.no_subscribers += 1
        now = time.monotonic()
        if now - self._warned >= WARN_EVERY_S:
            self._warned = now
            log.warning(
                "sink %s: the broker acknowledges %s but nobody subscribes: %d results so far reached nobody; have the receiver "
                "subscribe with a persistent session, and set persistence in the broker",
                self._name,
                self._topic("result"),
                self.no_subscribers,
            )

    def health(self) -> Mapping[str, Any]:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        ok = self._connected.is_set()
        age = None if self._last_success is None else round(time.monotonic() - self._last_success, 3)
        return {
            "ok": ok,
            "detail": f"connected to {self._settings.host}" if ok else f"broker {self._settings.host}: {self._problem}",
            "last_success_s": age,
            "delivered": self.delivered,
            "in_flight": len(self._unconfirmed),
            "no_subscribers": self.no_subscribers,
            "events_dropped": self.events_dropped,
        }


def state_object(state: StationState) -> dict[str, Any]:
    """Return a state as JSON has it. Of the offered result only its number and evaluation stay."""
    fields = asdict(state)
    offered = state.offered
    fields["offered"] = offered and {"id": offered.id, "sequence": offered.sequence, "evaluation": offered.evaluation}
    return fields


def changes(before: StationState | None, after: StationState) -> list[dict[str, Any]]:
    """Return the events between two states: faults, missed triggers, overruns, late results, golden parts due, recipe, worker."""
    if before is None:
        return []
    events: list[dict[str, Any]] = []
    if after.fault != before.fault:
        events.append({"event": "fault", "text": after.fault} if after.fault else {"event": "fault_cleared"})
    counts = [(name, getattr(after, name)) for name in ("missed", "overrun", "late")]
    events += [{"event": name, "count": count} for name, count in counts if count > getattr(before, name)]
    if after.check_due and not before.check_due:
        events.append({"event": "check_due"})
    if (after.prepared, after.recipe) != (before.prepared, before.recipe):
        events.append({"event": "recipe", "recipe": after.recipe, "prepared": after.prepared})
    if after.alive != before.alive:
        events.append({"event": "worker", "alive": after.alive})
    if after.control != before.control:
        events.append({"event": "control", "control": after.control})
    return events


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
