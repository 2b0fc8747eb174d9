"""Images that arrive in a folder, each once and whole."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import VisionADError
from ...images.discover import SUFFIXES, ImageFile
from ...images.scan import Listing, describe_passed_over, not_listed, scan
from .detected import DetectedFile, FileStamp, content_digest

log = logging.getLogger("visionad")

POLL_SECONDS = 0.05
"""Between two looks, or four times as long as a look takes: a large folder costs a fifth of a core at most."""
RECONNECT_INTERVAL = 1.0
"""Between two looks at a folder that cannot be listed, such as a share that is away."""
EMPTY_SECONDS = 10.0
"""For how long an empty file may be one that a writer has only opened."""
RETRY_TIMEOUT, RETRY_SECONDS = 3.0, 0.5
"""For how long an image that cannot be read is tried again, and how often: its writer may pause, or not have let go of it."""
CLOCK_SECONDS, COMPARE_SECONDS = 2.5, 0.5
"""Coarsest clock of a file system (FAT: 2 s), and how often a content is compared for that long after it was handed over."""
MAX_STAMPS = 2000
"""Files that were handed over and are asked for their stamps in one look; new ones always are. A network share takes a millisecond
for each."""
MAX_LOOK_SECONDS = 0.5
"""After which a look compares no more contents: new images wait for it."""
MANY_IMAGES = 10_000
"""In a folder that should be emptied: each look lists all of them."""
MAX_NOTICES = 32
"""Kinds of entries that are passed over and of entries that cannot be read, of which one line each is said."""


@dataclass(slots=True)
class _File:
    """What was seen of a file.

    Attributes:
        stamp: as it was found last.
        first: when it was found, if it was not handed over since.
        since: since when it is as it is.
        due: when it is to be handed over; infinity if it was.
        number: tells in which looks it is asked for its stamp.
        sha256: of the content that was handed over, if it could be read.
        compare: when its content is to be compared with that; infinity if no doubt is left.
        doubtful_until: until when its stamp alone does not tell that it was written again.
    """

    stamp: FileStamp
    first: float
    since: float
    due: float
    number: int
    sha256: str | None = None
    compare: float = math.inf
    doubtful_until: float = 0.0

    @property
    def is_settled(self) -> bool:
        return self.due == math.inf and self.compare == math.inf


class FolderSource:
    """The images below a folder, in the order in which they were written, each once.

    An image is handed over when it has not changed for ``settle`` seconds. An image that is written anew is a new one, also with
    the same size and date: if only its change time differs, or if its file system's clock is coarse, its content is compared.

    Args:
        folder: to watch, with its subfolders.
        processed: returns those images of the ones there at the start that are to be passed over.
        settle: seconds.
        wait: sleeps so many seconds and returns whether to end.
        clock: seconds, for tests.
        exclude: patterns of files and folders to leave out, as for :func:`~visionad_runtime.images.scan.scan`.

    Attributes:
        there, passed_over: how many lay there at the start, and how many of them are passed over.

    Raises:
        VisionADError: the folder cannot be listed. Later on it is waited for.
    """

    def __init__(
        self,
        folder: Path,
        processed: Callable[[Collection[DetectedFile]], Iterable[DetectedFile]],
        settle: float,
        wait: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
        exclude: Iterable[str] = (),
    ) -> None:
        self.folder, self.settle, self._exclude = folder, settle, tuple(exclude)
        self._wait, self._clock, self._lost, self._pause = wait, clock, False, 0.0
        self._said: set[tuple[str, str]] = set()
        self._looks = self._numbers = 0
        self._next_look, self._waiting = -math.inf, list[str]()
        listing = scan(folder, SUFFIXES, self._exclude)
        self._device = file_system(folder)
        found = {name: stamp for name in listing.images if (stamp := self._stamp(name)) is not None}
        here = [self._detected(name, stamp) for name, stamp in found.items()]
        old = {str(one.image.name): one.sha256 for one in processed(here)}
        now = clock()
        self._files = {name: self._new(stamp, now) for name, stamp in found.items()}
        for name, sha256 in old.items():
            self._files[name].due, self._files[name].sha256 = math.inf, sha256
        self.there, self.passed_over = len(found), len(old)
        self._say_passed_over(listing)

    def __iter__(self) -> Iterator[DetectedFile]:
        while not self._wait(self._pause):
            for name in self._ready():
                if (one := self._hand_over(name)) is not None:
                    yield one

    def retry(self, one: DetectedFile) -> bool:
        """Hand an image that could not be read over once more.

        Returns:
            Whether it will be: not if it is gone, or has been as it is for :data:`RETRY_TIMEOUT`. One that is gone is handed over
            when it comes back.
        """
        file, now = self._files.get(str(one.image.name)), self._clock()
        gone = file is None or not os.path.lexists(one.image.path)
        if gone and file is not None and file.stamp == one.stamp:  # also if its whole folder is away and comes back
            file.due = now + RETRY_SECONDS
        if file is None or gone or file.stamp != one.stamp or now - file.since >= RETRY_TIMEOUT:
            return False
        file.due = now + RETRY_SECONDS
        return True

    def first_seen(self, one: DetectedFile) -> float:
        """Return when an image that is being handed over was found, whole or not, by the clock of this source."""
        return self._files[str(one.image.name)].first

    @property
    def is_away(self) -> bool:
        """Whether the folder could not be listed when it was looked at last."""
        return self._lost

    def check(self) -> None:
        """Look whether the folder can be listed.

        Raises:
            VisionADError: It cannot, or its share is not mounted.
        """
        self._look()
        self._lost = False

    def _ready(self) -> list[str]:
        """Look at the folder once. Return the images that are to be handed over, in order."""
        began = self._clock()
        if began < self._next_look:
            return self._ready_of(self._waiting, began)
        try:
            listing = self._look()
        except VisionADError as exc:
            if not self._lost:
                log.warning("%s; looking for it again every second", exc)
            self._lost, self._pause, self._waiting = True, RECONNECT_INTERVAL, []
            return []
        if self._lost:
            log.warning("folder %s is back", self.folder)
        self._lost = False
        now, files = self._clock(), dict[str, _File]()
        self._looks += 1
        turns = 1 + len(self._files) // MAX_STAMPS
        for name in listing.images:
            file = self._files.get(name)
            if file is None:
                if (stamp := self._stamp(name)) is None:
                    continue
                file = self._new(stamp, now)
            elif file.is_settled and (file.number + self._looks) % turns == 0:
                stamp = self._stamp(name)
                file = file if stamp is None else self._seen(file, stamp, now)
            files[name] = file
        for below in listing.errors:  # or all of its images would be new when it can be listed again
            files |= {name: file for name, file in self._files.items() if name.startswith(below + os.sep)}
        self._files = files
        self._say_passed_over(listing)
        self._next_look = self._clock() + max(POLL_SECONDS, 4 * (self._clock() - began))
        return self._ready_of([name for name, file in files.items() if not file.is_settled], now)

    def _ready_of(self, names: Iterable[str], now: float) -> list[str]:
        """Look at images that are not settled, without listing the folder, and plan the next look."""
        began, waiting = self._clock(), []
        for name in names:
            if (stamp := self._stamp(name)) is None:  # the next listing tells whether it is gone
                continue
            file = self._seen(self._files[name], stamp, now)
            if now >= file.compare and self._clock() - began < MAX_LOOK_SECONDS:
                file = self._compared(name, file, now)
            self._files[name] = file
            if not file.is_settled:
                waiting.append(name)
        self._waiting = waiting
        ready = [name for name in waiting if now >= self._files[name].due]
        later = [min(self._files[name].due, self._files[name].compare) for name in waiting]
        now = self._clock()
        self._pause = max(POLL_SECONDS, min([self._next_look, *later]) - now)
        return sorted(ready, key=lambda name: (self._files[name].stamp.modified_ns, Path(name)))

    def _look(self) -> Listing:
        listing, device = scan(self.folder, SUFFIXES, self._exclude), file_system(self.folder)
        # Or all of its images would be new when it is back.
        if self._files and not listing.images and not listing.errors and device != self._device:
            raise VisionADError(f"folder {self.folder} is empty, and on another file system: the share is not mounted")
        self._device = device
        return listing

    def _new(self, stamp: FileStamp, now: float) -> _File:
        self._numbers += 1
        return _File(stamp, now, now, self._due(stamp, now), self._numbers)

    def _seen(self, file: _File, stamp: FileStamp, now: float) -> _File:
        """What is known of a file after another look at its stamp."""
        if stamp == file.stamp:
            return file
        if file.due < math.inf:  # it is being written
            return replace(self._new(stamp, now), first=file.first)
        if stamp.written != file.stamp.written or file.sha256 is None:
            return self._new(stamp, now)
        # Other rights, another attribute, or another content with the same size and date.
        file.stamp, file.compare = stamp, now + self.settle
        return file

    def _compared(self, name: str, file: _File, now: float) -> _File:
        """What is known of a file after a look at its content."""
        sha256 = content_digest(self.folder / name)
        if sha256 is not None and sha256 != file.sha256:
            return self._new(file.stamp, now)
        file.compare = now + COMPARE_SECONDS if sha256 is None or now < file.doubtful_until else math.inf
        return file

    def _hand_over(self, name: str) -> DetectedFile | None:
        """The image with its content's digest; ``None`` if it was changed since the look: others may have taken their time."""
        file, now = self._files[name], self._clock()
        stamp = self._stamp(name)
        if stamp is not None and stamp != file.stamp:
            self._files[name] = self._new(stamp, now)
            return None
        file.due, file.sha256 = math.inf, content_digest(self.folder / name)
        if file.stamp.is_coarse and file.sha256 is not None:
            file.compare, file.doubtful_until = now + COMPARE_SECONDS, now + CLOCK_SECONDS
        return self._detected(name, file.stamp, file.sha256)

    def _say_passed_over(self, listing: Listing) -> None:
        fresh = {key: count for key, count in listing.passed_over.items() if key not in self._said}
        broken = {("not listed", name): exc for name, exc in listing.errors.items()}
        if len(self._files) > MANY_IMAGES and ("note", "many") not in self._said:
            self._said.add(("note", "many"))
            log.warning(
                "folder %s holds %d images, and each look lists them all; move those that were inspected elsewhere",
                self.folder,
                len(self._files),
            )
        if len(self._said) >= MAX_NOTICES:
            return
        if fresh:
            log.warning("folder %s: passed over %s", self.folder, describe_passed_over(fresh))
        for key, exc in broken.items():
            if key not in self._said:
                log.warning("%s; the others go on", not_listed(self.folder / key[1], exc))
        self._said |= fresh.keys() | broken.keys()

    def _due(self, stamp: FileStamp, now: float) -> float:
        return now + (self.settle if stamp.bytes else max(self.settle, EMPTY_SECONDS))

    def _stamp(self, name: str) -> FileStamp | None:
        path = f"{self.folder}{os.sep}{name}"  # of 20 000 files, a Path each takes longer than the look
        try:
            return FileStamp.of(os.stat(path))  # noqa: PTH116
        except OSError as exc:
            key = ("note", name)
            # One that is gone since it was listed is no trouble; a link to nowhere is.
            if os.path.lexists(path) and key not in self._said and len(self._said) < MAX_NOTICES:
                self._said.add(key)
                log.warning("%s: cannot be read: %s", path, exc.strerror or exc)
            return None

    def _detected(self, name: str, stamp: FileStamp, sha256: str | None = None) -> DetectedFile:
        return DetectedFile(ImageFile(self.folder / name, Path(name)), stamp, sha256)


def file_system(folder: Path) -> int:
    """Which one a folder is on. It changes when a share is mounted there or is not any more.

    Raises:
        VisionADError: it is gone.
    """
    try:
        return folder.stat().st_dev
    except OSError as exc:
        raise not_listed(folder, exc) from None
