"""Images that another program writes into a folder: each once, when it is whole, in order, also across restarts."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from visionad_runtime.images import decode
from visionad_runtime.station.camera import CAMERAS, CameraGone, LostFrame, NoFrame, StoredCamera, sight_of
from visionad_runtime.station.cameras.arrivals import ArrivalsCamera, ArrivalsSettings
from visionad_runtime.station.watch.folder_source import FolderSource


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((4, 6, 3), value, np.uint8))[1].tobytes()


class Folder:
    """A folder in which images arrive, and its camera."""

    def __init__(self, base: Path) -> None:
        self.path, self.journal = base / "new", base / "new.jsonl"
        self.path.mkdir()
        self.cameras: list[ArrivalsCamera] = []

    def camera(self, *, settle_ms: float = 20, latency_ms: float = 0, bit_depth: int | None = None) -> ArrivalsCamera:
        settings = ArrivalsSettings(
            kind="arrivals", path=self.path, journal=self.journal, settle_ms=settle_ms, latency_ms=latency_ms,
            bit_depth=bit_depth, exclude=("*.tmp.png",),
        )  # fmt: skip
        camera = ArrivalsCamera("top", settings)
        self.cameras.append(camera)
        camera.open()
        return camera

    def put(self, name: str, value: int) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
        return path

    def noted(self) -> list[str]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [json.loads(line)["name"] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    one = Folder(tmp_path)
    yield one
    for camera in one.cameras:
        camera.close()


def grab(camera: ArrivalsCamera, seconds: float = 10.0) -> tuple[int, int]:
    """Return number and gray level of the next frame."""
    frame = camera.grab(0, time.monotonic() + seconds)
    return frame.id, int(frame.pixels[0, 0, 0])


def until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_is_a_stored_camera_that_can_be_seen(folder: Folder) -> None:
    camera = folder.camera()
    assert CAMERAS.load("arrivals") is ArrivalsCamera and isinstance(camera, StoredCamera)
    assert sight_of(camera) == "always" and camera.newest() is None
    folder.put("1.png", 11)
    until(lambda: camera.newest() is not None)
    newest = camera.newest()
    assert newest is not None and newest.pixels[0, 0, 0] == 11
    assert grab(camera) == (1, 11)  # the look took nothing


def test_images_wait_in_the_order_in_which_they_were_written(folder: Folder) -> None:
    for number in range(5):
        os.utime(folder.put(f"{9 - number}.png", 10 + number), ns=(0, 10**18 + number * 10**9))
    folder.put("x.tmp.png", 99)
    folder.put("notes.txt", 98)
    camera = folder.camera()
    for number in range(5):
        assert grab(camera) == (1 + number, 10 + number)
        camera.recorded(1 + number)
    with pytest.raises(NoFrame, match=r"camera top: no image arrived in .*new in time"):
        grab(camera, 0.1)


def test_what_is_on_record_is_not_handed_out_again_and_all_else_is(folder: Folder) -> None:
    camera = folder.camera()
    for number in (1, 2, 3):
        folder.put(f"{number}.png", number)
    assert [grab(camera)[1] for _ in range(2)] == [1, 2]
    camera.recorded(1)
    until(lambda: folder.noted() == ["1.png"])
    camera.close()
    folder.put("4.png", 4)
    again = folder.camera()
    assert [grab(again) for _ in range(3)] == [(1, 2), (2, 3), (3, 4)]
    again.recorded(2)
    again.recorded(2)
    again.recorded(77)
    again.close()
    assert folder.noted() == ["1.png", "3.png"]


def test_no_more_than_two_images_are_out_of_the_journal(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = folder.camera()
    for number in (1, 2, 3, 4):
        folder.put(f"{number}.png", number)
    assert [grab(camera)[1] for _ in range(2)] == [1, 2]
    with pytest.raises(NoFrame):
        grab(camera, 0.3)
    camera.recorded(1)
    assert grab(camera) == (3, 3)
    monkeypatch.setattr("visionad_runtime.station.cameras.arrivals.OPEN_SECONDS", 0.1)
    assert grab(camera) == (4, 4)  # a diagnosis leaves one behind: it must not stop the line


def test_an_image_is_handed_out_when_it_is_whole(folder: Folder) -> None:
    camera, data = folder.camera(settle_ms=150), png(5)
    with (folder.path / "part.png").open("wb", buffering=0) as file:
        for at in range(0, len(data), 20):
            file.write(data[at : at + 20])
            time.sleep(0.05)
    assert grab(camera) == (1, 5)
    folder.put("part.png", 6)  # written anew: another image
    assert grab(camera) == (2, 6)


def test_an_image_that_stays_damaged_is_lost_and_noted(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionad_runtime.station.watch.folder_source.RETRY_TIMEOUT", 0.3)
    monkeypatch.setattr("visionad_runtime.station.watch.folder_source.RETRY_SECONDS", 0.1)
    camera = folder.camera()
    (folder.path / "bad.png").write_bytes(png(1)[:-40])
    with pytest.raises(LostFrame, match=r"camera top: .*bad\.png"):
        grab(camera)
    until(lambda: folder.noted() == ["bad.png"])
    folder.put("good.png", 7)
    assert grab(camera) == (2, 7)  # number 1 was lost


def test_an_image_that_is_moved_away_is_lost(folder: Folder) -> None:
    camera = folder.camera()
    path = folder.put("gone.png", 1)
    until(lambda: camera._waiting)
    path.unlink()
    with pytest.raises(LostFrame, match=r"gone\.png"):
        grab(camera)
    folder.put("next.png", 2)
    assert grab(camera) == (2, 2)
    camera.recorded(1)
    camera.close()
    assert folder.noted() == [], "nobody looked at it"


def test_an_image_whose_folder_is_moved_away_is_inspected_when_it_comes_back(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera, load = folder.camera(), decode.load
    folder.put("1.png", 1)

    def load_late(path: Path, bit_depth: int | None = None) -> object:
        folder.path.rename(tmp_path / "away")
        return load(path, bit_depth)

    monkeypatch.setattr(decode, "load", load_late)
    with pytest.raises(LostFrame, match=r"1\.png"):
        grab(camera)
    monkeypatch.undo()
    (tmp_path / "away").rename(folder.path)
    until(lambda: camera._waiting)
    until(lambda: not camera._source.is_away)  # type: ignore[union-attr]
    assert grab(camera) == (2, 1)
    camera.close()
    assert folder.noted() == []
    assert grab(folder.camera()) == (1, 1)


def test_after_a_trigger_only_newer_images_count(folder: Folder) -> None:
    camera = folder.camera()
    folder.put("old.png", 1)
    until(lambda: camera._waiting)
    time.sleep(0.02)
    assert camera.arm() == 0
    camera.trigger()
    writer = threading.Timer(0.1, folder.put, ("new.png", 2))
    writer.start()
    triggered = time.monotonic()
    frame = camera.grab(0, triggered + 10)
    assert (frame.id, frame.pixels[0, 0, 0]) == (1, 2) and triggered < frame.taken < time.monotonic()
    writer.join()


def test_an_image_whose_writing_began_before_the_trigger_does_not_count(folder: Folder) -> None:
    camera, data = folder.camera(settle_ms=100), png(5)
    with (folder.path / "early.png").open("wb", buffering=0) as file:
        file.write(data[:30])
        until(lambda: "early.png" in camera._source._files)  # type: ignore[union-attr]
        time.sleep(0.02)
        camera.arm()
        file.write(data[30:])
    with pytest.raises(NoFrame):
        grab(camera, 0.5)


def test_the_latency_is_taken_off(folder: Folder) -> None:
    camera = folder.camera(latency_ms=60_000)
    camera.arm()
    folder.put("1.png", 1)
    with pytest.raises(NoFrame):
        grab(camera, 0.5)


def test_a_folder_that_is_away_is_said_and_nothing_is_missed_or_repeated(folder: Folder, tmp_path: Path) -> None:
    camera = folder.camera()
    folder.put("1.png", 1)
    assert grab(camera) == (1, 1)  # not on record yet
    folder.path.rename(tmp_path / "away")
    until(lambda: camera._source.is_away)  # type: ignore[union-attr]
    with pytest.raises(CameraGone, match=r"camera top: folder .*new cannot be listed"):
        grab(camera, 0.1)
    with pytest.raises(CameraGone, match=r"camera top: .*new"):
        camera.open()
    camera.recorded(1)
    shutil.copy2(tmp_path / "away" / "1.png", tmp_path / "2.png")
    (tmp_path / "away").rename(folder.path)
    folder.put("2.png", 2)
    camera.open()
    assert grab(camera) == (2, 2)
    with pytest.raises(NoFrame):
        grab(camera, 0.3)
    until(lambda: folder.noted() == ["1.png"])


def test_a_journal_that_is_in_use_or_another_file_is_refused(folder: Folder, tmp_path: Path) -> None:
    folder.camera()
    with pytest.raises(
        CameraGone, match=r"camera top: journal .*new\.jsonl is in use by another `visionad watch` or station"
    ):
        folder.camera()
    folder.journal = tmp_path / "other.jsonl"
    folder.journal.write_text("no journal\n")
    folder.put("1.png", 1)
    with pytest.raises(CameraGone, match=r"other\.jsonl, line 1"):
        folder.camera()


def test_a_camera_that_is_not_open_says_so(folder: Folder) -> None:
    camera = folder.camera()
    camera.close()
    camera.close()
    for ask in (lambda: grab(camera, 0.1), camera.newest):
        with pytest.raises(CameraGone, match="camera top: it is not open"):
            ask()


def test_a_look_that_breaks_ends_the_camera_and_not_in_silence(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = folder.camera()

    def broken(self: FolderSource, one: object) -> float:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(FolderSource, "first_seen", broken)
    folder.put("1.png", 1)
    with pytest.raises(CameraGone, match="camera top: RuntimeError: a fault of ours"):
        grab(camera)
    monkeypatch.undo()
    camera.open()
    folder.put("2.png", 2)
    assert grab(camera) == (1, 2)
