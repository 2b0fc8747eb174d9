"""Real components of a production line, as the tests need them.

A test that lacks one is skipped with the reason. Where ``VISIONAD_DEMAND_LINE=1`` is set, as in CI, it fails instead.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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


def free_port() -> int:
    """Return a TCP port of the loopback that nobody uses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


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
