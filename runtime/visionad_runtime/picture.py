"""Find and decode pictures. The only place where a file becomes pixels."""

from __future__ import annotations

import io
import os
import stat
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .errors import PictureError, VisionADError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm", ".gif"})
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
"""``JPEG`` opens MPO too. Only names that Pillow has an opener for: another one makes every format after it unreadable."""
MAX_PIXELS = 150_000_000
"""Larger pictures are refused before they are unpacked (a decompression bomb, or a scanner's raw sheet)."""
MAX_FILE_BYTES = 1 << 30
READERS, AHEAD_BYTES = 4, 64 << 20
"""How many pictures are read ahead at most, each in a thread of its own, and how many bytes they may hold together, judged by the
size of the picture read last. So very large pictures are not read ahead."""

RGB8 = NDArray[np.uint8]
"""(H, W, 3) RGB; or (H, W) grey where a caller gave that: the same result for a third of the bytes to resize or to upload. Of a
caller's array it is a view, whose pixels are brought in order by :func:`copy_pixels` where they are needed."""


class Found(NamedTuple):
    """A picture to read. ``name`` is its path below the folder argument it was found under, or its bare file name."""

    path: Path
    name: Path


def find_pictures(paths: Iterable[Path]) -> list[Found]:
    """Expand files and folders to pictures: arguments in order, each folder's pictures recursively, sorted by path.

    Files named directly are always taken; inside folders only :data:`SUFFIXES` count and hidden files are passed over.
    A path that does not exist is kept, so that reading it later names it as an error.

    Raises:
        VisionADError: a folder holds no picture, or cannot be listed.
    """
    found: list[Found] = []
    for path in paths:
        if not path.is_dir():
            found.append(Found(path, Path(path.name)))
            continue
        below = sorted(walk(path), key=lambda p: p.relative_to(path).as_posix())
        if not below:
            raise VisionADError(f"folder {path} holds no picture (looked for {', '.join(sorted(SUFFIXES))})")
        found += [Found(p, p.relative_to(path)) for p in below]
    return found


def walk(folder: Path) -> list[Path]:
    """Pictures below a folder, in any order: by :data:`SUFFIXES`, hidden ones passed over.

    Raises:
        VisionADError: it cannot be listed.
    """

    def refuse(exc: OSError) -> None:
        if isinstance(exc, FileNotFoundError) and exc.filename != str(folder):
            return  # deleted since it was seen
        raise VisionADError(f"folder {exc.filename} cannot be listed: {exc.strerror}")

    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(root, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    return found


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        PictureError: missing, a folder or a pipe, empty, larger than 1 GiB, or not permitted.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would hang the line, a device would fill its memory
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
            raise PictureError(f"{path}: wanted a picture, found a {kind}")
        if status.st_size > MAX_FILE_BYTES:
            raise PictureError(
                f"{path}: {status.st_size >> 20} MiB is larger than any picture this program reads (1 GiB)"
            )
        data = path.read_bytes()
    except OSError as exc:
        raise PictureError(f"{path}: cannot be read: {exc.strerror or exc}") from None
    except ValueError as exc:  # an embedded NUL in the path
        raise PictureError(f"{path!r}: {exc}") from None
    if not data:
        raise PictureError(f"{path}: is empty (0 bytes)")
    return data


def decode(data: bytes, label: str | Path, bit_depth: int | None = None) -> RGB8:
    """Decode a picture file's bytes to RGB (method, section 1).

    EXIF rotation is not applied (only TIFF's own Orientation tag is, by Pillow as by OpenCV); alpha is dropped, palette and
    grey are expanded as Pillow's ``convert("RGB")`` does.

    Args:
        data: the file's content (PNG, JPEG, BMP, TIFF, WebP, PPM or single-frame GIF).
        label: what to call the picture in errors.
        bit_depth: for files with 16 bits a channel, how many of them the camera fills (9..16); the top 8 are used.
            ``None`` refuses such files, because guessing would change the contrast.

    Returns:
        uint8 (H, W, 3), RGB, C-contiguous.

    Raises:
        PictureError: not a picture, truncated, several frames, more than :data:`MAX_PIXELS`, 16-bit without a stated depth.
    """
    try:
        with _quiet, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, label)
            deep = _is_deep(image)
            if not deep:
                if bit_depth is not None:
                    raise PictureError(f"{label}: a bit depth of {bit_depth} was stated, but the file holds 8 bits")
                return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
            if bit_depth is not None:
                image.load()  # finds damage quietly; OpenCV's decoders also write to stderr about it
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(f"{label}: more than {MAX_PIXELS // 1_000_000} million pixels; refused unread") from None
    except UnidentifiedImageError:
        raise PictureError(f"{label}: is no picture of a known format ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise PictureError(f"{label}: not enough memory to unpack it") from None
    except Exception as exc:  # decoders raise all sorts (OSError, SyntaxError, struct.error, zlib.error) on damage
        raise PictureError(f"{label}: damaged or truncated picture ({exc})") from None
    if bit_depth is None:
        raise PictureError(
            f"{label}: holds more than 8 bits a channel; state how many the camera fills (--bit-depth 10, 12 or 16), "
            "or save it with 8 bits"
        )
    return _decode_deep(data, label, bit_depth)


def load(path: Path, bit_depth: int | None = None) -> RGB8:
    """:func:`read_bytes` and :func:`decode`."""
    return decode(read_bytes(path), path, bit_depth)


def as_paths(paths: Iterable[Path | str]) -> Iterable[Path]:
    """A list of paths, or an iterator of them.

    Raises:
        PictureError: it is one path, whose letters would be taken for paths.
    """
    if isinstance(paths, str | os.PathLike):
        raise PictureError(f"{paths}: wanted a list of picture files, found one; put it into a list")
    return [Path(path) for path in paths] if isinstance(paths, Sequence) else map(Path, paths)


class Read(NamedTuple):
    """A picture file: its picture, or why there is none, and the milliseconds that took."""

    path: Path
    rgb: RGB8 | None
    error: PictureError | None
    ms: float


def read_all(paths: Iterable[Path], bit_depth: int | None = None, readers: int = 1) -> Generator[Read, None, None]:
    """:func:`load` each, in order.

    Args:
        paths: a list is read ahead while the caller works on the pictures it has. An iterator is not: its next path may not exist
            yet, so it is asked for one path at a time, when that one is needed.
        readers: threads that read ahead, at most :data:`READERS`.
    """
    if readers < 2 or not isinstance(paths, Sequence):
        for path in paths:
            yield _read(path, bit_depth)
        return
    left, ahead = deque(paths), deque[Future[Read]]()
    pool = ThreadPoolExecutor(min(readers, READERS), "visionad-read")
    try:
        while left or ahead:
            one = ahead.popleft().result() if ahead else _read(left.popleft(), bit_depth)
            most = min(readers, READERS, AHEAD_BYTES // (1 if one.rgb is None else one.rgb.nbytes))
            while left and len(ahead) < most:
                ahead.append(pool.submit(_read, left.popleft(), bit_depth))
            yield one
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path: Path, bit_depth: int | None) -> Read:
    start = time.perf_counter()
    rgb, error = None, None
    try:
        rgb = load(path, bit_depth)
    except PictureError as exc:
        error = exc
    return Read(path, rgb, error, (time.perf_counter() - start) * 1e3)


class _Quiet:
    """No warnings while pictures are decoded: Pillow warns about large ones, but here :data:`MAX_PIXELS` is the rule.

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


def _check_header(image: Image.Image, label: str | Path) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{label}: {width} x {height} is more than {MAX_PIXELS // 1_000_000} million pixels; refused unread"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO's further frames are previews or the other eye
        raise PictureError(f"{label}: holds {frames} frames; wanted a single picture")


def _is_deep(image: Image.Image) -> bool:
    """More than 8 bits a channel? Pillow opens some such files as plain RGB and drops the low bits without a word."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "TIFF":
        bits = image.getexif().get(258, 8)  # BitsPerSample
        return bool(max(bits if isinstance(bits, tuple) else (bits,)) > 8)
    tile = getattr(image, "tile", None)  # only file-backed pictures have it
    args = tile[0].args if tile else ()
    args = args if isinstance(args, tuple) else (args,)
    if image.format == "PPM":
        return any(isinstance(a, int) and a > 255 for a in args)
    # of PNG only: a BMP's "BGR;16" is 16 bits a pixel, 5 or 6 a channel
    return image.format == "PNG" and any(isinstance(a, str) and ";16" in a for a in args)


def _decode_deep(data: bytes, label: str | Path, bit_depth: int) -> RGB8:
    import cv2

    if not 9 <= bit_depth <= 16:
        raise PictureError(f"{label}: bit depth {bit_depth} is not in 9..16")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as exc:
        raise PictureError(f"{label}: damaged or truncated picture ({exc.err})") from None
    if pixels is None:
        raise PictureError(
            f"{label}: damaged, or more than 8 bits in an unusual way; save it as plain 16-bit PNG or TIFF"
        )
    if pixels.dtype != np.uint16:
        raise PictureError(
            f"{label}: only unsigned 16-bit files can be read with a bit depth; save it as 16-bit PNG or TIFF"
        )
    if int(pixels.max()) >> bit_depth:
        raise PictureError(
            f"{label}: holds values up to {int(pixels.max())}, more than {bit_depth} bits; state a larger bit depth"
        )
    eight = np.right_shift(pixels.astype(np.uint16), bit_depth - 8).astype(np.uint8)
    return in_rgb(eight)


def from_arrays(images: Sequence[NDArray[np.uint8]], colour: str) -> list[RGB8]:
    """:func:`from_array` for each.

    Raises:
        PictureError: as there; or one picture was given, whose rows would be taken for pictures.
    """
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] in (1, 3):
        raise PictureError(f"images: wanted a list of pictures, found one of shape {images.shape}; put it into a list")
    return [from_array(image, colour) for image in images]


def from_array(image: NDArray[np.uint8], colour: str) -> RGB8:
    """Check a caller's array and see it as RGB, or as (H, W) if it is grey. Nothing is copied.

    Args:
        image: uint8 (H, W, 3) in ``colour`` order, or (H, W) or (H, W, 1) grey.
        colour: ``"bgr"`` (as OpenCV gives it) or ``"rgb"``.

    Raises:
        PictureError: another dtype or shape (values are never rescaled by guess), or no pixels.
    """
    if colour not in ("bgr", "rgb"):
        raise PictureError(f"colour: wanted 'bgr' or 'rgb', found {colour!r}")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        found = getattr(image, "dtype", type(image).__name__)
        raise PictureError(f"image: wanted a uint8 array (values 0..255), found {found}; convert it explicitly")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or image.size == 0:
        raise PictureError(f"image: wanted shape (H, W, 3) or (H, W) with pixels, found {image.shape}")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise PictureError(
            f"image: {image.shape[1]} x {image.shape[0]} is more than {MAX_PIXELS // 1_000_000} million pixels"
        )
    return image[:, :, ::-1] if image.ndim == 3 and colour == "bgr" else image


def copy_pixels(to: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> None:
    """Copy (some rows of) a picture to C-contiguous memory. Where channels are turned around, as BGR's are, by OpenCV: numpy takes
    50 times as long."""
    if pixels.ndim == 3 and pixels.strides[2] == -1:
        import cv2

        cv2.cvtColor(pixels[:, :, ::-1], cv2.COLOR_BGR2RGB, dst=to)
    else:
        np.copyto(to, pixels)


def in_rgb(pixels: NDArray[np.uint8]) -> RGB8:
    """Grey (H, W), BGR or BGRA as (H, W, 3)."""
    import cv2

    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    how = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[channels]
    return np.asarray(cv2.cvtColor(pixels, how), np.uint8)
