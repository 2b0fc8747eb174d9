"""Basler cameras (GigE, USB) by pypylon, and Basler's camera emulator."""

from __future__ import annotations

import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from ...errors import VisionADError
from ...images import decode
from ...images.discover import find_images
from ..camera import CameraGone
from ..leaf import LeafSettings
from .acquisition import Device, DeviceFacts, DeviceGone, GenicamCamera, RawFrame
from .features import FeatureError, FeatureWriter, GenicamSettings

EMULATOR = "BaslerCamEmu"
"""Device class of emulated cameras."""
MAX_EMULATED = 8
TRIGGER_READY_MS = 1000
_ENUMERATING = threading.Lock()
_EMULATION_ASKED = "PYLON_CAMEMU" in os.environ
"""Whether emulated cameras were asked for beside the station file. A camera with ``emulated`` sets the variable later."""


class PylonSettings(GenicamSettings):
    """Settings of a pylon camera. Without ``serial`` and ``user_name`` there must be one camera only.

    Attributes:
        serial: serial number of the camera.
        user_name: name that was stored in the camera (``DeviceUserID``).
        emulated: folder of images: Basler's emulator takes them in the order of their names, again and again. All must have one
            size. The serial number is ``0815-0000`` or, for further cameras, ``0815-0001`` and so on.
    """

    serial: str | None = None
    user_name: str | None = None
    emulated: Path | None = None

    @model_validator(mode="after")
    def _one_name(self) -> PylonSettings:
        if self.serial is not None and self.user_name is not None:
            raise ValueError("expected serial or user_name, got both; leave one out")
        return self


class PylonFeatures:
    """See :class:`~visionad_runtime.station.cameras.features.Features`."""

    def __init__(self, nodes: Any) -> None:
        from pypylon import genicam

        self._nodes, self._genicam = nodes, genicam

    def has(self, name: str) -> bool:
        """Return whether the feature exists and is available."""
        node = self._nodes.GetNode(name)
        return node is not None and bool(self._genicam.IsAvailable(node))

    def get(self, name: str) -> str | float:
        """Return the value."""
        try:
            value = self._nodes.GetNode(name).GetValue()
        except Exception as exc:
            raise FeatureError(_brief(exc)) from None
        return value if isinstance(value, (str, float)) else int(value)

    def set(self, name: str, value: str | float) -> None:
        """Write the value."""
        try:
            self._nodes.GetNode(name).SetValue(value)
        except Exception as exc:
            raise FeatureError(_brief(exc)) from None

    def execute(self, name: str) -> None:
        """Run the command, and wait until it is done."""
        try:
            self._nodes.GetNode(name).Execute()
        except Exception as exc:
            raise FeatureError(_brief(exc)) from None


class PylonDevice:
    """See :class:`~visionad_runtime.station.cameras.acquisition.Device`."""

    def __init__(self, info: Any, buffers: int) -> None:
        from pypylon import pylon

        self._pylon, self._info = pylon, info
        try:
            self._camera = pylon.InstantCamera(pylon.TlFactory.GetInstance().CreateDevice(info))
            self._camera.Open()
        except Exception as exc:
            raise DeviceGone(_brief(exc)) from None
        self._camera.MaxNumBuffer.Value = buffers
        self.features = PylonFeatures(self._camera.GetNodeMap())

    def describe(self) -> DeviceFacts:
        """Return the facts."""
        info, nodes = self._info, self.features
        try:
            size = int(nodes.get("Width")), int(nodes.get("Height"))
            form = str(nodes.get("PixelFormat"))
        except FeatureError as exc:
            raise DeviceGone(str(exc)) from None
        name = f"{info.GetVendorName()} {info.GetModelName()} {info.GetSerialNumber()}"
        return DeviceFacts(name, form, *size, simulated=info.GetDeviceClass() == EMULATOR)

    def start(self) -> None:
        """Begin to grab."""
        try:
            self._camera.StartGrabbing(self._pylon.GrabStrategy_OneByOne)
        except Exception as exc:
            raise DeviceGone(_brief(exc)) from None
        self._blocks = 0

    def next(self, timeout: float) -> RawFrame | None:
        """Return the next buffer."""
        pylon = self._pylon
        try:
            result = self._camera.RetrieveResult(round(timeout * 1000), pylon.TimeoutHandling_Return)
            if result is None or not result.IsValid():
                return None
            try:
                self._blocks += 1 + result.GetNumberOfSkippedImages()
                number = result.GetBlockID()
                block = self._blocks if number >= 2**64 - 1 else number  # all bits set: the device numbers no blocks
                if not result.GrabSucceeded():
                    return RawFrame(block, " ".join(result.GetErrorDescription().split()) or "incomplete")
                return RawFrame(
                    block,
                    data=bytes(result.GetBuffer()),
                    width=result.GetWidth(),
                    height=result.GetHeight(),
                    padding=result.GetPaddingX(),
                )
            finally:
                result.Release()
        except Exception as exc:
            raise DeviceGone(_brief(exc)) from None

    def trigger(self) -> None:
        """Send the software trigger, once the camera waits for one: it ignores triggers while it starts or is busy."""
        camera, pylon = self._camera, self._pylon
        try:
            if camera.CanWaitForFrameTriggerReady():
                camera.WaitForFrameTriggerReady(TRIGGER_READY_MS, pylon.TimeoutHandling_Return)
            self.features.execute("TriggerSoftware")
        except FeatureError as exc:
            raise DeviceGone(str(exc)) from None
        except Exception as exc:
            raise DeviceGone(_brief(exc)) from None

    def check(self) -> None:
        """Ask pylon whether the camera was removed."""
        if self._camera.IsCameraDeviceRemoved():
            raise DeviceGone("the camera was removed; check cable and power")

    def stop(self) -> None:
        """End the grab."""
        try:
            self._camera.StopGrabbing()
        except Exception as exc:
            raise DeviceGone(_brief(exc)) from None

    def close(self) -> None:
        """Release the camera."""
        try:
            self._camera.Close()
            self._camera.DestroyDevice()
        except Exception:  # the camera is gone, which is no reason not to open it again
            return


class PylonCamera(GenicamCamera):
    """See :class:`~visionad_runtime.station.camera.Camera`."""

    Settings: ClassVar[type[LeafSettings]] = PylonSettings

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, PylonSettings)
        super().__init__(name, settings)
        self._settings = settings

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        if find_spec("pypylon") is None:
            return "pypylon is not installed: pip install 'visionad[pylon]'"
        return None

    def _connect(self) -> Device:
        if self._settings.emulated is not None:
            os.environ.setdefault("PYLON_CAMEMU", str(MAX_EMULATED))
        from pypylon import pylon

        with _ENUMERATING:
            factory = pylon.TlFactory.GetInstance()
            try:
                devices = factory.EnumerateDevices()
            except Exception as exc:
                raise CameraGone(f"camera {self._name}: pylon finds no cameras: {_brief(exc)}") from None
            try:
                return PylonDevice(self._select(devices, factory), self._settings.buffers + 4)
            except DeviceGone as exc:
                raise CameraGone(f"camera {self._name}: {exc}; close other programs that use the camera") from None

    def _select(self, devices: Any, factory: Any) -> Any:
        """Return the device that the settings name."""
        settings = self._settings
        emulated = settings.emulated is not None
        of_kind = [device for device in devices if emulated == (device.GetDeviceClass() == EMULATOR)]
        if not emulated and _EMULATION_ASKED:
            of_kind = list(devices)
        matching = [
            device
            for device in of_kind
            if settings.serial in (None, device.GetSerialNumber())
            and settings.user_name in (None, device.GetUserDefinedName())
        ]
        if emulated and settings.serial is None:
            matching = [device for device in matching if factory.IsDeviceAccessible(device)][:1]
        if len(matching) == 1:
            return matching[0]
        asked = (
            f"serial {settings.serial}"
            if settings.serial
            else f"user_name {settings.user_name}"
            if settings.user_name
            else "one camera"
        )
        got = ", ".join(f"{device.GetModelName()} {device.GetSerialNumber()}" for device in of_kind) or "none"
        raise CameraGone(
            f"camera {self._name}: expected {asked}, got {got}; check serial, cable and power, or name the camera by its serial"
        )

    def _write(self, writer: FeatureWriter) -> None:
        folder = self._settings.emulated
        if folder is not None:
            try:
                first = next(iter(find_images([folder])))
                height, width = decode.load(first.path).shape[:2]
            except VisionADError as exc:
                raise CameraGone(f"camera {self._name}: emulated: {exc}") from None
            writer.write("emulated", "Off", "TestImageSelector")
            writer.write("emulated", str(folder.resolve()), "ImageFilename")
            writer.write("emulated", "On", "ImageFileMode")
            writer.write("width", self._settings.width or width, "Width")
            writer.write("height", self._settings.height or height, "Height")
        super()._write(writer)


def _brief(exc: Exception) -> str:
    """Return the message without source file and line of the SDK."""
    return " ".join(str(exc).split(" : ")[0].split())
