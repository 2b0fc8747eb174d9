"""Looks at a camera without a part: the line comes first, nothing of it is taken, and a number stands for the same pixels."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from visionad_runtime.station.camera import CameraError, CameraGone, Frame, NoFrame
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.worker import live_frames
from visionad_runtime.station.worker.checks import LightLimits, image_statistics
from visionad_runtime.station.worker.frame_watch import FrameWatch
from visionad_runtime.station.worker.live_frames import KEPT, LiveFrames, sharpness

from tests.stations import run, until
from tests.unit.station.front.test_front import station_file

__all__ = ["station_file"]


def pixels(value: int) -> np.ndarray:
    return np.full((40, 60, 3), value, np.uint8)


class Holder:
    """A camera that notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.frame: Frame | None = None
        self.trouble: CameraError | None = None
        self.noted: list[CameraError] = []

    def show(self, number: int, value: int = 100, depth: int | None = None) -> None:
        image = pixels(value) if depth is None else np.full((40, 60), value, np.uint16)
        self.frame = Frame(image, number, time.monotonic(), bit_depth=depth)

    def arm(self) -> int:
        self.calls.append("arm")
        return 0

    def trigger(self) -> None:
        self.calls.append("trigger")

    def grab(self, after: int, deadline: float) -> Frame:
        self.calls.append("grab")
        if self.trouble is not None:
            raise self.trouble
        assert self.frame is not None and deadline - time.monotonic() <= live_frames.TRIGGER_SECONDS
        return self.frame

    def newest(self) -> Frame | None:
        self.calls.append("newest")
        if self.trouble is not None:
            raise self.trouble
        return self.frame

    def note(self, trouble: CameraError) -> None:
        self.noted.append(trouble)


class Worker:
    """What a worker has of live frames, and what it answers."""

    def __init__(self, watch: FrameWatch | None = None) -> None:
        self.top = Holder()
        self.answers: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.is_waited_for = False
        self.limits: LightLimits | None = None
        self.live = LiveFrames(
            {"top": self.top}, watch, lambda *answer: self.answers.put(answer), lambda _: self.limits, lambda: self.is_waited_for
        )  # fmt: skip

    def look(self, after: int = 0) -> dict[str, Any]:
        self.live.look(7, "top", after, "disc")
        ticket, value, code, problem = self.answers.get(timeout=5)
        assert ticket == 7 and value is not None and code == problem == "", (code, problem)
        return dict(value)

    def refusal(self) -> tuple[str, str]:
        ticket, value, code, problem = self.answers.get(timeout=5)
        assert ticket == 7 and value is None
        return code, problem

    def pixels(self, number: int) -> dict[str, Any] | None:
        self.live.send_pixels(8, number)
        ticket, value, *rest = self.answers.get(timeout=5)
        assert ticket == 8 and (value is not None or rest[0] == "image_gone")
        return value  # type: ignore[no-any-return]


@pytest.fixture
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.live.close()


def test_a_look_takes_nothing_of_the_line(worker: Worker) -> None:
    worker.top.show(12)
    facts = worker.look()
    assert worker.top.calls == ["newest"]
    assert (facts["frame"], facts["camera"], facts["width"], facts["height"]) == (1, "top", 60, 40)
    assert facts["jpeg"].startswith(b"\xff\xd8") and 0 <= facts["age_s"] < 5


def test_the_number_on_the_screen_stands_for_these_pixels(worker: Worker) -> None:
    for number, value in ((1, 10), (2, 20), (3, 30)):
        worker.top.show(number, value)
        facts = worker.look()
        assert facts["frame"] == number
    for number, value in ((2, 20), (1, 10), (3, 30)):
        kept = worker.pixels(number)
        assert kept is not None and (kept["rgb"] == value).all() and kept["camera"] == "top" and kept["time_utc"]


def test_pixels_are_those_that_a_part_would_have(worker: Worker) -> None:
    worker.top.show(1, value=0xABC, depth=12)
    kept = worker.pixels(worker.look()["frame"])
    assert kept is not None and kept["rgb"].dtype == np.uint8 and (kept["rgb"] == 0xAB).all()


def test_a_frame_that_is_seen_twice_has_one_number(worker: Worker) -> None:
    worker.top.show(5)
    assert worker.look()["frame"] == worker.look()["frame"] == 1
    worker.top.show(5)  # the camera was opened again and counts from one
    assert worker.look()["frame"] == 2


def test_numbers_of_an_earlier_worker_are_not_used_again(worker: Worker) -> None:
    worker.top.show(1)
    assert worker.look(after=40)["frame"] == 41
    assert worker.pixels(1) is None


def test_the_last_frames_are_kept_and_memory_is_bounded(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, KEPT + 6):
        worker.top.show(number, number)
        worker.look()
    assert worker.pixels(5) is None
    oldest = worker.pixels(6)
    assert oldest is not None and (oldest["rgb"] == 6).all()
    monkeypatch.setattr(live_frames, "MAX_BYTES", 3 * pixels(0).nbytes)
    worker.top.show(100)
    newest = worker.look()["frame"]
    assert [number for number in range(newest + 1) if worker.pixels(number)] == [newest - 2, newest - 1, newest]


def test_frames_are_released_when_nobody_looks(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.top.show(1)
    number = worker.look()["frame"]
    worker.live.release()
    assert worker.pixels(number) is not None
    monkeypatch.setattr(live_frames, "IDLE_SECONDS", 0.0)
    worker.live.release()
    assert worker.pixels(number) is None
    monkeypatch.undo()
    worker.top.show(2)
    assert worker.look()["frame"] == number + 1


def test_a_camera_without_an_image_says_so(worker: Worker) -> None:
    worker.live.look(7, "top", 0, None)
    assert worker.refusal() == ("no_frame", "the camera has taken no image yet")
    worker.top.trouble = CameraGone("camera top: unplugged")
    worker.live.look(7, "top", 0, None)
    assert worker.refusal() == ("no_frame", "camera top: unplugged")
    worker.top.trouble = None
    worker.top.frame = Frame(np.zeros((4, 4), np.float32), 1, 0.0)  # type: ignore[arg-type]
    worker.live.look(7, "top", 0, None)
    assert worker.refusal()[1].startswith("the image cannot be shown")
    worker.top.show(2)
    assert worker.look()["frame"]  # the thread lives


def test_a_look_by_trigger_is_what_a_part_does(worker: Worker) -> None:
    worker.top.show(3)
    worker.live.look_by_trigger(7, "top", 0, None)
    assert worker.answers.get(timeout=5)[1]["frame"] == 1
    assert worker.top.calls == ["arm", "trigger", "grab"]
    worker.top.trouble = NoFrame("camera top: none")
    worker.live.look_by_trigger(7, "top", 0, None)
    assert worker.refusal() == ("no_frame", "camera top: none") and worker.top.noted == [worker.top.trouble]


def test_what_waits_for_the_judging_thread_comes_before_a_look(worker: Worker) -> None:
    worker.top.show(3)
    worker.is_waited_for = True
    worker.live.look_by_trigger(7, "top", 0, None)
    assert worker.refusal()[0] == "busy" and worker.top.calls == []


def test_a_look_does_not_hold_the_thread_that_reads_triggers(worker: Worker) -> None:
    """Decoding and encoding take their time in a thread of their own."""
    entered, go_on = threading.Event(), threading.Event()

    def slow() -> Frame:
        entered.set()
        assert go_on.wait(10)
        return Frame(pixels(1), 1, time.monotonic())

    worker.top.newest = slow  # type: ignore[method-assign]
    worker.live.look(7, "top", 0, None)
    assert entered.wait(10) and worker.answers.empty()  # the caller went on
    go_on.set()
    assert worker.answers.get(timeout=5)[1]["frame"] == 1


def test_where_cameras_start_the_cycle_their_newest_frame_is_shown() -> None:
    """The part still gets it, and the camera is not asked beside the watch."""
    source: queue.Queue[Frame] = queue.Queue()
    told: queue.Queue[int] = queue.Queue()

    class Source(Holder):
        is_stored = False

        def grab(self, after: int, deadline: float) -> Frame:
            try:
                return source.get(timeout=0.05)
            except queue.Empty:
                raise NoFrame("none") from None

    watch = FrameWatch({"top": Source()}, lambda number, *_: told.put(number), 0.05)
    worker = Worker(watch)
    watch.start()
    try:
        worker.live.look(7, "top", 0, None)
        assert worker.refusal()[0] == "no_frame"
        source.put(Frame(pixels(9), 4, time.monotonic()))
        assert told.get(timeout=5) == 4
        assert worker.look()["frame"] == 1 and worker.top.calls == []
        assert watch.take(["top"], 4, time.monotonic() + 1)["top"].result(0).id == 4
        assert worker.look()["frame"] == 1  # also once its part is judged
    finally:
        watch.close()
        worker.live.close()


def test_light_is_compared_with_the_good_parts_of_the_class(worker: Worker) -> None:
    worker.top.show(1, 100)
    assert worker.look()["light"] is None
    worker.limits = LightLimits([image_statistics(pixels(100))])
    assert worker.look()["light"] is True
    worker.top.show(2, 200)
    assert worker.look()["light"] is False


def test_sharpness_falls_when_an_image_is_blurred() -> None:
    import cv2

    sharp = np.random.default_rng(3).integers(0, 255, (300, 1500, 3), np.uint8)
    sharp = cv2.GaussianBlur(sharp, None, 1.0)
    values = [sharpness(cv2.GaussianBlur(sharp, None, sigma)) for sigma in (0.5, 1.0, 2.0, 4.0)]
    assert sharpness(sharp) > values[0] > values[1] > values[2] > values[3] > 0
    assert sharpness(sharp[..., 0]) > 0 == sharpness(pixels(7))


def test_a_station_answers_a_look_while_a_part_is_exposed_and_each_part_gets_its_own_image(station_file: Path) -> None:
    """The worker's processes as they are: the thread that judges waits for the exposure meanwhile."""
    text = station_file.read_text().replace("path: images", "path: images, delay_ms: 1500")
    station_file.write_text(text.replace("deadline_ms: 2000", "deadline_ms: 10000"))
    found: list[tuple[str, int, str]] = []

    async def play(front: Front) -> None:
        for number in range(3):
            await until(lambda: front.state.ready)
            assert front.trigger(number + 1, f"SN-{number}") is not None
            looked = await front.ask_worker("look", "top", 0, "disc")
            assert front.state.phase == "busy" and looked["frame"] == number + 1
            seen = await front.ask_worker("frame_pixels", looked["frame"])
            assert seen["rgb"].shape == (96, 128, 3) and seen["camera"] == "top"
            await until(lambda count=number + 1: len(front.recent) == count)  # type: ignore[misc]
            outcome = front.recent[-1]
            found.append((outcome.part, outcome.evaluation, Path(outcome.cameras["top"]["image"]).stem))
            front.acknowledge()

    run(station_file, play)
    assert found == [("SN-0", 1, "00-good"), ("SN-1", 2, "01-bad"), ("SN-2", 1, "02-good")]
