"""BMP with a palette -> pixels.

Pillow takes 4 and 8 bits a pixel for 1 where the palette is black and white, and its RLE4 loses the place after runs of odd length
and after jumps.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ImageError
from .pixels import RGB8

NONE, RLE8, RLE4 = 0, 1, 2
OS2_HEADER = 12
"""Bytes of the oldest header; its palette has 3 bytes a color, and as many colors as there can be."""


class Indexed(NamedTuple):
    """Header of a BMP whose pixels are places in a palette.

    Attributes:
        offset: where the pixels begin.
        width: in pixels.
        height: rows; below zero if the first row is the uppermost.
        bits: 1, 4 or 8 a pixel.
        compression: :data:`NONE`, :data:`RLE8` or :data:`RLE4`.
        palette: uint8 (colors, 3) RGB.
    """

    offset: int
    width: int
    height: int
    bits: int
    compression: int
    palette: RGB8


def indexed(data: bytes) -> Indexed | None:
    """Return the header of a BMP with a palette; ``None`` for all other files."""
    if data[:2] != b"BM" or len(data) < 26:
        return None
    offset, header = struct.unpack_from("<II", data, 10)
    if header == OS2_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, colours, entry = NONE, 0, 3
    elif header >= 40 and len(data) >= 54:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        colours, entry = struct.unpack_from("<I", data, 46)[0], 4
    else:
        return None
    if (bits, compression) not in ((1, NONE), (4, NONE), (8, NONE), (4, RLE4), (8, RLE8)):
        return None
    start = 14 + header
    end = min(start + entry * min(colours or 1 << bits, 1 << bits), offset if offset > start else len(data))
    table = np.frombuffer(data[start:end], np.uint8)
    palette = table[: len(table) // entry * entry].reshape(-1, entry)[:, 2::-1]
    return Indexed(offset, width, height, bits, compression, palette)


def decode_indexed(data: bytes, head: Indexed, label: str | Path) -> RGB8:
    """Unpack it. Pixels that a run-length encoded file jumps over have the palette's first color.

    Args:
        data: the file; its size was checked.
        head: its header.
        label: what to call the image in errors.

    Raises:
        ImageError: the data end early, a run leaves the image, or a color is not in the palette.
    """
    try:
        if head.compression == NONE:
            indices = _stored(data, head)
        else:
            indices = _indices(memoryview(data)[head.offset :], head.width, abs(head.height), head.bits)
        rgb = head.palette[indices]
    except (IndexError, ValueError) as exc:
        raise ImageError(f"{label}: damaged or truncated image (BMP with a palette: {exc})") from None
    return np.ascontiguousarray(rgb if head.height < 0 else rgb[::-1])


def _stored(data: bytes, head: Indexed) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Palette indices of pixels that are not packed, (height, width), the file's first row first. Rows fill whole words."""
    height, width, bits = abs(head.height), head.width, head.bits
    stride = (width * bits + 31) // 32 * 4
    rows = np.frombuffer(data, np.uint8, stride * height, head.offset).reshape(height, stride)
    if bits == 8:
        return rows[:, :width]
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (rows[:, :, None] >> shifts & np.uint8((1 << bits) - 1)).reshape(height, -1)[:, :width]


def _indices(codes: memoryview, width: int, height: int, bits: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Palette indices, (height, width), the file's first row first."""
    rows = [bytearray(width) for _ in range(height)]
    place, x, y = 0, 0, 0
    while True:
        count, value = codes[place], codes[place + 1]
        place += 2
        if count:
            run = bytes((value,)) * count if bits == 8 else bytes((value >> 4, value & 15)) * ((count + 1) // 2)
        elif value == 0:
            x, y = 0, y + 1
            continue
        elif value == 1:
            return np.frombuffer(b"".join(rows), np.uint8).reshape(height, width)
        elif value == 2:
            x, y, place = x + codes[place], y + codes[place + 1], place + 2
            continue
        else:
            count = value
            size = count if bits == 8 else (count + 1) // 2
            packed = bytes(codes[place : place + size])
            if len(packed) < size:
                raise IndexError("the data end early")
            run = packed if bits == 8 else bytes(half for pair in packed for half in (pair >> 4, pair & 15))
            place += size + (size & 1)
        if y >= height or x + count > width + (bits == 4 and count & 1):
            raise ValueError("a run leaves the image")
        end = min(x + count, width)
        rows[y][x:end] = run[: end - x]
        x = end
