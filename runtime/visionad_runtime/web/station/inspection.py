"""Images that are sent to a station: the endpoints of ``visionad serve``, beside the line's parts, and images for cameras."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..._release import __version__
from ..answers import Classes, Enrolled, Inspection
from ..forms import check_encoding, form_file, is_multipart
from ..oip import add_oip_endpoints
from ..queue import UploadedImage
from ..uploads import REQUEST_BODY, read_upload, receive
from .answers import Problem, PushedFrame, StationHealth, problem_responses
from .feed import Feed
from .link import FrontLink
from .service import StationService
from .sessions import Anyone

Upload = Annotated[UploadedImage, Depends(read_upload)]
ClassQuery = Annotated[str | None, Query(alias="class", description="class of the part; skips routing")]
UPLOAD_ERRORS = problem_responses(408, 413)


def add_inspection(app: FastAPI) -> None:
    """Add ``/inspect``, ``/overlay``, ``/v2``, ``/cameras/NAME/frame``, ``/classes``, ``/health`` and ``/metrics``."""
    link: FrontLink = app.state.link
    service: StationService = app.state.service

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
        return Response(await service.overlay(upload, class_name), media_type="image/png")

    @app.post(
        "/cameras/{name}/frame",
        response_model=PushedFrame,
        responses=problem_responses(404, 408, 413),
        openapi_extra=REQUEST_BODY,
    )
    async def frame(request: Request, name: str) -> Response:
        """The image file in the body becomes the next frame of a camera of kind ``http``."""
        check_encoding(request.headers.get("content-encoding", ""))
        body, content_type = await receive(request, service), request.headers.get("content-type", "")
        if is_multipart(content_type):
            body, _ = form_file(body, content_type)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        facts = {"camera": name, "local": _is_local(request), "token": token if scheme.lower() == "bearer" else ""}
        return JSONResponse((await link.ask("push", (body,), **facts)).value)

    add_oip_endpoints(app, service, problem_responses)

    @app.get("/classes", response_model=Classes, responses=problem_responses())
    async def classes() -> Response:
        """What is enrolled."""
        facts = (await link.ask("ready")).value["facts"]
        thresholds = facts.get("thresholds", {})
        enrolled = {
            name: {"shots": shots, "threshold": thresholds.get(name)}
            for name, shots in facts.get("classes", {}).items()
        }
        return JSONResponse({"bank_version": facts.get("bank_version", 0), "classes": enrolled})

    @app.post(
        "/classes/{class_name:path}",
        response_model=Enrolled,
        status_code=201,
        responses=problem_responses(401, 408, 409, 413),
        openapi_extra=REQUEST_BODY,
    )
    async def enroll(class_name: str, caller: Anyone, upload: Upload) -> Response:
        """Enroll the good part in the body in a class of the line's bank, as one version. It takes a session of a setter."""
        values = {"class": class_name, "shape": list(upload.rgb.shape), "name": upload.name}
        found = (await caller.send("version_add", values, (upload.rgb.tobytes(),))).value
        return JSONResponse({"class": found["class"], "bank_version": found["version"]}, 201)

    unready: dict[int | str, dict[str, Any]] = {
        503: {
            "model": StationHealth | Problem,
            "description": "no part can be judged now, or the station does not answer",
        }
    }

    @app.get("/health", response_model=StationHealth, responses={**problem_responses(), **unready})
    async def health(caller: Anyone) -> Response:
        """Status 200 if a part can be judged, else 503. Who has a session gets every detail."""
        known = (await link.ask("session", session=caller.key)).value
        found = (await link.ask("ready")).value
        ready = found["ready"] or found["phase"] in ("busy", "valid")
        facts = {"ready": ready, "phase": found["phase"]}
        return JSONResponse({**_as_serve(found["facts"]), **found, **facts} if known else facts, 200 if ready else 503)

    @app.get("/metrics", response_model=None, response_class=Response, responses=problem_responses())
    async def metrics() -> Response:
        """For Prometheus."""
        feed: Feed = app.state.feed
        text = feed.metrics.text((await link.ask("ready")).value, feed.counts, len(feed.clients))
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _as_serve(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what ``GET /health`` of ``visionad serve`` says of model and bank, as far as the worker has said it."""
    known = {key: facts.get(key) for key in ("model", "backend", "bank_version", "model_digest", "bank_digest")}
    return {"version": __version__, **known, "notes": facts.get("warnings", [])}


def _is_local(request: Request) -> bool:
    """Return whether a program of this machine sends, and does not pass on what another one sent (RFC 7239)."""
    host = request.client.host if request.client else ""
    passed_on = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "via"))
    try:
        return ip_address(host).is_loopback and not passed_on
    except ValueError:
        return False
