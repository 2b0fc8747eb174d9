"""T5: an RTSP stream that stalls, bursts and goes (GStreamer's server): no image that is older than the trigger, ever.

Each image shows when it was made, in milliseconds of the clock that all processes share.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest
from visionad_runtime.station.camera import CAMERAS, Camera, CameraGone, Frame, NoFrame, SeenCamera

from tests.line.components import RTSP_PYTHON, need
from tests.line.servers import Server
from tests.ports import free_port

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]
SCRIPT = Path(__file__).parents[1] / "fakes" / "rtsp_server.py"
LATENCY_MS = 250.0
"""What encoder and decoder take on a busy machine, generously."""
BITS, SIDE = 32, 16


class Network:
    """Passes TCP on to a port, and keeps the bytes for ``delay`` seconds: a longer delay is a stall, a shorter one a burst."""

    def __init__(self, port: int) -> None:
        self.port, self.delay = free_port(), 0.0
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.delay = 0.0
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            for source, target in ((near, far), (far, near)):
                kept: Queue[tuple[float, bytes]] = Queue()
                threading.Thread(target=self._receive, args=(source, kept), daemon=True).start()
                threading.Thread(target=self._send, args=(target, kept), daemon=True).start()

    def _receive(self, source: socket.socket, kept: Queue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            kept.put((time.monotonic(), data))

    def _send(self, target: socket.socket, kept: Queue[tuple[float, bytes]]) -> None:
        while True:
            received, data = kept.get()
            while time.monotonic() < received + self.delay:
                time.sleep(0.005)
            try:
                target.sendall(data)
            except OSError:
                data = b""
            if not data:
                target.close()
                return


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

        def shots(seconds: float) -> None:
            nonlocal refused
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                try:
                    frame, by = shot(camera, wait=0.4)
                except NoFrame:
                    refused += 1
                    continue
                later.append(by)
                ids.append(frame.id)

        shot(camera)  # it is settled
        for delay in (0.0, 1.5, 0.5, 0.0):  # a stall, then images that are 1.5 s old at their usual pace; bursts
            network.delay = delay
            before = len(later)
            shots(3.0 if delay == 1.5 else 1.5)
            assert delay > 0.2 or len(later) > before, "new images are handed out"
        assert min(later) > -0.002, f"an image was made {-min(later):.3f} s before its trigger"
        assert refused > 3 and ids == sorted(set(ids))
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


def test_t5_a_look_shows_what_is_under_the_camera_now_and_takes_nothing(server: tuple[Server, int]) -> None:
    camera = make(server[1])
    assert isinstance(camera, SeenCamera)
    try:
        camera.open()
        last, _ = shot(camera)
        for _ in range(5):
            now = time.monotonic()
            looked = camera.newest()
            assert looked is not None and looked.id >= last.id
            assert now - made_at(looked) < 1.0
            frame, later = shot(camera)
            assert frame.id > last.id and later > -0.002
            last = frame
    finally:
        camera.close()


def test_t5_no_server_is_a_camera_that_is_gone(capfd: pytest.CaptureFixture[str]) -> None:
    need("rtsp")
    camera = make(free_port())
    with pytest.raises(CameraGone, match=r"camera top: rtsp://127\.0\.0\.1:\d+/line does not open within 5000 ms"):
        camera.open()
    camera.close()
    assert capfd.readouterr() == ("", ""), "OpenCV and FFmpeg print addresses with passwords"
