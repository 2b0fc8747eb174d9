"""Images that arrive in a folder, each once and whole."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import VisionADError
from ..images.discover import ImageFile, walk

log = logging.getLogger("visionad")

POLL_SECONDS = 0.05
"""Between two looks, or four times as long as a look takes: a large folder costs a fifth of a core at most."""
RECONNECT_INTERVAL = 1.0
"""Between two looks at a folder that cannot be listed, such as a share that is away."""
EMPTY_SECONDS = 10.0
"""For how long an empty file may be one that a writer has only opened."""
RETRY_TIMEOUT, RETRY_SECONDS = 3.0, 0.5
"""For how long an image that cannot be read is tried again, and how often: its writer may pause, or not have let go of it."""


class FileStamp(NamedTuple):
    """What tells that a file was not written to since. Not its inode: some network shares make up another one each time."""

    bytes: int
    modified_ns: int


class DetectedFile(NamedTuple):
    """An image to inspect, and as what it was found."""

    image: ImageFile
    stamp: FileStamp


@dataclass
class _File:
    """What was seen of a file: since when it is as it is, and when it is to be handed over; never again: infinity."""

    stamp: FileStamp
    since: float
    due: float


class FolderSource:
    """The images below a folder, in the order in which they were written, each once.

    An image is handed over when it has not changed for ``settle`` seconds. An image that is written anew is a new one.

    Args:
        done: of the images that lie there at the start, those to be passed over.
        wait: sleeps so many seconds and returns whether to end.

    Attributes:
        there, passed_over: how many lay there at the start, and how many of them are passed over.

    Raises:
        VisionADError: the folder cannot be listed. Later on it is waited for.
    """

    def __init__(
        self,
        folder: Path,
        done: Callable[[Collection[DetectedFile]], Collection[DetectedFile]],
        settle: float,
        wait: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.settle = folder, settle
        self._wait, self._clock, self._lost, self._pause = wait, clock, False, 0.0
        here = [self._arrival(path, stamp) for path, stamp in self._look(walk(folder)).items()]
        self._device = file_system(folder)
        old = set(done(here))
        now = clock()
        self._files = {
            one.image.path: _File(one.stamp, now, math.inf if one in old else self._due(one.stamp, now)) for one in here
        }
        self.there, self.passed_over = len(here), len(old)

    def __iter__(self) -> Iterator[DetectedFile]:
        while not self._wait(self._pause):
            yield from self._ready()

    def _ready(self) -> Iterator[DetectedFile]:
        began = self._clock()
        try:
            here = self._look(walk(self.folder))
            device = file_system(self.folder)
            # Or all of its images would be new when it is back.
            if self._files and not here and device != self._device:
                raise VisionADError(
                    f"folder {self.folder} is empty, and on another file system: the share is not mounted"
                )
        except VisionADError as exc:
            if not self._lost:
                log.warning("%s; looking for it again every second", exc)
            self._lost = True
            self._pause = RECONNECT_INTERVAL
            return
        if self._lost:
            log.warning("folder %s is back", self.folder)
        self._lost, self._device = False, device
        now, files, whole = self._clock(), dict[Path, _File](), []
        for path, stamp in here.items():
            file = self._files.get(path)
            if file is None or file.stamp != stamp:
                file = _File(stamp, now, self._due(stamp, now))
            if now >= file.due:
                file.due = math.inf
                whole.append(self._arrival(path, stamp))
            files[path] = file
        self._files = files
        self._pause = max(POLL_SECONDS, 4 * (now - began))
        yield from sorted(whole, key=lambda one: (one.stamp.modified_ns, one.image.path))

    def again(self, one: DetectedFile) -> bool:
        """Hand an image that could not be read over once more, unless it is gone or has been as it is for
        :data:`RETRY_TIMEOUT`. Returns whether it will be."""
        file, now = self._files.get(one.image.path), self._clock()
        if file is None or file.stamp != one.stamp or now - file.since >= RETRY_TIMEOUT or not one.image.path.exists():
            return False
        file.due = now + RETRY_SECONDS
        return True

    def _due(self, stamp: FileStamp, now: float) -> float:
        return now + (self.settle if stamp.bytes else max(self.settle, EMPTY_SECONDS))

    @staticmethod
    def _look(paths: list[Path]) -> dict[Path, FileStamp]:
        here = {}
        for path in paths:
            with suppress(OSError):  # gone since it was listed
                found = path.stat()
                here[path] = FileStamp(found.st_size, found.st_mtime_ns)
        return here

    def _arrival(self, path: Path, stamp: FileStamp) -> DetectedFile:
        return DetectedFile(ImageFile(path, path.relative_to(self.folder)), stamp)


def file_system(folder: Path) -> int:
    """Which one a folder is on. It changes when a share is mounted there or is not any more.

    Raises:
        VisionADError: it is gone.
    """
    try:
        return folder.stat().st_dev
    except OSError as exc:
        raise VisionADError(f"folder {folder} cannot be listed: {exc.strerror}") from None
