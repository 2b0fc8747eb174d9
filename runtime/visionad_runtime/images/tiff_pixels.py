"""A TIFF page -> its samples, whatever its planes, strips, tiles, packing, byte order, bit order and orientation.

Pillow drops the low bits of 16, and lacks some bit orders and layouts. OpenCV reads planes as if they were interleaved, and leaves
"white is zero" as it is.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from ..errors import ImageError
from .jpeg import check_jpeg, with_tables
from .tiff_directory import CMYK, DEFLATE, JPEG, LZMA, LZW, NONE, PACKBITS, ZSTD, TiffPage

Samples = NDArray[np.uint8] | NDArray[np.uint16]
BATCH_BYTES = 32 << 20
"""Unpacked bytes that one call of libtiff makes."""
MAX_SPARE_BYTES = 64 << 20
"""Bytes of a strip behind its last row that are unpacked to reach the checksum."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def reads(page: TiffPage) -> bool:
    """Does :func:`read_samples` read such a page?"""
    packed = page.compression in (NONE, LZW, PACKBITS, LZMA, ZSTD, *DEFLATE)
    return packed and page.photometric in (0, 1, 2, 3, CMYK)


def read_samples(page: TiffPage, label: str | Path) -> Samples:
    """Unpack a page's samples. Fewer than 8 bits are scaled to 0..255, colors of a palette are looked up.

    Args:
        page: one that :func:`reads` takes.
        label: what to call the image in errors.

    Returns:
        uint8 or uint16: (H, W) grey, black is zero; (H, W, 3) RGB; or (H, W, 4) CMYK. Alpha is dropped.

    Raises:
        ImageError: a strip or tile is missing, truncated or damaged; or the colors are multiplied by an alpha that is not opaque.
    """
    try:
        samples = _assemble(page)
    except (ValueError, OSError, SyntaxError, zlib.error, lzma.LZMAError, struct.error, IndexError) as exc:
        raise ImageError(f"{label}: damaged or truncated image ({exc})") from None
    colours = {2: 3, CMYK: 4}.get(page.photometric, 1)
    if page.samples > colours:
        if page.get(338) == 1 and (samples[:, :, colours] != (1 << page.bits) - 1).any():
            raise ImageError(
                f"{label}: a TIFF of colors multiplied by their transparency is not read; save it without alpha"
            )
        samples = samples[:, :, :colours]
    pixels = samples[:, :, 0] if colours == 1 else samples
    if page.photometric == 3:
        pixels = _palette(page, label)[pixels]
    elif page.bits < 8:
        pixels = pixels * np.uint8(255 // ((1 << page.bits) - 1))
    if page.photometric == 0:
        pixels = np.subtract((1 << max(8, page.bits)) - 1, pixels, dtype=pixels.dtype)
    return np.ascontiguousarray(orient(pixels, page.get(274, 1)))


def _palette(page: TiffPage, label: str | Path) -> NDArray[np.uint8]:
    """Colors, (2 ** bits, 3). Some writers fill the 16-bit entries with 8-bit values; libtiff tells them the same way."""
    values = np.array(page.tags.get(320, ()), np.uint16)
    if len(values) != 3 << page.bits:
        raise ImageError(
            f"{label}: damaged or truncated image (a palette of {len(values)} values, expected {3 << page.bits})"
        )
    return (values >> 8 if values.max() > 255 else values).astype(np.uint8).reshape(3, -1).T


def check_strips(page: TiffPage, label: str | Path) -> None:
    """See that a page that Pillow decodes has all its strips or tiles, within the file, and that those packed as JPEG are sound.

    Raises:
        ImageError: one is not.
    """
    try:
        number = _grid(page)[-1]
    except ValueError as exc:
        raise ImageError(f"{label}: damaged or truncated image ({exc})") from None
    if len(page.offsets) < number or len(page.sizes) < number:
        raise ImageError(
            f"{label}: damaged or truncated image (expected {number} strips or tiles, got "
            f"{min(len(page.offsets), len(page.sizes))})"
        )
    for offset, size in zip(page.offsets, page.sizes, strict=False):
        if offset + size > len(page.data):
            raise ImageError(f"{label}: damaged or truncated image (a strip or tile lies beyond the file)")
        if page.compression == JPEG:
            tables = bytes(page.tags.get(347, ()))
            check_jpeg(with_tables(tables, page.data[offset : offset + size]), label)


def orient(pixels: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """Turn stored rows upright as TIFF's Orientation says. Values outside 1..8 mean 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _assemble(page: TiffPage) -> Samples:
    """Rows, columns and samples of the page, (H, W, S), in the machine's byte order, predictor undone."""
    tiled, offsets, sizes = page.tiled, page.offsets, page.sizes
    width, height, depth = page.width, page.height, page.samples
    planes, inner = (depth, 1) if page.planar else (1, depth)
    across, down, columns, rows, number = _grid(page)
    if not len(offsets) >= number <= len(sizes or offsets):
        raise ValueError(f"expected {number} strips or tiles, got {min(len(offsets), len(sizes or offsets))}")
    if not sizes:
        if page.compression != NONE or number != 1:
            raise ValueError("the strips' lengths are missing")
        sizes = (len(page.data) - offsets[0],)
    heights = [down if tiled else min(down, height - r * down) for r in range(rows)]
    shapes = [(heights[i // columns % rows], across, inner) for i in range(number)]
    image = np.empty((height, width, depth), np.uint8 if page.bits <= 8 else np.uint16)
    stored = np.dtype(f"{page.order}u{image.itemsize}")
    predicted = page.get(317, 1) == 2
    segments = _unpacked(page, offsets[:number], sizes[:number], [_bytes_of(shape, page.bits) for shape in shapes])
    for i, (raw, shape) in enumerate(zip(segments, shapes, strict=True)):
        block = _samples_of(raw, shape, page.bits, stored)
        if predicted:
            block = np.cumsum(block, axis=1, dtype=image.dtype)
        plane, place = divmod(i, columns * rows)
        top, left = place // columns * down, place % columns * across
        samples = slice(plane, plane + 1) if planes > 1 else slice(None)
        target = image[top : top + down, left : left + across, samples]
        target[...] = block[: target.shape[0], : target.shape[1]]
    return image


def _grid(page: TiffPage) -> tuple[int, int, int, int, int]:
    """Width and height of a strip or tile; how many lie beside and below each other; how many there are, all planes together.

    Raises:
        ValueError: there are no pixels.
    """
    across = page.get(322) if page.tiled else page.width
    down = page.get(323) if page.tiled else min(page.get(278, page.height) or page.height, page.height)
    if min(page.width, page.height, across, down) < 1:
        raise ValueError("no pixels")
    columns, rows = -(-page.width // across), -(-page.height // down)
    return across, down, columns, rows, columns * rows * (page.samples if page.planar else 1)


def _bytes_of(shape: tuple[int, int, int], bits: int) -> int:
    """Bytes of a strip or tile; each row begins with a whole byte."""
    return shape[0] * (-(-shape[1] * shape[2] * bits // 8))


def _samples_of(raw: bytes, shape: tuple[int, int, int], bits: int, stored: np.dtype[np.unsignedinteger]) -> Samples:
    """Samples of a strip or tile. Those that are no whole bytes lie one behind the other, the highest bit first."""
    if bits in (8, 16):
        return np.frombuffer(raw, stored, shape[0] * shape[1] * shape[2]).reshape(shape)
    rows = np.frombuffer(raw, np.uint8, _bytes_of(shape, bits)).reshape(shape[0], -1)
    if bits == 12:
        one, two, three = (part.astype(np.uint16) for part in np.moveaxis(_in_threes(rows), -1, 0))
        samples = np.stack([one << 4 | two >> 4, (two & 15) << 8 | three], axis=-1)
    else:
        shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
        samples = rows[:, :, None] >> shifts & np.uint8((1 << bits) - 1)
    return samples.reshape(shape[0], -1)[:, : shape[1] * shape[2]].reshape(shape)


def _in_threes(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    missing = -rows.shape[1] % 3
    padded = np.pad(rows, ((0, 0), (0, missing))) if missing else rows
    return padded.reshape(rows.shape[0], -1, 3)


def _unpacked(page: TiffPage, offsets: tuple[int, ...], sizes: tuple[int, ...], lengths: list[int]) -> Iterator[bytes]:
    """Each segment's bytes, at least ``lengths`` of them."""
    packed = []
    for offset, size in zip(offsets, sizes, strict=True):
        segment = page.data[offset : offset + size]
        if len(segment) != size:
            raise ValueError("a strip or tile lies beyond the file")
        packed.append(segment.translate(_REVERSED) if page.get(266, 1) == 2 else segment)
    if page.compression not in (NONE, *DEFLATE):
        yield from _by_libtiff(page.compression, packed, lengths)
        return
    for segment, length in zip(packed, lengths, strict=True):
        raw = segment if page.compression == NONE else _inflate(segment, length)
        if len(raw) < length:
            raise ValueError(f"a strip or tile holds {len(raw)} bytes, expected {length}")
        yield raw


def _inflate(segment: bytes, length: int) -> bytes:
    """Unpack at most ``length`` bytes, and see that the checksum behind them is right."""
    stream = zlib.decompressobj()
    raw = stream.decompress(segment, length)
    for _ in range(MAX_SPARE_BYTES >> 16):  # rows that pad the last strip
        if stream.eof:
            return raw
        if not stream.decompress(stream.unconsumed_tail, 1 << 16) and not stream.eof:
            raise ValueError("a packed strip or tile is cut off")
    raise ValueError("a packed strip or tile holds much more than its rows")


def _by_libtiff(compression: int, packed: list[bytes], lengths: list[int]) -> Iterator[bytes]:
    """Unpack with Pillow's libtiff: a batch of segments as the strips of a grey TIFF whose rows are whole segments."""
    first = 0
    while first < len(packed):
        last = first + 1
        while (
            last < len(packed)
            and lengths[last] == lengths[first]
            and (last - first + 1) * lengths[first] <= BATCH_BYTES
        ):
            last += 1
        rows = last - first
        file = _strips_as_tiff(compression, packed[first:last], lengths[first])
        # Image.open would take bytes for pixels, and refuse many
        with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as image:
            raw = np.asarray(image)
        for row in range(rows):
            yield raw[row].tobytes()
        first = last


def _strips_as_tiff(compression: int, packed: list[bytes], length: int) -> bytes:
    count = len(packed)
    body, starts = io.BytesIO(), []
    for segment in packed:
        starts.append(8 + body.tell())
        body.write(segment)
    body.write(b"\0" * (body.tell() % 2))
    lists = 8 + body.tell()
    body.write(struct.pack(f"<{2 * count}I", *starts, *map(len, packed)))
    directory = 8 + body.tell()
    short, long = 3, 4
    entries = [(256, long, 1, length), (257, long, 1, count), (258, short, 1, 8), (259, short, 1, compression), (262, short, 1, 1),
               (273, long, count, lists if count > 1 else starts[0]), (277, short, 1, 1), (278, long, 1, 1),
               (279, long, count, lists + 4 * count if count > 1 else len(packed[0]))]  # fmt: skip
    body.write(struct.pack("<H", len(entries)))
    for entry in entries:
        body.write(struct.pack("<HHII", *entry))
    return struct.pack("<2sHI", b"II", 42, directory) + body.getvalue() + bytes(4)
