"""What every request to the page passes: host and origin, parameters; and the headers that every answer carries."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from ..access import AccessPolicy
from ..parameters import Parameters
from ..queue import RequestError

log = logging.getLogger("visionad.web")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types lit-html"
)
"""Content security policy: no script, style or connection but the station's own."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class PageGate:
    """An ASGI application around the page's.

    Args:
        app: the endpoints. The page and its files may be asked with any parameters, the others with their own only.
        access: hosts and origins that are let in.
    """

    def __init__(self, app: FastAPI, access: AccessPolicy) -> None:
        self.app, self._access = app, access
        self._parameters = Parameters(app, free=("/", "/static"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            return
        headers, local, code = Headers(scope=scope), scope.get("server"), "access"
        try:
            self._access.check(scope.get("method", "GET"), scope["http_version"], headers, local[0] if local else None)
            if scope["type"] == "websocket" and "origin" not in headers:
                raise RequestError(403, "expected a header Origin")
            code = "request"
            if scope["type"] == "http":
                self._parameters.check(scope)
        except RequestError as exc:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
            answer = JSONResponse({"error": str(exc), "code": code, "values": {}}, exc.status)
            await answer(scope, receive, _with_headers(send))
            return
        await self.app(scope, receive, send if scope["type"] == "websocket" else _with_headers(send))


def _with_headers(send: Send) -> Send:
    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if "cache-control" not in headers:
                headers["cache-control"] = "no-store"
        await send(message)

    return watched
