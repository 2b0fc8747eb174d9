"""Components that the tests of the line need, and how each is found.

A test that lacks one is skipped with the reason on a developer's machine, and fails where ``VISIONAD_DEMAND_LINE=1`` is set, as in
CI.
``.ci/line_components`` installs all of them.
"""

from __future__ import annotations

import ctypes
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
