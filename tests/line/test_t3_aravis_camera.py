"""T3: a GigE camera that loses packets, is killed and comes back (Aravis' fake camera), through both GigE libraries.

Each trigger gets its own frame or a reason. No frame is handed out that a trigger before the last one asked for.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from visionad_runtime.station.camera import CAMERAS, Camera, CameraGone, Frame, LostFrame, NoFrame

from tests.line.components import need
from tests.line.servers import Server

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]  # serial: one camera an address, port 3956
GVCP_PORT = 3956
DISCOVERY = bytes.fromhex("4211000200000001")
LIBRARIES = ["aravis", "viva"]


def answers() -> bool:
    """Return whether a GigE camera answers on the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.2)
        try:
            asking.sendto(DISCOVERY, ("127.0.0.1", GVCP_PORT))
            return bool(asking.recv(1024))
        except OSError:
            return False


def fake(*arguments: str) -> Server:
    return Server("arv-fake-gv-camera-0.8", "-i", "lo", "-s", "T3", *arguments, is_ready=answers)


def make(library: str, **settings: Any) -> Camera:
    kind = CAMERAS.load("gige")
    common = {"kind": "gige", "address": "127.0.0.1", "library": library, "format": "Mono8", "exposure_us": 2000}
    return kind("top", kind.Settings(**{**common, "width": 128, "height": 96, **settings}))


def shot(camera: Camera, wait: float = 2.0) -> Frame:
    after = camera.arm()
    camera.trigger()
    return camera.grab(after, time.monotonic() + wait)


def whole(camera: Camera) -> Frame:
    """Return a whole frame: a busy machine loses packets of the loopback interface too."""
    for _ in range(4):
        try:
            return shot(camera)
        except LostFrame:
            continue
    return shot(camera)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    need("aravis")
    if request.param == "viva":
        need("viva")
    return str(request.param)


@contextmanager
def running(camera: Camera, *arguments: str) -> Iterator[Server]:
    """Run the fake camera; close ``camera`` before it ends, which is quicker than after it."""
    with fake(*arguments) as server:
        try:
            yield server
        finally:
            camera.close()


def test_t3_lost_packets_are_a_lost_frame_and_the_next_trigger_gets_its_own(library: str) -> None:
    camera = make(library)
    with running(camera, "-r", "20"):
        facts = camera.open()
        assert (facts.format, facts.width, facts.height, facts.simulated) == ("Mono8", 128, 96, False)
        whole, lost, last = 0, 0, 0
        for _ in range(60):
            triggered = time.monotonic()
            try:
                frame = shot(camera)
            except LostFrame as exc:
                assert "camera top: frame" in str(exc)
                lost += 1
                continue
            except NoFrame:  # all packets, or the first and the last one, were lost
                lost += 1
                continue
            assert frame.id > last and frame.taken >= triggered and frame.pixels.shape == (96, 128)
            last, whole = frame.id, whole + 1
        assert whole > 20 and lost > 2


def test_t3_a_camera_that_is_killed_is_gone_within_seconds_and_opens_again(library: str) -> None:
    camera = make(library)
    with running(camera) as server:
        camera.open()
        before = [whole(camera).id for _ in range(3)]
        assert before == sorted(set(before))
        after = camera.arm()
        server.kill()
        killed = time.monotonic()
        with pytest.raises(CameraGone, match="camera top: control was lost"):
            camera.grab(after, killed + 15)
        assert time.monotonic() - killed < 10
        with pytest.raises(CameraGone, match="camera top: control was lost"):
            camera.trigger()
        camera.close()
        with pytest.raises(CameraGone, match=r"camera top: expected a GigE camera at 127\.0\.0\.1, got"):
            camera.open()
        server.start()
        camera.open()
        again = [whole(camera).id for _ in range(3)]
        assert again == sorted(set(again)) and again[0] < 5, "numbers begin anew"


def test_t3_a_frame_that_is_late_does_not_answer_the_next_trigger(library: str) -> None:
    camera = make(library)
    with running(camera):
        camera.open()
        for _ in range(5):
            with pytest.raises(NoFrame, match="camera top: no frame in time; the trigger was sent"):
                shot(camera, wait=0.0)
            frame = whole(camera)
            time.sleep(0.1)
            with pytest.raises(NoFrame):  # had the late frame answered, the trigger's own would come now
                camera.grab(frame.id, time.monotonic() + 0.1)


def test_t3_a_free_camera_hands_out_new_frames_only(library: str) -> None:
    camera = make(library, trigger="free")
    with running(camera):
        camera.open()
        last = camera.arm()
        for _ in range(5):
            time.sleep(0.2)
            frame = camera.grab(last, time.monotonic() + 2)
            assert frame.id > last and time.monotonic() - frame.taken < 0.15
            last = frame.id
        assert last > 10


REFUSED = [
    ({"format": "Mono9"}, "camera top: format: expected Mono9, but the camera refuses it"),
    ({"exposure_us": 1e9}, r"camera top: exposure_us: expected 1000000000\.0, but the camera refuses it"),
    ({"gain_db": 1.0}, "camera top: gain_db: expected 1.0, but the camera has no feature Gain"),
    ({"width": 100_000}, "camera top: width: expected 100000, but the camera refuses it"),
    ({"trigger": "hardware", "line": "Line9"}, "camera top: line: expected Line9, but the camera refuses it"),
]


def test_t3_a_setting_that_the_camera_refuses_is_named(library: str) -> None:
    with fake():
        for settings, words in REFUSED:
            with pytest.raises(CameraGone, match=words):
                make(library, **settings).open()
        camera = make(library, packet_size=576, packet_delay_us=0)
        camera.open()
        try:
            assert whole(camera).id > 0
        finally:
            camera.close()


def test_t3_formats(library: str) -> None:
    with fake():
        for name in ("BayerRG8", "BayerGR8", "BayerGB8", "BayerBG8", "RGB8", "Mono16"):
            camera = make(library, format=name)
            camera.open()
            try:
                frame = whole(camera)
                assert frame.pixels.shape == ((96, 128) if name == "Mono16" else (96, 128, 3))
                assert frame.bit_depth == (16 if name == "Mono16" else None)
            finally:
                camera.close()
