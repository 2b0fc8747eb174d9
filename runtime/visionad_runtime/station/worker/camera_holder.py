"""A camera of the worker: opened again whenever it is gone, and what works of it, step by step."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

from ...formats.plain_text import plain
from ..camera import Camera, CameraError, CameraFacts, CameraGone, Frame, SeenCamera, SettingRefused, StoredCamera

REOPEN_SECONDS = 1.0
"""Pause between attempts to open a camera that is gone."""


class Step(NamedTuple):
    """A step on the way to an image.

    Attributes:
        step: ``installed``: the camera's package and driver; ``found``: it was found and connected; ``settings``: they were written
            and read back; ``image``: the newest image came.
        ok: ``None`` if it is not known, because an earlier step fails or nothing was tried yet.
        detail: what was found, or what is wrong and what mends it.
    """

    step: str
    ok: bool | None
    detail: str = ""


class _Image(NamedTuple):
    id: int
    taken: float
    shape: tuple[int, ...]


class CameraHolder:
    """A camera that is opened again whenever it is gone, in a thread of its own."""

    def __init__(self, name: str, camera: Camera, say: Any) -> None:
        self.name, self._camera, self._say = name, camera, say
        self.facts: CameraFacts | None = None
        self.trouble = "it was not opened yet"
        self._missing: str | None = None
        self._refused = False
        self._image: _Image | None = None
        self._image_trouble = ""
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def open(self, *, again: bool = True) -> None:
        """Try to open it. If it is not there, go on trying in the background, unless ``again`` is false."""
        if not self._try() and again:
            threading.Thread(target=self._retry, name=f"visionad-open-{self.name}", daemon=True).start()

    def arm(self) -> int:
        """See :class:`Camera`. A camera that is gone has no frame."""
        if self.facts is None:
            return 0
        try:
            return self._camera.arm()
        except CameraError as exc:
            self.note(exc)
            return 0

    def trigger(self) -> None:
        """See :class:`Camera`. A camera that is gone is not triggered; :meth:`grab` says so."""
        if self.facts is not None:
            try:
                self._camera.trigger()
            except CameraError as exc:
                self.note(exc)

    def grab(self, after: int, deadline: float) -> Frame:
        """See :class:`Camera`."""
        if self.facts is None:
            raise CameraGone(f"camera {self.name} is not there: {self.trouble}")
        frame = self._camera.grab(after, deadline)
        self._image, self._image_trouble = _Image(frame.id, frame.taken, frame.pixels.shape), ""
        return frame

    def newest(self) -> Frame | None:
        """See :class:`~visionad_runtime.station.camera.SeenCamera`; ``None`` also for a camera that is no such one."""
        if self.facts is None:
            raise CameraGone(f"camera {self.name} is not there: {self.trouble}")
        return self._camera.newest() if isinstance(self._camera, SeenCamera) else None

    @property
    def is_stored(self) -> bool:
        """Whether it is a :class:`~visionad_runtime.station.camera.StoredCamera`."""
        return isinstance(self._camera, StoredCamera)

    def recorded(self, number: int) -> None:
        """See :class:`~visionad_runtime.station.camera.StoredCamera`. For other cameras it does nothing."""
        if isinstance(self._camera, StoredCamera):
            self._camera.recorded(number)

    def try_grab(self, after: int, deadline: float) -> None:
        """Take an image only to see whether one comes; :meth:`steps` tells."""
        try:
            self.grab(after, deadline)
        except CameraError as exc:
            self._image_trouble = plain(str(exc))

    def note(self, trouble: CameraError) -> None:
        """Open the camera again if it is gone."""
        self.trouble = self._image_trouble = plain(str(trouble))
        if isinstance(trouble, CameraGone) and self.facts is not None:
            self.facts = None
            self._say("camera", self.name, None, self.trouble)
            threading.Thread(target=self._retry, name=f"visionad-open-{self.name}", daemon=True).start()

    def steps(self) -> list[Step]:
        """Return the steps from the package to an image. A step after one that fails is not known."""
        facts, image = self.facts, self._image
        steps = [Step("installed", self._missing is None, self._missing or "")]
        if self._missing is not None:
            return [*steps, Step("found", None), Step("settings", None), Step("image", None)]
        if facts is None and not self._refused:
            return [*steps, Step("found", False, self.trouble), Step("settings", None), Step("image", None)]
        steps.append(Step("found", True, "" if facts is None else facts.name))
        if facts is None:
            return [*steps, Step("settings", False, self.trouble), Step("image", None)]
        size = f", {facts.width} x {facts.height}" if facts.width else ""
        steps.append(Step("settings", True, f"{facts.format}{size}"))
        if self._image_trouble:
            return [*steps, Step("image", False, self._image_trouble)]
        if image is None:
            return [*steps, Step("image", None, "no image since the start: trigger a part")]
        height, width = image.shape[:2]
        return [
            *steps,
            Step("image", True, f"{image.id}: {width} x {height}, {time.monotonic() - image.taken:.0f} s ago"),
        ]

    def close(self) -> None:
        """Release it."""
        self._closed.set()
        self._camera.close()

    def _retry(self) -> None:
        self._camera.close()
        while not self._closed.wait(REOPEN_SECONDS):
            if self._try():
                return

    def _try(self) -> bool:
        with self._lock:
            try:
                self._missing = self._camera.missing()
                if self._missing is not None:
                    raise CameraGone(f"camera {self.name}: {self._missing}")
                self.facts = self._camera.open()
                self._image, self._image_trouble = None, ""
            except CameraError as exc:
                self._refused = isinstance(exc, SettingRefused)
                first = self.trouble != plain(str(exc))
                self.trouble = plain(str(exc))
                if first:
                    self._say("camera", self.name, None, self.trouble)
                return False
        self._say("camera", self.name, self.facts._asdict(), "")
        return True
