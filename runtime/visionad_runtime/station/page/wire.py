"""Messages between the front and the page process: a JSON header and bytes, with their lengths before them."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

_LENGTHS = struct.Struct("!II")
MAX_BYTES = 512 << 20
"""Largest message. A longer one is a mistake of the sender, and the connection ends."""

Blobs = Sequence[bytes]


def packed(header: Mapping[str, Any], blobs: Blobs = ()) -> bytes:
    """Return a message.

    Args:
        header: becomes JSON. The key ``blobs`` is taken: it holds the lengths.
        blobs: bytes that follow the header.
    """
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]} if blobs else dict(header)).encode()
    return b"".join((_LENGTHS.pack(len(text), sum(map(len, blobs))), text, *blobs))


async def receive(reader: asyncio.StreamReader) -> tuple[dict[str, Any], list[bytes]]:
    """Return the next message.

    Raises:
        EOFError: The other side is gone, or sent something else.
    """
    try:
        size, rest = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        if size + rest > MAX_BYTES:
            raise EOFError(f"expected a message of at most {MAX_BYTES} bytes, got {size + rest}")
        header = json.loads(await reader.readexactly(size))
        body = await reader.readexactly(rest)
    except (asyncio.IncompleteReadError, OSError, ValueError) as exc:
        raise EOFError(str(exc)) from None
    blobs, place = [], 0
    for length in header.pop("blobs", ()):
        blobs.append(body[place : place + length])
        place += length
    return header, blobs
