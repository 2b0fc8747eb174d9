"""Real components that tests of a fleet start: where they are, and what happens where they are not."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest

DEMANDED = os.environ.get("VISIONAD_DEMAND_FLEET") == "1"
"""CI demands every component; elsewhere a test without one is skipped."""


def missing(what: str) -> NoReturn:
    """Skip the test, or fail where components are demanded."""
    if DEMANDED:
        pytest.fail(f"{what} is not installed, and VISIONAD_DEMAND_FLEET=1 demands it")
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
