"""What all GenICam cameras do alike: a thread takes frames as they arrive; triggers, numbers and losses are counted."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import ClassVar, NamedTuple, Protocol

from ..camera import CameraFacts, CameraGone, Frame, LostFrame, NoFrame, Sight
from ..leaf import LeafSettings
from . import pixel_formats
from .features import FeatureError, Features, FeatureWriter, GenicamSettings

POLL_S = 0.05
"""How long the thread waits for a frame before it asks whether it should end."""
LATE_S = 0.5
"""How long after its trigger, and the exposure, a frame may still come."""
CHECK_S = 1.0
"""Time between two looks whether the camera is still there."""


class RawFrame(NamedTuple):
    """A buffer of a camera.

    Attributes:
        block: number that the camera gave the frame.
        damage: what is wrong with it; empty if it is whole.
        data: its bytes, a copy; empty if it is damaged.
        width: in pixels.
        height: the same.
        padding: bytes between two rows.
        format: pixel format by its GenICam name; ``None`` if it is the one that the device stated.
    """

    block: int
    damage: str = ""
    data: bytes = b""
    width: int = 0
    height: int = 0
    padding: int = 0
    format: str | None = None


class DeviceGone(Exception):
    """The camera cannot be reached any more."""


class DeviceFacts(NamedTuple):
    """What a device says of itself; see :class:`~visionad_runtime.station.camera.CameraFacts`."""

    name: str
    format: str
    width: int
    height: int
    simulated: bool = False


class Device(Protocol):
    """A camera by its SDK. Every method may raise :class:`DeviceGone`."""

    @property
    def features(self) -> Features:
        """Return access to its features."""

    def describe(self) -> DeviceFacts:
        """Return the facts, once the settings are written."""

    def start(self) -> None:
        """Begin to take frames. Buffers of an earlier start are not handed out."""

    def next(self, timeout: float) -> RawFrame | None:
        """Return the next buffer, or ``None`` after ``timeout`` seconds."""

    def trigger(self) -> None:
        """Send the software trigger."""

    def check(self) -> None:
        """Raise :class:`DeviceGone` if the camera cannot be reached. Takes at most a second."""

    def stop(self) -> None:
        """End what :meth:`start` began."""

    def close(self) -> None:
        """Release the camera. Raises nothing."""


class FrameCounter:
    """Makes a number that counts on of the block numbers of a camera.

    GigE Vision 1 counts blocks from 1 to 65535 and again from 1. Numbers start anew with each acquisition.
    """

    def __init__(self) -> None:
        self.id = 0
        self._block: int | None = None

    def restart(self) -> None:
        """Expect any block number next."""
        self._block = None

    def count(self, block: int) -> int:
        """Return the number of the frame with this block number."""
        previous, self._block = self._block, block
        step = 1
        if previous is not None and block != previous:
            step = block - previous if block > previous else (block - previous) % 0xFFFF if previous <= 0xFFFF else 1
        self.id += step
        return self.id


class _Waiting(NamedTuple):
    raw: RawFrame
    id: int
    taken: float
    lost: int


class GenicamCamera(ABC):
    """See :class:`~visionad_runtime.station.camera.SeenCamera`. Subclasses open the device.

    With a software trigger, ``taken`` is the moment before the trigger is sent, and a frame belongs to the last trigger: if
    the frame of the trigger before is missing when the camera is armed, :meth:`arm` waits for it until :data:`LATE_S` after its
    trigger, and then restarts the acquisition, which discards it. A restart alone is not enough: a camera may keep a trigger.
    With other triggers ``taken`` is the arrival of the frame less the exposure time: the exposure began then, or earlier.

    ``lost`` counts frames whose number is missing or that did not fit into the queue. A damaged frame is reported by
    :class:`~visionad_runtime.station.camera.LostFrame` and not counted again. Frames that :meth:`arm` discards, and frames that a
    newer one replaces while the camera runs free, are skipped on purpose and not counted.
    """

    Settings: ClassVar[type[LeafSettings]] = GenicamSettings

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, GenicamSettings)
        self._name, self._common = name, settings
        self._device: Device | None = None
        self._facts = DeviceFacts("", "", 0, 0)
        self._exposure = 0.0
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._newest: _Waiting | None = None  # of a camera that runs free
        self._counter = FrameCounter()
        self._lost = self._pending = 0
        self._triggered = 0.0
        self._gone = ""

    @abstractmethod
    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.camera.Camera`."""

    @abstractmethod
    def _connect(self) -> Device:
        """Connect to the device.

        Raises:
            CameraGone: It cannot be reached.
        """

    def _write(self, writer: FeatureWriter) -> None:
        """Write the settings."""
        writer.write_all(self._common)

    def open(self) -> CameraFacts:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        self.close()
        lacks = self.missing()
        if lacks is not None:
            raise CameraGone(f"camera {self._name}: {lacks}")
        device = self._connect()
        self._device = device
        try:
            self._write(FeatureWriter(self._name, device.features))
            self._facts = device.describe()
            if self._facts.format:
                pixel_formats.parse(self._facts.format)
            self._exposure = self._read_exposure(device.features)
            self._counter, self._newest, self._gone, self._lost = FrameCounter(), None, "", 0
            self._start(device)
        except (DeviceGone, ValueError) as exc:
            self.close()
            raise CameraGone(f"camera {self._name}: {exc}") from None
        except CameraGone:
            self.close()
            raise
        return CameraFacts(*self._facts)

    def arm(self) -> int:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        device = self._opened()
        if self._late():
            try:
                self._stop(device)
                self._start(device)
            except DeviceGone as exc:
                self._fail(str(exc))
        with self._changed:
            self._waiting.clear()
            self._lost = 0
            return self._counter.id

    def trigger(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        device = self._opened()
        self._raise_if_gone()
        if self._common.trigger != "software":
            return
        with self._changed:
            self._pending += 1
            self._triggered = time.monotonic()
        try:
            device.trigger()
        except DeviceGone as exc:
            self._fail(str(exc))
            self._raise_if_gone()

    def grab(self, after: int, deadline: float) -> Frame:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        self._opened()
        with self._changed:
            while (waiting := self._next(after)) is None:
                self._raise_if_gone()
                rest = deadline - time.monotonic()
                if rest <= 0:
                    raise NoFrame(f"camera {self._name}: no frame in time; {self._hint()}")
                self._changed.wait(rest)
        return self._frame(waiting)

    @property
    def sight(self) -> Sight:
        """See :class:`~visionad_runtime.station.camera.SeenCamera`."""
        sights: dict[str, Sight] = {"software": "trigger", "hardware": "never", "free": "always"}
        return sights[self._common.trigger]

    def newest(self) -> Frame | None:
        """See :class:`~visionad_runtime.station.camera.SeenCamera`."""
        self._opened()
        with self._changed:
            self._raise_if_gone()
            newest = self._newest
        return None if newest is None else self._frame(newest)

    def _frame(self, waiting: _Waiting) -> Frame:
        raw = waiting.raw
        if raw.damage:
            raise LostFrame(
                f"camera {self._name}: frame {waiting.id} is damaged: {raw.damage}; check network and cables"
            )
        try:
            form = pixel_formats.parse(raw.format or self._facts.format)
            pixels, depth = pixel_formats.to_pixels(raw.data, form, raw.width, raw.height, raw.padding)
        except ValueError as exc:
            raise LostFrame(f"camera {self._name}: frame {waiting.id}: {exc}") from None
        return Frame(pixels, waiting.id, waiting.taken, waiting.lost, depth)

    def close(self) -> None:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        device, self._device = self._device, None
        if device is None:
            return
        try:
            self._stop(device)
        except DeviceGone:
            pass
        finally:
            device.close()

    def _late(self) -> bool:
        """Return whether the last trigger's frame is still missing, after waiting for it."""
        with self._changed:
            end = self._triggered + self._exposure + LATE_S
            while self._pending and not self._gone and (rest := end - time.monotonic()) > 0:
                self._changed.wait(rest)
            return self._pending > 0 and not self._gone

    def _opened(self) -> Device:
        if self._device is None:
            raise CameraGone(f"camera {self._name}: it is not open")
        return self._device

    def _raise_if_gone(self) -> None:
        if self._gone:
            raise CameraGone(f"camera {self._name}: {self._gone}")

    def _hint(self) -> str:
        return {
            "software": "the trigger was sent: check the exposure time, the network and the firewall",
            "hardware": f"no trigger came at {self._common.line}, or the network loses packets",
            "free": "check the network and the firewall",
        }[self._common.trigger]

    @staticmethod
    def _read_exposure(features: Features) -> float:
        """Return the exposure time in seconds; 0 where the camera does not say."""
        for name in ("ExposureTime", "ExposureTimeAbs"):
            if features.has(name):
                try:
                    return float(features.get(name)) / 1e6
                except (FeatureError, ValueError):
                    return 0.0
        return 0.0

    def _next(self, after: int) -> _Waiting | None:
        """Take the frame that is due from the queue: the newest one of a camera that runs free, otherwise the oldest."""
        if self._common.trigger == "free":
            while len(self._waiting) > 1:
                self._lost += self._waiting.popleft().lost
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.id > after:
                lost, self._lost = self._lost + waiting.lost, 0
                return waiting._replace(lost=lost)
        return None

    def _start(self, device: Device) -> None:
        device.start()
        self._ending.clear()
        self._counter.restart()
        self._pending = 0
        self._thread = threading.Thread(target=self._read, args=(device,), name=f"camera {self._name}", daemon=True)
        self._thread.start()

    def _stop(self, device: Device) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        device.stop()

    def _fail(self, why: str) -> None:
        with self._changed:
            self._gone = self._gone or why
            self._changed.notify_all()

    def _read(self, device: Device) -> None:
        """Take frames until the camera is stopped or gone. Runs in a thread of its own."""
        checked = time.monotonic()
        try:
            while not self._ending.is_set():
                raw = device.next(POLL_S)
                now = time.monotonic()
                if raw is not None:
                    self._arrived(raw, now)
                if now - checked > CHECK_S:
                    device.check()
                    checked = now
        except DeviceGone as exc:
            self._fail(str(exc))
        except Exception as exc:  # an SDK raised what it does not document: the camera is opened again
            self._fail(f"its library failed: {type(exc).__name__}: {exc}")

    def _arrived(self, raw: RawFrame, now: float) -> None:
        with self._changed:
            previous = self._counter.id
            number = self._counter.count(raw.block)
            if self._common.trigger == "software":
                if not self._pending:
                    return  # nobody asked for it
                self._pending -= 1
                taken = self._triggered
            else:
                taken = now - self._exposure
            self._waiting.append(_Waiting(raw, number, taken, number - previous - 1))
            if self._common.trigger == "free":
                self._newest = self._waiting[-1]
            while len(self._waiting) > self._common.buffers:
                self._lost += self._waiting.popleft().lost + (self._common.trigger == "hardware")
            self._changed.notify_all()
