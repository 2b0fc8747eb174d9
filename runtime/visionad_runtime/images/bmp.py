"""Run-length encoded BMP (RLE4, RLE8) -> pixels. Pillow's RLE4 loses the place after runs of odd length and after jumps."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ..errors import ImageError
from .pixels import RGB8

RLE8, RLE4 = 1, 2


def rle_bits(data: bytes) -> int | None:
    """4 or 8 if the file is a run-length encoded BMP."""
    if data[:2] != b"BM" or len(data) < 54 or struct.unpack_from("<I", data, 14)[0] < 40:
        return None
    bits, compression = struct.unpack_from("<HI", data, 28)
    return {RLE8: 8, RLE4: 4}.get(compression) if bits == {RLE8: 8, RLE4: 4}.get(compression) else None


def decode_rle(data: bytes, bits: int, label: str | Path) -> RGB8:
    """Unpack it. Pixels that the file jumps over have the palette's first color.

    Args:
        data: the file; its size was checked.
        bits: 4 or 8.
        label: what to call the image in errors.

    Raises:
        ImageError: the data end early, a run leaves the image, or a color is not in the palette.
    """
    offset, header = struct.unpack_from("<II", data, 10)
    width, height = struct.unpack_from("<ii", data, 18)
    colours = struct.unpack_from("<I", data, 46)[0] or 1 << bits
    palette = np.frombuffer(data, np.uint8, offset=14 + header)[: 4 * min(colours, 1 << bits)]
    palette = palette[: len(palette) // 4 * 4].reshape(-1, 4)[:, 2::-1]
    try:
        indices = _indices(memoryview(data)[offset:], width, abs(height), bits)
        rgb = palette[indices]
    except (IndexError, ValueError) as exc:
        raise ImageError(f"{label}: damaged or truncated image (run-length encoded BMP: {exc})") from None
    return np.ascontiguousarray(rgb if height < 0 else rgb[::-1])


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
