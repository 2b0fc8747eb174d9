"""Images that requests carry: files, bare pixels, or the file of a multipart form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from fastapi import Query, Request
from starlette.requests import ClientDisconnect

from ..errors import ImageError
from .forms import HOW_TO_SEND, check_encoding, form_file, hint, is_multipart
from .queue import RequestError, UploadedImage, UploadQueue

if TYPE_CHECKING:
    from ..images.pixels import RGB8

MAX_UPLOAD_BYTES = 256 << 20
"""Of a request. Larger ones are refused before they are read to the end."""
UPLOAD_TIMEOUT = 30.0
"""Seconds for an image to arrive."""

CHANNELS = {"mono8": 1, "rgb8": 3, "bgr8": 3}
"""Pixel formats that need no file around them, by GenICam's names (PFNC) in small letters."""
REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The image",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            },
        },
    }
}
"""For ``/openapi.json``."""


class Receiving(Protocol):
    """What counts bodies that are being received."""

    def receiving(self) -> AbstractContextManager[Callable[[int], None]]:
        """Count a body. Yields the function that counts its bytes."""


Size = Annotated[int | None, Query(ge=1, le=1 << 20, description="of bare pixels")]


async def read_upload(
    request: Request,
    name: Annotated[str, Query(description="what to call the image; a form's file has a name already")] = "",
    pixels: Annotated[
        Literal["mono8", "rgb8", "bgr8"] | None, Query(description="the body is bare pixels, row after row, not a file")
    ] = None,
    width: Size = None,
    height: Size = None,
    bit_depth: Annotated[int | None, Query(ge=9, le=16, description="bits the camera fills in 16-bit files")] = None,
) -> AsyncIterator[UploadedImage]:
    """The image of a request's body: a file's bytes, or with ``pixels``, ``width`` and ``height`` the pixels themselves."""
    service: UploadQueue = request.app.state.service
    service.check_queue()  # before the body is read: whoever waits for that answer need not send it
    check_encoding(request.headers.get("content-encoding", ""))
    body = await receive(request, service)
    content_type = request.headers.get("content-type", "")
    with service.place():
        yield await asyncio.to_thread(_decoded, body, content_type, name, pixels, width, height, bit_depth)


async def receive(request: Request, service: Receiving) -> bytes:
    """Read a body. It takes no place in the queue, so that slow senders keep nobody waiting."""
    body = bytearray()
    try:
        with service.receiving() as count:
            async with asyncio.timeout(UPLOAD_TIMEOUT):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MAX_UPLOAD_BYTES:
                        raise RequestError(413, f"expected an image of at most {MAX_UPLOAD_BYTES >> 20} MiB, got more")
                    count(len(chunk))
    except TimeoutError:
        raise RequestError(408, f"the image was not all there after {UPLOAD_TIMEOUT} s; send it again") from None
    except ClientDisconnect:
        raise RequestError(400, "the sender went away before all of the image was sent") from None
    return bytes(body)


def _decoded(
    body: bytes,
    content_type: str,
    name: str,
    pixels: str | None,
    width: int | None,
    height: int | None,
    bit_depth: int | None,
) -> UploadedImage:
    from ..images.decode import decode  # only now: a page that takes no image stays small

    if is_multipart(content_type):
        body, file_name = form_file(body, content_type)
        name, content_type = name or file_name, ""
    label = name or "the image"
    if not body:
        raise ImageError(f"{label}: expected an image, got nothing; {HOW_TO_SEND}")
    if pixels is None and (width is not None or height is not None):
        raise ImageError(f"{label}: width and height go with bare pixels; say which: {', '.join(CHANNELS)}")
    if pixels is not None and (width is None or height is None or bit_depth is not None):
        raise ImageError(f"{label}: bare pixels have 8 bits and need width and height")
    if pixels is not None and width is not None and height is not None:
        return UploadedImage(_from_pixels(body, label, pixels, width, height), name, b"")
    try:
        return UploadedImage(decode(body, label, bit_depth), name, body, bit_depth)
    except ImageError as exc:
        explanation = hint(body, content_type)
        raise (ImageError(f"{label}: {explanation}") if explanation else exc) from None


def _from_pixels(body: bytes, label: str, pixels: str, width: int, height: int) -> RGB8:
    expected = width * height * CHANNELS[pixels]
    if len(body) != expected:
        raise ImageError(
            f"{label}: expected {expected} bytes for {width} x {height} pixels in {pixels}, got {len(body)}"
        )
    import numpy as np

    from ..images.arrays import from_array

    shape = (height, width) if pixels == "mono8" else (height, width, 3)
    return from_array(np.frombuffer(body, np.uint8).reshape(shape), "bgr" if pixels == "bgr8" else "rgb")
