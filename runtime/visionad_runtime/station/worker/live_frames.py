"""Frames that a person looks at without a part: taken beside the line's parts, and kept for a while under their numbers."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ..camera import CameraError, Frame
from ..page.images import shown_image
from .checks import LightLimits, image_statistics
from .frame_watch import FrameWatch
from .judged import eight_bits

KEPT = 30
"""Frames that stay in memory."""
MAX_BYTES = 256_000_000
"""Of all kept frames."""
IDLE_SECONDS = 60.0
"""The frames are released when nobody has looked for so long."""
TRIGGER_SECONDS = 0.3
"""How long a frame is waited for that was triggered for a look. A part that is triggered meanwhile waits for it."""
FOCUS_SIDE = 1024
"""Longest side of the middle of the image that its sharpness is measured in, in pixels."""


class SeenHolder(Protocol):
    """What is needed of a camera; see :class:`~visionad_runtime.station.worker.camera_holder.CameraHolder`."""

    def arm(self) -> int: ...
    def trigger(self) -> None: ...
    def grab(self, after: int, deadline: float) -> Frame: ...
    def newest(self) -> Frame | None: ...
    def note(self, trouble: CameraError) -> None: ...


class LiveFrame(NamedTuple):
    """A frame that somebody looked at.

    Attributes:
        number: its own, which counts all frames that were looked at.
        camera: that took it.
        source: the camera's number of it.
        taken: monotonic seconds at which it was taken.
        time_utc: the same as wall clock, ISO 8601.
        rgb: uint8 (H, W, 3) RGB or (H, W) gray, as a part of the line would have them.
    """

    number: int
    camera: str
    source: int
    taken: float
    time_utc: str
    rgb: NDArray[np.uint8]


class LiveFrames:
    """Takes frames for a look, encodes them in a thread of its own, and keeps the newest ones.

    A look takes nothing from the line: it asks for the newest frame that a camera has anyway. Only :meth:`look_by_trigger` uses
    the camera as a part does, and the front asks for it only while the page has control.

    Args:
        cameras: name → camera.
        watch: of a station whose cameras start the cycle; its frames are looked at.
        answer: takes a ticket, a value or ``None``, and code and sentence of a refusal.
        limits: returns the limits of light and focus of a class, if they are known. It must be quick.
        is_waited_for: whether something waits for the thread that judges.
    """

    def __init__(
        self,
        cameras: Mapping[str, SeenHolder],
        watch: FrameWatch | None,
        answer: Callable[..., object],
        limits: Callable[[str], LightLimits | None],
        is_waited_for: Callable[[], bool],
    ) -> None:
        self._cameras, self._watch, self._answer, self._limits = cameras, watch, answer, limits
        self._is_waited_for = is_waited_for
        self._kept: OrderedDict[int, LiveFrame] = OrderedDict()
        self._lock = threading.Lock()
        self._number = 0
        self._looked = 0.0
        self._pool = ThreadPoolExecutor(1, "visionad-live")

    def look(self, ticket: int, camera: str, after: int, class_name: str | None) -> None:
        """Answer with the newest frame of a camera. Returns at once; any thread may call it.

        Args:
            ticket: of the question.
            camera: name.
            after: the frame's number must be larger, so that numbers of an earlier worker are not used again.
            class_name: whose light it is compared with; ``None`` for none.
        """
        self._pool.submit(self._tell, ticket, class_name, lambda: self._keep(camera, self._newest(camera), after))

    def look_by_trigger(self, ticket: int, camera: str, after: int, class_name: str | None) -> None:
        """Trigger a camera, wait for its frame, and answer with it, as :meth:`look`. Call it in the thread that judges.

        What waits for that thread comes first: nothing is triggered then.
        """
        if self._is_waited_for():
            self._answer(ticket, None, "busy", "a part is in hand; try again")
            return
        holder = self._cameras[camera]
        try:
            before = holder.arm()
            holder.trigger()
            frame = holder.grab(before, time.monotonic() + TRIGGER_SECONDS)
        except CameraError as exc:
            holder.note(exc)
            self._answer(ticket, None, "no_frame", str(exc))
            return
        self._pool.submit(self._tell, ticket, class_name, lambda: self._keep(camera, frame, after))

    def send_pixels(self, ticket: int, number: int) -> None:
        """Answer with a frame that was looked at: ``rgb``, ``camera`` and ``time_utc``; ``image_gone`` if it is not kept."""
        with self._lock:
            found = self._kept.get(number)
        if found is None:
            self._answer(ticket, None, "image_gone", f"live frame {number} is gone: take again")
        else:
            self._answer(ticket, {"rgb": found.rgb, "camera": found.camera, "time_utc": found.time_utc})

    def release(self) -> None:
        """Release the frames if nobody looks any more."""
        with self._lock:
            if self._kept and time.monotonic() > self._looked + IDLE_SECONDS:
                self._kept.clear()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _newest(self, camera: str) -> Frame | None:
        return self._cameras[camera].newest() if self._watch is None else self._watch.newest(camera)

    def _keep(self, camera: str, frame: Frame | None, after: int) -> LiveFrame | None:
        """Give a frame its number. One that was looked at before has it already."""
        now = time.monotonic()
        with self._lock:
            self._looked = now
            if frame is None:
                return None
            for kept in reversed(self._kept.values()):
                if kept.camera == camera:
                    if (kept.source, kept.taken) == (frame.id, frame.taken):
                        return kept
                    break
            self._number = max(self._number, after) + 1
            time_utc = (datetime.now(UTC) - timedelta(seconds=now - frame.taken)).isoformat(timespec="milliseconds")
            live = LiveFrame(self._number, camera, frame.id, frame.taken, time_utc, eight_bits(frame))
            self._kept[live.number] = live
            size = sum(one.rgb.nbytes for one in self._kept.values())
            while len(self._kept) > 1 and (len(self._kept) > KEPT or size > MAX_BYTES):
                size -= self._kept.popitem(last=False)[1].rgb.nbytes
            return live

    def _tell(self, ticket: int, class_name: str | None, take: Callable[[], LiveFrame | None]) -> None:
        value, problem = None, "the camera has taken no image yet"
        try:
            live = take()
            value = None if live is None else self._shown(live, class_name)
        except CameraError as exc:
            problem = str(exc)
        except Exception as exc:  # a frame that cannot be encoded must not end the thread
            problem = f"the image cannot be shown: {type(exc).__name__}: {exc}"
        with suppress(OSError):  # the front is gone
            self._answer(ticket, value, "" if value else "no_frame", "" if value else problem)

    def _shown(self, live: LiveFrame, class_name: str | None) -> dict[str, Any]:
        facts = shown_image(live.camera, live.rgb, None)
        limits = None if class_name is None else self._limits(class_name)
        problem = None if limits is None else limits.problem(image_statistics(live.rgb))
        return {
            **{key: facts[key] for key in ("camera", "width", "height", "crop", "jpeg")},
            "frame": live.number,
            "time_utc": live.time_utc,
            "age_s": round(time.monotonic() - live.taken, 3),
            "sharpness": round(sharpness(live.rgb), 2),
            "light": None if limits is None else problem is None,
        }


def sharpness(rgb: NDArray[np.uint8]) -> float:
    """Return how sharp an image is, to compare images of one scene with: the variance of its Laplacian.

    Args:
        rgb: uint8 (H, W, 3) RGB or (H, W) gray. Its middle counts, at full resolution.
    """
    top, left = (max(0, (side - FOCUS_SIDE) // 2) for side in rgb.shape[:2])
    middle = np.ascontiguousarray(rgb[top : top + FOCUS_SIDE, left : left + FOCUS_SIDE])
    gray = cv2.cvtColor(middle, cv2.COLOR_RGB2GRAY) if middle.ndim == 3 else middle
    _, deviation = cv2.meanStdDev(cv2.Laplacian(gray, cv2.CV_16S))
    return float(deviation[0, 0] ** 2)
