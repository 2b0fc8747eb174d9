"""Support records of image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ImageError
from ..formats.files import sha256_bytes
from ..formats.manifest import SupportImage
from ..images import decode, pixels


def read_supports(paths: Sequence[Path], bit_depth: int | None = None) -> list[SupportImage]:
    """Return the record of each image file, after checking that it can be decoded.

    Args:
        paths: image files.
        bit_depth: bits that the camera fills in 16-bit files.

    Raises:
        ImageError: A file cannot be read, or two files are identical.
    """
    supports: list[SupportImage] = []
    for path in paths:
        data = decode.read_bytes(path)
        decode.decode(data, path, bit_depth)
        digest = sha256_bytes(data)
        duplicate = next((support.source for support in supports if support.sha256 == digest), None)
        if duplicate is not None:
            raise ImageError(f"{path} and {duplicate} are the same image; give each once")
        supports.append(SupportImage(sha256=digest, source=str(path.absolute())))
    return supports


def load_support(path: Path, support: SupportImage, bit_depth: int | None = None) -> pixels.RGB8:
    """Decode the image file of a support record.

    Args:
        path: image file.
        support: its record, as :func:`read_supports` made it.
        bit_depth: bits that the camera fills in 16-bit files.

    Raises:
        ImageError: The file cannot be read, or has changed since the record was made.
    """
    data = decode.read_bytes(path)
    if sha256_bytes(data) != support.sha256:
        raise ImageError(f"{path}: changed while it was being enrolled; nothing was enrolled")
    return decode.decode(data, path, bit_depth)
