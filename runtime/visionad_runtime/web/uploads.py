"""Images that requests carry: files or bare pixels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

import numpy as np
from fastapi import Query, Request
from starlette.requests import ClientDisconnect

from ..errors import ImageError
from ..images.arrays import from_array
from ..images.decode import decode
from .service import InspectionService, RequestError, UploadedImage

MAX_UPLOAD_BYTES = 256 << 20
"""Of a request. Larger ones are refused before they are read to the end."""
UPLOAD_TIMEOUT = 30.0
"""For an image to arrive: it has a place of those that others wait for."""

CHANNELS = {"mono8": 1, "rgb8": 3, "bgr8": 3}
"""Pixel formats that need no file around them, by GenICam's names (PFNC) in small letters."""


Size = Annotated[int | None, Query(ge=1, le=1 << 20)]


async def read_upload(
    request: Request,
    name: Annotated[str, Query(description="what to call the image")] = "",
    pixels: Annotated[
        Literal["mono8", "rgb8", "bgr8"] | None, Query(description="the body is bare pixels, row after row, not a file")
    ] = None,
    width: Size = None,
    height: Size = None,
    bit_depth: Annotated[int | None, Query(ge=9, le=16, description="bits the camera fills in 16-bit files")] = None,
) -> AsyncIterator[UploadedImage]:
    """The image of a request's body: a file's bytes, or with ``pixels``, ``width`` and ``height`` the pixels themselves."""
    origin = request.headers.get("origin")  # which browsers send, and programs do not
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise RequestError(403, f"asked by a page of {origin}; only pages of this service's own address may")
    line: InspectionService = request.app.state.line
    with line.place():
        body = bytearray()
        try:
            async with asyncio.timeout(UPLOAD_TIMEOUT):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MAX_UPLOAD_BYTES:
                        raise RequestError(413, f"expected an image of at most {MAX_UPLOAD_BYTES >> 20} MiB, got more")
        except TimeoutError:
            raise RequestError(408, f"the image was not all there after {UPLOAD_TIMEOUT} s; send it again") from None
        except ClientDisconnect:
            raise RequestError(400, "the sender went away before all of the image was sent") from None
        yield await asyncio.to_thread(_decoded, bytes(body), name, pixels, width, height, bit_depth)


def _decoded(
    body: bytes, name: str, pixels: str | None, width: int | None, height: int | None, bit_depth: int | None
) -> UploadedImage:
    label = name or "the image"
    if not body:
        raise ImageError(f"{label}: expected an image as the request's body, got nothing")
    if pixels is None:
        if width is not None or height is not None:
            raise ImageError(f"{label}: width and height go with bare pixels; say which: {', '.join(CHANNELS)}")
        return UploadedImage(decode(body, label, bit_depth), name, body)
    if width is None or height is None or bit_depth is not None:
        raise ImageError(f"{label}: bare pixels have 8 bits and need width and height")
    wanted = width * height * CHANNELS[pixels]
    if len(body) != wanted:
        raise ImageError(f"{label}: expected {wanted} bytes for {width} x {height} pixels in {pixels}, got {len(body)}")
    shape = (height, width) if pixels == "mono8" else (height, width, 3)
    rgb = from_array(np.frombuffer(body, np.uint8).reshape(shape), "bgr" if pixels == "bgr8" else "rgb")
    return UploadedImage(rgb, name, body)
