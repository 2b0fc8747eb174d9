"""The pylon camera with Basler's emulator."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionad_runtime.station.camera import CAMERAS, Camera, CameraGone, LostFrame, NoFrame, SeenCamera, sight_of

from tests.line.components import need

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]
WAIT = 5.0


@pytest.fixture(autouse=True)
def component() -> None:
    need("pylon")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (48, 64), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    return tmp_path


def make(settings: dict[str, Any]) -> Camera:
    kind = CAMERAS.load("pylon")
    return kind("top", kind.Settings(kind="pylon", **settings))


@pytest.fixture
def opened(folder: Path) -> Iterator[Camera]:
    camera = make({"emulated": folder, "format": "Mono8"})
    camera.open()
    yield camera
    camera.close()


def shot(camera: Camera, wait: float = WAIT) -> Any:
    after = camera.arm()
    camera.trigger()
    return camera.grab(after, time.monotonic() + wait)


def test_images_come_bit_exact_in_the_order_of_their_names(folder: Path) -> None:
    camera = make({"emulated": folder, "format": "Mono8", "exposure_us": 800, "gain_db": 1.0, "user_set": "Default"})
    facts = camera.open()
    assert facts.simulated and (facts.format, facts.width, facts.height) == ("Mono8", 64, 48)
    assert "0815-000" in facts.name
    try:
        seen = []
        for number in range(7):
            before = time.monotonic()
            frame = shot(camera)
            assert (frame.id, frame.lost, frame.bit_depth) == (number + 1, 0, None)
            assert before <= frame.taken <= time.monotonic()
            files = [cv2.imread(str(folder / f"{file}.png"), cv2.IMREAD_GRAYSCALE) for file in range(3)]
            seen.append(next(file for file in range(3) if np.array_equal(files[file], frame.pixels)))
        assert seen == [(seen[0] + number) % 3 for number in range(7)]
    finally:
        camera.close()
        camera.close()


def test_no_trigger_no_frame(opened: Camera) -> None:
    after = opened.arm()
    start = time.monotonic()
    with pytest.raises(NoFrame, match="camera top: no frame in time"):
        opened.grab(after, start + 0.3)
    assert 0.25 < time.monotonic() - start < 1


def test_a_frame_that_is_late_does_not_answer_the_next_trigger(opened: Camera, folder: Path) -> None:
    first = shot(opened)
    with pytest.raises(NoFrame):
        shot(opened, wait=0.0)
    second = shot(opened)
    assert second.id > first.id and second.taken > first.taken
    after = opened.arm()
    with pytest.raises(NoFrame):
        opened.grab(after, time.monotonic() + 0.3)


def test_a_damaged_frame_is_lost_and_the_next_one_whole(opened: Camera) -> None:
    shot(opened)
    features = opened._device.features  # type: ignore[attr-defined]
    features.set("ForceFailedBufferCount", 1)
    features.execute("ForceFailedBuffer")
    with pytest.raises(LostFrame, match="camera top: frame 2 is damaged"):
        shot(opened)
    whole = shot(opened)
    assert (whole.id, whole.lost) == (3, 0)


@pytest.mark.parametrize("order", ["RG", "GR", "GB", "BG"])
def test_bayer_gives_the_color_of_the_file(tmp_path: Path, order: str) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), np.full((8, 8, 3), (220, 20, 10), np.uint8))  # BGR
    camera = make({"emulated": tmp_path, "format": f"Bayer{order}8"})
    camera.open()
    try:
        pixels = shot(camera).pixels
        assert pixels.shape == (8, 8, 3) and (pixels == [10, 20, 220]).all()
    finally:
        camera.close()


@pytest.mark.parametrize(("name", "bits"), [("Mono10", 10), ("Mono12", 12), ("Mono16", 16)])
def test_deep_gray_keeps_its_bits(tmp_path: Path, name: str, bits: int) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    camera = make({"emulated": tmp_path, "format": name})
    camera.open()
    try:
        frame = shot(camera)
        assert frame.pixels.dtype == np.uint16 and frame.bit_depth == bits
        assert int(frame.pixels.max()) >> bits == 0
        assert ((frame.pixels >> (bits - 8)) == np.arange(64).reshape(8, 8) * 4).all()
    finally:
        camera.close()


@pytest.mark.parametrize(("name", "expected"), [("RGB8Packed", [10, 20, 220]), ("BGR8Packed", [10, 20, 220])])
def test_color_is_rgb(tmp_path: Path, name: str, expected: list[int]) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), np.full((8, 8, 3), (220, 20, 10), np.uint8))
    camera = make({"emulated": tmp_path, "format": name})
    camera.open()
    try:
        assert (shot(camera).pixels == expected).all()
    finally:
        camera.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": "Mono9"}, "camera top: format: expected Mono9, but the camera refuses it"),
        ({"exposure_us": 1e9}, r"camera top: exposure_us: expected 1000000000\.0, but the camera refuses it"),
        ({"gain_db": 999.0}, r"camera top: gain_db: expected 999\.0"),
        ({"user_set": "Mine"}, "camera top: user_set: expected Mine, but the camera refuses it"),
        ({"trigger": "hardware", "line": "Line77"}, "camera top: line: expected Line77"),
        ({"serial": "4711"}, r"camera top: expected serial 4711, got Emulation 0815-0000"),
        ({"format": "BGRA8Packed"}, "camera top: pixel format 'BGRA8Packed' cannot be read"),
    ],
)
def test_a_setting_that_the_camera_refuses_is_named(folder: Path, settings: dict[str, Any], words: str) -> None:
    camera = make({"emulated": folder, **settings})
    with pytest.raises(CameraGone, match=words):
        camera.open()


def test_two_cameras_are_two_devices(folder: Path) -> None:
    cameras = [make({"emulated": folder}), make({"emulated": folder, "serial": "0815-0003"})]
    try:
        names = [camera.open().name for camera in cameras]
        assert len(set(names)) == 2 and "0815-0003" in names[1]
        assert [shot(camera).id for camera in cameras] == [1, 1]
    finally:
        for camera in cameras:
            camera.close()


def test_a_camera_without_emulation_is_never_an_emulated_one(opened: Camera) -> None:
    with pytest.raises(CameraGone, match="camera top: expected one camera, got none"):
        make({}).open()


def test_it_opens_again(opened: Camera) -> None:
    shot(opened)
    opened.open()
    assert shot(opened).id == 1


def test_a_free_camera_hands_out_the_newest_frame(folder: Path) -> None:
    camera = make({"emulated": folder, "trigger": "free", "exposure_us": 100})
    camera.open()
    try:
        last = camera.arm()
        for _ in range(4):
            time.sleep(0.2)
            frame = camera.grab(last, time.monotonic() + WAIT)
            assert frame.id > last and time.monotonic() - frame.taken < 0.15
            last = frame.id
        assert last > 8
    finally:
        camera.close()


def test_a_look_at_a_free_camera_takes_nothing_from_the_line(folder: Path) -> None:
    camera = make({"emulated": folder, "trigger": "free", "exposure_us": 100})
    assert isinstance(camera, SeenCamera) and sight_of(camera) == "always"
    camera.open()
    try:
        seen, ids = 0, []
        last = camera.arm()
        for _ in range(5):
            frame = camera.grab(last, time.monotonic() + WAIT)
            looked = [camera.newest() for _ in range(3)]
            assert all(one is not None and one.id >= frame.id and time.monotonic() - one.taken < 0.5 for one in looked)
            seen += len(looked)
            ids.append(frame.id)
            last = frame.id
        assert seen == 15 and ids == sorted(set(ids))
        newest = camera.newest()
        assert newest is not None and newest.pixels.shape[:2] == (48, 64)
    finally:
        camera.close()
    with pytest.raises(CameraGone):
        camera.newest()


def test_a_camera_that_waits_for_a_trigger_is_looked_at_by_one(opened: Camera) -> None:
    assert sight_of(opened) == "trigger"
    assert sight_of(make({"serial": "1", "trigger": "hardware"})) == "never"
