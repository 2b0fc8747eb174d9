"""The OPC UA server: builds the address space, shows states, and takes calls. It runs in a thread and event loop of its own.

A call reaches the station through the front's event loop, so the station is never called from two threads.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from operator import methodcaller
from typing import Any

from asyncua import Server, ua
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.user_managers import PermissiveUserManager

from ...sink import Line, Outcome, StationState
from . import nodeset
from .flat import FlatVariables
from .machine_vision import MachineVision
from .settings import OpcUaSettings
from .users import Passwords

NAMESPACE = "urn:visionad:station"
"""Of the flat variables: always index 2. asyncua keeps the nodeset's types by index, once for the process."""
APPLICATION = "urn:visionad:server"
"""Of a server without certificate."""
MAX_STATES = 200
"""States that wait to be shown. Beyond, the oldest is left out, never the newest."""
HEARTBEAT_S = 0.1


class VisionServer:
    """A server, and the thread that it runs in.

    Args:
        settings: of the sink.
        users: name → password hash; ``None`` lets anybody in.
        line: the station.
        front: the event loop that owns it.

    Attributes:
        started: whether it serves.
        ended: done once it has ended; it has the exception that ended it.
        shown_at: monotonic seconds of the last shown state.
        events: results that were sent as events.
    """

    def __init__(
        self, settings: OpcUaSettings, users: Mapping[str, str] | None, line: Line, front: asyncio.AbstractEventLoop
    ) -> None:
        self._settings, self._line, self._front = settings, line, front
        self._passwords = Passwords(users) if users is not None else None
        self._states: deque[StationState] = deque([line.state], MAX_STATES)
        self._name = line.station_name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._news: asyncio.Event | None = None
        self._changed: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="visionad-opcua", daemon=True)
        self.state = line.state
        self.results: deque[Outcome] = deque(maxlen=100)
        self.started = False
        self.ended: Future[None] = Future()
        self.shown_at: float | None = None
        self.events = 0

    # -- from the front's thread --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the server and wait for its thread."""
        self._wake("_stop")
        self._thread.join(10)

    def show(self, state: StationState) -> None:
        """Show a state as soon as possible."""
        self._states.append(state)
        self._wake("_news")

    def _wake(self, event: str) -> None:
        loop, target = self._loop, getattr(self, event)
        if loop is not None and target is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(target.set)
            except RuntimeError:
                return  # it has ended in between

    # -- in the server's thread ---------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:  # the front raises it
            self.ended.set_exception(exc)
        else:
            self.ended.set_result(None)

    async def _serve(self) -> None:
        self._stop, self._news, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        server = await self._open()
        with socket.create_server((self._settings.host, self._settings.port)):
            pass  # an occupied port is known now, not after the seconds that the address space takes
        flat = FlatVariables(server, await server.get_namespace_index(NAMESPACE), self)
        machine = MachineVision(server, await server.get_namespace_index(NAMESPACE), self._name, self)
        await flat.build()
        await machine.build(nodeset.mended())
        tasks: list[asyncio.Task[Any]] = []
        try:
            await server.start()
            self.started = True
            tasks = [
                asyncio.create_task(work)
                for work in (self._show_states(flat, machine), flat.beat(HEARTBEAT_S), self._stop.wait())
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.started = False
            for task in tasks:
                task.cancel()
            await server.stop()

    async def _open(self) -> Server:
        """Return a server with its security, not started."""
        settings = self._settings
        server = Server(user_manager=_Users(self._passwords) if self._passwords else PermissiveUserManager())
        await server.init()
        server.set_endpoint(f"opc.tcp://{settings.host}:{settings.port}")
        server.set_server_name(f"VisionAD {self._name}")
        uri = APPLICATION
        if settings.security == "none":
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
            server.set_identity_tokens([ua.AnonymousIdentityToken])
        else:
            assert settings.certificate is not None
            await server.load_certificate(settings.certificate)
            await server.load_private_key(settings.key)
            server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
            server.set_identity_tokens([ua.UserNameIdentityToken])
            uri = _application_uri(settings.certificate.read_bytes()) or APPLICATION
        await server.set_application_uri(uri)  # clients compare it with the certificate's
        await server.register_namespace(NAMESPACE)
        return server

    async def _show_states(self, flat: FlatVariables, machine: MachineVision) -> None:
        assert self._news is not None and self._changed is not None
        while True:
            self._news.clear()
            while self._states:
                state = self._states.popleft()
                offered = state.offered
                new = offered is not None and (not self.results or self.results[-1].id != offered.id)
                if new and offered is not None:
                    self.results.append(offered)
                self.state = state
                await flat.show(state, self.results[-1] if self.results else None)
                await machine.show(state)
                if new and offered is not None:
                    await machine.send_result(offered)
                    self.events += 1
                    if self._settings.auto_acknowledge:
                        await self.ask(methodcaller("acknowledge", offered.id))
                self.shown_at = time.monotonic()
                self._changed.set()
            await self._news.wait()

    async def ask(self, question: Callable[[Line], Any]) -> Any:
        """Ask the station something in the front's event loop. Return its answer."""

        async def answer() -> Any:
            return question(self._line)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer(), self._front))

    async def wait_until(self, true: Callable[[StationState], bool], seconds: float) -> bool:
        """Return whether the shown state becomes so in time."""
        assert self._changed is not None
        try:
            async with asyncio.timeout(seconds):
                while not true(self.state):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True


class _Users:
    """Lets users with the right password in."""

    def __init__(self, passwords: Passwords) -> None:
        self._passwords = passwords

    def get_user(self, _server: Any, username: Any = None, password: Any = None, **_: Any) -> Any:
        if isinstance(password, bytes):
            password = password.decode("utf-8", "replace")
        if isinstance(username, str) and isinstance(password, str) and self._passwords.right(username, password):
            return User(role=UserRole.User, name=username)
        return None


def _application_uri(certificate: bytes) -> str | None:
    """Return the URI in the certificate's alternative names."""
    from cryptography import x509  # asyncua brings it

    names = x509.load_der_x509_certificate(certificate).extensions
    try:
        found = names.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    return next(iter(found.get_values_for_type(x509.UniformResourceIdentifier)), None)
