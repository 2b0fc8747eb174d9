"""``visionad serve``: inspect over HTTP. The only package that needs the extra ``serve``.

Images of all clients are inspected in the order in which they came, as many at once as the pipeline has slots. Each response is
what ``visionad predict --json`` says of that image.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from .._release import __version__
from ..bank.names import check_class_name
from ..errors import BankError, ImageError, VisionADError
from ..inspector import Inspector
from .access import AccessPolicy
from .answers import Classes, Enrolled, Error, Health, Inspection, error_responses
from .connections import KEEP_ALIVE_SECONDS, Connection
from .described import OTHERS, DescribedApp
from .gate import Gate, error_answer, with_implied
from .log import bounded_log
from .oip import add_oip_endpoints
from .pages import add_pages
from .queue import RequestError, UploadedImage
from .server import GRACE_SECONDS, Server
from .service import InspectionService
from .uploads import REQUEST_BODY, read_upload

log = logging.getLogger("visionad.web")
ClassQuery = Annotated[str | None, Query(alias="class", description="class of the part; skips routing")]
Upload = Annotated[UploadedImage, Depends(read_upload)]


UPLOAD_ERRORS = error_responses(408, 409, 413)


def make_app(service: InspectionService, *, read_only: bool = False, access: AccessPolicy | None = None) -> Gate:
    """The service as an ASGI application.

    Args:
        service: the inspector behind it.
        read_only: nobody may enroll.
        access: hosts and origins that are let in; without it, those of a service that listens on loopback.
    """
    # FastAPI's own pages load their scripts from the internet.
    app = DescribedApp(
        title="VisionAD", description=OTHERS, version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.service = service
    _add_error_handlers(app, service)
    _add_image_endpoints(app, service, read_only)
    _add_state_endpoints(app, service)
    add_oip_endpoints(app, service, error_responses)
    add_pages(app)
    return Gate(app, service, access or AccessPolicy())


def _add_error_handlers(app: FastAPI, service: InspectionService) -> None:
    @app.exception_handler(VisionADError)
    async def mistake(_: Request, exc: VisionADError) -> Response:
        known: bool = isinstance(exc, ImageError | BankError)
        if not known:
            log.error("%s", exc)
        return error_answer(service.metrics, 400 if isinstance(exc, ImageError) else 409 if known else 500, str(exc))

    @app.exception_handler(RequestError)
    async def refused(_: Request, exc: RequestError) -> Response:
        return error_answer(service.metrics, exc.status, str(exc))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, exc: RequestValidationError) -> Response:
        message = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        return error_answer(service.metrics, 400, message)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, exc: HTTPException) -> Response:
        headers = dict(exc.headers or {})
        if exc.status_code == 405 and (allow := headers.get("Allow", headers.get("allow"))):
            methods = ", ".join(with_implied(set(allow.split(", "))))
            message = f"{request.url.path}: expected {methods}, got {request.method}"
            return error_answer(service.metrics, 405, message, {"Allow": methods})
        return error_answer(
            service.metrics,
            exc.status_code,
            f"{exc.detail}; there are /inspect, /overlay, /classes, /health, /metrics and /v2",
            headers,
        )

    @app.exception_handler(Exception)
    async def failed(_: Request, exc: Exception) -> Response:  # the gate logs it
        return error_answer(service.metrics, 500, f"the service failed ({type(exc).__name__}); its log says where")


def _add_image_endpoints(app: FastAPI, service: InspectionService, read_only: bool) -> None:
    @app.post("/inspect", response_model=Inspection, responses=UPLOAD_ERRORS, openapi_extra=REQUEST_BODY)
    async def inspect(upload: Upload, class_name: ClassQuery = None) -> Response:
        """Score, verdict and regions of the image in the body, as ``visionad predict --json`` prints them."""
        return JSONResponse((await service.inspect(upload, class_name)).to_dict(upload.name))

    png = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}

    @app.post(
        "/overlay",
        response_model=None,
        response_class=Response,
        responses={200: png, **UPLOAD_ERRORS},
        openapi_extra=REQUEST_BODY,
    )
    async def overlay(upload: Upload, class_name: ClassQuery = None) -> Response:
        """The image in the body with heat, regions and verdict drawn on it, as PNG."""
        result = await service.inspect(upload, class_name)
        return Response(await asyncio.to_thread(service.overlay, upload, result), media_type="image/png")

    def may_enroll() -> None:
        if read_only:
            raise RequestError(
                403, "this service was started with --read-only; enroll with `visionad bank add` on its box"
            )

    @app.post(
        "/classes/{class_name:path}",
        response_model=Enrolled,
        status_code=201,
        responses=UPLOAD_ERRORS,
        openapi_extra=REQUEST_BODY,
        dependencies=[Depends(may_enroll)],
    )
    async def enroll(class_name: str, upload: Upload) -> Response:
        """Enroll the good part in the body in a class, new or existing. From the second part on the class has a threshold."""
        class_name = check_class_name(class_name)
        version = await service.enroll(class_name, upload)
        return JSONResponse({"class": class_name, "bank_version": version}, 201)


def _add_state_endpoints(app: FastAPI, service: InspectionService) -> None:
    inspector = service.inspector

    @app.get("/classes", response_model=Classes, responses=error_responses())
    async def classes() -> Response:
        """What is enrolled."""
        snapshot = await asyncio.to_thread(service.bank)
        facts = {
            name: {"shots": len(one.entry.images), "threshold": one.entry.threshold}
            for name, one in snapshot.classes.items()
        }
        return JSONResponse({"bank_version": snapshot.manifest.version, "classes": facts})

    unready: dict[int | str, dict[str, Any]] = {
        503: {"model": Health | Error, "description": "no class is enrolled, the queue is full, or the service stops"}
    }

    @app.get("/health", response_model=Health, responses={**error_responses(), **unready})
    async def health() -> Response:
        """Status 200 if images can be inspected, 503 if no class is enrolled or the queue is full."""
        snapshot = await asyncio.to_thread(service.bank)
        notes = inspector.calibration_warnings() if snapshot.classes else ["no class is enrolled"]
        if service.full:
            notes = [f"{service.waiting} images wait: the queue is full", *notes]
        ready = bool(snapshot.classes) and not service.full
        facts = {
            "ready": ready,
            "version": __version__,
            "model": inspector.manifest.identity.describe(),
            "backend": inspector.engine.name,
            "bank_version": snapshot.manifest.version,
            "model_digest": inspector.digest,
            "bank_digest": snapshot.digest,
            "waiting": service.waiting,
            "notes": notes,
        }
        return JSONResponse(facts, 200 if ready else 503)

    @app.get("/metrics", response_model=None, response_class=Response, responses=error_responses())
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def serve(
    inspector: Inspector,
    waiting: socket.socket,
    stop: threading.Event,
    *,
    read_only: bool = False,
    access: AccessPolicy | None = None,
    evidence: bool = False,
) -> None:
    """Answer requests until ``stop`` is set by a signal; what is under way then is finished.

    Args:
        inspector: with a bank.
        waiting: of :func:`~visionad_runtime.web.server.listen`.
        stop: set before the call if the service is to end at once.
        read_only: nobody may enroll.
        access: hosts and origins that are let in; without it, those of a service that listens on loopback.
        evidence: whether results name the nearest good patch of each region.
    """
    service = InspectionService(inspector, evidence)
    try:
        config = uvicorn.Config(
            make_app(service, read_only=read_only, access=access),
            http=Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            headers=[("Keep-Alive", f"timeout={KEEP_ALIVE_SECONDS}")],
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=round(GRACE_SECONDS) + 5,
        )
        if not stop.is_set():
            with bounded_log():
                Server(config).run(sockets=[waiting])
    finally:
        service.close()
