"""Network streams (RTSP) and USB cameras by OpenCV: the newest frame, with its age."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..camera import CameraFacts, CameraGone, Frame, NoFrame, SettingRefused, Sight
from ..leaf import LeafSettings

SETTLE_S = 0.5
"""A new connection hands out what was buffered first. It has caught up when frames come no faster than they are taken."""
JITTER_S = 0.02
WINDOW_S = 15.0
"""The clocks of camera and host drift apart: the least delay is taken of the last one or two windows."""


class StreamClock:
    """Tells when a frame would have arrived had it not been buffered.

    A frame's timestamp and its arrival differ by the clocks' difference and a delay. The least difference of the last while
    belongs to a frame that was not delayed: what another frame's difference exceeds it by is the time that it lay in a buffer.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything: a new connection has other timestamps."""
        self._timestamp = 0.0
        self._settled_at = self._window_end = math.inf
        self._least = self._least_before = math.inf

    def arrival(self, timestamp: float, now: float) -> float | None:
        """Return the time at which a frame would have arrived without a buffer, or ``None`` until that is known.

        Args:
            timestamp: of the frame in seconds; 0 or less if the source has none. Frames then count as not buffered.
            now: when it arrived, monotonic time in seconds.
        """
        if timestamp < self._timestamp or self._timestamp <= 0 < timestamp:
            self.restart()  # the source began anew, or has timestamps after all: the first ones of a stream may be 0
        self._timestamp = timestamp
        offset = now - timestamp if timestamp > 0 else 0.0
        least = min(self._least, self._least_before)
        if offset < least - JITTER_S or self._settled_at == math.inf:
            self._settled_at = now + SETTLE_S
        if self._window_end == math.inf:
            self._window_end = now + WINDOW_S
        if now > self._window_end:
            self._least_before, self._least, self._window_end = self._least, offset, now + WINDOW_S
        self._least = min(self._least, offset)
        if now < self._settled_at:
            return None
        return now if timestamp <= 0 else timestamp + min(self._least, self._least_before)


class StreamSettings(LeafSettings):
    """Settings of a stream.

    Attributes:
        source: address (``rtsp://…``), or number of a USB camera.
        latency_ms: time from the exposure to the arrival here, at most: what camera and encoder take. A frame is handed out if it
            arrived later than the trigger by this time. Measure it (docs/guides/cameras.md); too small a value lets
            images through that are older than their trigger.
        max_age_ms: age of the oldest frame that is handed out, from its arrival.
        open_timeout_ms: time that connecting may take.
        read_timeout_ms: time without a frame after which the stream counts as lost and is opened again.
        width: of a USB camera's images in pixels; by default the camera's.
        height: the same.
        fps: frames a second of a USB camera; by default the camera's.
    """

    source: str | int
    latency_ms: float = Field(default=0.0, ge=0, le=3_600_000)
    max_age_ms: float = Field(default=500.0, gt=0, le=3_600_000)
    open_timeout_ms: int = Field(default=5000, ge=100, le=3_600_000)
    read_timeout_ms: int = Field(default=1500, ge=100, le=3_600_000)
    width: int | None = Field(default=None, ge=1, le=1_000_000)
    height: int | None = Field(default=None, ge=1, le=1_000_000)
    fps: float | None = Field(default=None, gt=0, le=1_000_000)


class StreamCamera:
    """See :class:`~visionad_runtime.station.camera.SeenCamera`.

    A thread reads all the time and keeps the newest frame only: a decoder hands out frames in order, so a stream that is read on
    demand gives the oldest one of its buffer. The thread opens the stream again when it ends or stalls.

    Network, decoder and a busy host may still delay frames by seconds. :class:`StreamClock` tells from the timestamps by how much.
    ``taken`` is the time at which the frame would have arrived without that, less ``latency_ms``.

    The stream tells nothing of frames that are lost on the way: ``lost`` is 0.
    """

    Settings: ClassVar[type[LeafSettings]] = StreamSettings
    sight: Sight = "always"

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, StreamSettings)
        self._name, self._settings = name, settings
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._id = 0
        self._not_before = 0.0
        self._lost_since: float | None = None
        self._clock = StreamClock()

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.camera.Camera`. OpenCV belongs to the lean install."""
        return None

    def open(self) -> CameraFacts:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        self.close()
        _silence()
        capture = self._capture()
        if capture is None:
            raise CameraGone(
                f"camera {self._name}: {self._place()} does not open within {self._settings.open_timeout_ms} ms; check address, "
                "password and network, or the number of the camera"
            )
        facts = self._describe(capture)
        self._ending.clear()
        self._newest, self._lost_since = None, None
        self._thread = threading.Thread(target=self._read, args=(capture,), name=f"camera {self._name}", daemon=True)
        self._thread.start()
        return facts

    def arm(self) -> int:
        """See :class:`~visionad_runtime.station.camera.Camera`. A frame must begin its exposure after this moment."""
        with self._changed:
            self._not_before = time.monotonic()
            return self._id

    def trigger(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`. A stream has no trigger: frames from now on count."""
        with self._changed:
            self._raise_if_gone()
            self._not_before = time.monotonic()

    def grab(self, after: int, deadline: float) -> Frame:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        with self._changed:
            while True:
                frame, now = self._newest, time.monotonic()
                if frame is not None and frame.id > after and frame.taken >= self._not_before:
                    age = now - frame.taken - self._settings.latency_ms / 1e3
                    if age <= self._settings.max_age_ms / 1e3:
                        return frame
                self._raise_if_gone()
                if now >= deadline:
                    raise NoFrame(
                        f"camera {self._name}: no frame of {self._place()} in time that is newer than the trigger; check the "
                        f"network, or allow more than the deadline for latency_ms ({self._settings.latency_ms:g})"
                    )
                self._changed.wait(deadline - now)

    def newest(self) -> Frame | None:
        """See :class:`~visionad_runtime.station.camera.SeenCamera`."""
        with self._changed:
            self._raise_if_gone()
            return self._newest

    def close(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`. Waits for a read that is going on, at most its time-out."""
        self._ending.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join((self._settings.open_timeout_ms + self._settings.read_timeout_ms) / 1e3)

    def _raise_if_gone(self) -> None:
        if self._thread is None:
            raise CameraGone(f"camera {self._name}: it is not open")
        if self._lost_since is not None:
            raise CameraGone(
                f"camera {self._name}: {self._place()} sends nothing since "
                f"{time.monotonic() - self._lost_since:.1f} s; it is opened again and again; check camera and network"
            )

    def _place(self) -> str:
        """Return the source without a password."""
        return re.sub(r"//[^/@]*@", "//", str(self._settings.source))

    def _capture(self) -> Any:
        """Return an open ``cv2.VideoCapture``, or ``None``."""
        import cv2

        settings = self._settings
        source = settings.source
        if isinstance(source, str) and source.isdecimal():
            source = int(source)
        parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, settings.open_timeout_ms]
        parameters += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, settings.read_timeout_ms]
        try:
            if isinstance(source, str):
                capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, parameters)
            else:
                capture = cv2.VideoCapture(source)
                for name, value in (("WIDTH", settings.width), ("HEIGHT", settings.height)):
                    if value is not None:
                        capture.set(getattr(cv2, f"CAP_PROP_FRAME_{name}"), value)
                if settings.fps is not None:
                    capture.set(cv2.CAP_PROP_FPS, settings.fps)
        except cv2.error:
            return None
        if capture.isOpened():
            return capture
        capture.release()
        return None

    def _describe(self, capture: Any) -> CameraFacts:
        """Return the facts; raise where a size was asked for and the camera has another one."""
        import cv2

        sides = [int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        for name, got in zip(("width", "height"), sides, strict=True):
            expected = getattr(self._settings, name)
            if expected is not None and expected != got:
                capture.release()
                raise SettingRefused(
                    f"camera {self._name}: {name}: expected {expected}, got {got} from {self._place()}"
                )
        code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        form = code.to_bytes(4, "little").decode("ascii", "replace").strip("\0 ") or "video"
        return CameraFacts(f"stream {self._place()}", form, sides[0], sides[1], simulated=False)

    def _read(self, capture: Any) -> None:
        """Read until the camera is closed. Runs in a thread of its own."""
        import cv2

        self._clock.restart()
        while not self._ending.is_set():
            if capture is None:
                capture = self._capture()
                if capture is None:
                    self._ending.wait(0.5)
                continue
            began = time.monotonic()
            received, pixels = capture.read()
            now = time.monotonic()
            if not received:
                capture.release()
                capture = None
                self._clock.restart()
                with self._changed:
                    self._newest, self._lost_since = None, self._lost_since or began
                    self._changed.notify_all()
                continue
            self._arrived(pixels, self._clock.arrival(capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3, now))
        if capture is not None:
            capture.release()

    def _arrived(self, bgr: NDArray[np.uint8], arrival: float | None) -> None:
        import cv2

        with self._changed:
            self._id += 1
            self._lost_since = None
            if arrival is None:
                return
            pixels = np.asarray(bgr if bgr.ndim == 2 else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            self._newest = Frame(pixels, self._id, arrival - self._settings.latency_ms / 1e3)
            self._changed.notify_all()


def _silence() -> None:
    """Stop OpenCV and FFmpeg from printing to stderr: two lines at each attempt, one of which may show a password."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read when the first stream is opened
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
