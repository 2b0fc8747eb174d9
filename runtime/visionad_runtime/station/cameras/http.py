"""Images that another program pushes: the station's web part hands over what it receives at POST /cameras/NAME/frame."""

from __future__ import annotations

import threading
import time
from typing import ClassVar

from pydantic import Field, SecretStr, field_validator

from ...errors import ImageError, VisionADError
from ...images import decode
from ..camera import CameraFacts, CameraGone, Frame, LostFrame, NoFrame, Sight
from ..leaf import LeafSettings

MIN_TOKEN = 16
"""Characters of a token, which nobody shall guess."""


class HttpSettings(LeafSettings):
    """Settings of a camera whose images are pushed.

    Attributes:
        bit_depth: bits that the camera filled in images of 16 bits.
        max_age_ms: age of the oldest image that is handed out, from its arrival.
        max_bytes: size of the largest image file that is taken.
        token: what senders must know; without one, only programs of the station's own machine may send.
    """

    bit_depth: int | None = Field(default=None, ge=9, le=16)
    max_age_ms: float = Field(default=5000.0, gt=0, le=3_600_000)
    max_bytes: int = Field(default=64 * 2**20, ge=1, le=2**30)
    token: SecretStr | None = None

    @field_validator("token")
    @classmethod
    def _is_long(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and len(token.get_secret_value()) < MIN_TOKEN:
            raise ValueError(f"expected {MIN_TOKEN} characters or more, got {len(token.get_secret_value())}")
        return token


class HttpCamera:
    """See :class:`~visionad_runtime.station.camera.PushedCamera` and :class:`~visionad_runtime.station.camera.SeenCamera`.

    :meth:`submit` may be called by any thread. One image waits at most: a newer one replaces it, and is then handed out with
    ``lost`` counting those that were replaced. The image must arrive after :meth:`arm`. ``taken`` is its arrival.
    """

    Settings: ClassVar[type[LeafSettings]] = HttpSettings
    sight: Sight = "always"

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, HttpSettings)
        self._name, self._settings = name, settings
        self.token = None if settings.token is None else settings.token.get_secret_value()
        self._changed = threading.Condition()
        self._open = False
        self._waiting: tuple[bytes, int, float] | None = None
        self._newest: tuple[bytes, int, float] | None = None
        self._id = self._lost = 0

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.camera.Camera`. The web part's packages are the station's own."""
        return None

    def open(self) -> CameraFacts:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        with self._changed:
            self._open, self._waiting, self._newest, self._lost = True, None, None, 0
        return CameraFacts(f"images pushed to /cameras/{self._name}/frame", "files", 0, 0, simulated=False)

    def submit(self, data: bytes) -> int:
        """See :class:`~visionad_runtime.station.camera.PushedCamera`. It is decoded when it is grabbed."""
        if not 0 < len(data) <= self._settings.max_bytes:
            raise ImageError(
                f"camera {self._name}: expected an image file of 1 to {self._settings.max_bytes} bytes, got {len(data)}; "
                "raise max_bytes in the station file if this is an image"
            )
        with self._changed:
            if not self._open:
                raise CameraGone(f"camera {self._name}: it takes no images now; wait until the station is ready")
            self._lost += self._waiting is not None
            self._id += 1
            self._waiting = self._newest = data, self._id, time.monotonic()
            self._changed.notify_all()
            return self._id

    def arm(self) -> int:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        with self._changed:
            self._waiting, self._lost = None, 0
            return self._id

    def trigger(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`. The program that pushes images has its own trigger."""

    def grab(self, after: int, deadline: float) -> Frame:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        with self._changed:
            while (taken := self._take(after)) is None:
                if not self._open:
                    raise CameraGone(f"camera {self._name}: it is not open")
                rest = deadline - time.monotonic()
                if rest <= 0:
                    raise NoFrame(
                        f"camera {self._name}: no image in time; check the program that sends to /cameras/{self._name}/frame"
                    )
                self._changed.wait(rest)
            lost, self._lost = self._lost, 0
        return self._frame(taken, lost)

    def newest(self) -> Frame | None:
        """See :class:`~visionad_runtime.station.camera.SeenCamera`."""
        with self._changed:
            if not self._open:
                raise CameraGone(f"camera {self._name}: it is not open")
            newest = self._newest
        return None if newest is None else self._frame(newest, 0)

    def close(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        with self._changed:
            self._open, self._waiting, self._newest = False, None, None
            self._changed.notify_all()

    def _frame(self, taken: tuple[bytes, int, float], lost: int) -> Frame:
        data, number, arrived = taken
        try:
            pixels = decode.decode(data, f"image {number} of camera {self._name}", self._settings.bit_depth)
        except VisionADError as exc:
            raise LostFrame(f"camera {self._name}: {exc}") from None
        return Frame(pixels, number, arrived, lost)

    def _take(self, after: int) -> tuple[bytes, int, float] | None:
        """Take the image that waits, if it is new enough."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting[1] <= after or time.monotonic() - waiting[2] > self._settings.max_age_ms / 1e3:
            return None
        return waiting
