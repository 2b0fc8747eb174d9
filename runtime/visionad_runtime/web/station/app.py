"""The page as an application: files, events, and the errors of all endpoints."""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ..._release import __version__
from ...errors import ImageError, VisionADError
from ...station.records.report import Source
from ...station.settings import StationSettings
from ..access import AccessPolicy
from ..described import OTHERS, DescribedApp
from ..queue import RequestError
from .api import add_api
from .bundle import missing_bundle
from .drafts import add_drafts
from .feed import Feed
from .gate import PageGate
from .history import History
from .inspection import add_inspection
from .link import CommandError, FrontLink
from .report_process import Reports
from .service import StationService
from .sessions import session_key
from .support import add_support

log = logging.getLogger("visionad.web")
STATIC = Path(__file__).parent / "static"
STATUS = {
    "no_session": 401,
    "password": 401,
    "panel_token": 401,
    "first_code": 401,
    "too_often": 429,
    "role_missing": 403,
    "sender": 403,
    "plc_control": 423,
    "line_trigger": 423,
    "unavailable": 503,
    "not_ready": 503,
    "internal": 500,
    "input": 400,
    "no_draft": 404,
    "image_gone": 404,
    "not_in_memory": 404,
    "live_changed": 412,
    "user_name": 400,
    "short_password": 400,
    "role": 400,
    "no_user": 404,
    "no_part": 404,
    "no_camera": 404,
    "unknown_command": 404,
    "changed": 412,
}
"""Code of a refusal → HTTP status; 409 for the others."""


def make_app(
    feed: Feed,
    link: FrontLink,
    history: History,
    source: Source,
    file: Path,
    settings: StationSettings,
    access: AccessPolicy,
) -> PageGate:
    """Return the page as an ASGI application.

    Args:
        feed: events to browsers.
        link: to the front.
        history: the records.
        source: of the statistics.
        file: the station file.
        settings: what it says.
        access: hosts and origins that are let in.
    """
    app = DescribedApp(
        title="VisionAD station", description=OTHERS, version=__version__, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    app.state.service = StationService(link, feed.metrics)
    app.state.link, app.state.feed, app.state.history, app.state.reports = link, feed, history, Reports(source)
    archive = settings.archive
    app.state.file, app.state.settings, app.state.bank = file, settings, settings.bank
    app.state.archive = None if archive is None else archive.folder
    _add_errors(app)
    add_api(app)
    add_drafts(app)
    add_support(app)
    add_inspection(app)

    @app.websocket("/ws")
    async def events(socket: WebSocket) -> None:
        await feed.serve(socket, session_key(socket.cookies))

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        missing = missing_bundle(STATIC)
        if missing:
            return Response(missing, 503, media_type="text/plain; charset=utf-8")
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/static", _Files(directory=STATIC), name="static")
    return PageGate(app, access)


class _Files(StaticFiles):
    """Files that a browser asks for again only if they changed."""

    def file_response(self, *args: object, **options: object) -> Response:
        answer = super().file_response(*args, **options)  # type: ignore[arg-type]
        answer.headers["cache-control"] = "no-cache"
        return answer


def problem(status: int, code: str, message: str, values: dict[str, object] | None = None) -> JSONResponse:
    """Return an error: one line, a word for programs, and values."""
    extra = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": " ".join(message.split()), "code": code, "values": values or {}}, status, extra)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(CommandError)
    async def refused(_: Request, exc: CommandError) -> Response:
        return problem(STATUS.get(exc.code, 409), exc.code, str(exc), exc.values)

    @app.exception_handler(RequestError)
    async def invalid_request(_: Request, exc: RequestError) -> Response:
        return problem(exc.status, "request", str(exc))

    @app.exception_handler(ImageError)
    async def invalid_image(_: Request, exc: ImageError) -> Response:
        return problem(400, "image", str(exc))

    @app.exception_handler(VisionADError)
    async def mistake(_: Request, exc: VisionADError) -> Response:
        return problem(400, "request", str(exc))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, exc: RequestValidationError) -> Response:
        message = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        return problem(400, "request", message)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, exc: HTTPException) -> Response:
        return problem(exc.status_code, "request", f"{exc.detail}; /openapi.json lists what there is")

    @app.exception_handler(Exception)
    async def failed(request: Request, exc: Exception) -> Response:
        log.error("%s %s: %s: %s", request.method, request.url.path, type(exc).__name__, exc)
        return problem(500, "internal", f"the page failed ({type(exc).__name__}); its log says where")
