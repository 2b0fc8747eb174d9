"""PNG bytes -> the chunks that decide pixels."""

from __future__ import annotations

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
"""What decides pixels, and what tells an animation. Text, profiles, dates and transparency are dropped before a decoder sees them.
Their length, packing and checksums are no reason to refuse sound pixels, and no decoder here applies them."""


def is_cut(data: bytes) -> bool:
    """Whether the file ends before its last chunk does. OpenCV makes room for the length that a chunk states, up to 4 GB."""
    place, kind = len(SIGNATURE), b""
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        place += 12 + length
        if kind == b"IEND":
            break
    return place > len(data) or kind != b"IEND"


def pixel_chunks(data: bytes) -> bytes:
    """The file without chunks that decide no pixel. From the first chunk that is cut off on, it is as it was."""
    parts, place = [SIGNATURE], len(SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data) or kind == b"IEND":
            break
        critical = not kind[0] & 0x20
        if critical or kind in KEPT:
            parts.append(data[place:end])
        place = end
    return b"".join((*parts, data[place:]))
