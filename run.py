#!/usr/bin/env python3
"""Set up and run the project with nothing but python3 and pip: `python3 run.py demo` or `python3 run.py test`.

Everything goes into the folder .venv beside this file. `make demo` and `make test` call this script.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if sys.platform == "win32" else "bin")
PYTHON = BIN / "python"


def install(extras: str) -> None:
    """Make .venv and install the project with ``extras``, unless these or more were installed for this pyproject.toml."""
    stamp = VENV / "installed"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    for line in stamp.read_text().splitlines() if stamp.is_file() else ():
        had, of = line.split()
        if of == digest and set(extras.split(",")) <= set(had.split(",")):
            return
    print(
        f"installing visionad[{extras}] into {VENV} (PyTorch is large: this takes some minutes the first time)",
        flush=True,
    )
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    call(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", f"{ROOT}[{extras}]")
    with stamp.open("a") as f:
        f.write(f"{extras} {digest}\n")


def call(*command: object) -> None:
    """Run a command in the project's folder; end with its status if it fails."""
    status = subprocess.run([str(c) for c in command], cwd=ROOT).returncode
    if status:
        sys.exit(status)


def demo(arguments: list[str]) -> None:
    """The main job end to end."""
    install("export")
    call(BIN / "visionad", "demo", *arguments)


def test(arguments: list[str]) -> None:
    """Lint, types, tests."""
    install("export,eval,dev")
    # Its own requirement is NVIDIA's library, which a type check does not need (and which does not install without a GPU).
    call(
        PYTHON,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "tensorrt-stubs==10.13.0.35.1",
    )
    call(PYTHON, "tests/pretend_driver.py")  # says why where it cannot; its tests are skipped then
    call(PYTHON, "-m", "ruff", "check", ".")
    call(PYTHON, "-m", "ruff", "format", "--check", ".")
    for system in ("linux", "win32"):  # the standard library's types tell what Windows has not
        call(PYTHON, "-m", "mypy", "--platform", system, "--cache-dir", f".mypy_cache/{system}")
    call(PYTHON, "-m", "pytest", *arguments)


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit(f"run.py: wanted Python 3.11 or newer, found {sys.version.split()[0]}")
    commands = {"demo": demo, "test": test}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit("usage: python3 run.py demo|test [further arguments]")
    commands[sys.argv[1]](sys.argv[2:])
