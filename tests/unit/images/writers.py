"""Image files by hand, in the forms that no library writes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.generic]
_REVERSED = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)


def pillow(pixels: Array | Image.Image, kind: str, **options: object) -> bytes:
    """A file that Pillow writes."""
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **options)
    return out.getvalue()


def tifffile_bytes(pixels: Array, **options: object) -> bytes:
    """A file that tifffile writes."""
    import tifffile

    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)  # type: ignore[arg-type]
    return out.getvalue()


def png_chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """One chunk, with a right checksum unless another is given."""
    right = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", right)


def with_chunk(png: bytes, chunk: bytes) -> bytes:
    """A PNG with a chunk behind its header."""
    return png[:33] + chunk + png[33:]


def pack_bits(values: NDArray[np.integer], bits: int) -> bytes:
    """Rows of samples, the highest bit first, each row padded to a byte."""
    rows = []
    for row in values.reshape(values.shape[0], -1):
        text = "".join(f"{int(value):0{bits}b}" for value in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        rows.append(bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8)))
    return b"".join(rows)


def tiff(
    values: NDArray[np.integer], bits: int, photometric: int, order: str = "<", fill: int = 1, **tags: list[int]
) -> bytes:
    """An uncompressed TIFF of one strip.

    Args:
        values: (H, W) or (H, W, S).
        bits: of a sample.
        photometric: PhotometricInterpretation.
        order: ``"<"`` or ``">"``.
        fill: FillOrder.
        **tags: further tags, named ``t`` and their number, as 16-bit values.
    """
    samples = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(f"{order}u2").tobytes() if bits == 16 else pack_bits(values, bits)
    if fill == 2:
        data = _REVERSED[np.frombuffer(data, np.uint8)].tobytes()
    entries = {256: [values.shape[1]], 257: [values.shape[0]], 258: [bits] * samples, 259: [1], 262: [photometric],
               266: [fill], 277: [samples], 278: [values.shape[0]]}  # fmt: skip
    entries |= {int(name[1:]): numbers for name, numbers in tags.items()}
    return tiff_of({**{tag: ("H", numbers) for tag, numbers in entries.items()}, 279: ("I", [len(data)])}, data, order)


def tiff_of(entries: dict[int, tuple[str, list[int]]], data: bytes, order: str = "<") -> bytes:
    """A TIFF of one strip or tile, whose offset is filled in."""
    body = data + b"\0" * (len(data) % 2)
    entries = {273: ("I", [8]), **entries}
    start = 8 + len(body)
    heap_at = start + 2 + 12 * len(entries) + 4
    directory, heap = struct.pack(order + "H", len(entries)), b""
    for tag, (code, numbers) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        kind = {"B": 1, "H": 3, "I": 4}[code]
        if len(raw) > 4:
            heap, raw = heap + raw, struct.pack(order + "I", heap_at + len(heap))
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + raw.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + body + directory + bytes(4) + heap


def rle_bmp(codes: bytes, width: int, height: int, bits: int, palette: NDArray[np.uint8]) -> bytes:
    """A run-length encoded BMP. ``palette`` is (n, 3) RGB, ``height`` negative for top-down."""
    table = np.pad(palette[:, ::-1], ((0, 0), (0, 1))).tobytes()
    offset = 54 + len(table)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, 1 if bits == 8 else 2, len(codes), 0, 0, len(palette), 0
    )
    return b"BM" + struct.pack("<IHHI", offset + len(codes), 0, 0, offset) + info + table + codes


def indexed_bmp(
    indices: NDArray[np.integer],
    bits: int,
    palette: NDArray[np.uint8],
    header: int = 40,
    top_down: bool = False,
    gap: int = 0,
) -> bytes:
    """A BMP whose pixels are places in a palette, (n, 3) RGB; ``gap`` bytes lie before the pixels."""
    height, width = indices.shape
    rows = [pack_bits(row[None], bits) for row in (indices if top_down else indices[::-1])]
    body = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    if header == 12:
        info, table = struct.pack("<IHHHH", 12, width, height, 1, bits), palette[:, ::-1].tobytes()
    else:
        signed = -height if top_down else height
        info = struct.pack("<IiiHHIIiiII", header, width, signed, 1, bits, 0, len(body), 0, 0, len(palette), 0)
        info, table = info.ljust(header, b"\0"), np.pad(palette[:, ::-1], ((0, 0), (0, 1))).tobytes()
    offset = 14 + len(info) + len(table) + gap
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + table + bytes(gap) + body
