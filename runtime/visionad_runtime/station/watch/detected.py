"""A file as it was found in a watched folder, and what tells that it was written again."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from ...images.decode import MAX_FILE_BYTES
from ...images.discover import ImageFile

_SECOND = 1_000_000_000


class FileStamp(NamedTuple):
    """What the file system says of a file. Not its inode: some network shares make up another one each time.

    Attributes:
        bytes: size.
        modified_ns: date of its content. Copies keep it, and some file systems round it to two seconds.
        changed_ns: when the system last changed content, name or rights; 0 where that is not known (Windows).
    """

    bytes: int
    modified_ns: int
    changed_ns: int = 0

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """Return the stamp of a file's status."""
        return cls(status.st_size, status.st_mtime_ns, 0 if os.name == "nt" else status.st_ctime_ns)

    @property
    def written(self) -> tuple[int, int]:
        """Size and date of the content. Another pair is another content; the same pair may be."""
        return self.bytes, self.modified_ns

    @property
    def is_coarse(self) -> bool:
        """Whether its clock has no fractions of a second, so that two writes can leave one stamp."""
        return self.changed_ns % _SECOND == 0


class DetectedFile(NamedTuple):
    """An image to inspect, as what it was found, and the sha256 of its content if that was read."""

    image: ImageFile
    stamp: FileStamp
    sha256: str | None = None


def content_digest(path: Path) -> str | None:
    """Return the sha256 (hex) of a file's content; ``None`` if it cannot be read, or is no regular file or larger than an image."""
    try:
        # A pipe without a writer would block the line for ever.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                return None
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
