"""Real components of a production line, as the tests need them, and how each is found.

A test that lacks one is skipped with the reason on a developer's machine, and fails where ``VISIONAD_DEMAND_LINE=1`` is set, as in
CI. ``.ci/line_components`` installs all of them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.figures import keep

RTSP_PYTHON = "/usr/bin/python3"
"""The system's Python: GStreamer's bindings belong to it."""
NPM_FOLDER = Path(os.environ.get("VISIONAD_TEST_NPM", Path.home() / ".cache" / "visionad-test-npm"))
"""Where ``npm install`` put the packages that the tests use."""
CPPPO_FOLDER = Path(os.environ.get("VISIONAD_TEST_CPPPO", Path.home() / ".cache" / "visionad-test-cpppo"))
"""Where ``pip install --target`` put cpppo: its licence keeps it out of this project's environments."""
INSTALL = {
    "pylon": "pip install 'visionad[pylon]'",
    "viva": "pip install 'visionad[gige]'",
    "aravis": "apt-get install libaravis-0.8-0 aravis-tools",
    "rtsp": "apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi",
    "mosquitto": "apt-get install mosquitto",
    "mbpoll": "apt-get install mbpoll",
    "node": "apt-get install nodejs npm",
    "cpppo": f"pip install --target {CPPPO_FOLDER} cpppo",
    "paho": "pip install paho-mqtt",
    "snap7": "pip install python-snap7",
    "systemd-analyze": "apt-get install systemd",
    "systemd-nspawn": "apt-get install systemd-container",
    "nsenter": "apt-get install util-linux",
    "chrt": "apt-get install util-linux",
    "bwrap": "apt-get install bubblewrap",
}
"""Component → the command that installs it. Others are Python packages, or npm's for a name that starts with ``node-``."""
MODULES = {"pylon": "pypylon", "viva": "viva_genicam"}
"""Component → its Python module, if it has another name."""


NPM_RELEASES = {"node-red": "@4.1.15", "node-red-contrib-modbus": "@5.23.3"}
"""npm's packages of one release: Node-RED 5 needs Node 22, and later nodes for Modbus need a file from outside the registry."""


def is_npm(name: str) -> bool:
    """Return whether npm installs a component."""
    return name.startswith("node-") or name == "modbus-serial"


def path_of(name: str) -> str | None:
    """Return where a component lies, or its name if that does not matter; ``None`` if it is not installed."""
    if name == "cpppo":
        return str(CPPPO_FOLDER) if (CPPPO_FOLDER / "cpppo").is_dir() else None
    if name == "aravis":
        try:
            ctypes.CDLL("libaravis-0.8.so.0")
        except OSError:
            return None
        return shutil.which("arv-fake-gv-camera-0.8")
    if name == "rtsp":
        code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
        here = (
            Path(RTSP_PYTHON).exists()
            and subprocess.run([RTSP_PYTHON, "-c", code], capture_output=True).returncode == 0
        )
        return RTSP_PYTHON if here else None
    if is_npm(name):
        package = NPM_FOLDER / "node_modules" / name
        return str(package) if package.is_dir() and shutil.which("node") else None
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if program:
        return program
    return name if find_spec(MODULES.get(name, name)) else None


def need(*names: str) -> None:
    """Skip the test if a component is missing. Fail it if the line is demanded."""
    for name in names:
        if path_of(name):
            continue
        npm = f"npm install --prefix {NPM_FOLDER} {name}{NPM_RELEASES.get(name, '')}"
        own = npm if is_npm(name) else f"pip install {name}"
        text = f"{name} is not installed: {INSTALL.get(name, own)}"
        if os.environ.get("VISIONAD_DEMAND_LINE") == "1":
            pytest.fail(f"{text} (VISIONAD_DEMAND_LINE=1 demands it; .ci/line_components installs it)")
        pytest.skip(text)


def note(name: str, figures: dict[str, Any]) -> None:
    """Log the figures of an acceptance test; keep them in the file that VISIONAD_LINE_RESULTS names, beside those of others."""
    keep("VISIONAD_LINE_RESULTS", name, figures)


def wait_for_port(port: int, process: subprocess.Popen[Any] | None = None, seconds: float = 15) -> None:
    """Return once something listens on a port of the loopback.

    Raises:
        AssertionError: Nothing does after ``seconds``, or the process that should has ended.
    """
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
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
