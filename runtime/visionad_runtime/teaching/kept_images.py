"""Images of files that were decoded before: their shape and the digest of their pixels, without decoding them again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._release import __version__
from ..images.pixels import RGB8
from ..system import package_version

DECODERS = ("pillow", "opencv-python-headless", "simplejpeg", "numpy")
"""Packages that decide an image's pixels."""


class FileImage(np.ndarray[Any, np.dtype[np.uint8]]):
    """An image of a file. If it was decoded before, it has the right shape, and its pixels are 0: :func:`pixels_of` decodes them.

    Attributes:
        digest: of shape and pixels.
        load: returns the pixels.
    """

    digest: str
    load: Callable[[], RGB8]


def pixels_of(image: RGB8) -> RGB8:
    """Return the pixels of any image.

    Raises:
        ImageError: The file cannot be decoded.
    """
    return image.load() if isinstance(image, FileImage) else image


def image_digest(image: RGB8) -> str:
    """Return the digest of an image's shape and pixels."""
    return (
        image.digest
        if isinstance(image, FileImage)
        else digest(repr(image.shape).encode(), np.ascontiguousarray(image).data)
    )


def digest(key: bytes, data: bytes | memoryview = b"") -> str:
    """Return the digest of a key and bytes, 40 hexadecimal digits. On most CPUs it takes a third of sha256's time."""
    found = hashlib.blake2b(key + b"\n", digest_size=20)
    found.update(data)
    return found.hexdigest()


class FileIndex:
    """Shapes and digests of the images of files. Any thread may call it."""

    def __init__(self, folder: Path, bit_depth: int | None) -> None:
        """Take a folder.

        Args:
            folder: where an entry is kept for each file, named by the file's content.
            bit_depth: bits that the camera filled in 16-bit files.
        """
        self._folder = folder
        versions = " ".join(f"{name} {package_version(name)}" for name in DECODERS)
        self._key = f"visionad {__version__} {versions} depth {bit_depth}".encode()

    def image(self, data: bytes, decode: Callable[[], RGB8]) -> RGB8:
        """Return the image of a file. It is decoded only if it was not before.

        Args:
            data: content of the file.
            decode: decodes it.

        Raises:
            ImageError: The file cannot be decoded.
        """
        name = digest(self._key, data)
        path = self._folder / name[:2] / f"{name}.txt"
        known = _read(path)
        if known is not None:
            image = np.broadcast_to(np.zeros((), np.uint8), known[0]).view(FileImage)
            image.digest, image.load = known[1], decode
            return image
        pixels = decode()
        image = pixels.view(FileImage)
        image.digest, image.load = image_digest(pixels), lambda: pixels
        write_cached(path, " ".join([*map(str, pixels.shape), image.digest]).encode())
        return image


def _read(path: Path) -> tuple[tuple[int, ...], str] | None:
    """Return the shape and the digest of an entry, or ``None`` if it is missing or damaged."""
    try:
        *sizes, name = path.read_text("ascii").split(" ")
        shape = tuple(map(int, sizes))
    except (OSError, ValueError):
        return None
    whole = len(shape) in (2, 3) and min(shape) > 0 and shape[2:] in ((), (3,))
    return (shape, name) if whole and len(name) == 40 and name.isalnum() else None


def write_cached(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, without waiting for the disk: what it holds can be computed again."""
    part = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
