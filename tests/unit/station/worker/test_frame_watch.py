"""Where cameras start the cycle, a part has its own frame, from every camera, and a frame that is lost is told."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

import numpy as np
import pytest
from visionad_runtime.station.camera import CameraError, CameraGone, Frame, LostFrame, NoFrame
from visionad_runtime.station.worker.frame_watch import KEPT, FrameWatch

SKEW_SECONDS = 0.05
PIXELS = np.zeros((2, 2), np.uint8)


class Source:
    """A camera that gives what the test puts in."""

    def __init__(self, is_stored: bool = False) -> None:
        self.is_stored = is_stored
        self.waiting: queue.Queue[Frame | CameraError] = queue.Queue()
        self.noted: list[CameraError] = []

    def put(self, number: int, taken: float = 0.0, lost: int = 0) -> None:
        self.waiting.put(Frame(PIXELS, number, taken, lost, name=f"new/SN-{number}.png"))

    def grab(self, after: int, deadline: float) -> Frame:
        try:
            one = self.waiting.get(timeout=max(0.0, min(0.05, deadline - time.monotonic())))
        except queue.Empty:
            raise NoFrame("none") from None
        if isinstance(one, CameraError):
            raise one
        assert one.id > after
        return one

    def note(self, trouble: CameraError) -> None:
        self.noted.append(trouble)


class Line:
    """Two watched cameras."""

    def __init__(self, is_stored: bool = False) -> None:
        self.top, self.side = Source(is_stored), Source(is_stored)
        self.told: queue.Queue[tuple[int, int, bool, str, str]] = queue.Queue()
        self.watch = FrameWatch({"top": self.top, "side": self.side}, lambda *said: self.told.put(said), SKEW_SECONDS)
        self.watch.start()

    def next(self) -> tuple[int, int]:
        number, lost, waits, part, self.why = self.told.get(timeout=5)
        assert waits == self.top.is_stored and part == (f"SN-{number}" if waits and number else "")
        return number, lost

    def ids(self, number: int, names: tuple[str, ...] = ("top", "side"), seconds: float = 2.0) -> list[int]:
        futures = self.watch.take(names, number, time.monotonic() + seconds)
        return [futures[name].result(0).id for name in names]


@pytest.fixture
def line() -> Iterator[Line]:
    one = Line()
    yield one
    one.watch.close()


def test_a_part_has_the_frame_that_began_it_even_if_others_follow(line: Line) -> None:
    for number in (1, 2, 3):
        line.top.put(number, taken=float(number))
        assert line.next() == (number, 0)
    assert line.ids(1, ("top",)) == [1]
    assert line.ids(3, ("top",)) == [3]


def test_other_cameras_show_the_same_part(line: Line) -> None:
    for number in (1, 2, 3):
        line.side.put(10 + number, taken=float(number) + SKEW_SECONDS / 2)
    line.top.put(2, taken=2.0)
    line.next()
    assert line.ids(2) == [2, 12]  # the frame of part 1 is too old, that of part 3 is another part's
    line.top.put(3, taken=3.0)
    line.next()
    assert line.ids(3) == [3, 13]


def test_a_camera_that_stays_away_is_no_frame(line: Line) -> None:
    line.top.put(1, taken=1.0)
    line.next()
    futures = line.watch.take(["top", "side"], 1, time.monotonic() + 0.1)
    assert futures["top"].result(0).id == 1
    with pytest.raises(NoFrame, match=r"camera side: no frame within 50 ms of that of camera top \(skew_ms\)"):
        futures["side"].result(0)


@pytest.mark.parametrize("is_stored", [False, True])
def test_the_frame_of_a_later_part_stays_for_that_part(is_stored: bool) -> None:
    line = Line(is_stored)
    try:
        for number in (1, 2, 3):
            line.top.put(number, taken=float(number))
            if number != 2:  # the other camera did not see part 2
                line.side.put(10 + number, taken=number + SKEW_SECONDS / 2)
        assert line.next() == (1, 0) and line.ids(1) == [1, 11]
        assert line.next() == (2, 0)
        begun = time.monotonic()
        with pytest.raises(NoFrame, match="camera side"):
            line.ids(2, seconds=20)
        assert time.monotonic() - begun < 10, "at once, not at the deadline"
        assert line.next() == (3, 0) and line.ids(3) == [3, 13]
    finally:
        line.watch.close()


def test_lost_and_damaged_frames_are_told(line: Line) -> None:
    line.top.put(4, lost=3)
    assert line.next() == (4, 3)
    line.top.waiting.put(LostFrame("incomplete"))
    assert line.next() == (0, 1) and line.why == "incomplete"
    line.side.waiting.put(LostFrame("camera side: torn"))
    assert line.next() == (0, 0) and line.why == "camera side: torn"  # its part is told as one without a frame
    line.top.waiting.put(CameraGone("unplugged"))
    line.top.put(1)  # counts from one when it is back
    assert line.next() == (1, 0)
    assert [type(trouble) for trouble in line.top.noted] == [LostFrame, CameraGone]


def test_a_frame_that_waited_too_long_is_not_replaced_by_another(line: Line) -> None:
    for number in range(1, KEPT + 3):
        line.top.put(number)
        line.next()
    with pytest.raises(LostFrame, match="frame 1 was dropped"):
        line.watch.take(["top"], 1, time.monotonic() + 1)["top"].result(0)


def test_a_stored_frame_waits_until_the_part_before_it_has_its_own() -> None:
    line = Line(is_stored=True)
    try:
        for number in range(1, KEPT + 3):
            line.top.put(number, taken=float(number))
            line.side.put(10 + number, taken=number + SKEW_SECONDS / 2)
        for number in range(1, KEPT + 3):
            assert line.next() == (number, 0)
            time.sleep(0.02)
            assert line.told.empty() and line.top.waiting.qsize() == KEPT + 2 - number
            assert line.ids(number) == [number, 10 + number]
    finally:
        line.watch.close()


def test_a_part_that_cannot_be_judged_does_not_hold_a_stored_camera_up() -> None:
    line = Line(is_stored=True)
    try:
        line.top.put(1)
        line.top.put(2)
        assert line.next() == (1, 0)
        line.watch.drop(1)
        assert line.next() == (2, 0)
    finally:
        line.watch.close()
