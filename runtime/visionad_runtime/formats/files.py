"""Files that are written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import VisionADError


def sha256_bytes(data: bytes | memoryview) -> str:
    """sha256 (hex) of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces of 1 MiB so that memory does not grow."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write ``path`` whole or not at all: temporary file beside it, fsync, rename, fsync of the folder.

    Raises:
        VisionADError: the folder cannot be written or the disk is full; ``path`` is then as it was.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temp, "xb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            temp.replace(path)
            fsync_folder(path.parent)
        finally:
            temp.unlink(missing_ok=True)
    except OSError as exc:
        raise VisionADError(
            f"cannot write {path}: {exc.strerror or exc}; free space or mend the permissions of {path.parent}; nothing was changed"
        ) from None


def atomic_write(path: Path, data: bytes) -> None:
    """:func:`atomic_file` for bytes at hand."""
    with atomic_file(path) as f:
        f.write(data)


def fsync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder for fsync; NTFS journals the rename
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
