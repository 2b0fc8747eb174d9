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

HARMLESS = (
    "Warning: unknown JFIF revision",
    "Unknown Adobe color transform",
    "Invalid SOS parameters for sequential",
)
"""How libjpeg's warnings begin that concern the form of the header: the pixels are whole."""
DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression sequence")
"""How its warnings of damage begin."""
SIGNATURE = b"\xff\xd8"
SOI, EOI, SOS, APP0, APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
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
        if pixels.shape[:2] != (image.height, image.width):
            raise ImageError(f"{label}: damaged, or a JPEG of an unusual kind (two headers of different sizes)")
        return pixels if image.mode == "RGB" else to_rgb(pixels[:, :, 0])
    check_jpeg(data, label)
    return np.asarray(image.convert("RGB"))


def check_jpeg(data: bytes, label: str | Path) -> None:
    """Decode at an eighth of the size, which unpacks everything, for the warnings alone.

    Raises:
        ImageError: libjpeg warns of damaged data.
    """
    _strict(data, "GRAY", label, min_height=1, min_width=1, min_factor=1)


def _strict(data: bytes, colours: str, label: str | Path, **size: int) -> RGB8:
    """Pixels, (H, W, channels)."""
    import simplejpeg

    for file in (data, None):  # a warning of the header's form hides those behind it: then once more without its cause
        try:
            pixels = simplejpeg.decode_jpeg(file or _in_form(data), colours, strict=True, **size)
            return np.asarray(pixels, np.uint8)
        except ValueError as exc:
            message = str(exc)
            if not message.startswith(HARMLESS):
                break
    # what cannot be decoded here cannot be checked: unusual chroma subsampling, or a damaged header
    what = "damaged or truncated image" if message.startswith(DAMAGE) else "damaged, or a JPEG of an unusual kind"
    raise ImageError(f"{label}: {what} ({message})")


def _in_form(data: bytes) -> bytes:
    """The file with those fields of the header set right that have no effect on pixels but make libjpeg warn."""
    segments = list(_segments(data))
    components = next((body[5] for kind, _, body in segments if kind in _FRAMES and len(body) > 5), 3)
    progressive = any(kind in _PROGRESSIVE for kind, _, _ in segments)
    copy = bytearray(data)
    for kind, start, body in segments:
        if kind == APP0 and body[:5] == b"JFIF\0" and len(body) > 5:
            copy[start + 5] = 1  # the revision
        elif (
            kind == APP14
            and body[:5] == b"Adobe"
            and len(body) > 11
            and body[11] not in (0, 2 if components == 4 else 1)
        ):
            copy[start + 11] = 2 if components == 4 else 1  # what libjpeg assumes for an unknown transform
        elif kind == SOS and body and len(body) == 2 * body[0] + 4 and not progressive:
            copy[start + len(body) - 3 : start + len(body)] = bytes((0, 63, 0))
    return bytes(copy)


def check_header(data: bytes, label: str | Path) -> None:
    """Refuse the kinds of JPEG that no decoder here reads, and say what they are.

    Raises:
        ImageError: not 8 bits, lossless, or hierarchical.
    """
    for kind, _, body in _segments(data):
        if kind in _FRAMES:
            name = "" if kind in _READ else "of a lossless or hierarchical kind"
            if body and body[0] != 8:
                name = f"of {body[0]} bits"
            if name:
                raise ImageError(f"{label}: a JPEG {name} is not read; save it with 8 bits, baseline or progressive")
            return


def check_scans(data: bytes, label: str | Path) -> None:
    """See that a progressive file holds the last bit of every coefficient. libjpeg does not warn of scans that are missing.

    Raises:
        ImageError: scans are missing.
    """
    missing: dict[int, set[int]] = {}
    for kind, _, body in _segments(data):
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


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Each marker of the first image, where its segment's body begins, and the body."""
    place = 2
    while (marker := _MARKER.search(data, place)) is not None and marker.group()[1] != EOI:
        kind, place = marker.group()[1], marker.end()
        if kind in (SOI, 0x01):
            continue
        length = struct.unpack_from(">H", data, place)[0] if place + 2 <= len(data) else 2
        yield kind, place + 2, data[place + 2 : place + length]
        place += max(length, 2)


def with_tables(tables: bytes, strip: bytes) -> bytes:
    """A strip of a TIFF as a file: its tables lie in the directory (tag JPEGTables)."""
    return tables[:-2] + strip[2:] if tables.startswith(SIGNATURE) and tables.endswith(b"\xff\xd9") else strip
