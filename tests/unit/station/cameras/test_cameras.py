"""Cameras without hardware: pushed images, the clock of a stream, block numbers, settings that are read back."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from visionad_runtime.errors import ImageError
from visionad_runtime.station.camera import CAMERAS, CameraGone, LostFrame, NoFrame, sight_of
from visionad_runtime.station.cameras.acquisition import FrameCounter, GenicamCamera, RawFrame
from visionad_runtime.station.cameras.features import FeatureError, FeatureWriter, GenicamSettings, as_text
from visionad_runtime.station.cameras.stream import SETTLE_S, WINDOW_S, StreamClock

from tests.data import ROOT

BUILTIN = ("arrivals", "folder", "gige", "http", "pylon", "stream")
NEEDED = {
    "arrivals": {"path": "new", "journal": "new.jsonl"},
    "gige": {"address": "10.0.0.7"},
    "folder": {"path": "images"},
    "stream": {"source": "rtsp://10.0.0.8/line"},
}


def make(kind: str, **settings: Any) -> Any:
    camera = CAMERAS.load(kind)
    return camera("top", camera.Settings(kind=kind, **{**NEEDED.get(kind, {}), **settings}))


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((4, 6, 3), value, np.uint8))[1].tobytes()


@pytest.mark.parametrize("kind", BUILTIN)
def test_a_camera_is_made_without_its_library_and_without_hardware(kind: str) -> None:
    camera = make(kind)
    assert camera.missing() is None or "install" in camera.missing()
    camera.close()
    with pytest.raises(ValidationError):
        make(kind, exposure=3)


def test_no_library_is_imported_before_a_camera_opens() -> None:
    code = (
        "import sys\n"
        "from visionad_runtime.station.camera import CAMERAS\n"
        "for kind, more in (('pylon', {}), ('gige', {'address': '10.0.0.7'}), ('stream', {'source': 0}), ('http', {})):\n"
        "    camera = CAMERAS.load(kind)\n"
        "    camera('top', camera.Settings(kind=kind, **more)).missing()\n"
        "print([name for name in ('pypylon', 'viva_genicam', 'cv2') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("kind", "command"),
    [("pylon", "pip install 'visionad[pylon]'"), ("gige", "pip install 'visionad[gige]'")],
)
def test_a_library_that_is_missing_is_named_with_the_command(
    kind: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pylon", "gige"):
        monkeypatch.setattr(f"visionad_runtime.station.cameras.{module}.find_spec", lambda name: None)
    monkeypatch.setattr("visionad_runtime.station.cameras.aravis.is_installed", lambda: False)
    assert command in make(kind).missing()
    with pytest.raises(CameraGone, match=r"camera top: .* is not installed"):
        make(kind).open()


def test_pushed_images_come_after_the_trigger_and_the_newest_counts() -> None:
    camera = make("http")
    with pytest.raises(CameraGone, match="camera top: it takes no images now"):
        camera.submit(png(1))
    camera.open()
    camera.submit(png(1))
    after = camera.arm()
    with pytest.raises(NoFrame, match="camera top: no image in time"):
        camera.grab(after, time.monotonic() + 0.05)
    camera.submit(png(2))
    camera.submit(png(3))
    frame = camera.grab(after, time.monotonic())
    assert (frame.id, frame.lost, frame.pixels[0, 0].tolist()) == (3, 1, [3, 3, 3])
    threading.Timer(0.1, camera.submit, [png(4)]).start()
    frame = camera.grab(frame.id, time.monotonic() + 5)
    assert (frame.id, frame.lost, int(frame.pixels[0, 0, 0])) == (4, 0, 4)


def test_pushed_images_that_are_damaged_or_old_or_too_large_are_refused() -> None:
    camera = make("http", max_age_ms=20, max_bytes=500)
    camera.open()
    camera.submit(png(1)[:40])
    with pytest.raises(LostFrame, match="image 1 of camera top"):
        camera.grab(0, time.monotonic() + 1)
    camera.submit(png(1))
    time.sleep(0.05)
    with pytest.raises(NoFrame):
        camera.grab(1, time.monotonic())
    for data in (b"", bytes(501)):
        with pytest.raises(ImageError, match="expected an image file of 1 to 500 bytes"):
            camera.submit(data)
    threading.Timer(0.1, camera.close).start()
    with pytest.raises(CameraGone):
        camera.grab(2, time.monotonic() + 5)


@pytest.mark.parametrize(
    ("kind", "settings", "sight"),
    [
        ("http", {}, "always"),
        ("stream", {}, "always"),
        ("folder", {}, "page"),
        ("gige", {"trigger": "software"}, "trigger"),
        ("gige", {"trigger": "hardware", "line": "Line1"}, "never"),
        ("gige", {"trigger": "free"}, "always"),
        ("pylon", {"trigger": "hardware", "line": "Line1"}, "never"),
    ],
)
def test_a_camera_says_when_it_can_be_looked_at(kind: str, settings: dict[str, Any], sight: str) -> None:
    assert sight_of(make(kind, **settings)) == sight


def test_a_camera_that_does_not_say_when_takes_a_trigger() -> None:
    class Plain:
        """As a package may have it."""

        Settings = object

        def arm(self) -> int:
            return 0

    assert sight_of(Plain()) == "trigger"  # type: ignore[arg-type]


def test_a_look_at_pushed_images_takes_none() -> None:
    camera = make("http")
    with pytest.raises(CameraGone):
        camera.newest()
    camera.open()
    assert camera.newest() is None
    after = camera.arm()
    camera.submit(png(1))
    camera.submit(png(2))
    assert [camera.newest().id for _ in range(3)] == [2, 2, 2]
    frame = camera.grab(after, time.monotonic())
    assert (frame.id, frame.lost, int(frame.pixels[0, 0, 0])) == (2, 1, 2)
    seen = camera.newest()  # also after a part has it
    assert (seen.id, seen.taken, int(seen.pixels[0, 0, 0])) == (2, frame.taken, 2)
    with pytest.raises(NoFrame):
        camera.grab(frame.id, time.monotonic())
    camera.submit(png(3)[:40])
    with pytest.raises(LostFrame, match="image 3 of camera top"):
        camera.newest()
    camera.close()
    camera.open()
    assert camera.newest() is None


def test_a_look_at_a_folder_takes_no_image(tmp_path: Path) -> None:
    for value in (1, 2):
        (tmp_path / f"{value}.png").write_bytes(png(value))
    camera = make("folder", path=tmp_path, loop=False)
    assert camera.newest() is None
    camera.open()
    for value in (1, 2):
        for _ in range(3):
            assert int(camera.newest().pixels[0, 0, 0]) == value
        after = camera.arm()
        camera.trigger()
        assert int(camera.newest().pixels[0, 0, 0]) == value  # also while a part waits for it
        frame = camera.grab(after, time.monotonic() + 1)
        assert (frame.id, frame.lost, int(frame.pixels[0, 0, 0])) == (value, 0, value)
    assert camera.newest() is None


class FreeDevice:
    """A device that hands out what the test puts in."""

    def __init__(self) -> None:
        self.buffers: list[RawFrame] = []
        self.features = SimpleNamespace(has=lambda name: False)

    def describe(self) -> Any:
        from visionad_runtime.station.cameras.acquisition import DeviceFacts

        return DeviceFacts("fake", "Mono8", 2, 1)

    def next(self, timeout: float) -> RawFrame | None:
        time.sleep(0.002)
        return self.buffers.pop(0) if self.buffers else None

    def start(self) -> None: ...
    def trigger(self) -> None: ...
    def check(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


class FreeCamera(GenicamCamera):
    device = FreeDevice()

    def missing(self) -> str | None:
        return None

    def _connect(self) -> Any:
        return self.device

    def _write(self, writer: FeatureWriter) -> None: ...


def test_a_look_at_a_camera_that_runs_free_leaves_its_frames_and_its_count() -> None:
    camera = FreeCamera("top", GenicamSettings(kind="gige", trigger="free"))
    camera.open()
    try:
        assert camera.newest() is None
        after = camera.arm()
        for block, value in ((1, 10), (2, 20), (5, 50)):  # 3 and 4 are lost
            camera.device.buffers.append(RawFrame(block, data=bytes([value, value]), width=2, height=1))
        deadline = time.monotonic() + 5
        while (seen := camera.newest()) is None or seen.id < 5:
            assert time.monotonic() < deadline
        assert seen.pixels.tolist() == [[50, 50]] and camera.newest().id == 5  # type: ignore[union-attr]
        frame = camera.grab(after, time.monotonic() + 1)
        assert (frame.id, frame.lost, frame.pixels.tolist()) == (5, 2, [[50, 50]])
        assert camera.newest().id == 5  # type: ignore[union-attr]
    finally:
        camera.close()


def test_a_stream_clock_tells_how_long_a_frame_was_buffered() -> None:
    clock = StreamClock()
    arrivals = [clock.arrival(frame * 0.04, 100 + 1.2 + frame * 0.005) for frame in range(1, 35)]  # the first burst
    assert set(arrivals) == {None}
    frame = 35
    while (arrival := clock.arrival(frame * 0.04, 100 + frame * 0.04)) is None:
        frame += 1
    assert frame * 0.04 < 1.4 + SETTLE_S + 0.1 and arrival == pytest.approx(100 + frame * 0.04)
    late = clock.arrival((frame + 1) * 0.04, 100 + frame * 0.04 + 2.5)
    assert late == pytest.approx(100 + (frame + 1) * 0.04), "it lay in a buffer for 2.5 s"
    assert clock.arrival(0.04, 200.0) is None, "the source began anew"


def test_a_stream_clock_follows_the_drift_of_two_clocks() -> None:
    clock = StreamClock()
    arrival = None
    for frame in range(1, 100_000):
        now = 100 + frame * 0.04 * (1 + 100e-6)  # 100 ppm
        arrival = clock.arrival(frame * 0.04, now)
    assert arrival is not None and now - arrival < 2 * WINDOW_S * 110e-6


def test_a_stream_without_timestamps_counts_arrivals() -> None:
    clock = StreamClock()
    assert clock.arrival(0.0, 10.0) is None
    assert clock.arrival(0.0, 10.0 + SETTLE_S) == 10.0 + SETTLE_S


def test_block_numbers_count_on_over_their_end_and_a_restart() -> None:
    counter = FrameCounter()
    assert [counter.count(block) for block in (65401, 65402, 65404, 65535, 1, 3)] == [1, 2, 4, 135, 136, 138]
    counter.restart()
    assert [counter.count(block) for block in (1, 2)] == [139, 140]
    assert counter.count(2**40) > 141 and counter.count(2**40 + 1) == counter.id


class Pretended:
    """Features of a camera that rounds and refuses."""

    def __init__(self, **values: Any) -> None:
        self.values, self.written = values, list[tuple[str, Any]]()

    def has(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> Any:
        return self.values[name]

    def set(self, name: str, value: Any) -> None:
        if value == "Bad":
            raise FeatureError("no such entry")
        self.written.append((name, value))
        self.values[name] = {"ExposureTime": lambda v: round(v / 20) * 20.0, "Width": lambda v: v // 4 * 4}.get(
            name, lambda v: v
        )(value)

    def execute(self, name: str) -> None:
        self.written.append((name, None))


def write(features: Pretended, **settings: Any) -> None:
    FeatureWriter("top", features).write_all(GenicamSettings(kind="x", **settings))


def test_settings_are_written_in_an_order_that_cameras_accept() -> None:
    features = Pretended(
        **dict.fromkeys(["UserSetSelector", "PixelFormat", "ExposureAuto", "TriggerMode", "TriggerSource"], ""),
        **dict.fromkeys(["OffsetX", "Width", "ExposureTime"], 0),
    )
    write(features, user_set="UserSet1", format="Mono8", width=640, offset_x=16, exposure_us=2000)
    assert features.written == [
        ("UserSetSelector", "UserSet1"),
        ("UserSetLoad", None),
        ("PixelFormat", "Mono8"),
        ("OffsetX", 0),
        ("Width", 640),
        ("OffsetX", 16),
        ("ExposureAuto", "Off"),
        ("ExposureTime", 2000),
        ("TriggerSource", "Software"),
        ("TriggerMode", "On"),
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 641}, "camera top: width: expected 641, got 640 from Width"),
        ({"exposure_us": 30}, r"camera top: exposure_us: expected 30\.0, got 40\.0 from ExposureTime"),
        (
            {"format": "Bad"},
            "camera top: format: expected Bad, but the camera refuses it for PixelFormat: no such entry",
        ),
        ({"gain_db": 3}, r"camera top: gain_db: expected 3\.0, but the camera has no feature Gain or GainAbs"),
        ({"trigger": "hardware"}, "camera top: trigger: expected hardware, but the camera has no feature TriggerMode"),
    ],
)
def test_a_setting_that_is_not_in_force_is_an_error(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CameraGone, match=words):
        write(Pretended(Width=0, ExposureTime=0, PixelFormat=""), **{"trigger": "free", **settings})


def test_an_exposure_that_is_rounded_by_less_than_a_percent_is_accepted() -> None:
    write(Pretended(ExposureTime=0), exposure_us=2005, trigger="free")


def test_numbers_are_written_as_integer_features_take_them() -> None:
    assert [as_text(value) for value in (800.0, 800, 0.5, 1234567.0, "Mono8")] == [
        "800",
        "800",
        "0.5",
        "1234567",
        "Mono8",
    ]


def test_the_guide_names_every_kind_and_every_setting() -> None:
    guide = (ROOT / "docs" / "guides" / "cameras.md").read_text(encoding="utf-8")
    for kind in BUILTIN:
        assert f"| `{kind}` |" in guide
        settings = CAMERAS.load(kind).Settings.model_fields.keys() - {"kind"}
        assert [name for name in settings if f"`{name}" not in guide and f"{name}:" not in guide] == [], kind
