"""Bytes of an image file -> uint8 pixels."""

from __future__ import annotations

import io
import stat
import threading
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError
from . import bmp, jpeg, png, pnm, tiff_directory, tiff_pixels, webp
from .pixels import MAX_PIXELS, RGB8, to_rgb
from .support import FORMATS
from .tiff_directory import CMYK

MAX_FILE_BYTES = 1 << 30


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        ImageError: missing, a folder or a pipe, empty, larger than 1 GiB, or not permitted.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would hang the line, a device would fill its memory
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
            raise ImageError(f"{path}: expected an image, got a {kind}")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path}: {status.st_size >> 20} MiB is larger than any image this program reads (1 GiB)")
        data = path.read_bytes()
    except OSError as exc:
        raise ImageError(f"{path}: cannot be read: {exc.strerror or exc}") from None
    except ValueError as exc:  # an embedded NUL in the path
        raise ImageError(f"{path!r}: {exc}") from None
    if not data:
        raise ImageError(f"{path}: is empty (0 bytes)")
    return data


def decode(data: bytes, label: str | Path, bit_depth: int | None = None) -> RGB8:
    """Decode an image file's bytes to RGB (method, section 1).

    :data:`visionad_runtime.images.support.ROWS` says what is read and what is refused. Two files with the same pixel values give
    the same array. EXIF rotation is not applied; TIFF's own Orientation tag is. Alpha is dropped. Palette and grey are expanded.

    Args:
        data: the file's content.
        label: what to call the image in errors.
        bit_depth: for files with 16 bits a channel, how many of them the camera fills (9..16); the top 8 are used.
            ``None`` refuses such files, because guessing would change the contrast.

    Returns:
        uint8 (H, W, 3), RGB, C-contiguous.

    Raises:
        ImageError: not an image, damaged, several frames, more than :data:`MAX_PIXELS`, of a kind that is not read, or 16-bit
            without a stated depth.
    """
    try:
        with _quiet:
            if tiff_directory.is_tiff(data):
                return _decode_tiff(data, label, bit_depth)
            if data.startswith(png.SIGNATURE):
                data = png.pixel_chunks(data)
            elif data.startswith(jpeg.SIGNATURE):
                jpeg.check_header(data, label)
            return _decode_by_pillow(data, label, bit_depth)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{label}: more than {MAX_PIXELS // 1_000_000} million pixels; refused unread") from None
    except UnidentifiedImageError:
        raise ImageError(f"{label}: is no image of a known format ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise ImageError(f"{label}: not enough memory to unpack it") from None
    except Exception as exc:  # decoders raise all sorts (OSError, SyntaxError, struct.error, zlib.error) on damage
        raise ImageError(f"{label}: {_reason(exc)} ({exc})") from None


def load(path: Path, bit_depth: int | None = None) -> RGB8:
    """:func:`read_bytes` and :func:`decode`."""
    return decode(read_bytes(path), path, bit_depth)


def _decode_by_pillow(data: bytes, label: str | Path, bit_depth: int | None) -> RGB8:
    """Decode what Pillow opens, and hear of damage that Pillow does not report."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size, label)
        _check_frames(image, label)
        if not _is_deep(image):
            _check_depth(8, bit_depth, label)
            if image.format in ("JPEG", "MPO"):
                return jpeg.decode_jpeg(data, image, label)
            if image.format == "WEBP":
                webp.check_webp(data, label)
            if image.format == "PPM":
                pnm.check_pnm(data, label)
            head = bmp.indexed(data)
            if head is not None:
                return bmp.decode_indexed(data, head, label)
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        depth = _check_depth(16, bit_depth, label)
        if image.format == "PPM":
            pnm.check_pnm(data, label)
        image.load()  # finds damage quietly; OpenCV's decoders also write to stderr about it
    return _decode_deep(data, label, depth)


def _decode_tiff(data: bytes, label: str | Path, bit_depth: int | None) -> RGB8:
    """Decode the one full page of a TIFF."""
    page = tiff_directory.read_page(data, label)
    _check_size(page.width, page.height, label)
    depth = _check_depth(page.bits, bit_depth, label)
    if tiff_pixels.reads(page):
        samples = tiff_pixels.read_samples(page, label)
        eight = _top_bits(samples, depth, label) if page.bits > 8 else samples.astype(np.uint8, copy=False)
        if page.photometric == CMYK:
            return np.asarray(Image.fromarray(eight, "CMYK").convert("RGB"))
        return to_rgb(eight) if eight.ndim == 2 else eight
    tiff_pixels.check_strips(page, label)
    with Image.open(io.BytesIO(page.alone()), formats=("TIFF",)) as image:
        image.info.pop("xmp", None)  # Pillow would turn the pixels as it says; only TIFF's own tag counts
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _reason(exc: Exception) -> str:
    unread = str(exc).lower().startswith(("unsupported", "conversion from"))
    return "is stored in a way that is not read" if unread else "damaged or truncated image"


class _Quiet:
    """No warnings while images are decoded: Pillow warns about large ones, but here :data:`MAX_PIXELS` is the rule.

    ``warnings.catch_warnings`` changes a setting of the whole process and at its end restores what it found. Of two threads that
    overlap, the second finds the silence of the first and would restore that, for ever. So threads are counted: the first one in
    silences, the last one out restores.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._found = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._found.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._found.close()


_quiet = _Quiet()


def _check_size(width: int, height: int, label: str | Path) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{label}: {width} x {height} is more than {MAX_PIXELS // 1_000_000} million pixels; refused unread"
        )


def _check_frames(image: Image.Image, label: str | Path) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO's further frames are previews or the other eye
        raise ImageError(f"{label}: holds {frames} frames; expected a single image")


def _check_depth(stored: int, bit_depth: int | None, label: str | Path) -> int:
    """Return the depth to use: the stated one, or 8.

    Args:
        stored: bits a channel of the file.
        bit_depth: as stated.
        label: what to call the image in errors.

    Raises:
        ImageError: it is stated for 8 bits, missing for more, not in 9..16, or more than the file holds.
    """
    if stored <= 8:
        if bit_depth is not None:
            raise ImageError(f"{label}: a bit depth of {bit_depth} was stated, but the file holds {stored} bits")
        return 8
    if bit_depth is None:
        raise ImageError(
            f"{label}: holds more than 8 bits a channel; state how many the camera fills (--bit-depth 10, 12 or 16), "
            "or save it with 8 bits"
        )
    if not 9 <= bit_depth <= 16:
        raise ImageError(f"{label}: bit depth {bit_depth} is not in 9..16")
    if bit_depth > stored:
        raise ImageError(f"{label}: a bit depth of {bit_depth} was stated, but the file holds {stored} bits")
    return bit_depth


def _is_deep(image: Image.Image) -> bool:
    """More than 8 bits a channel? Pillow opens some such files as plain RGB and drops the low bits without a word."""
    if image.mode.startswith(("I", "F")):
        return True
    tile = getattr(image, "tile", None)  # only file-backed images have it
    args = tile[0].args if tile else ()
    args = args if isinstance(args, tuple) else (args,)
    if image.format == "PPM":
        return any(isinstance(a, int) and a > 255 for a in args)
    # of PNG only: a BMP's "BGR;16" is 16 bits a pixel, 5 or 6 a channel
    return image.format == "PNG" and any(isinstance(a, str) and ";16" in a for a in args)


def _decode_deep(data: bytes, label: str | Path, bit_depth: int) -> RGB8:
    """Decode a PNG or PNM of 16 bits."""
    import cv2

    if data.startswith(png.SIGNATURE) and png.is_cut(data):
        raise ImageError(f"{label}: damaged or truncated image (a chunk ends beyond the file)")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as exc:
        raise ImageError(f"{label}: damaged or truncated image ({exc.err})") from None
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError(
            f"{label}: damaged, or more than 8 bits in an unusual way; save it as plain 16-bit PNG or TIFF"
        )
    return to_rgb(_top_bits(np.asarray(pixels, np.uint16), bit_depth, label))


def _top_bits(samples: NDArray[np.uint8] | NDArray[np.uint16], bit_depth: int, label: str | Path) -> NDArray[np.uint8]:
    """The upper 8 of ``bit_depth`` bits.

    Raises:
        ImageError: a value has more bits.
    """
    largest = int(samples.max())
    if largest >> bit_depth:
        raise ImageError(f"{label}: holds values up to {largest}, more than {bit_depth} bits; state a larger bit depth")
    return np.right_shift(samples, bit_depth - 8).astype(np.uint8)
