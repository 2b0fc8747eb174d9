"""The sink: it starts the server, and hands it the station's states. This module does not import asyncua."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from ....errors import VisionADError
from ...leaf import LeafSettings
from ...sink import Line, SinkError, StationState
from . import nodeset
from .settings import OpcUaSettings
from .users import read_users

if TYPE_CHECKING:
    from .server import VisionServer


class OpcUaSink:
    """See :class:`~visionad_runtime.station.sink.Sink`. The server has a thread and an event loop of its own."""

    Settings: ClassVar[type[LeafSettings]] = OpcUaSettings
    live: ClassVar[bool] = True

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, OpcUaSettings)
        self._name, self._settings = name, settings
        self._server: VisionServer | None = None
        self._told = 0.0

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        if find_spec("asyncua") is None:
            return 'asyncua is not installed: pip install "visionad[opcua]"'
        if self._settings.security != "none" and find_spec("yaml") is None:
            return "pyyaml, which reads the users file, is not installed: pip install pyyaml"
        if not nodeset.PATH.is_file():
            return f"the nodeset of OPC 40100-1 is missing (a checkout has none, a wheel has it): {nodeset.COMMAND}"
        return None

    async def run(self, line: Line) -> None:
        """Serve until cancelled.

        Raises:
            SinkError: The port is in use, or a file cannot be used.
        """
        settings = self._settings
        try:
            users = read_users(settings.users) if settings.users else None
            for path in (settings.certificate, settings.key):
                if path is not None:
                    path.read_bytes()
            module = await asyncio.to_thread(importlib.import_module, f"{__package__}.server")  # it takes a second
            server: VisionServer = module.VisionServer(settings, users, line, asyncio.get_running_loop())
        except VisionADError as exc:
            raise SinkError(f"sink {self._name}: {exc}") from None
        except OSError as exc:
            raise SinkError(
                f"sink {self._name}: {exc.filename} cannot be read: {exc.strerror}; mend the path"
            ) from None
        self._server = server
        server.start()
        try:
            await asyncio.shield(asyncio.wrap_future(server.ended))
        except OSError as exc:
            address = f"{settings.host}:{settings.port}"
            raise SinkError(
                f"sink {self._name}: cannot listen on {address}: {exc.strerror}; choose a free port and an address of this machine"
            ) from None
        except ValueError as exc:
            raise SinkError(
                f"sink {self._name}: expected a certificate in DER and its key in PEM, got {settings.certificate} and "
                f"{settings.key}: {exc}"
            ) from None
        finally:
            self._server = None
            await asyncio.shield(asyncio.to_thread(server.stop))

    async def tell(self, state: StationState) -> None:
        """Show a state in the variables and state machines, and send the event of a new result. Never waits."""
        if self._server is not None:
            self._server.show(state)

    async def store(self, record: Mapping[str, Any]) -> None:
        """See :class:`~visionad_runtime.station.sink.Sink`. A live sink gets no records."""

    def health(self) -> Mapping[str, Any]:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        server, address = self._server, f"opc.tcp://{self._settings.host}:{self._settings.port}"
        if server is None or not server.started:
            return {"ok": False, "detail": f"{address} is not served", "last_success_s": None}
        shown = None if server.shown_at is None else round(time.monotonic() - server.shown_at, 3)
        return {"ok": True, "detail": f"serves {address}", "last_success_s": shown, "events": server.events}
