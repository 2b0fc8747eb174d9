"""GigE Vision cameras by Aravis 0.8, a C library that most Linux distributions have, without its Python bindings.

The functions and their meaning: https://aravisproject.github.io/aravis/aravis-stable/
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

from .acquisition import DeviceFacts, DeviceGone, RawFrame
from .features import FeatureError, as_text
from .gige_settings import CONTROL_PRIVILEGE, GigeSettings

LIBRARY = "libaravis-0.8.so.0"
RANGE_CHECK = 1
"""``ARV_RANGE_CHECK_POLICY_ENABLE``: without it values outside of a feature's range are written."""
STATUS = {
    1: "nothing arrived",
    2: "packets did not arrive in time",
    3: "packets are missing",
    4: "packets have wrong numbers",
    5: "its size is not the one that was announced",
    7: "the acquisition was stopped",
    8: "its kind of payload is unknown",
}
"""``ArvBufferStatus`` of a damaged buffer → what it means. 0 is a whole one."""


class _Error(ctypes.Structure):
    """``GError``."""

    _fields_ = (("domain", ctypes.c_uint32), ("code", c_int), ("message", c_char_p))


_ERROR = POINTER(POINTER(_Error))
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "arv_camera_new": (c_void_p, (c_char_p, _ERROR)),
    "arv_camera_get_device": (c_void_p, (c_void_p,)),
    "arv_camera_get_payload": (c_uint, (c_void_p, _ERROR)),
    "arv_camera_create_stream": (c_void_p, (c_void_p, c_void_p, c_void_p, _ERROR)),
    "arv_camera_start_acquisition": (None, (c_void_p, _ERROR)),
    "arv_camera_stop_acquisition": (None, (c_void_p, _ERROR)),
    "arv_camera_execute_command": (None, (c_void_p, c_char_p, _ERROR)),
    "arv_camera_is_feature_available": (c_bool, (c_void_p, c_char_p, _ERROR)),
    "arv_camera_set_range_check_policy": (None, (c_void_p, c_int)),
    "arv_camera_gv_set_packet_size": (None, (c_void_p, c_int, _ERROR)),
    "arv_camera_gv_set_packet_delay": (None, (c_void_p, ctypes.c_int64, _ERROR)),
    "arv_device_read_register": (c_bool, (c_void_p, c_uint64, POINTER(ctypes.c_uint32), _ERROR)),
    "arv_device_get_feature": (c_void_p, (c_void_p, c_char_p)),
    "arv_gc_feature_node_set_value_from_string": (None, (c_void_p, c_char_p, _ERROR)),
    "arv_gc_feature_node_get_value_as_string": (c_char_p, (c_void_p, _ERROR)),
    "arv_gv_device_is_controller": (c_bool, (c_void_p,)),
    "arv_stream_push_buffer": (None, (c_void_p, c_void_p)),
    "arv_stream_timeout_pop_buffer": (c_void_p, (c_void_p, c_uint64)),
    "arv_buffer_new_allocate": (c_void_p, (c_size_t,)),
    "arv_buffer_get_status": (c_int, (c_void_p,)),
    "arv_buffer_get_frame_id": (c_uint64, (c_void_p,)),
    "arv_buffer_get_data": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "arv_buffer_get_image_width": (c_int, (c_void_p,)),
    "arv_buffer_get_image_height": (c_int, (c_void_p,)),
    "arv_buffer_get_image_padding": (None, (c_void_p, POINTER(c_int), POINTER(c_int))),
    "g_object_unref": (None, (c_void_p,)),
    "g_error_free": (None, (POINTER(_Error),)),
}
"""Function → type of what it returns, and of its arguments."""


def is_installed() -> bool:
    """Return whether the library can be loaded."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


class _Library:
    """The functions of the library; those that take a ``GError`` raise :class:`FeatureError`."""

    def __init__(self) -> None:
        self._functions = {}
        library = ctypes.CDLL(LIBRARY)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a function without its last argument, if that is a ``GError``."""
        function = self._functions[name]
        if _FUNCTIONS[name][1][-1] is not _ERROR:
            return function(*arguments)
        error = POINTER(_Error)()
        result = function(*arguments, byref(error))
        if error:
            message = (error.contents.message or b"").decode(errors="replace")
            self._functions["g_error_free"](error)
            raise FeatureError(message or f"{name} failed")
        return result


class AravisFeatures:
    """See :class:`~visionad_runtime.station.cameras.features.Features`."""

    def __init__(self, library: _Library, camera: int) -> None:
        self._library, self._camera = library, camera
        self._device = library("arv_camera_get_device", camera)

    def has(self, name: str) -> bool:
        """Return whether the feature exists and is available."""
        try:
            return bool(self._library("arv_camera_is_feature_available", self._camera, name.encode()))
        except FeatureError:
            return False

    def get(self, name: str) -> str:
        """Return the value as text."""
        text = self._library("arv_gc_feature_node_get_value_as_string", self._node(name))
        return (text or b"").decode()

    def set(self, name: str, value: str | float) -> None:
        """Write the value."""
        self._library("arv_gc_feature_node_set_value_from_string", self._node(name), as_text(value).encode())

    def execute(self, name: str) -> None:
        """Run the command."""
        self._library("arv_camera_execute_command", self._camera, name.encode())

    def _node(self, name: str) -> int:
        node = self._library("arv_device_get_feature", self._device, name.encode())
        if not node:
            raise FeatureError(f"the camera has no feature {name}")
        return int(node)


class AravisDevice:
    """See :class:`~visionad_runtime.station.cameras.acquisition.Device`. Aravis keeps the control privilege alive."""

    def __init__(self, settings: GigeSettings) -> None:
        try:
            self._library = _Library()
        except OSError as exc:
            raise DeviceGone(f"{exc}; apt-get install libaravis-0.8-0") from None
        self._settings = settings
        self._camera = self._stream = 0
        self._answers = True
        try:
            self._camera = self._library("arv_camera_new", str(settings.address).encode())
        except FeatureError as exc:
            raise DeviceGone(
                f"expected a GigE camera at {settings.address}, got: {exc}; check address, cable and power, and close other "
                "programs that control the camera"
            ) from None
        self._library("arv_camera_set_range_check_policy", self._camera, RANGE_CHECK)
        self.features = AravisFeatures(self._library, self._camera)

    def describe(self) -> DeviceFacts:
        """Return the facts."""
        features = self.features
        try:
            name = f"{features.get('DeviceVendorName')} {features.get('DeviceModelName')} {self._settings.address}"
            size = int(features.get("Width")), int(features.get("Height"))
            return DeviceFacts(name, features.get("PixelFormat"), *size)
        except (FeatureError, ValueError) as exc:
            raise DeviceGone(str(exc)) from None

    def start(self) -> None:
        """Open a stream, at a new port, and begin."""
        library, camera, settings = self._library, self._camera, self._settings
        try:
            if settings.packet_size is not None:
                library("arv_camera_gv_set_packet_size", camera, settings.packet_size)
            if settings.packet_delay_us is not None:
                library("arv_camera_gv_set_packet_delay", camera, round(settings.packet_delay_us * 1000))
            payload = library("arv_camera_get_payload", camera)
            self._stream = library("arv_camera_create_stream", camera, None, None)
            for _ in range(settings.buffers + 4):
                library("arv_stream_push_buffer", self._stream, library("arv_buffer_new_allocate", payload))
            library("arv_camera_start_acquisition", camera)
        except FeatureError as exc:
            raise DeviceGone(str(exc)) from None

    def next(self, timeout: float) -> RawFrame | None:
        """Return the next buffer."""
        library = self._library
        buffer = library("arv_stream_timeout_pop_buffer", self._stream, round(timeout * 1e6))
        if not buffer:
            return None
        try:
            status, block = library("arv_buffer_get_status", buffer), library("arv_buffer_get_frame_id", buffer)
            if status != 0:
                return RawFrame(block, STATUS.get(status, f"status {status} of Aravis"))
            size, right, below = c_size_t(), c_int(), c_int()
            data = library("arv_buffer_get_data", buffer, byref(size))
            library("arv_buffer_get_image_padding", buffer, byref(right), byref(below))
            return RawFrame(
                block,
                data=ctypes.string_at(data, size.value),
                width=library("arv_buffer_get_image_width", buffer),
                height=library("arv_buffer_get_image_height", buffer),
                padding=right.value,
            )
        finally:
            library("arv_stream_push_buffer", self._stream, buffer)

    def trigger(self) -> None:
        """Send the software trigger."""
        try:
            self.features.execute("TriggerSoftware")
        except FeatureError as exc:
            self._answers = False
            raise DeviceGone(str(exc)) from None

    def check(self) -> None:
        """Ask the camera who controls it. The library's heartbeat alone finds out after twice the time."""
        device, privilege = self._library("arv_camera_get_device", self._camera), ctypes.c_uint32()
        try:
            self._library("arv_device_read_register", device, CONTROL_PRIVILEGE, byref(privilege))
        except FeatureError as exc:
            self._answers = False
            raise DeviceGone(f"control was lost: the camera does not answer ({exc}); check cable and power") from None
        if not privilege.value or not self._library("arv_gv_device_is_controller", device):
            raise DeviceGone("control was lost: the camera dropped it, or another program took it")

    def stop(self) -> None:
        """Close the stream, with the buffers that it holds."""
        stream, self._stream = self._stream, 0
        if not stream:
            return
        try:
            if self._answers:  # otherwise it takes seconds, for nothing
                self._library("arv_camera_stop_acquisition", self._camera)
        except FeatureError as exc:
            raise DeviceGone(str(exc)) from None
        finally:
            self._library("g_object_unref", stream)

    def close(self) -> None:
        """Release the camera."""
        camera, self._camera = self._camera, 0
        if camera:
            self._library("g_object_unref", camera)
