"""Files that are written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import VisionADError

MAX_NAME_BYTES = 255
"""Of a file name, on all common file systems."""


def sha256_bytes(data: bytes | memoryview) -> str:
    """sha256 (hex) of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces of 1 MiB so that memory does not grow."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path, private: bool = False) -> Iterator[BinaryIO]:
    """Write ``path`` whole or not at all: temporary file beside it, fsync, rename, fsync of the folder.

    Args:
        path: the file.
        private: whether only its owner may read it, from the first moment on.

    Raises:
        VisionADError: the folder cannot be written or the disk is full; ``path`` is then as it was.
    """
    # Its length does not depend on the name: a name may have all 255 bytes that a file system allows.
    temp = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temp, "xb", opener=_private_opener if private else None) as f:
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


def atomic_write(path: Path, data: bytes, private: bool = False) -> None:
    """:func:`atomic_file` for bytes at hand."""
    with atomic_file(path, private) as f:
        f.write(data)


def atomic_write_together(files: Mapping[Path, bytes]) -> None:
    """Write files of which none shall stand without those before it.

    All are written in full beside their places before the first is renamed. They are renamed in the order given.

    Args:
        files: path → content.

    Raises:
        VisionADError: a folder cannot be written or the disk is full. The file that is named and those after it are as they were.
    """
    with ExitStack() as stack:
        for path, data in reversed(list(files.items())):
            f = stack.enter_context(atomic_file(path))
            f.write(data)
            f.flush()
            os.fsync(f.fileno())


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def fit_name(stem: str, suffix: str) -> str:
    """Join stem and suffix to a file name that file systems accept.

    Args:
        stem: any text, lone surrogates of undecodable bytes included.
        suffix: at most 200 bytes.

    Returns:
        ``stem + suffix``. If that exceeds :data:`MAX_NAME_BYTES`, the stem is cut between characters and its digest added, so that
        different stems keep different names.
    """
    room = MAX_NAME_BYTES - len(os.fsencode(suffix))
    whole = os.fsencode(stem)
    if len(whole) <= room:
        return stem + suffix
    mark = f"~{sha256_bytes(whole)[:12]}"
    while len(os.fsencode(stem)) > room - len(mark):
        stem = stem[:-1]
    return stem + mark + suffix


def fsync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder for fsync; NTFS journals the rename
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


if sys.platform == "win32":
    import msvcrt

    def try_lock(fd: int) -> bool:
        """Lock an open file for this process, without waiting. The system drops the lock when the process ends.

        Returns:
            Whether it is locked now; False if another process holds it.
        """
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def try_lock(fd: int) -> bool:
        """Lock an open file for this process, without waiting. The system drops the lock when the process ends.

        Returns:
            Whether it is locked now; False if another process holds it.

        Raises:
            OSError: the file system has no locks.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def lock_beside(path: Path) -> BinaryIO | None:
    """Lock a file for this process, without waiting, by a lock file beside it: ``.NAME.lock``. Others may still open the file.

    Returns:
        The lock file, which holds the lock until it is closed; ``None`` if another process holds it.

    Raises:
        OSError: it cannot be locked; some file systems have no locks.
    """
    real = Path(os.path.realpath(path))
    file = real.with_name(fit_name(f".{real.name}", ".lock")).open("a+b")
    free = False
    try:
        free = try_lock(file.fileno())
    finally:
        if not free:
            file.close()
    return file if free else None
