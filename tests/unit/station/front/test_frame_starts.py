"""Parts that begin with a frame: at once, or when the line is ready; and what is said of frames that were lost."""

from __future__ import annotations

import pytest
from visionad_runtime.station.front.cycle import Cycle, Settings
from visionad_runtime.station.front.frame_starts import FrameStarts


class Front:
    """What begins parts and writes events."""

    def __init__(self) -> None:
        self.cycle = Cycle(Settings(deadline_s=1, ack_s=1, recipe_digests={1: ""}), 5)
        self.begun: list[tuple[int, str, str, int]] = []
        self.noted: list[tuple[str, str]] = []
        self.starts = FrameStarts(
            self.cycle, lambda *one: self.begun.append(one), lambda code, text: self.noted.append((code, text))
        )


@pytest.fixture
def front() -> Front:
    return Front()


def test_a_frame_begins_its_part_and_a_stored_one_waits(front: Front) -> None:
    acquisition = front.cycle.acquisition
    front.starts.taken(3, 0, False, "", "")
    assert front.begun == [(acquisition + 1, "", front.cycle.control, 3)]
    front.starts.taken(4, 0, True, "SN-4", "")
    assert len(front.begun) == 1
    front.starts.begin_held()
    front.starts.begin_held()
    assert front.begun[1:] == [(acquisition + 1, "SN-4", front.cycle.control, 4)]
    front.starts.taken(5, 0, True, "SN-5", "")
    front.starts.forget()
    front.starts.begin_held()
    assert len(front.begun) == 2 and not front.noted


def test_what_is_lost_is_counted_and_said_in_the_words_of_the_camera(front: Front) -> None:
    front.starts.taken(9, 3, False, "", "")
    front.starts.taken(0, 1, True, "", "camera top: in/p3.png: no image")
    front.starts.taken(0, 0, True, "", "camera side: in/p4.png: no image")  # another camera's: its part tells
    assert front.cycle.missed == 4 and len(front.begun) == 1
    assert front.noted == [
        ("frames-lost", "3 frames were lost: nobody looked at their parts; reject them"),
        (
            "frames-lost",
            "1 frame was lost (camera top: in/p3.png: no image): nobody looked at its part; reject it",
        ),
        ("frame-damaged", "camera side: in/p4.png: no image"),
    ]
