"""PBM, PGM, PPM bytes: are all values allowed, and is it one image? Pillow and OpenCV cut values off, and take the first image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import ImageError

_HEADER = re.compile(rb"P([456])(?:\s|#[^\r\n]*[\r\n])+(\d+)(?:\s|#[^\r\n]*[\r\n])+(\d+)")
_LARGEST = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)")
_NEXT = re.compile(rb"\s*P[1-7]\s")


def check_pnm(data: bytes, label: str | Path) -> None:
    """Check a file with binary values (P4, P5, P6); others are left to the decoder.

    Args:
        data: the file; its size was checked.
        label: what to call the image in errors.

    Raises:
        ImageError: A value is larger than the header allows, or another image follows.
    """
    header = _HEADER.match(data)
    if header is None:
        return
    kind, width, height = (int(one) for one in header.groups())
    start, largest, size = header.end(), 1, (width + 7) // 8 * height
    if kind != 4:
        found = _LARGEST.match(data, start)
        if found is None:
            return
        start, largest = found.end(), int(found[1])
        size = width * height * (3 if kind == 6 else 1) * (1 if largest < 256 else 2)
    start += 1  # the one character behind the header
    if _NEXT.match(data, start + size):
        raise ImageError(f"{label}: holds several frames; expected a single image")
    if kind == 4 or len(data) < start + size or not size:
        return
    values = np.frombuffer(data, np.uint8 if largest < 256 else ">u2", size // (1 if largest < 256 else 2), start)
    if int(values.max()) > largest:
        raise ImageError(
            f"{label}: damaged image (a value of {int(values.max())}, and its header says that none is above {largest})"
        )
