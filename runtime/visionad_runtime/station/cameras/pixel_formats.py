"""Pixel formats of GenICam cameras (PFNC, and the packed formats of GigE Vision 1) as arrays.

Source: EMVA, "GenICam Pixel Format Naming Convention 2.4", sections 4 to 6; AIA, "GigE Vision 1.2", section 26.
"""

from __future__ import annotations

import re
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

BLOCK = 16384
Pixels = NDArray[np.uint8] | NDArray[np.uint16]

_BAYER = {"RG": "RGGB", "GR": "GRBG", "GB": "GBRG", "BG": "BGGR"}
"""Name of a Bayer pattern in GenICam → its first two rows. OpenCV's short names, such as ``COLOR_BayerRG2RGB``, begin one pixel
later: they would swap red and blue."""
_PACKINGS = {8: ("",), 10: ("", "p", "Packed"), 12: ("", "p", "Packed"), 14: ("", "p"), 16: ("",)}
"""Bits of a sample → how they may be packed."""
_THREE = ("RGB", "BGR")
_NAME = re.compile(r"(?P<color>Mono|Bayer(?P<tile>RG|GR|GB|BG)|RGB|BGR)(?P<bits>8|10|12|14|16)(?P<packing>p|Packed)?")


class PixelFormat(NamedTuple):
    """A pixel format.

    Attributes:
        name: of GenICam, such as ``BayerRG12p``.
        channels: samples of a pixel: 1, or 3 for RGB and BGR.
        bits: bits that the camera fills of a sample.
        packing: ``""``: a sample takes 8 or 16 bits; ``"p"``: samples follow each other bit by bit, the lowest first;
            ``"Packed"``: two samples of 10 or 12 bits take three bytes, as in GigE Vision 1.
        order: ``Mono``, ``RGB``, ``BGR``, or the first two rows of a Bayer pattern, such as ``RGGB``.
    """

    name: str
    channels: int
    bits: int
    packing: str
    order: str

    @property
    def bits_stored(self) -> int:
        """Return the bits that a sample takes in a buffer."""
        if self.packing:
            return self.bits if self.packing == "p" else 12
        return 8 if self.bits == 8 else 16


def parse(name: str) -> PixelFormat:
    """Return the format that GenICam calls so.

    Raises:
        ValueError: Frames of it cannot be read. The message says which can.
    """
    match = _NAME.fullmatch(name)
    if match is not None:
        color, bits, packing = match["color"], int(match["bits"]), match["packing"] or ""
        if color in _THREE and packing == "Packed" and bits == 8:
            packing = ""  # older cameras call RGB8 RGB8Packed
        if (packing in _PACKINGS[bits]) and (color not in _THREE or (bits == 8 and not packing)):
            order = _BAYER[match["tile"]] if match["tile"] else color
            return PixelFormat(name, 3 if color in _THREE else 1, bits, packing, order)
    raise ValueError(
        f"pixel format {name!r} cannot be read: expected Mono or Bayer with 8, 10, 12, 14 or 16 bits, "
        "packed (p, Packed) or not, or RGB8 or BGR8"
    )


def to_pixels(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],
    pixel_format: PixelFormat,
    width: int,
    height: int,
    padding: int = 0,
) -> tuple[Pixels, int | None]:
    """Return the image in a buffer of a camera. The buffer is copied.

    Args:
        data: the buffer. Bytes after the last row, such as chunks, are ignored.
        pixel_format: of the buffer.
        width: of the image in pixels.
        height: the same.
        padding: bytes between two rows. Rows of packed formats then begin at a byte.

    Returns:
        The pixels, as :class:`~visionad_runtime.station.camera.Frame` has them, and the bit depth. Bayer formats become RGB by
        bilinear interpolation at full depth, of which the upper 8 bits are kept, as of a file with 16 bits a channel.

    Raises:
        ValueError: The buffer is too short.
    """
    buffer = np.frombuffer(data, np.uint8) if not isinstance(data, np.ndarray) else data.reshape(-1).view(np.uint8)
    samples = _samples(buffer, pixel_format, width, height, padding)
    if pixel_format.order == "Mono":
        return samples, None if pixel_format.bits == 8 else pixel_format.bits
    if pixel_format.order in _THREE:
        rgb = samples.reshape(height, width, 3).astype(np.uint8, copy=False)
        return (rgb if pixel_format.order == "RGB" else _swap(rgb)), None
    deep = demosaic(samples, pixel_format.order)
    return (deep >> (pixel_format.bits - 8)).astype(np.uint8), None


def demosaic(mosaic: Pixels, order: str) -> Pixels:
    """Interpolate the colors of a Bayer mosaic.

    Each pixel keeps the sample that the sensor took there. OpenCV copies the outermost pixels from their neighbors; here they are
    interpolated like the others, in a mosaic that is mirrored at its border.

    Args:
        mosaic: uint8 or uint16 (H, W).
        order: colors of its first two rows, such as ``RGGB``.

    Returns:
        (H, W, 3) RGB of the same type.
    """
    import cv2

    code = getattr(cv2, f"COLOR_Bayer{order}2RGB")
    height, width = mosaic.shape
    if height < 2 or width < 2:
        raise ValueError(f"a Bayer image of {width} x {height} pixels has no whole pattern: expected 2 x 2 or more")
    mirrored = cv2.copyMakeBorder(mosaic, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)
    return cast(Pixels, np.ascontiguousarray(cv2.cvtColor(mirrored, code)[2:-2, 2:-2]))


def _swap(bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return BGR as RGB, by OpenCV: numpy takes many times as long."""
    import cv2

    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _samples(buffer: NDArray[np.uint8], pixel_format: PixelFormat, width: int, height: int, padding: int) -> Pixels:
    """Return the samples, (H, W * channels), unpacked and without padding."""
    columns = width * pixel_format.channels
    row_bits = columns * pixel_format.bits_stored
    row_bytes = -(-row_bits // 8)
    needed = (row_bytes + padding) * height - padding if padding else -(-row_bits * height // 8)
    if buffer.size < needed:
        raise ValueError(
            f"a {pixel_format.name} image of {width} x {height} pixels takes {needed} bytes, got {buffer.size}: "
            "the frame is incomplete, or its size or format has changed"
        )
    if not padding:  # a row of a packed format may begin inside a byte
        return _unpack(buffer[:needed], pixel_format, columns * height).reshape(height, columns)
    rows = np.lib.stride_tricks.as_strided(buffer, (height, row_bytes), (row_bytes + padding, 1))
    return cast(Pixels, np.stack([_unpack(np.ascontiguousarray(row), pixel_format, columns) for row in rows]))


def _unpack(data: NDArray[np.uint8], pixel_format: PixelFormat, count: int) -> Pixels:
    """Return ``count`` samples of bytes without gaps."""
    if pixel_format.packing == "p":
        return _unpack_bits(data, pixel_format.bits, count)
    if pixel_format.packing == "Packed":
        return _unpack_pairs(data, pixel_format.bits, count)
    return data.copy() if pixel_format.bits == 8 else data.view("<u2").astype(np.uint16)


def _unpack_bits(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint16]:
    """Return samples of 10, 12 or 14 bits that follow each other, the lowest bit first."""
    group = 4 if bits != 12 else 2  # samples that fill whole bytes together
    group_bytes = group * bits // 8
    groups = -(-count // group)
    padded = np.zeros(groups * group_bytes, np.uint8)
    padded[: data.size] = data[: padded.size]
    rows, samples = padded.reshape(groups, group_bytes), np.empty((groups, group), np.uint16)
    for begin in range(0, groups, BLOCK):  # a block stays in the processor's cache
        columns = rows[begin : begin + BLOCK].T.astype(
            np.uint16
        )  # bits that are shifted out at the top are masked anyway
        for index in range(group):
            first, shift = divmod(index * bits, 8)
            value = columns[first] >> shift
            for step in range(1, -(-(shift + bits) // 8)):
                value |= columns[first + step] << (8 * step - shift)
            samples[begin : begin + BLOCK, index] = value & ((1 << bits) - 1)
    return samples.reshape(-1)[:count]


def _unpack_pairs(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint16]:
    """Return samples of 10 or 12 bits of which two share the middle one of three bytes, as GigE Vision 1 packs them."""
    pairs = -(-count // 2)
    padded = np.zeros(pairs * 3, np.uint8)
    padded[: data.size] = data[: padded.size]
    first, shared, second = padded.reshape(pairs, 3).astype(np.uint16).T
    low = bits - 8
    samples = np.empty((pairs, 2), np.uint16)
    samples[:, 0] = (first << low) | (shared & ((1 << low) - 1))
    samples[:, 1] = (second << low) | ((shared >> 4) & ((1 << low) - 1))
    return samples.reshape(-1)[:count]
