"""T4: a GigE camera with deep pixels that drops packets and takes control away (the fake camera of viva-genicam)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime.station.camera import CAMERAS, Camera, CameraGone, Frame, LostFrame, NoFrame

from tests.line.components import need

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]  # serial: one camera an address, port 3956
WIDTH, HEIGHT = 64, 48


@pytest.fixture(autouse=True)
def component() -> None:
    need("viva")


@contextmanager
def running(fake_settings: dict[str, Any], **settings: Any) -> Iterator[tuple[Any, Camera]]:
    """Run the fake camera and open it."""
    from viva_genicam.testing import FakeGigeCamera

    kind = CAMERAS.load("gige")
    with FakeGigeCamera(width=WIDTH, height=HEIGHT, fps=20, **fake_settings) as fake:
        camera = kind("top", kind.Settings(kind="gige", address="127.0.0.1", library="viva", **settings))
        camera.open()
        try:
            yield fake, camera
        finally:
            camera.close()


def shot(camera: Camera, wait: float = 2.0) -> Frame:
    after = camera.arm()
    camera.trigger()
    return camera.grab(after, time.monotonic() + wait)


def unpack_mono12p(payload: bytes) -> NDArray[np.uint16]:
    """Unpack as the standard draws it: two pixels in three bytes, the lowest bits first."""
    values = []
    for index in range(0, len(payload), 3):
        low, middle, high = payload[index : index + 3]
        values += [low | (middle & 15) << 8, middle >> 4 | high << 4]
    return np.array(values, np.uint16).reshape(HEIGHT, WIDTH)


def test_t4_twelve_bits_are_exact() -> None:
    import viva_genicam
    from viva_genicam.testing import FakeGigeCamera

    with running({"pixel_format": "Mono12p"}) as (fake, camera):
        frames = [shot(camera) for _ in range(3)]
        assert [(frame.id, frame.lost, frame.bit_depth) for frame in frames] == [(1, 0, 12), (2, 0, 12), (3, 0, 12)]
        assert fake.software_triggers() == 3
    with (  # the fake's images depend on their number alone
        FakeGigeCamera(width=WIDTH, height=HEIGHT, fps=20, pixel_format="Mono12p") as fake,
        viva_genicam.connect_gige(fake.device_info()) as device,
        device.stream() as stream,
    ):
        for frame in frames:
            raw = stream.next_frame(2000)
            assert raw is not None and raw.block_id == frame.id
            assert np.array_equal(unpack_mono12p(raw.payload()), frame.pixels)
            assert np.array_equal(raw.to_numpy(), frame.pixels), "the library's own unpacking differs"


@pytest.mark.parametrize(
    ("name", "shape", "depth"),
    [
        ("Mono8", (HEIGHT, WIDTH), None),
        ("Mono10p", (HEIGHT, WIDTH), 10),
        ("Mono12Packed", (HEIGHT, WIDTH), 12),
        ("BayerRG8", (HEIGHT, WIDTH, 3), None),
        ("RGB8", (HEIGHT, WIDTH, 3), None),
    ],
)
def test_t4_formats(name: str, shape: tuple[int, ...], depth: int | None) -> None:
    with running({"pixel_format": name}) as (_, camera):
        frame = shot(camera)
        assert (frame.pixels.shape, frame.bit_depth) == (shape, depth)


def test_t4_dropped_packets_are_a_lost_frame() -> None:
    dropped = {"packet_resend": False, "drop_packets": [(2, 1), (3, 1)]}
    with running({"pixel_format": "Mono12p", **dropped}) as (_, camera):
        assert shot(camera).id == 1
        for number in (2, 3):
            with pytest.raises(LostFrame, match=f"camera top: frame {number} is damaged: .*1 packets are missing"):
                shot(camera)
        after = shot(camera)
        assert (after.id, after.lost) == (4, 0)


def test_t4_a_resent_packet_makes_the_frame_whole() -> None:
    with running({"drop_packets": [(2, 1)]}) as (_, camera):
        assert [(frame.id, frame.lost) for frame in (shot(camera), shot(camera), shot(camera))] == [
            (1, 0),
            (2, 0),
            (3, 0),
        ]


def test_t4_control_that_is_taken_away_is_a_camera_that_is_gone_and_opens_again() -> None:
    with running({}) as (fake, camera):
        shot(camera)
        after = camera.arm()
        fake.revoke_control()
        revoked = time.monotonic()
        with pytest.raises(CameraGone, match="camera top: control was lost"):
            camera.grab(after, revoked + 10)
        assert time.monotonic() - revoked < 5
        camera.open()
        assert shot(camera).id == 1
        assert fake.controller() is not None


def test_t4_a_late_frame_does_not_answer_the_next_trigger() -> None:
    with running({"pixel_format": "Mono12p"}) as (fake, camera):
        first = int(shot(camera).pixels[0, 0])
        per_trigger = int(shot(camera).pixels[0, 0]) - first  # the first pixel counts the triggers
        for number in range(3, 12, 2):
            with pytest.raises(NoFrame):
                shot(camera, wait=0.0)
            frame = shot(camera)
            assert int(frame.pixels[0, 0]) == (first + number * per_trigger) % 4096
            assert fake.software_triggers() == number + 1
            with pytest.raises(NoFrame):
                camera.grab(frame.id, time.monotonic() + 0.1)


def test_t4_a_frame_that_never_comes_does_not_hold_up_the_next_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    with running({}) as (_, camera):
        shot(camera)
        device = camera._device  # type: ignore[attr-defined]
        monkeypatch.setattr(device, "trigger", lambda: None)  # the network lost it
        with pytest.raises(NoFrame, match="camera top: no frame in time; the trigger was sent"):
            shot(camera, wait=0.1)
        monkeypatch.undo()
        start = time.monotonic()
        assert shot(camera).id == 2
        assert time.monotonic() - start < 1.5


def test_t4_settings_reach_the_camera() -> None:
    from viva_genicam.testing import FakeGigeCamera

    settings = {"exposure_us": 1234.0, "gain_db": 3.0, "format": "Mono8", "width": 32, "height": 16, "offset_x": 8}
    with running({}, **settings) as (fake, camera):
        stored = {name: fake.peek(FakeGigeCamera.REGISTERS[name], 4) for name in ("Width", "Height", "OffsetX")}
        assert {name: int.from_bytes(value, "big") for name, value in stored.items()} == {
            "Width": 32,
            "Height": 16,
            "OffsetX": 8,
        }
        assert shot(camera).pixels.shape == (16, 32)


def test_t4_hardware_triggers_are_taken_in_order_and_what_does_not_fit_is_counted() -> None:
    with running({}, trigger="hardware", line="Line1", buffers=4) as (_, camera):
        device = camera._device  # type: ignore[attr-defined]
        device.features.set("TriggerMode", "Off")  # the fake has no wire: it runs by itself instead
        after = camera.arm()
        time.sleep(1.0)
        frames = [camera.grab(after, time.monotonic() + 2) for _ in range(6)]
        ids = [frame.id for frame in frames]
        assert ids[0] > after + 4 and frames[0].lost == ids[0] - after - 1
        assert ids == list(range(ids[0], ids[0] + 6)) and all(frame.lost == 0 for frame in frames[1:])
        assert all(earlier.taken < later.taken for earlier, later in pairwise(frames))
