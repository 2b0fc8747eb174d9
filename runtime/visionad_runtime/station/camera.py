"""Interface of a camera, and the table of cameras. A camera runs in the worker process and may block."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from .leaf import LeafRegistry, LeafSettings

if TYPE_CHECKING:  # the page reads the station file too, and needs no arrays for it
    import numpy as np
    from numpy.typing import NDArray


class Frame(NamedTuple):
    """One image of a camera.

    Attributes:
        pixels: uint8 (H, W, 3) RGB, or (H, W) gray; uint16 (H, W) with ``bit_depth``.
        id: number of the frame, which counts up by one for each frame that the camera has taken; never repeated while it is open.
        taken: monotonic time in seconds (``time.monotonic``) at which the exposure began. If the camera does not tell, it is the
            moment before the software trigger was sent, otherwise the arrival less what is known of exposure and latency.
        lost: frames that were taken since the last one that was handed out, and are gone. Those that :class:`LostFrame` reported,
            and those that were skipped on purpose, do not count.
        bit_depth: bits that the camera fills in ``pixels`` of 16 bits; ``None`` for 8-bit pixels.
        name: where the image came from, such as a file's path; empty for a live camera.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    id: int
    taken: float
    lost: int = 0
    bit_depth: int | None = None
    name: str = ""


class CameraFacts(NamedTuple):
    """What an open camera says of itself.

    Attributes:
        name: model and serial number, or address, for people.
        format: pixel format in force, such as ``BayerRG8``.
        width: of its images, in pixels; 0 if it is known with the first one only.
        height: the same.
        simulated: whether its images do not come from a lens (folder, emulator).
    """

    name: str
    format: str
    width: int
    height: int
    simulated: bool


class CameraError(Exception):
    """A camera gives no frame. The message says which camera, why, and what mends it."""


class NoFrame(CameraError):
    """No frame came before the deadline. The camera may be well: the trigger may be missing."""


class LostFrame(CameraError):
    """A frame was taken and is damaged or incomplete. The next one may be whole."""


class CameraGone(CameraError):
    """The camera is unreachable. The worker closes it and opens it again."""


class SettingRefused(CameraGone):
    """The camera is there, and refuses a setting or has another value."""


class Camera(Protocol):
    """A source of images.

    Attributes:
        Settings: what the station file says of such a camera.
    """

    Settings: ClassVar[type[LeafSettings]]

    def __init__(self, name: str, settings: LeafSettings) -> None:
        """Take the settings. Touches no hardware and imports no SDK."""

    def missing(self) -> str | None:
        """Return what is not installed, and the command that installs it; ``None`` if nothing is."""

    def open(self) -> CameraFacts:
        """Connect, write the settings, and read them back.

        Raises:
            CameraGone: There is no such camera, or it refuses a setting. The message names the setting, and both values.
        """

    def arm(self) -> int:
        """Return the id of the newest frame, after discarding frames that wait. What :meth:`grab` returns comes later."""

    def trigger(self) -> None:
        """Send the software trigger. A camera without one does nothing.

        Raises:
            CameraGone: The camera is unreachable.
        """

    def grab(self, after: int, deadline: float) -> Frame:
        """Return the next frame.

        Args:
            after: the frame's id must be larger.
            deadline: monotonic time in seconds to wait until.

        Raises:
            NoFrame: None came in time.
            LostFrame: One came that is incomplete.
            CameraGone: The camera is unreachable.
        """

    def close(self) -> None:
        """Release the camera. A second call does nothing."""


Sight = Literal["always", "page", "trigger", "never"]
"""When a camera can be looked at without a part: ``always``; ``page``: while the page has control; ``trigger``: the same, and it
takes a trigger, which gives it a frame for that; ``never``: its frames come by a trigger that the station does not give."""


@runtime_checkable
class SeenCamera(Camera, Protocol):
    """A camera that shows what is under it beside the line's parts. Others are looked at by a trigger; see :func:`sight_of`.

    Attributes:
        sight: when it can be looked at. It depends on the settings alone. With ``trigger`` and ``never``, :meth:`newest` is not
            called.
    """

    @property
    def sight(self) -> Sight: ...

    def newest(self) -> Frame | None:
        """Return the newest frame; ``None`` if there is none yet.

        Any thread may call it, also while :meth:`grab` waits. It changes nothing: what :meth:`arm` and :meth:`grab` return, and
        what counts as lost, is the same with and without it.

        Raises:
            CameraError: The camera is unreachable, or the frame cannot be read.
        """


def sight_of(camera: Camera) -> Sight:
    """Return when a camera can be looked at without a part. One that does not say takes a trigger."""
    return camera.sight if isinstance(camera, SeenCamera) else "trigger"


@runtime_checkable
class PushedCamera(Camera, Protocol):
    """A camera whose images other programs send to the station's page, at ``POST /cameras/NAME/frame``.

    Attributes:
        token: what senders must know; ``None`` if only programs of the station's own machine may send.
    """

    token: str | None

    def submit(self, data: bytes) -> int:
        """Take an image file, and return its frame's id. Any thread may call it, also while :meth:`grab` waits.

        Raises:
            ImageError: It is empty or too large.
            CameraGone: The camera is not open.
        """


@runtime_checkable
class StoredCamera(Camera, Protocol):
    """A camera whose images lie on disk.

    Where it starts the cycle, its images wait for the line: none is missed, and a restart goes on where it ended.
    """

    def recorded(self, number: int) -> None:
        """Note that the part which a frame belongs to is on record, so that no later start hands the frame out again.

        Any thread may call it. It returns at once.

        Args:
            number: of a frame that :meth:`grab` returned.
        """


CAMERAS = LeafRegistry[Camera](
    "camera",
    "visionad.cameras",
    {
        "arrivals": "visionad_runtime.station.cameras.arrivals:ArrivalsCamera",
        "folder": "visionad_runtime.station.cameras.folder:FolderCamera",
        "http": "visionad_runtime.station.cameras.http:HttpCamera",
        "stream": "visionad_runtime.station.cameras.stream:StreamCamera",
        "gige": "visionad_runtime.station.cameras.gige:GigeCamera",
        "pylon": "visionad_runtime.station.cameras.pylon:PylonCamera",
    },
)
"""Cameras by ``kind``. Packages add theirs by an entry point in the group ``visionad.cameras``."""
