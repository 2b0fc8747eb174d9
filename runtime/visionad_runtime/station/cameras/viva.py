"""GigE Vision cameras by viva-genicam."""

from __future__ import annotations

from typing import Any

from .acquisition import DeviceFacts, DeviceGone, RawFrame
from .features import FeatureError, as_text
from .gige_settings import CONTROL_PRIVILEGE, GigeSettings

DISCOVERY_MS = 500


class VivaFeatures:
    """See :class:`~visionad_runtime.station.cameras.features.Features`."""

    def __init__(self, camera: Any) -> None:
        import viva_genicam

        self._camera, self._error = camera, viva_genicam.GenicamError

    def has(self, name: str) -> bool:
        """Return whether the feature exists and is available."""
        try:
            state = self._camera.feature_state(name)
        except self._error:
            return False
        return bool(state.is_implemented and state.is_available)

    def get(self, name: str) -> str:
        """Return the value as text."""
        try:
            return str(self._camera.get(name))
        except self._error as exc:
            raise FeatureError(str(exc)) from None

    def set(self, name: str, value: str | float) -> None:
        """Write the value."""
        try:
            self._camera.set(name, as_text(value))
        except self._error as exc:
            raise FeatureError(str(exc)) from None

    def execute(self, name: str) -> None:
        """Run the command, and wait until it is done."""
        try:
            self._camera.execute(name)
        except self._error as exc:
            raise FeatureError(str(exc)) from None


class VivaDevice:
    """See :class:`~visionad_runtime.station.cameras.acquisition.Device`. The library keeps the control privilege alive."""

    def __init__(self, settings: GigeSettings) -> None:
        import viva_genicam

        self._viva, self._settings = viva_genicam, settings
        self._stream: Any = None
        address, interface = str(settings.address), settings.interface
        try:
            devices = viva_genicam.discover(DISCOVERY_MS, interface, all=settings.address.is_loopback)
            matching = [device for device in devices if device.ip == address]
            if not matching:
                got = ", ".join(device.ip for device in devices) or "none"
                raise DeviceGone(f"expected a GigE camera at {address}, got {got}; check address, cable and power")
            self._camera = viva_genicam.connect_gige(matching[0], interface)
        except viva_genicam.GenicamError as exc:
            raise DeviceGone(f"{exc}; close other programs that control the camera") from None
        self.features = VivaFeatures(self._camera)

    def describe(self) -> DeviceFacts:
        """Return the facts. Some cameras do not say their format; each frame does."""
        try:
            form = self.features.get("PixelFormat")
        except FeatureError:
            form = ""
        try:
            name = f"{self.features.get('DeviceVendorName')} {self.features.get('DeviceModelName')} {self._settings.address}"
            return DeviceFacts(name, form, int(self.features.get("Width")), int(self.features.get("Height")))
        except (FeatureError, ValueError) as exc:
            raise DeviceGone(str(exc)) from None

    def start(self) -> None:
        """Open a stream, at a new port, and begin."""
        delay = self._settings.packet_delay_us
        try:
            self._stream = self._camera.stream(
                iface=self._settings.interface,
                packet_size=self._settings.packet_size,
                packet_delay_ns=None if delay is None else round(delay * 1000),
                deliver_incomplete=True,
            )
            self._stream.__enter__()
        except self._viva.GenicamError as exc:
            raise DeviceGone(str(exc)) from None

    def next(self, timeout: float) -> RawFrame | None:
        """Return the next buffer."""
        assert self._stream is not None
        try:
            frame = self._stream.next_frame(round(timeout * 1000))
        except self._viva.GenicamError as exc:
            if "timeout" in str(exc):
                return None
            raise DeviceGone(str(exc)) from None
        if frame is None:
            raise DeviceGone("the stream ended")
        if not frame.is_complete:
            missing = frame.missing_packets
            return RawFrame(frame.block_id, f"{missing} packets are missing" if missing else frame.status.value)
        return RawFrame(
            frame.block_id,
            data=frame.payload(),
            width=frame.width,
            height=frame.height,
            padding=frame.padding_x,
            format=frame.pixel_format,
        )

    def trigger(self) -> None:
        """Send the software trigger."""
        try:
            self._camera.trigger_software()
        except self._viva.GenicamError as exc:
            raise DeviceGone(str(exc)) from None

    def check(self) -> None:
        """Ask the camera who controls it. The library alone may hold a camera that does not answer for controlled."""
        try:
            privilege = int.from_bytes(self._camera.read_register(CONTROL_PRIVILEGE, 4), "big")
        except self._viva.GenicamError as exc:
            raise DeviceGone(f"control was lost: the camera does not answer ({exc}); check cable and power") from None
        if not privilege or self._camera.control_state == self._viva.ControlState.LOST:
            raise DeviceGone("control was lost: the camera dropped it, or another program took it")

    def stop(self) -> None:
        """Close the stream."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            stream.__exit__(None, None, None)
        except self._viva.GenicamError as exc:
            raise DeviceGone(str(exc)) from None

    def close(self) -> None:
        """Release the camera."""
        try:
            self._camera.close()
        except self._viva.GenicamError:  # the camera is gone, which is no reason not to open it again
            return
