"""Parts that begin with a frame: cameras start the cycle, and a stored frame waits until the line is ready."""

from __future__ import annotations

from collections.abc import Callable

from ..sink import Control
from .cycle import Cycle


class FrameStarts:
    """Begins the parts of a station whose cameras start the cycle.

    Args:
        cycle: of the station.
        trigger: begins a part: sequence, part, who has control, number of the frame.
        note: writes an event: code and text.
    """

    def __init__(
        self,
        cycle: Cycle,
        trigger: Callable[[int, str, Control, int], object],
        note: Callable[[str, str], object],
    ) -> None:
        self._cycle, self._trigger, self._note = cycle, trigger, note
        self._held: tuple[int, str] | None = None  # a stored frame that waits until the station is ready, and its part

    def taken(self, frame: int, lost: int, waits: bool, part: str, why: str) -> None:
        """Take note of a camera's frame. Frames that were lost are parts that nobody looked at.

        Args:
            frame: its number; 0 for one that is damaged.
            lost: frames that were lost.
            waits: whether it waits until the line is ready.
            part: that it shows.
            why: the camera's words for one that is damaged; empty without.
        """
        if lost:
            self._cycle.missed += lost
            reason = f" ({why})" if why else ""
            what = "1 frame was lost" if lost == 1 else f"{lost} frames were lost"
            parts = "its part; reject it" if lost == 1 else "their parts; reject them"
            self._note("frames-lost", f"{what}{reason}: nobody looked at {parts}")
        elif why:
            self._note("frame-damaged", why)
        if frame and waits:
            self._held = frame, part
        elif frame:
            self._begin(frame, part)

    def begin_held(self) -> None:
        """Begin the part of the frame that waits, if one does: the station is ready."""
        if self._held is not None:
            (frame, part), self._held = self._held, None
            self._begin(frame, part)

    def forget(self) -> None:
        """Forget the frame that waits: the next worker hands it out again."""
        self._held = None

    def _begin(self, frame: int, part: str) -> None:
        self._trigger(self._cycle.acquisition + 1, part, self._cycle.control, frame)
