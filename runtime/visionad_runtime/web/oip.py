"""Open Inference Protocol v2 (KServe, Triton) over HTTP, with binary tensors.

Inputs are ``image``, UINT8 (n, h, w, 3) RGB or (n, h, w), or ``file``, BYTES (n) of image files; and ``class``, BYTES (n) or (1),
if the classes are known. Outputs are ``score`` FP32 (n), ``verdict`` BYTES (n), ``result`` BYTES (n) with the JSON of ``/inspect``,
and ``anomaly_map`` FP32 (n, 256, 256) if it is asked for.

Source: https://github.com/kserve/open-inference-protocol and Triton's binary tensor extension.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from .._release import __version__
from .forms import check_encoding
from .oip_names import HEADER, INPUTS, MODEL, OUTPUTS, VERSION, InspectedImage
from .queue import UploadedImage
from .uploads import receive

Responses = dict[int | str, dict[str, Any]]
"""Status → description, as FastAPI takes it."""


class OipService(Protocol):
    """What inspects the images of requests."""

    def check_queue(self) -> None:
        """Check that there is a place in the queue."""

    def receiving(self) -> AbstractContextManager[Callable[[int], None]]:
        """Count a body that is being received."""

    def place(self) -> AbstractContextManager[None]:
        """A place in the queue, while an image is decoded and inspected."""

    async def is_ready(self) -> bool:
        """Return whether images can be inspected."""

    async def inspect(self, upload: UploadedImage, class_name: str | None) -> InspectedImage:
        """Inspect an image."""


def add_oip_endpoints(app: FastAPI, service: OipService, errors: Callable[..., Responses]) -> None:
    """Add ``/v2/…``.

    Args:
        app: gets the endpoints.
        service: what inspects.
        errors: returns the descriptions of statuses, and of those that every endpoint may answer with.
    """
    path = f"/v2/models/{MODEL}"
    versions = (path, f"{path}/versions/{VERSION}")
    unready: Responses = {
        **errors(),
        503: {"description": "no class is enrolled, or the queue is full"},
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    answers: Responses = {
        200: {"content": {"application/json": {}, "application/octet-stream": binary}},
        **errors(408, 409, 413),
    }

    async def state(**facts: object) -> Response:
        ready = await service.is_ready()
        return JSONResponse({**facts, "ready": ready}, 200 if ready else 503)

    @app.get("/v2", response_model=None, responses=errors())
    async def server() -> Response:
        """Name and version of the service."""
        return JSONResponse({"name": MODEL, "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live", response_model=None, responses=errors())
    async def live() -> Response:
        """Status 200 as long as it answers."""
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", response_model=None, responses=unready)
    async def ready() -> Response:
        """Status 200 if images can be inspected, else 503."""
        return await state(live=True)

    async def model_ready() -> Response:
        """Status 200 if images can be inspected, else 503."""
        return await state(name=MODEL)

    async def metadata() -> Response:
        """Inputs and outputs."""
        inputs, outputs = (
            [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in tensors]
            for tensors in (INPUTS, OUTPUTS)
        )
        facts = {"name": MODEL, "versions": [VERSION], "platform": "visionad", "inputs": inputs, "outputs": outputs}
        return JSONResponse(facts)

    async def infer(request: Request) -> Response:
        """Inspect images in tensors. Outputs are those of `/inspect`."""
        from . import oip_tensors as tensors  # only now: a page that takes no image stays small

        service.check_queue()
        check_encoding(request.headers.get("content-encoding", ""))
        body = await receive(request, service)
        asked = await asyncio.to_thread(tensors.parse_request, body, request.headers.get(HEADER))
        images = tensors.images_of(asked.inputs)
        classes = tensors.classes_of(asked.inputs, len(images))
        results = []
        for decoded, name in zip(images, classes, strict=True):
            with service.place():  # decoded too: small files may hold large images
                upload = UploadedImage(await asyncio.to_thread(decoded), "", b"")
                results.append(await service.inspect(upload, name))
        return tensors.answer(asked, results)

    for prefix in versions:
        app.get(f"{prefix}/ready", response_model=None, responses=unready)(model_ready)
        app.get(prefix, response_model=None, responses=errors())(metadata)
        app.post(f"{prefix}/infer", response_model=None, responses=answers, openapi_extra=_BODY)(infer)


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON of the protocol, followed by binary tensors if the header Inference-Header-Content-Length says so",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
