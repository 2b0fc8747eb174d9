"""Real components that tests of a fleet start: where they are, and what happens where they are not."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.figures import keep

DEMANDED = os.environ.get("VISIONAD_DEMAND_FLEET") == "1"
"""CI demands every component; elsewhere a test without one is skipped. ``.ci/fleet_components`` installs them."""
_began = time.monotonic()


def missing(what: str) -> NoReturn:
    """Skip the test, or fail where components are demanded."""
    if DEMANDED:
        pytest.fail(
            f"{what} is not installed, and VISIONAD_DEMAND_FLEET=1 demands it (.ci/fleet_components installs it)"
        )
    pytest.skip(f"{what} is not installed")


def program(name: str) -> str:
    """Return the path of a program, from ``VISIONAD_TOOLS`` (folders, separated as in PATH) or PATH."""
    path = os.pathsep.join([os.environ.get("VISIONAD_TOOLS", ""), os.environ.get("PATH", ""), "/usr/sbin"])
    found = shutil.which(name, path=path)
    return found or missing(name)


def module(name: str) -> None:
    """Check that a Python package can be imported."""
    if importlib.util.find_spec(name) is None:
        missing(f"the Python package {name}")


def begin() -> None:
    """Start the clock of a test."""
    global _began
    _began = time.monotonic()


def note(name: str, **figures: Any) -> None:
    """Keep the figures of an acceptance test, and the seconds since it began, in the file that VISIONAD_FLEET_RESULTS names."""
    keep("VISIONAD_FLEET_RESULTS", name, {"seconds": round(time.monotonic() - _began, 1), **figures})


def environment(name: str) -> Path:
    """Return the Python of an environment that a component has for itself.

    The variable ``VISIONAD_KSERVE`` or ``VISIONAD_TRITON`` names the environment; ``.ci/fleet_components`` makes it in the cache.
    """
    variable = f"VISIONAD_{name.upper()}"
    python = Path(os.environ.get(variable) or Path.home() / ".cache" / f"visionad-test-{name}") / "bin" / "python"
    return python if python.exists() else missing(f"an environment with {name} ({variable})")


def releases(*names: str, python: Path = Path(sys.executable)) -> dict[str, str]:
    """Return the releases of an environment's Python packages, or of programs, by name."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    found = {}
    for name in names:
        done = subprocess.run([python, "-c", code, name], capture_output=True, text=True)
        if done.returncode:
            option = "-v" if name in ("haproxy", "minisign") else "--version"
            done = subprocess.run([program(name), option], capture_output=True, text=True)
        number = re.search(r"\d+(\.\d+)+|\d{8}", done.stdout + done.stderr)
        found[name] = number[0] if number else "unknown"
    return found
