"""The example of a camera in a package of its own is installed, found by its entry point, and does what the guide says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data import ROOT

PACKAGE = ROOT / "examples" / "camera_package"
USE = """
import json, sys, time
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.camera import CAMERAS, CameraGone, NoFrame

said = {"kinds": CAMERAS.kinds(), "values": [], "ids": []}
Video = CAMERAS.load("video")
camera = Video("top", Video.Settings(kind="video", path=sys.argv[1], every=2))
facts = camera.open()
said["facts"] = [facts.width, facts.height, facts.simulated]
for _ in range(2):
    after = camera.arm()
    camera.trigger()
    frame = camera.grab(after, time.monotonic() + 1)
    said["ids"].append(frame.id)
    said["values"].append(frame.pixels[8, 8].tolist())
for attempt in ("untriggered", "ended"):
    try:
        after = camera.arm()
        if attempt == "ended":
            camera.trigger()
        camera.grab(after, time.monotonic() + 1)
    except NoFrame as exc:
        said[attempt] = str(exc)
camera.close()
camera.close()
try:
    Video("top", Video.Settings(kind="video", path="nothing.avi")).open()
except CameraGone as exc:
    said["gone"] = str(exc)
try:
    CAMERAS.load("vidoe")
except VisionADError as exc:
    said["unknown"] = str(exc)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the example."""
    pytest.importorskip("hatchling", reason="builds the example")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", str(folder), str(PACKAGE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_installed_camera_is_found_by_its_kind_and_takes_images(site: Path, tmp_path: Path) -> None:
    video = cv2.VideoWriter(str(tmp_path / "line.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    for number in range(5):
        video.write(np.full((24, 32, 3), (10, 20, 40 * number), np.uint8))  # BGR
    video.release()
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", USE, "line.avi"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "video" in said["kinds"] and "folder" in said["kinds"]
    assert said["facts"] == [32, 24, True] and said["ids"] == [1, 2]
    expected = [[40, 20, 10], [120, 20, 10]]  # frames 1 and 3 of the file, RGB
    assert np.abs(np.array(said["values"]) - expected).max() <= 6, "MJPG is lossy"
    assert said["untriggered"] == "camera top: it was not triggered"
    assert said["ended"] == "camera top: line.avi has no further frame"
    assert said["gone"] == "camera top: nothing.avi does not open as a video; check the path"
    assert "did you mean 'video'?" in said["unknown"]
