"""Frames of cameras that start the cycle themselves: by a light barrier that is wired to them, or freely."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from ...formats.plain_text import plain
from ..camera import CameraError, Frame, LostFrame, NoFrame

KEPT = 8
"""Frames of a camera that wait for their part. The front accepts one part at a time, so more would be parts that were missed."""
POLL_SECONDS = 0.5
"""How long a frame is waited for at a time."""
PAUSE_SECONDS = 0.02
"""Pause after a camera gave none."""
MAX_PART = 100
"""Characters of a part's name."""


class Grabber(Protocol):
    """A camera, or what stands for it while it is gone.

    Attributes:
        is_stored: whether its frames wait until they are asked for.
    """

    @property
    def is_stored(self) -> bool: ...

    def grab(self, after: int, deadline: float) -> Frame:
        """See :class:`~visionad_runtime.station.camera.Camera`."""

    def note(self, trouble: CameraError) -> None:
        """Take note of a camera that gave no frame."""


class FrameWatch:
    """Takes each frame of each camera, and keeps the newest ones under their numbers until their part is judged.

    Of a stored camera, the next frame is taken when a part has the last one.

    Args:
        cameras: name → camera. Frames of the first one begin a part.
        tell: told of each frame of the first camera: its number, or 0 for one that is damaged, how many frames were lost,
            whether the frame waits until the line is ready, the part that it is of (the file's name without its ending, of a
            stored frame), and the camera's words for one that is damaged. Of another camera it is told of damaged frames alone,
            with no lost ones: the part tells by itself that it has no frame.
        skew: by so many seconds may the frame of another camera be older or newer than that of the first one, and still show the
            same part.
    """

    def __init__(
        self, cameras: Mapping[str, Grabber], tell: Callable[[int, int, bool, str, str], object], skew: float
    ) -> None:
        self._cameras, self._tell, self._skew = cameras, tell, skew
        self._first = next(iter(cameras))
        self._frames: dict[str, OrderedDict[int, Frame]] = {name: OrderedDict() for name in cameras}
        self._newest: dict[str, Frame] = {}
        self._changed = threading.Condition()
        self._ended = threading.Event()

    def start(self) -> None:
        """Watch every camera, each in a thread."""
        for name in self._cameras:
            threading.Thread(target=self._watch, args=(name,), name=f"visionad-frames-{name}", daemon=True).start()

    def close(self) -> None:
        """End the threads."""
        self._ended.set()

    def take(self, names: Sequence[str], number: int, deadline: float) -> dict[str, Future[Frame]]:
        """Return the frames of a part.

        Args:
            names: cameras of the recipe.
            number: of the first camera's frame that began the part.
            deadline: monotonic seconds to wait for the other cameras until.
        """
        with self._changed:
            begun = self._frames[self._first].pop(number, None)
            self._changed.notify_all()
        futures: dict[str, Future[Frame]] = {}
        for name in names:
            future = futures[name] = Future()
            try:
                if begun is None:
                    raise LostFrame(f"camera {self._first}: frame {number} was dropped before it could be judged")
                future.set_result(begun if name == self._first else self._beside(name, begun.taken, deadline))
            except CameraError as exc:
                future.set_exception(exc)
        return futures

    def drop(self, number: int) -> None:
        """Forget the frame that began a part which cannot be judged."""
        with self._changed:
            self._frames[self._first].pop(number, None)
            self._changed.notify_all()

    def newest(self, name: str) -> Frame | None:
        """Return the newest frame of a camera, whether its part was judged or not; ``None`` if there was none yet."""
        with self._changed:
            return self._newest.get(name)

    def _beside(self, name: str, taken: float, deadline: float) -> Frame:
        """Return a camera's frame of the part that was taken at ``taken``. One that is newer stays, for a later part.

        Raises:
            NoFrame: None came by the deadline, or a newer one came first.
        """
        with self._changed:
            while True:
                frames = self._frames[name]
                for number in [number for number, frame in frames.items() if frame.taken < taken - self._skew]:
                    del frames[number]
                    self._changed.notify_all()
                number, frame = next(iter(frames.items()), (0, None))
                if frame is not None and frame.taken <= taken + self._skew:
                    self._changed.notify_all()
                    return frames.pop(number)
                left = deadline - time.monotonic()
                if frame is not None or left <= 0 or not self._changed.wait(left):
                    raise NoFrame(
                        f"camera {name}: no frame within {self._skew * 1e3:g} ms of that of camera {self._first} (skew_ms)"
                    )

    def _watch(self, name: str) -> None:
        camera, last = self._cameras[name], 0
        while not self._ended.is_set():
            try:
                frame = camera.grab(last, time.monotonic() + POLL_SECONDS)
            except NoFrame:
                self._ended.wait(PAUSE_SECONDS)
                continue
            except CameraError as exc:
                if self._ended.is_set():  # it was closed
                    return
                camera.note(exc)
                if isinstance(exc, LostFrame):
                    self._say(name, 0, 1, why=str(exc))
                else:
                    last = 0  # a camera that is opened again counts from one
                self._ended.wait(PAUSE_SECONDS)
                continue
            last = frame.id
            with self._changed:
                frames = self._frames[name]
                frames[frame.id] = self._newest[name] = frame
                while len(frames) > KEPT:
                    frames.popitem(last=False)
                self._changed.notify_all()
            self._say(name, frame.id, frame.lost, frame.name)
            if camera.is_stored:
                with self._changed:
                    while frame.id in frames and not self._ended.is_set():
                        self._changed.wait(POLL_SECONDS)

    def _say(self, name: str, number: int, lost: int, file: str = "", why: str = "") -> None:
        is_first, stored = name == self._first, self._cameras[name].is_stored
        if not is_first and not why:
            return
        try:
            self._tell(number, lost if is_first else 0, stored, _part_of(file) if stored else "", why)
        except OSError:  # the front is gone
            self._ended.set()


def _part_of(file: str) -> str:
    """Return the part that a file shows: its name without its ending. Protocols of the line end a text at a line's end."""
    return "".join(c if c.isprintable() else " " for c in plain(Path(file).stem))[:MAX_PART]
