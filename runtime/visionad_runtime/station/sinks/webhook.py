"""Webhook sink: each record is posted as JSON to a URL. It needs the standard library only.

The receiver dedupes by the header ``Idempotency-Key``, and knows by ``X-VisionAD-Signature`` that a record came from this station.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from ..._release import __version__
from ..leaf import LeafSettings
from ..sink import Line, SinkError, StationState

MAX_REPLY = 1 << 16
"""Bytes of a reply that are read. A connection with a longer reply is closed."""


class WebhookSettings(LeafSettings):
    """Settings of a webhook.

    Attributes:
        url: ``http://`` or ``https://`` address that takes a POST.
        token: sent as ``Authorization: Bearer``; ``!env NAME`` reads it from the environment.
        secret: key of the signature, HMAC-SHA256 of the body.
        ca: PEM file of the authority that signed the receiver's certificate; by default the system's authorities.
        timeout_s: for the connection, and for each answer.
    """

    url: str
    token: str | None = Field(default=None, repr=False, pattern=r"^[\x21-\x7e]+$")
    secret: str | None = Field(default=None, repr=False, min_length=1)
    ca: Path | None = None
    timeout_s: float = Field(default=10.0, gt=0, le=3600)

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or not url.isascii():
            raise ValueError(f"expected an address such as https://mes.plant/results, without user name, got {url!r}")
        _ = parts.port  # raises where it is no port
        return url

    @model_validator(mode="after")
    def _encrypted(self) -> WebhookSettings:
        if self.ca and urlsplit(self.url).scheme != "https":
            raise ValueError("expected an https:// address with ca")
        return self


class WebhookSink:
    """See :class:`~visionad_runtime.station.sink.Sink`. Redirections are not followed."""

    Settings: ClassVar[type[LeafSettings]] = WebhookSettings
    live: ClassVar[bool] = False

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, WebhookSettings)
        self._name, self._settings = name, settings
        self._station = ""
        self._connection: http.client.HTTPConnection | None = None
        # One thread: records go out in order, over one connection.
        self._thread = ThreadPoolExecutor(1, f"visionad-{name}")
        self._problem = ""
        self._last_success: float | None = None
        self.delivered = 0

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.sink.Sink`. Nothing is needed."""
        return None

    async def run(self, line: Line) -> None:
        """Keep the connection until cancelled.

        Raises:
            SinkError: The authority's file cannot be read.
        """
        self._station = line.station_name
        try:
            self._context()
        except (OSError, ssl.SSLError) as exc:
            raise SinkError(
                f"sink {self._name}: expected a PEM file of an authority, cannot read {self._settings.ca}: {exc}"
            ) from None
        try:
            await asyncio.Event().wait()
        finally:
            self._thread.submit(self._close)
            self._thread.shutdown(wait=False)
            self._thread = ThreadPoolExecutor(1, f"visionad-{self._name}")  # it may be run again

    async def tell(self, state: StationState) -> None:
        """See :class:`~visionad_runtime.station.sink.Sink`. Only results are posted."""

    async def store(self, record: Mapping[str, Any]) -> None:
        """Post a record. Return when the receiver has answered with a status of 200 to 299.

        Raises:
            SinkError: There was no answer in time, or another status.
        """
        body = json.dumps(record, ensure_ascii=False, default=str).encode()
        key = f"{record.get('station', self._station)}-{record['id']}"
        loop = asyncio.get_running_loop()
        try:
            status, reply = await loop.run_in_executor(self._thread, self._post, body, key)
        except (OSError, http.client.HTTPException) as exc:
            reason = " ".join(str(exc).split()) or type(exc).__name__
            self._problem = f"{self._settings.url}: {reason}"
            raise SinkError(
                f"sink {self._name}: record {record['id']} was not delivered to {self._problem}; check that the receiver runs"
            ) from None
        if not 200 <= status < 300:
            self._problem = f"{self._settings.url}: expected a status of 200 to 299, got {status} {reply}".rstrip()
            mend = "; check token and secret" if status in (401, 403) else ""
            raise SinkError(f"sink {self._name}: record {record['id']}: {self._problem}{mend}")
        self._problem, self._last_success = "", time.monotonic()
        self.delivered += 1

    def health(self) -> Mapping[str, Any]:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        age = None if self._last_success is None else round(time.monotonic() - self._last_success, 3)
        detail = self._problem or f"posts to {self._settings.url}"
        return {"ok": not self._problem, "detail": detail, "last_success_s": age, "delivered": self.delivered}

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _context(self) -> ssl.SSLContext | None:
        if urlsplit(self._settings.url).scheme != "https":
            return None
        return ssl.create_default_context(cafile=str(self._settings.ca) if self._settings.ca else None)

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._settings.url)
        assert parts.hostname
        context = self._context()
        if context is not None:
            return http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=self._settings.timeout_s, context=context
            )
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self._settings.timeout_s)

    def _post(self, body: bytes, key: str) -> tuple[int, str]:
        """Post over the kept connection; over a new one if the receiver has closed it. Return status and beginning of the reply."""
        kept = self._connection is not None
        try:
            return self._post_once(body, key)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not kept:
                raise
        return self._post_once(body, key)

    def _post_once(self, body: bytes, key: str) -> tuple[int, str]:
        parts = urlsplit(self._settings.url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if self._connection is None:
            self._connection = self._connect()
        try:
            self._connection.request("POST", target, body, self._headers(body, key))
            reply = self._connection.getresponse()
            text = reply.read(MAX_REPLY)
        except BaseException:
            self._close()
            raise
        if not reply.isclosed():
            self._close()
        return reply.status, " ".join(text[:200].decode("utf-8", "replace").split())

    def _headers(self, body: bytes, key: str) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": key.encode("ascii", "backslashreplace").decode(),
            "User-Agent": f"visionad/{__version__}",
        }
        if self._settings.token:
            headers["Authorization"] = f"Bearer {self._settings.token}"
        if self._settings.secret:
            headers["X-VisionAD-Signature"] = signature(self._settings.secret, body)
        return headers

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def signature(secret: str, body: bytes) -> str:
    """Return what the header ``X-VisionAD-Signature`` has: ``sha256=`` and HMAC-SHA256 of the body in hexadecimal digits."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
