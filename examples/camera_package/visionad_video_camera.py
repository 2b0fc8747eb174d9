"""A camera for ``visionad station``: one frame of a video file at each trigger.

In the station file: ``cameras: {top: {kind: video, path: line.avi}}``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from visionad_runtime.station.camera import CameraFacts, CameraGone, Frame, LostFrame, NoFrame
from visionad_runtime.station.leaf import LeafSettings


class VideoSettings(LeafSettings):
    """Settings of the camera, as the station file has them. Unknown keys are refused.

    Attributes:
        path: video file.
        every: take each n-th frame of the file.
    """

    path: Path
    every: int = Field(default=1, ge=1)


class VideoCamera:
    """Hands out the frames of a video in order."""

    Settings: ClassVar[type[LeafSettings]] = VideoSettings

    def __init__(self, name: str, settings: LeafSettings) -> None:
        """Keep the settings. Neither hardware nor libraries are touched here: ``visionad station --check`` comes this far."""
        assert isinstance(settings, VideoSettings)
        self._name, self._settings = name, settings
        self._video: Any = None
        self._id = self._asked = 0

    def missing(self) -> str | None:
        """Say what is not installed, and how to install it. OpenCV comes with VisionAD."""
        return None

    def open(self) -> CameraFacts:
        """Open the file. The worker calls this again after a :class:`CameraGone`."""
        import cv2  # libraries are imported here, when the camera is used

        self.close()
        self._video = cv2.VideoCapture(str(self._settings.path))
        if not self._video.isOpened():
            raise CameraGone(f"camera {self._name}: {self._settings.path} does not open as a video; check the path")
        width, height = (int(self._video.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        return CameraFacts(f"video {self._settings.path}", "video", width, height, simulated=True)  # no lens: say so

    def arm(self) -> int:
        """Forget older triggers. A live camera also discards the frames that wait."""
        self._asked = self._id
        return self._id

    def trigger(self) -> None:
        """Ask for a frame."""
        self._asked += 1

    def grab(self, after: int, deadline: float) -> Frame:
        """Return the next frame. A live camera waits for it, but no longer than until ``deadline``."""
        if self._video is None:
            raise CameraGone(f"camera {self._name}: it is not open")
        if self._id >= self._asked or self._id < after:
            raise NoFrame(f"camera {self._name}: it was not triggered")
        taken = time.monotonic()
        if taken > deadline:
            raise NoFrame(f"camera {self._name}: no frame in time")
        self._id += 1  # also for a frame that is lost: numbers count what was taken
        for _ in range(self._settings.every):
            if not self._video.grab():
                raise NoFrame(f"camera {self._name}: {self._settings.path} has no further frame")
        received, bgr = self._video.retrieve()
        if not received:
            raise LostFrame(f"camera {self._name}: frame {self._id} of {self._settings.path} is damaged")
        return Frame(np.ascontiguousarray(bgr[:, :, ::-1]), self._id, taken)  # OpenCV gives BGR, a frame is RGB

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._video is not None:
            self._video.release()
            self._video = None
