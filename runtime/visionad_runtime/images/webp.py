"""WebP bytes: was all of the pixel data needed?

The format has no checksum and libwebp no warnings. Damaged data, however, make the decoder consume another number of bytes than the
encoder wrote. Too few left is libwebp's error. Too many left is found here.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

from PIL import Image

from ..errors import ImageError

SPARE_BYTES = 8
"""Encoders end a stream with at most 3 bytes that no pixel needs."""
MIN_STREAM_BYTES = 64
ANIMATED = 2
"""Flag of the extended header."""


def check_webp(data: bytes, label: str | Path) -> None:
    """Decode again without the last bytes of the pixel data, which must fail.

    Raises:
        ImageError: it does not: what lies there was skipped, so the data before it are damaged. Or it is an animation.
    """
    if data[12:16] == b"VP8X" and data[20:21] and data[20] & ANIMATED:
        raise ImageError(f"{label}: holds an animation; expected a single image")
    shorter = _shortened(data)
    if shorter is None:
        return
    try:
        with Image.open(io.BytesIO(shorter), formats=("WEBP",)) as image:
            image.load()
    except Exception:  # as it should be
        return
    raise ImageError(f"{label}: damaged or truncated image (its WebP data end before their last {SPARE_BYTES} bytes)")


def _shortened(data: bytes) -> bytes | None:
    place = 12
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        end = place + 8 + size
        if kind in (b"VP8 ", b"VP8L"):
            if size < MIN_STREAM_BYTES or end > len(data):
                return None
            body = data[place + 8 : end - SPARE_BYTES]
            rest = (
                data[12:place]
                + kind
                + struct.pack("<I", len(body))
                + body
                + b"\0" * (len(body) & 1)
                + data[end + (size & 1) :]
            )
            return b"RIFF" + struct.pack("<I", len(rest) + 4) + b"WEBP" + rest
        place = end + (size & 1)
    return None
