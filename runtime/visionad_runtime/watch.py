"""Pictures that arrive in a folder, each once and whole; and a journal by which a restart goes on where the last run ended.

The folder is looked at again and again, and nothing asks the system for notices: cameras write to network shares, from which none
come, and whether a file is whole shows only from it not having changed for a while.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from .errors import VisionADError
from .picture import Found, walk

log = logging.getLogger("visionad")

POLL_SECONDS = 0.05
"""Between two looks, or four times as long as a look takes: a large folder costs a fifth of a core at most."""
LOST_SECONDS = 1.0
"""Between two looks at a folder that cannot be listed, such as a share that is away."""
EMPTY_SECONDS = 10.0
"""For how long an empty file may be one that a writer has only opened."""
PATIENCE_SECONDS, RETRY_SECONDS = 3.0, 0.5
"""For how long a picture that cannot be read is tried again, and how often: its writer may pause, or not have let go of it."""


class Stamp(NamedTuple):
    """What tells that a file was not written to since. Not its inode: some network shares make up another one each time."""

    bytes: int
    modified_ns: int


class Arrival(NamedTuple):
    """A picture to inspect, and as what it was found."""

    picture: Found
    stamp: Stamp


@dataclass
class _File:
    """What was seen of a file: since when it is as it is, and when it is to be handed over; never again: infinity."""

    stamp: Stamp
    since: float
    due: float


class Arrivals:
    """The pictures below a folder, as :func:`~visionad_runtime.picture.find_pictures` finds them, in the order in which they were
    written, each once it has not changed for ``settle`` seconds. One that is written anew is a new one.

    Args:
        done: of the pictures that lie there at the start, those to be passed over.
        wait: sleeps so many seconds and returns whether to end.

    Attributes:
        there, passed_over: how many lay there at the start, and how many of them are passed over.

    Raises:
        VisionADError: the folder cannot be listed. Later on it is waited for.
    """

    def __init__(
        self,
        folder: Path,
        done: Callable[[Collection[Arrival]], Collection[Arrival]],
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
            one.picture.path: _File(one.stamp, now, math.inf if one in old else self._due(one.stamp, now))
            for one in here
        }
        self.there, self.passed_over = len(here), len(old)

    def __iter__(self) -> Iterator[Arrival]:
        while not self._wait(self._pause):
            yield from self._ready()

    def _ready(self) -> Iterator[Arrival]:
        began = self._clock()
        try:
            here = self._look(walk(self.folder))
            device = file_system(self.folder)
            # Or all of its pictures would be new when it is back.
            if self._files and not here and device != self._device:
                raise VisionADError(
                    f"folder {self.folder} is empty, and on another file system: the share is not mounted"
                )
        except VisionADError as exc:
            if not self._lost:
                log.warning("%s; looking for it again every second", exc)
            self._lost = True
            self._pause = LOST_SECONDS
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
        yield from sorted(whole, key=lambda one: (one.stamp.modified_ns, one.picture.path))

    def again(self, one: Arrival) -> bool:
        """Hand a picture that could not be read over once more, unless it is gone or has been as it is for
        :data:`PATIENCE_SECONDS`. Returns whether it will be."""
        file, now = self._files.get(one.picture.path), self._clock()
        if (
            file is None
            or file.stamp != one.stamp
            or now - file.since >= PATIENCE_SECONDS
            or not one.picture.path.exists()
        ):
            return False
        file.due = now + RETRY_SECONDS
        return True

    def _due(self, stamp: Stamp, now: float) -> float:
        return now + (self.settle if stamp.bytes else max(self.settle, EMPTY_SECONDS))

    @staticmethod
    def _look(paths: list[Path]) -> dict[Path, Stamp]:
        here = {}
        for path in paths:
            with suppress(OSError):  # gone since it was listed
                found = path.stat()
                here[path] = Stamp(found.st_size, found.st_mtime_ns)
        return here

    def _arrival(self, path: Path, stamp: Stamp) -> Arrival:
        return Arrival(Found(path, path.relative_to(self.folder)), stamp)


def file_system(folder: Path) -> int:
    """Which one a folder is on. It changes when a share is mounted there or is not any more.

    Raises:
        VisionADError: it is gone.
    """
    try:
        return folder.stat().st_dev
    except OSError as exc:
        raise VisionADError(f"folder {folder} cannot be listed: {exc.strerror}") from None


class Journal:
    """A file to which a JSON line is added for each picture, on disk before the next picture begins. An existing one is continued.

    Raises:
        VisionADError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as exc:
            raise VisionADError(f"journal {path} cannot be used: {exc.strerror}; choose another place") from None

    def noted(self, ones: Collection[Arrival]) -> set[Arrival]:
        """Those of them that it has a line of.

        Raises:
            VisionADError: it cannot be read, or holds other things.
        """
        wanted = {(one.picture.name.as_posix(), *one.stamp): one for one in ones}
        found, end = set[Arrival](), 0
        try:
            self._file.seek(0)
            for number, line in enumerate(self._file, 1):
                torn = line.rstrip(b"\0")  # which some file systems leave where data were to be
                if not line.endswith(b"\n") and (torn.startswith(_BEGIN) or _BEGIN.startswith(torn)):
                    self._file.truncate(end)  # the power went while it was written: that picture is inspected again
                    break
                end += len(line)
                one = wanted.get(self._key(line, number))
                if one is not None:
                    found.add(one)
        except OSError as exc:
            raise VisionADError(f"journal {self.path} cannot be used: {exc.strerror}; choose another place") from None
        return found

    def add(self, one: Arrival, facts: Mapping[str, Any]) -> None:
        """Note what was found of a picture.

        Raises:
            VisionADError: it could not be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"name": one.picture.name.as_posix(), **one.stamp._asdict(), "time": now, **facts}
        try:
            self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise VisionADError(f"journal {self.path} could not be written: {exc.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # a full disk, which was said
            self._file.close()

    def _key(self, line: bytes, number: int) -> tuple[str, int, int]:
        try:
            facts = json.loads(line)
            return str(facts["name"]), int(facts["bytes"]), int(facts["modified_ns"])
        except (ValueError, KeyError, TypeError):
            raise VisionADError(
                f"{self.path}, line {number}: wanted a line of `visionad watch --journal`; choose another file"
            ) from None


_BEGIN = b'{"name": '
