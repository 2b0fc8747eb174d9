"""``visionad serve``: inspect over HTTP. The only module that needs the extra ``serve``.

Images of all clients are inspected in the order in which they came, as many at once as the chain has cameras. Each response is
what ``visionad predict --json`` says of that image.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from .._version import __version__
from ..bank.names import check_class_name
from ..errors import BankError, ImageError, VisionADError
from ..inspector import Inspector
from ..visualization.overlay import overlay_png
from .service import InspectionService, RequestError, UploadedImage
from .uploads import read_upload

log = logging.getLogger("visionad")
GRACE_SECONDS = 10
"""For requests under way when the service is stopped."""
ClassQuery = Annotated[str | None, Query(alias="class", description="class of the part; skips routing")]


def make_app(line: InspectionService, *, read_only: bool = False) -> FastAPI:
    """The service as an ASGI application.

    Args:
        read_only: nobody may enroll.
    """
    inspector = line.inspector
    # No pages to look at: those that FastAPI offers load their scripts from the internet.
    app = FastAPI(title="VisionAD", version=__version__, docs_url=None, redoc_url=None)
    app.state.line = line

    @app.exception_handler(VisionADError)
    async def mistake(_: Request, exc: VisionADError) -> Response:
        known: bool = isinstance(exc, ImageError | BankError)
        if not known:
            log.error("%s", exc)
        return answer(400 if isinstance(exc, ImageError) else 409 if known else 500, str(exc))

    @app.exception_handler(RequestError)
    async def refused(_: Request, exc: RequestError) -> Response:
        return answer(exc.status, str(exc))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, exc: RequestValidationError) -> Response:
        return answer(400, "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()))

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, exc: HTTPException) -> Response:
        return answer(exc.status_code, f"{exc.detail}; there are /inspect, /overlay, /classes, /health and /metrics")

    def answer(status: int, message: str) -> Response:
        line.metrics.refused.labels(status).inc()
        return JSONResponse({"error": message}, status, {"Retry-After": "1"} if status == 503 else None)

    @app.post("/inspect", response_model=None)
    async def inspect(given: Annotated[UploadedImage, Depends(read_upload)], class_name: ClassQuery = None) -> Response:
        """Score, verdict and regions of the image in the body, as ``visionad predict --json`` prints them."""
        return JSONResponse((await line.inspect(given, class_name)).to_dict(given.name))

    @app.post("/overlay", response_model=None)
    async def overlay(given: Annotated[UploadedImage, Depends(read_upload)], class_name: ClassQuery = None) -> Response:
        """The image in the body with heat, regions and verdict drawn on it, as PNG."""
        result = await line.inspect(given, class_name)
        png = await asyncio.to_thread(overlay_png, given.rgb, result)
        return Response(png, media_type="image/png")

    @app.post("/classes/{class_name}", response_model=None)
    async def enroll(class_name: str, given: Annotated[UploadedImage, Depends(read_upload)]) -> Response:
        """Enroll the good part in the body in a class, new or existing. Its threshold is dropped: calibrate again."""
        if read_only:
            raise RequestError(
                403, "this service was started with --read-only; enroll with `visionad bank add` on its box"
            )
        class_name = check_class_name(class_name)
        version = await line.enroll(class_name, given)
        return JSONResponse({"class": class_name, "bank_version": version}, 201)

    @app.get("/classes", response_model=None)
    async def classes() -> Response:
        """What is enrolled."""
        held = await asyncio.to_thread(line.bank)
        facts = {
            name: {"shots": len(one.entry.images), "threshold": one.entry.threshold}
            for name, one in held.classes.items()
        }
        return JSONResponse({"bank_version": held.manifest.version, "classes": facts})

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Status 200 if images can be inspected, 503 if no class is enrolled."""
        held = await asyncio.to_thread(line.bank)
        facts = {
            "ready": bool(held.classes),
            "version": __version__,
            "model": inspector.manifest.identity.describe(),
            "backend": inspector.engine.name,
            "bank_version": held.manifest.version,
            "notes": inspector.calibration_warnings() if held.classes else ["no class is enrolled"],
        }
        return JSONResponse(facts, 200 if held.classes else 503)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(line.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients; port 0 is any free one.

    Raises:
        VisionADError: taken, not permitted, or no such address.
    """
    try:
        waiting = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # By name, as clients' sockets then are: where the protocol is 0, asyncio leaves TCP_NODELAY out, and the second packet of
        # every answer waits 40 ms for the first one to be acknowledged.
        return socket.socket(waiting.family, waiting.type, socket.IPPROTO_TCP, waiting.detach())
    except OSError as exc:
        why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else "no such address"  # the resolver's are below 0
        raise VisionADError(f"cannot listen on {host}, port {port}: {why}; choose another --port or --host") from None


def serve(inspector: Inspector, waiting: socket.socket, stop: threading.Event, *, read_only: bool = False) -> None:
    """Answer requests until ``stop`` is set by a signal; what is under way then is finished."""
    line = InspectionService(inspector)
    try:
        config = uvicorn.Config(
            make_app(line, read_only=read_only),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        if not stop.is_set():
            uvicorn.Server(config).run(sockets=[waiting])
    finally:
        line.close()
