"""Components that the tests of the line need, and how each is found.

A test that lacks one is skipped with the reason on a developer's machine, and fails where ``VISIONAD_DEMAND_LINE=1`` is set, as in
CI.
``.ci/line_components`` installs all of them.
"""Real components of a production line, as the tests need them.
A test that lacks one is skipped with the reason. Where ``VISIONAD_DEMAND_LINE=1`` is set, as in CI, it fails instead.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

RTSP_PYTHON = "/usr/bin/python3"
"""The system's Python: GStreamer's bindings belong to it."""


def _module(name: str, install: str) -> str | None:
    return None if find_spec(name) is not None else f"the Python package {name} is missing: {install}"


def _program(name: str, package: str) -> str | None:
    return None if shutil.which(name) else f"{name} is missing: apt-get install {package}"


def _pylon() -> str | None:
    return _module("pypylon", "pip install 'visionad[pylon]'")


def _viva() -> str | None:
    return _module("viva_genicam", "pip install 'visionad[gige]'")


def _aravis() -> str | None:
    try:
        ctypes.CDLL("libaravis-0.8.so.0")
    except OSError:
        return "libaravis-0.8.so.0 is missing: apt-get install libaravis-0.8-0"
    return _program("arv-fake-gv-camera-0.8", "aravis-tools")


def _rtsp() -> str | None:
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if Path(RTSP_PYTHON).exists() and subprocess.run([RTSP_PYTHON, "-c", code], capture_output=True).returncode == 0:
        return None
    return "GStreamer's RTSP server is missing: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi"


COMPONENTS = {"pylon": _pylon, "viva": _viva, "aravis": _aravis, "rtsp": _rtsp}
"""Name of a component → function that returns what is missing, and the command that installs it."""


def need(*names: str) -> None:
    """Skip or fail the test if a component is missing.

    Args:
        names: keys of :data:`COMPONENTS`.
    """
    for name in names:
        lacks = COMPONENTS[name]()
        if lacks is None:
            continue
        if os.environ.get("VISIONAD_DEMAND_LINE") == "1":
            pytest.fail(f"{lacks} (VISIONAD_DEMAND_LINE=1 demands it; .ci/line_components installs it)")
        pytest.skip(lacks)


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
NPM_FOLDER = Path(os.environ.get("VISIONAD_TEST_NPM", Path.home() / ".cache" / "visionad-test-npm"))
"""Where ``npm install`` put the packages that the tests use."""
CPPPO_FOLDER = Path(os.environ.get("VISIONAD_TEST_CPPPO", Path.home() / ".cache" / "visionad-test-cpppo"))
"""Where ``pip install --target`` put cpppo: its licence keeps it out of this project's environments."""
MENDS = {
    "mosquitto": "apt-get install mosquitto",
    "node": "apt-get install nodejs npm",
    "node-opcua-client": f"npm install --prefix {NPM_FOLDER} node-opcua-client@2",
    "cpppo": f"pip install --target {CPPPO_FOLDER} cpppo",
    "paho": "pip install paho-mqtt",
    "snap7": "pip install python-snap7",
}
"""Component → the command that installs it. Others are Python packages of that name."""
def path_of(name: str) -> str | None:
    """Return where a component lies; ``None`` if it is not installed."""
    if name == "cpppo":
        return str(CPPPO_FOLDER) if (CPPPO_FOLDER / "cpppo").is_dir() else None
    if name.startswith("node-"):
        package = NPM_FOLDER / "node_modules" / name
        return str(package) if package.is_dir() and shutil.which("node") else None
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if program:
        return program
    return name if importlib.util.find_spec(name) else None
def need(name: str) -> None:
    """Skip the test if a component is missing. Fail it if the line is demanded."""
    if path_of(name):
        return
    text = f"{name} is not installed: {MENDS.get(name, f'pip install {name}')}"
    if os.environ.get("VISIONAD_DEMAND_LINE") == "1":
        pytest.fail(text)
    pytest.skip(text)
    """Return a TCP port of the loopback that nobody uses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
def wait_for_port(port: int, process: subprocess.Popen[Any] | None = None, seconds: float = 15) -> None:
    """Return once something listens on a port of the loopback.
    Raises:
        AssertionError: Nothing does after ``seconds``, or the process that should has ended.
    end = time.monotonic() + seconds
    while True:
        with socket.socket() as s:
            s.settimeout(0.5)
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process is None or process.poll() is None, f"the server ended with status {process.poll()}"
        assert time.monotonic() < end, f"nothing listens on port {port} after {seconds} s"
        time.sleep(0.02)
@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """End a process at the end of the block."""
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
