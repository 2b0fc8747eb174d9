"""Settings of GenICam cameras: written when a camera opens, and read back."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field

from ..camera import SettingRefused
from ..leaf import LeafSettings

EXPOSURE_TOLERANCE = 0.01
"""Cameras round the exposure to their clock."""
GAIN_TOLERANCE_DB = 0.1


class GenicamSettings(LeafSettings):
    """Settings that all GenICam cameras share. A setting that is not given keeps the camera's value.

    Attributes:
        format: pixel format by its GenICam name, such as ``Mono8``, ``Mono12p`` or ``BayerRG8``.
        width: of the images in pixels.
        height: the same.
        offset_x: of the images on the sensor, in pixels.
        offset_y: the same.
        exposure_us: exposure time in microseconds.
        gain_db: gain in decibels.
        user_set: user set of the camera that is loaded before the other settings are written.
        trigger: ``software``: the station triggers; ``hardware``: a signal at ``line`` does; ``free``: the camera runs.
        line: trigger source of ``hardware``.
        buffers: frames that may wait to be grabbed, with ``hardware``. If more come, the oldest are lost, and counted.
    """

    format: str | None = None
    width: int | None = Field(default=None, ge=1, le=1_000_000)
    height: int | None = Field(default=None, ge=1, le=1_000_000)
    offset_x: int | None = Field(default=None, ge=0, le=1_000_000)
    offset_y: int | None = Field(default=None, ge=0, le=1_000_000)
    exposure_us: float | None = Field(default=None, gt=0, le=3_600_000_000)
    gain_db: float | None = None
    user_set: str | None = None
    trigger: Literal["software", "hardware", "free"] = "software"
    line: str = "Line1"
    buffers: int = Field(default=8, ge=2, le=64)


class FeatureError(Exception):
    """A camera has no such feature, or refuses a value."""


class Features(Protocol):
    """Features of an open camera, by their GenICam names. All methods raise :class:`FeatureError`."""

    def has(self, name: str) -> bool:
        """Return whether the camera has the feature, and it can be used now."""

    def get(self, name: str) -> str | float:
        """Return a value; a number may come as text."""

    def set(self, name: str, value: str | float) -> None:
        """Write a value."""

    def execute(self, name: str) -> None:
        """Run a command."""


class FeatureWriter:
    """Writes settings and reads them back.

    Args:
        camera: its name in the station file, for messages.
        features: of the camera.
    """

    def __init__(self, camera: str, features: Features) -> None:
        self._camera, self._features = camera, features

    def write_all(self, settings: GenicamSettings) -> None:
        """Write all settings that are given. Automatic exposure and gain are switched off: they hide defects.

        Raises:
            CameraGone: The camera lacks a feature, refuses a value or has another one afterwards.
        """
        if settings.user_set is not None:
            self.write("user_set", settings.user_set, "UserSetSelector")
            self._execute("user_set", "UserSetLoad")
        if settings.format is not None:
            self.write("format", settings.format, "PixelFormat")
        for offset, size in (("offset_x", "width"), ("offset_y", "height")):
            self._write_range(settings, offset, size)
        for name in ("ExposureAuto", "GainAuto"):
            if self._features.has(name):
                self.write(name, "Off", name)
        if settings.exposure_us is not None:
            tolerance = settings.exposure_us * EXPOSURE_TOLERANCE
            self.write("exposure_us", settings.exposure_us, "ExposureTime", "ExposureTimeAbs", tolerance=tolerance)
        if settings.gain_db is not None:
            self.write("gain_db", settings.gain_db, "Gain", "GainAbs", tolerance=GAIN_TOLERANCE_DB)
        if self._features.has("AcquisitionMode"):
            self.write("AcquisitionMode", "Continuous", "AcquisitionMode")
        self._write_trigger(settings)

    def write(self, setting: str, value: str | float, *names: str, tolerance: float = 0.0) -> None:
        """Write one setting and read it back.

        Args:
            setting: its name in the station file, for messages.
            value: the value.
            names: names of the feature; the first one that the camera has is written.
            tolerance: difference that is accepted, of a number.

        Raises:
            SettingRefused: The message names the setting, the value, and what the camera says.
        """
        name = next((name for name in names if self._features.has(name)), None)
        if name is None:
            raise SettingRefused(
                f"camera {self._camera}: {setting}: expected {value}, but the camera has no feature {' or '.join(names)}; "
                "leave the setting out"
            )
        try:
            self._features.set(name, value)
            got = self._features.get(name)
        except FeatureError as exc:
            raise SettingRefused(
                f"camera {self._camera}: {setting}: expected {value}, but the camera refuses it for {name}: {exc}"
            ) from None
        if got != value if isinstance(value, str) else not _near(got, value, tolerance):
            raise SettingRefused(
                f"camera {self._camera}: {setting}: expected {value}, got {got} from {name}; choose a value that the camera has"
            )

    def _write_range(self, settings: GenicamSettings, offset: str, size: str) -> None:
        """Write offset and size in one direction: a size may fit at offset 0 only until the offset is written."""
        at, length = getattr(settings, offset), getattr(settings, size)
        names = {"offset_x": "OffsetX", "offset_y": "OffsetY", "width": "Width", "height": "Height"}
        if length is not None:
            if self._features.has(names[offset]):
                self.write(offset, 0, names[offset])
            self.write(size, length, names[size])
        if at is not None:
            self.write(offset, at, names[offset])

    def _write_trigger(self, settings: GenicamSettings) -> None:
        if not self._features.has("TriggerMode"):
            if settings.trigger != "free":
                raise SettingRefused(
                    f"camera {self._camera}: trigger: expected {settings.trigger}, but the camera has no feature TriggerMode; "
                    "set trigger: free"
                )
            return
        if self._features.has("TriggerSelector"):
            self.write("trigger", "FrameStart", "TriggerSelector")
        if settings.trigger == "free":
            self.write("trigger", "Off", "TriggerMode")
            return
        if settings.trigger == "software":
            self.write("trigger", "Software", "TriggerSource")
        else:
            self.write("line", settings.line, "TriggerSource")
        self.write("trigger", "On", "TriggerMode")

    def _execute(self, setting: str, name: str) -> None:
        try:
            self._features.execute(name)
        except FeatureError as exc:
            raise SettingRefused(f"camera {self._camera}: {setting}: the camera refuses {name}: {exc}") from None


def as_text(value: str | float) -> str:
    """Return a value as SDKs take it as text: a whole number without a decimal point, which integer features refuse."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _near(got: str | float, value: float, tolerance: float) -> bool:
    try:
        return abs(float(got) - value) <= tolerance
    except ValueError:
        return False
