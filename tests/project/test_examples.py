"""Every file of ``examples/`` runs and does what it says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from tests.conftest import part
from tests.data import ROOT
from tests.workplace import CLASS, make_workplace

EXAMPLES = ROOT / "examples"
COMMAND = "from visionad_runtime.cli.entry import main; main()"
"""The console script, of the code that is tested, whatever is installed."""
SECONDS = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return make_workplace(tmp_path_factory.mktemp("examples"), tiny_model)


def run(example: str, *arguments: str, place: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / example, *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_example_has_a_test_here() -> None:
    text = Path(__file__).read_text()
    files = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")]
    assert files
    assert [name for name in files if f'"{name}"' not in text] == []


def test_minimal(place: Path) -> None:
    lines = run(
        "minimal.py", "model", "minimal-bank", "bolt", "good", "new/000.png", "nothing.png", place=place
    ).splitlines()
    assert lines[0] == "bank version 1"
    assert lines[1].startswith("new/000.png bolt ok ")
    assert lines[2].startswith("nothing.png nothing.png")


def test_opencv_camera(place: Path) -> None:
    video = cv2.VideoWriter(str(place / "line.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    assert video.isOpened()
    for seed in range(5):
        video.write(part(seed))
    video.release()
    results = [
        json.loads(line) for line in run("opencv_camera.py", "model", "bank", "line.avi", "2", place=place).splitlines()
    ]
    assert [result["image"] for result in results] == ["frame 0", "frame 2", "frame 4"]
    assert {result["class"] for result in results} == {CLASS}


ANY_SIZE = """about = "two views of any size"
[scoring]
views = ["original", "flip"]
top_fraction = 0.01
self_similarity = false
"""


def test_compare_presets(place: Path) -> None:
    (place / "two-views.toml").write_text(ANY_SIZE)
    arguments = ("model", "bank", CLASS, "good", "defect", "two-views.toml", "full-image")
    header, own, other_size = run("compare_presets.py", *arguments, place=place).splitlines()
    assert header.split() == ["preset", "AUROC", "ms/image"]
    assert own.split()[0] == "two-views.toml"
    assert float(own.split()[1]) == 1
    assert other_size.startswith("full-image ")
    assert "448" in other_size


@pytest.fixture(scope="module")
def service(place: Path) -> Iterator[str]:
    """Address of a running ``visionad serve``."""
    pytest.importorskip("fastapi")
    command = [sys.executable, "-c", COMMAND, "serve", "model", "bank", "--port", "0"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield next(word for word in process.stdout.readline().split() if word.startswith("http"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)


def test_http_client(place: Path, service: str) -> None:
    said = run("http_client.py", service, "new/000.png", "--class", CLASS, place=place)
    assert said.startswith("new/000.png bolt ok ")


def test_http_client_says_what_was_refused(place: Path, service: str) -> None:
    command = [sys.executable, EXAMPLES / "http_client.py", service, "new/000.png", "--class", "nut"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1
    assert "nut" in done.stderr
    assert "status 409" in done.stderr


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="a script for bash")
def test_folder_watch(place: Path) -> None:
    command = ["bash", EXAMPLES / "folder_watch.sh", "model", "bank", "camera"]
    script = place / "bin" / "visionad"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{COMMAND}\n")
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{script.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    shutil.copy(place / "part.png", place / "camera" / "first.png")  # a journal covers what is there before the start
    with (place / "watched.txt").open("wb") as out:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=out, start_new_session=True)
        end = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < end and not (place / "watched.txt").read_text():
            time.sleep(0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(SECONDS)
    assert "ACCEPT" in (place / "watched.txt").read_text()
    assert json.loads((place / "camera.jsonl").read_text())["image"] == "camera/first.png"
