"""Images that are sent to a station: the endpoints of ``visionad serve``, beside the line's parts, and images for cameras."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..answers import Inspection
from ..forms import check_encoding, form_file, is_multipart
from ..queue import UploadedImage
from ..uploads import REQUEST_BODY, read_upload, receive
from .answers import ClassCounts, Problem, PushedFrame, StationHealth
from .feed import Feed
from .link import FrontLink
from .sessions import Anyone

Upload = Annotated[UploadedImage, Depends(read_upload)]
ClassQuery = Annotated[str | None, Query(alias="class", description="class of the part; skips routing")]
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "the image or a parameter is invalid",
        403: "the host or origin is not allowed",
        408: "the image was not complete in time",
        413: "the image is too large",
        503: "the station is not ready for it",
    }.items()
}


def add_inspection(app: FastAPI) -> None:
    """Add ``/inspect``, ``/overlay``, ``/cameras/NAME/frame``, ``/classes``, ``/health`` and ``/metrics``."""
    link: FrontLink = app.state.link

    async def worker(command: str, upload: UploadedImage, class_name: str | None) -> Any:
        answer = await link.ask(
            command, (upload.rgb.tobytes(),), shape=list(upload.rgb.shape), name=upload.name, **{"class": class_name}
        )
        return answer.blobs[0] if command == "overlay" else answer.value

    @app.post("/inspect", response_model=Inspection, responses=ERRORS, openapi_extra=REQUEST_BODY)
    async def inspect(upload: Upload, class_name: ClassQuery = None) -> Response:
        """Score, verdict and regions of the image in the body, as ``visionad predict --json`` prints them."""
        return JSONResponse(await worker("inspect", upload, class_name))

    png = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}

    @app.post(
        "/overlay",
        response_model=None,
        response_class=Response,
        responses={200: png, **ERRORS},
        openapi_extra=REQUEST_BODY,
    )
    async def overlay(upload: Upload, class_name: ClassQuery = None) -> Response:
        """The image in the body with heat, regions and verdict drawn on it, as PNG."""
        return Response(await worker("overlay", upload, class_name), media_type="image/png")

    refusals: dict[int | str, dict[str, Any]] = {
        403: {"model": Problem, "description": "the sender is not let in"},
        404: {"model": Problem, "description": "there is no such camera whose images are pushed"},
    }

    @app.post(
        "/cameras/{name}/frame",
        response_model=PushedFrame,
        responses={**ERRORS, **refusals},
        openapi_extra=REQUEST_BODY,
    )
    async def frame(request: Request, name: str) -> Response:
        """The image file in the body becomes the next frame of a camera of kind ``http``."""
        check_encoding(request.headers.get("content-encoding", ""))
        body, content_type = await receive(request, app.state.service), request.headers.get("content-type", "")
        if is_multipart(content_type):
            body, _ = form_file(body, content_type)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        facts = {"camera": name, "local": _is_local(request), "token": token if scheme.lower() == "bearer" else ""}
        return JSONResponse((await link.ask("push", (body,), **facts)).value)

    @app.get("/classes", response_model=ClassCounts, responses=ERRORS)
    async def classes() -> Response:
        """What is enrolled."""
        facts = (await link.ask("ready")).value["facts"]
        return JSONResponse({"bank_version": facts.get("bank_version", 0), "classes": facts.get("classes", {})})

    unready: dict[int | str, dict[str, Any]] = {
        503: {"model": StationHealth, "description": "no part can be judged now"}
    }

    @app.get("/health", response_model=StationHealth, responses=unready)
    async def health(caller: Anyone) -> Response:
        """Status 200 if a part can be judged, else 503. Who has a session gets every detail."""
        known = (await link.ask("session", session=caller.key)).value
        found = (await link.ask("ready")).value
        ready = found["ready"] or found["phase"] in ("busy", "valid")
        facts = {**found, "ready": ready} if known else {"ready": ready, "phase": found["phase"]}
        return JSONResponse(facts, 200 if ready else 503)

    @app.get("/metrics", response_model=None, response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        feed: Feed = app.state.feed
        text = feed.metrics.text((await link.ask("ready")).value, feed.counts, len(feed.clients))
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _is_local(request: Request) -> bool:
    """Return whether a program of this machine sends, and does not pass on what another one sent (RFC 7239)."""
    host = request.client.host if request.client else ""
    passed_on = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "via"))
    try:
        return ip_address(host).is_loopback and not passed_on
    except ValueError:
        return False
