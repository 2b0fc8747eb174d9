"""Folder camera: one image file of a folder at each trigger, by name. It simulates a camera."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ...errors import VisionADError
from ...images import decode
from ...images.discover import find_images
from ..camera import CameraFacts, CameraGone, Frame, LostFrame, NoFrame, Sight
from ..leaf import LeafSettings


class FolderSettings(LeafSettings):
    """Settings of a folder camera.

    Attributes:
        path: folder of images.
        loop: whether it begins again after the last image.
        delay_ms: time that an exposure takes.
        interval_ms: takes an image by itself each so often, for `trigger: free` and `hardware`; ``None`` waits for triggers.
        bit_depth: bits that the camera filled in files of 16 bits.
    """

    path: Path
    loop: bool = True
    delay_ms: float = Field(default=0.0, ge=0, le=3_600_000)
    interval_ms: float | None = Field(default=None, gt=0, le=3_600_000)
    bit_depth: int | None = Field(default=None, ge=9, le=16)


class FolderCamera:
    """See :class:`~visionad_runtime.station.camera.SeenCamera`. The image of the next trigger is what lies under it."""

    Settings: ClassVar[type[LeafSettings]] = FolderSettings
    sight: Sight = "page"

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, FolderSettings)
        self._name, self._settings = name, settings
        self._files: list[Path] = []
        self._next = self._id = self._asked = 0
        self._due = 0.0

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.camera.Camera`. Nothing is needed."""
        return None

    def open(self) -> CameraFacts:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        try:
            self._files = [file.path for file in find_images([self._settings.path])]
        except VisionADError as exc:
            raise CameraGone(f"camera {self._name}: {exc}") from None
        self._due = time.monotonic()
        return CameraFacts(f"folder {self._settings.path}", "files", 0, 0, simulated=True)

    def arm(self) -> int:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        self._asked = self._id
        return self._id

    def trigger(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        self._asked += 1

    def grab(self, after: int, deadline: float) -> Frame:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        del after  # ids count by one, and no frame waits
        taken = time.monotonic()
        interval = self._settings.interval_ms
        if interval is not None and self._id >= self._asked:
            if self._due > deadline:
                time.sleep(max(0.0, deadline - taken))
                raise NoFrame(f"camera {self._name}: its interval is {interval:g} ms")
            time.sleep(max(0.0, self._due - taken))
            taken, self._due, self._asked = time.monotonic(), time.monotonic() + interval / 1e3, self._id + 1
        if self._id >= self._asked or (self._next >= len(self._files) and not self._settings.loop):
            why = "no image is left" if self._id < self._asked else "it was not triggered"
            raise NoFrame(f"camera {self._name}: {why} in {self._settings.path}")
        if taken + self._settings.delay_ms / 1e3 > deadline:
            time.sleep(max(0.0, deadline - taken))
            raise NoFrame(f"camera {self._name}: no frame in time; its delay is {self._settings.delay_ms:g} ms")
        time.sleep(self._settings.delay_ms / 1e3)
        path = self._files[self._next % len(self._files)]
        self._next += 1
        self._id += 1
        return self._frame(path, self._id, taken)

    def newest(self) -> Frame | None:
        """See :class:`~visionad_runtime.station.camera.SeenCamera`. It is taken now, and stays the next trigger's image."""
        files, place = self._files, self._next
        if not files or (place >= len(files) and not self._settings.loop):
            return None
        return self._frame(files[place % len(files)], place + 1, time.monotonic())

    def _frame(self, path: Path, number: int, taken: float) -> Frame:
        try:
            pixels = decode.load(path, self._settings.bit_depth)
        except VisionADError as exc:
            raise LostFrame(f"camera {self._name}: {exc}") from None
        return Frame(pixels, number, taken, name=str(path))

    def close(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
