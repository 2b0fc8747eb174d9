"""T5: an RTSP stream that stalls, bursts and goes (GStreamer's server): no image that is older than the trigger, ever.

Each image shows when it was made, in milliseconds of the clock that all processes share.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime.station.camera import CAMERAS, Camera, CameraGone, Frame, NoFrame

from tests.line.components import RTSP_PYTHON, free_port, need
from tests.line.servers import Server

pytestmark = pytest.mark.serial
SCRIPT = Path(__file__).parents[1] / "fakes" / "rtsp_server.py"
LATENCY_MS = 250.0
"""What encoder and decoder take on a busy machine, generously."""
BITS, SIDE = 32, 16


class Network:
    """Passes TCP on to a port. It can be blocked: bytes wait, and come all at once later, as after a change of route."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self._to, self._free = port, threading.Event()
        self._free.set()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def block(self) -> None:
        self._free.clear()

    def unblock(self) -> None:
        self._free.set()

    def close(self) -> None:
        self._free.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._free.wait()
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                end.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def server() -> Iterator[tuple[Server, int]]:
    need("rtsp")
    port = free_port()
    with Server(RTSP_PYTHON, str(SCRIPT), str(port), is_ready=lambda: listens(port)) as running:
        yield running, port


def make(port: int, **settings: float) -> Camera:
    kind = CAMERAS.load("stream")
    common = {"kind": "stream", "source": f"rtsp://user:secret@127.0.0.1:{port}/line", "latency_ms": LATENCY_MS}
    return kind("top", kind.Settings(**{**common, **settings}))


def made_at(frame: Frame) -> float:
    """Return when the image was made, in seconds."""
    number = 0
    for bit in range(BITS):
        number = number * 2 + int(frame.pixels[32, bit * SIDE + SIDE // 2].mean() > 128)
    return number / 1000


def shot(camera: Camera, wait: float = 3.0) -> tuple[Frame, float]:
    """Return a frame and how much later than the trigger its image was made, in seconds."""
    after = camera.arm()
    triggered = time.monotonic()
    camera.trigger()
    frame = camera.grab(after, triggered + wait)
    return frame, made_at(frame) - triggered


def test_t5_no_image_is_older_than_its_trigger_when_the_network_stalls_and_bursts(server: tuple[Server, int]) -> None:
    network = Network(server[1])
    camera = make(network.port, read_timeout_ms=4000)
    try:
        facts = camera.open()
        assert "secret" not in facts.name and (facts.width, facts.height) == (BITS * SIDE, 64)
        later, refused, ids = [], 0, []
        for _ in range(2):
            for _ in range(3):
                frame, by = shot(camera)
                later.append(by)
                ids.append(frame.id)
            network.block()
            time.sleep(1.0)
            with pytest.raises(NoFrame):  # while it stalls
                shot(camera, wait=0.5)
            network.unblock()
            for _ in range(8):  # while 1.5 s of old images come at once
                try:
                    frame, by = shot(camera, wait=0.4)
                    later.append(by)
                    ids.append(frame.id)
                except NoFrame:
                    refused += 1
        assert min(later) > -0.002, "an image was made before its trigger"
        assert len(later) >= 10 and ids == sorted(set(ids))
    finally:
        camera.close()
        network.close()


def test_t5_a_server_that_stands_still_is_gone_and_comes_back_by_itself(server: tuple[Server, int]) -> None:
    running, port = server
    camera = make(port, read_timeout_ms=700, open_timeout_ms=2000)
    try:
        camera.open()
        assert shot(camera)[1] > -0.002
        running.stop()
        stopped = time.monotonic()
        with pytest.raises(CameraGone, match=r"camera top: rtsp://127\.0\.0\.1:\d+/line sends nothing since"):
            while time.monotonic() < stopped + 8:
                try:
                    shot(camera, wait=0.5)
                except NoFrame:
                    continue
        running.go_on()
        end = time.monotonic() + 12
        frame = None
        while frame is None and time.monotonic() < end:
            try:
                frame, by = shot(camera, wait=1.0)
                assert by > -0.002, "an image was made before its trigger"
            except (CameraGone, NoFrame):
                time.sleep(0.1)
        assert frame is not None, "the stream was not opened again"
    finally:
        running.go_on()
        camera.close()


def test_t5_latency_is_what_the_images_say(server: tuple[Server, int]) -> None:
    camera = make(server[1], latency_ms=0.0)
    try:
        camera.open()
        delays = []
        for _ in range(10):
            frame, _ = shot(camera)
            delays.append(frame.taken - made_at(frame))
        assert 0 < max(delays) < LATENCY_MS / 1000, (
            f"latency_ms of these tests is too small: {max(delays) * 1000:.0f} ms"
        )
    finally:
        camera.close()


def test_t5_no_server_is_a_camera_that_is_gone() -> None:
    need("rtsp")
    camera = make(free_port())
    with pytest.raises(CameraGone, match=r"camera top: rtsp://127\.0\.0\.1:\d+/line does not open within 5000 ms"):
        camera.open()
    camera.close()
