"""What every request passes before its endpoint: host and origin, target, method, parameters; and what fails behind it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Mapping

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from .access import AccessPolicy
from .connections import DRAIN_SECONDS
from .metrics import Metrics
from .parameters import Parameters, decoded
from .queue import RequestError
from .service import InspectionService

log = logging.getLogger("visionad.web")


class Gate:
    """An ASGI application around the service's.

    Args:
        app: the endpoints. A query may hold only parameters that they have.
        service: for the metrics.
        access: hosts and origins that are let in.
    """

    def __init__(self, app: FastAPI, service: InspectionService, access: AccessPolicy) -> None:
        self.app, self.service, self.access = app, service, access
        self._parameters = Parameters(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; whatever happens, with one response."""
        if scope["type"] != "http":
            return
        started, stopping, body_left = False, False, _body_to_drain(scope)

        async def received() -> Message:
            nonlocal body_left
            message = await receive()
            body_left = body_left and bool(message.get("more_body"))
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if body_left and message["type"] == "http.response.start" and message["status"] != 408 and not stopping:
                await _drain(received)
            started = started or message["type"] == "http.response.start"
            if scope["method"] == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        async def answer(status: int, text: str, headers: dict[str, str] | None = None) -> None:
            if not started:
                await error_answer(self.service.metrics, status, text, headers)(scope, received, watched)

        try:
            scope = self._admit(scope)
            if scope["method"] == "OPTIONS" and (methods := self._methods(scope)):
                await _say_methods(methods, scope, received, watched)
            else:
                await self.app({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, received, watched)
        except RequestError as exc:
            await answer(exc.status, str(exc))
        except asyncio.CancelledError:  # the service was stopped, and the request was not complete in time
            stopping = True
            await answer(503, "the service stops; send the image again", {"Connection": "close"})
        except Exception as exc:
            log.error("%s", f"{scope['method']} {scope['path']!r} failed\n{traceback.format_exc()}")
            await answer(500, f"the service failed ({type(exc).__name__}); its log says where")

    def _admit(self, scope: Scope) -> Scope:
        """Return the request's scope with its path decoded.

        Raises:
            RequestError: host, origin, target or parameters are not accepted.
        """
        local = scope.get("server")
        self.access.check(scope["method"], scope["http_version"], Headers(scope=scope), local[0] if local else None)
        scope = {**scope, "path": decoded("path", scope.get("raw_path") or scope["path"].encode())}
        self._parameters.check(scope)
        return scope

    def _methods(self, scope: Scope) -> list[str]:
        everywhere = scope["path"] in ("*", "/")
        found = {
            method
            for route in self.app.routes
            if everywhere or route.matches(scope)[0] is not Match.NONE
            for method in getattr(route, "methods", None) or ()
        }
        return with_implied(found)


def error_answer(metrics: Metrics, status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Answer with an error of one line, and count it."""
    metrics.refused.labels(status).inc()
    extra = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": " ".join(message.split())}, status, {**extra, **(headers or {})})


def with_implied(methods: set[str]) -> list[str]:
    """Return the methods that a path accepts, with those that come by themselves."""
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())) if methods else []


def _body_to_drain(scope: Scope) -> bool:
    """Whether a client would miss an answer that is sent before its body has arrived.

    It asked to close the connection after the answer, and closing resets a connection with unread data. Clients that wait for
    `100 Continue` send no body before the answer; on other connections the rest of the body is passed over after the answer.
    """
    headers = Headers(scope=scope)
    closes = scope["http_version"] == "1.0" or "close" in headers.get("connection", "").lower()
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return closes and has_body and "expect" not in headers


async def _drain(receive: Receive) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await receive()).get("more_body"):
                pass


async def _say_methods(methods: list[str], scope: Scope, receive: Receive, send: Send) -> None:
    await Response(status_code=200, headers={"Allow": ", ".join(methods)})(scope, receive, send)
