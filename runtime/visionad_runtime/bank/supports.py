"""Records of support images, made of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ImageError
from ..formats.files import sha256_bytes
from ..formats.manifest import SupportImage
from ..images import decode


def read_supports(paths: Sequence[Path], bit_depth: int | None = None) -> list[SupportImage]:
    """Records of support image files, after making sure that each can be decoded.

    Raises:
        ImageError: unreadable, or the same image twice.
    """
    supports: list[SupportImage] = []
    for path in paths:
        data = decode.read_bytes(path)
        decode.decode(data, path, bit_depth)
        digest = sha256_bytes(data)
        twin = next((s.source for s in supports if s.sha256 == digest), None)
        if twin is not None:
            raise ImageError(f"{path} and {twin} are the same image; give each once")
        supports.append(SupportImage(sha256=digest, source=str(path.absolute())))
    return supports
