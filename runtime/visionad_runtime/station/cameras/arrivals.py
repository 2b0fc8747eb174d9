"""Files that another program, such as a camera maker's software, writes into a folder: each of them once, when it is whole."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import Field

from ...errors import VisionADError
from ...images import decode
from ..camera import CameraFacts, CameraGone, Frame, LostFrame, NoFrame, Sight
from ..leaf import LeafSettings
from ..watch.detected import DetectedFile
from ..watch.folder_source import FolderSource
from ..watch.journal import Journal

log = logging.getLogger("visionad")

LOOK_SECONDS = 0.5
"""Between two questions whether the folder is still there, while an image is waited for."""
END_SECONDS = 5.0
"""For a look at the folder and for lines of the journal, when the camera is closed."""
MAX_OPEN, OPEN_SECONDS = 2, 5.0
"""Files that were handed out and are not in the journal: more would be inspected again after a power cut. If that takes longer, as
where a diagnosis took one, the next file is handed out all the same."""
MAX_UNRECORDED = 1000
"""Files that are remembered until they are on record."""


class ArrivalsSettings(LeafSettings):
    """Settings of a folder in which images arrive.

    Attributes:
        path: the folder. Its subfolders count too.
        journal: file in which each inspected image is noted, so that a restart inspects what arrived meanwhile.
        journal_days: for how many days the journal's lines are kept; those of files that still lie in the folder stay.
        settle_ms: a file is whole when it has not changed for so long.
        exclude: patterns of files and folders to leave out, as `visionad watch --exclude`.
        bit_depth: bits that the camera filled in files of 16 bits.
        latency_ms: time from the exposure to the file's first appearance, at most. With `trigger: line` a file counts that appeared
            later than the trigger by this time.
    """

    path: Path
    journal: Path
    journal_days: int = Field(default=30, ge=1, le=36500)
    settle_ms: float = Field(default=200.0, ge=0, le=3_600_000)
    exclude: tuple[str, ...] = ()
    bit_depth: int | None = Field(default=None, ge=9, le=16)
    latency_ms: float = Field(default=0.0, ge=0, le=3_600_000)


class _Arrived(NamedTuple):
    """A file that is whole, when its image was taken (monotonic seconds), and how many arrived before it."""

    file: DetectedFile
    taken: float
    place: int


class ArrivalsCamera:
    """See :class:`~visionad_runtime.station.camera.StoredCamera` and :class:`~visionad_runtime.station.camera.SeenCamera`.

    A thread looks at the folder as ``visionad watch`` does, and writes the journal. Files wait for :meth:`grab` in the order in
    which they were written. ``taken`` is the time at which the file was seen first, or at which it was written by its date if that
    is earlier, less ``latency_ms``. After :meth:`arm`, files that were there before do not count.
    """

    Settings: ClassVar[type[LeafSettings]] = ArrivalsSettings
    sight: Sight = "always"

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, ArrivalsSettings)
        self._name, self._settings = name, settings
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ending = True
        self._trouble = "it is not open"
        self._source: FolderSource | None = None
        self._waiting: deque[_Arrived] = deque()
        self._unrecorded: OrderedDict[int, DetectedFile] = OrderedDict()
        self._to_note: deque[tuple[int, DetectedFile]] = deque()
        self._newest: _Arrived | None = None
        self._id = self._arrived = 0
        self._handed_out = -math.inf
        self._not_before = -math.inf

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.camera.Camera`. Nothing is needed."""
        return None

    def open(self) -> CameraFacts:
        """See :class:`~visionad_runtime.station.camera.Camera`. What was seen before stays known: a share may have been away."""
        self.close()
        settings = self._settings
        if self._thread is not None:
            raise CameraGone(
                f"camera {self._name}: folder {settings.path} or journal {settings.journal} does not answer"
            )
        try:
            if self._source is not None:
                self._source.check()
            journal = Journal(settings.journal, settings.path, settings.journal_days)
            try:
                if self._source is None:
                    self._source = FolderSource(
                        settings.path, journal.processed, settings.settle_ms / 1e3, self._wait, exclude=settings.exclude
                    )
            except BaseException:
                journal.close()
                raise
        except VisionADError as exc:
            raise CameraGone(f"camera {self._name}: {exc}") from None
        self._ending, self._trouble = False, ""
        self._thread = threading.Thread(
            target=self._look, args=(self._source, journal), name=f"camera {self._name}", daemon=True
        )
        self._thread.start()
        return CameraFacts(f"images that arrive in {settings.path}", "files", 0, 0, simulated=False)

    def arm(self) -> int:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        with self._changed:
            self._not_before = time.monotonic()
            return self._id

    def trigger(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`. The program that writes the files has its own trigger."""

    def grab(self, after: int, deadline: float) -> Frame:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        del after  # numbers are given here, and count by one
        while True:
            one = self._next(deadline)
            try:
                pixels = decode.load(one.file.image.path, self._settings.bit_depth)
            except VisionADError as exc:
                assert self._source is not None
                if self._source.retry(one.file):  # its writer may not have let go of it
                    continue
                self._count(one.file)
                if os.path.lexists(one.file.image.path):
                    self.recorded(self._id)  # with this error
                else:  # it, or its folder, was moved away: it is inspected when it comes back
                    self._unrecorded.pop(self._id, None)
                raise LostFrame(f"camera {self._name}: {exc}") from None
            self._count(one.file)
            return Frame(pixels, self._id, one.taken, name=str(one.file.image.path))

    def newest(self) -> Frame | None:
        """See :class:`~visionad_runtime.station.camera.SeenCamera`."""
        with self._changed:
            self._raise_if_gone()
            newest = self._newest
        if newest is None:
            return None
        path = newest.file.image.path
        try:
            return Frame(decode.load(path, self._settings.bit_depth), newest.place, newest.taken, name=str(path))
        except VisionADError as exc:
            raise LostFrame(f"camera {self._name}: {exc}") from None

    def recorded(self, number: int) -> None:
        """See :class:`~visionad_runtime.station.camera.StoredCamera`."""
        with self._changed:
            file = self._unrecorded.pop(number, None)
            if file is not None:
                self._to_note.append((number, file))
                self._changed.notify_all()

    def close(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`. What is on record is noted first."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(END_SECONDS)
            self._thread = self._thread if self._thread.is_alive() else None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _next(self, deadline: float) -> _Arrived:
        """Return the next file that counts, and wait for it."""
        with self._changed:
            while True:
                self._raise_if_gone()
                while self._waiting and self._may_hand_out():
                    one = self._waiting.popleft()
                    if one.taken >= self._not_before:
                        self._handed_out = time.monotonic()
                        return one
                rest = deadline - time.monotonic()
                if rest <= 0:
                    raise NoFrame(
                        f"camera {self._name}: no image arrived in {self._settings.path} in time; check the program that writes"
                    )
                self._changed.wait(min(rest, LOOK_SECONDS))

    def _may_hand_out(self) -> bool:
        is_open = len(self._unrecorded) + len(self._to_note) >= MAX_OPEN
        return not is_open or time.monotonic() - self._handed_out > OPEN_SECONDS

    def _count(self, file: DetectedFile) -> None:
        """Give a file its frame's number."""
        with self._changed:
            self._id += 1
            self._unrecorded[self._id] = file
            if len(self._unrecorded) > MAX_UNRECORDED:
                self._unrecorded.popitem(last=False)

    def _raise_if_gone(self) -> None:
        if self._ending or self._trouble:
            raise CameraGone(f"camera {self._name}: {self._trouble or 'it is not open'}")
        if self._source is not None and self._source.is_away:
            raise CameraGone(f"camera {self._name}: folder {self._settings.path} cannot be listed; is its share away?")

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _look(self, source: FolderSource, journal: Journal) -> None:
        """Look at the folder and write the journal, until the camera is closed."""
        self._journal = journal
        try:
            for file in source:
                now = time.monotonic()
                age = time.time() - file.stamp.modified_ns / 1e9  # a share's clock may be ahead: then it is below zero
                taken = min(source.first_seen(file), now - age) - self._settings.latency_ms / 1e3
                with self._changed:
                    self._arrived += 1
                    self._newest = _Arrived(file, taken, self._arrived)
                    self._waiting.append(self._newest)
                    self._changed.notify_all()
        except Exception as exc:  # or no image would ever come, and nobody would know
            log.exception("camera %s", self._name)
            self._trouble = f"{type(exc).__name__}: {exc}"
        finally:
            self._write_notes()
            try:
                journal.close()
            except VisionADError as exc:
                log.warning("camera %s: %s", self._name, exc)

    def _wait(self, seconds: float) -> bool:
        """Wait between two looks, and note meanwhile what is on record. Return whether to end."""
        until = time.monotonic() + seconds
        while True:
            self._write_notes()
            with self._changed:
                rest = until - time.monotonic()
                if self._ending or rest <= 0:
                    return self._ending
                if not self._to_note:
                    self._changed.wait(rest)

    def _write_notes(self) -> None:
        while self._to_note:
            number, file = self._to_note[0]
            self._journal.append(file, {"camera": self._name, "frame": number})
            with self._changed:
                self._to_note.popleft()
                self._changed.notify_all()
