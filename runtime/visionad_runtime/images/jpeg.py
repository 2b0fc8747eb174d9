"""JPEG bytes -> pixels, with libjpeg's own warnings of damage as errors.

Pillow silences these warnings, and OpenCV prints them for the whole process. ``simplejpeg`` raises them. Its pixels are Pillow's.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import ImageError
from .pixels import RGB8, to_rgb

DAMAGE = (
    "Corrupt JPEG data",
    "Premature end of JPEG",
    "Inconsistent progression sequence",
    "Bogus",
    "Invalid SOS parameters for prog",
)
"""How libjpeg's warnings of damage begin. Its others concern the form of the header: the pixels are whole."""
SIGNATURE = b"\xff\xd8"
SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_READ = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_PROGRESSIVE = (0xC2, 0xCA)
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker that ends entropy-coded data."""


def decode_jpeg(data: bytes, image: Image.Image, label: str | Path) -> RGB8:
    """Decode a JPEG that Pillow has opened.

    Args:
        data: the file; of several images (MPO, two frames behind each other) the first is read.
        image: Pillow's view of its header.
        label: what to call the image in errors.

    Raises:
        ImageError: libjpeg warns of damaged data, or a progressive file lacks its last scans.
    """
    check_scans(data, label)
    if image.mode in ("RGB", "L"):
        pixels = _strict(data, "RGB" if image.mode == "RGB" else "GRAY", label)
        if pixels is not None and pixels.shape[:2] == (image.height, image.width):
            return pixels if image.mode == "RGB" else to_rgb(pixels[:, :, 0])
    else:
        check_jpeg(data, label)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def check_jpeg(data: bytes, label: str | Path, colours: str = "GRAY") -> None:
    """Decode at an eighth of the size, which unpacks everything, for the warnings alone.

    Raises:
        ImageError: libjpeg warns of damaged data.
    """
    _strict(data, colours, label, min_height=1, min_width=1, min_factor=1)


def _strict(data: bytes, colours: str, label: str | Path, **size: int) -> RGB8 | None:
    """Pixels (H, W, channels), or None where this decoder does not take the file: Pillow then says why, or reads it."""
    import simplejpeg

    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colours, strict=True, **size), np.uint8)
    except ValueError as exc:
        if str(exc).startswith(DAMAGE):
            raise ImageError(f"{label}: damaged or truncated image ({exc})") from None
        return None


def check_header(data: bytes, label: str | Path) -> None:
    """Refuse the kinds of JPEG that no decoder here reads, and say what they are.

    Raises:
        ImageError: not 8 bits, lossless, or hierarchical.
    """
    for kind, body in _segments(data):
        if kind in _FRAMES:
            name = (
                f"of {body[0]} bits"
                if body and body[0] != 8
                else None
                if kind in _READ
                else "of a lossless or hierarchical kind"
            )
            if name:
                raise ImageError(f"{label}: a JPEG {name} is not read; save it with 8 bits, baseline or progressive")
            return


def check_scans(data: bytes, label: str | Path) -> None:
    """See that a progressive file holds the last bit of every coefficient. libjpeg does not warn of scans that are missing.

    Raises:
        ImageError: scans are missing.
    """
    missing: dict[int, set[int]] = {}
    for kind, body in _segments(data):
        if kind in _FRAMES:
            if kind not in _PROGRESSIVE:
                return
            missing = {component: set(range(64)) for component in body[6::3]}
        elif kind == SOS and body:
            spectrum = body[1 + 2 * body[0] :]
            if len(spectrum) >= 3 and not spectrum[2] & 15:  # the lowest bit
                for component in body[1 : 1 + 2 * body[0] : 2]:
                    missing.get(component, set()).difference_update(range(spectrum[0], spectrum[1] + 1))
    if any(missing.values()):
        raise ImageError(f"{label}: damaged or truncated image (a progressive JPEG without its last scans)")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each marker of the first image with its segment's body."""
    place = 2
    while (marker := _MARKER.search(data, place)) is not None and marker.group()[1] != EOI:
        kind, place = marker.group()[1], marker.end()
        if kind in (SOI, 0x01):
            continue
        length = struct.unpack_from(">H", data, place)[0] if place + 2 <= len(data) else 2
        yield kind, data[place + 2 : place + length]
        place += max(length, 2)


def with_tables(tables: bytes, strip: bytes) -> bytes:
    """A strip of a TIFF as a file: its tables lie in the directory (tag JPEGTables)."""
    return tables[:-2] + strip[2:] if tables.startswith(SIGNATURE) and tables.endswith(b"\xff\xd9") else strip
