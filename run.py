#!/usr/bin/env python3
"""Set up and run the project with nothing but python3 and pip: `python3 run.py demo`, `test` or `test-all`.

`demo` runs the main job end to end. `test` runs lint, types, layers and every test that is not slow; `test-all` runs the slow tests
too. Further arguments of both go to pytest. Everything is installed into the folder .venv beside this file; another place can be
given by the variable VISIONAD_VENV. `make demo`, `make test` and `make test-all` call this script.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("VISIONAD_VENV", ROOT / ".venv"))
BIN = VENV / ("Scripts" if sys.platform == "win32" else "bin")
PYTHON = BIN / "python"
PIP = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
STUBS = "tensorrt-stubs==10.13.0.35.1"
"""Typed TensorRT. Installed without its requirement, NVIDIA's library, which does not install without a GPU."""
UV_SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
    "trusted-host": "UV_INSECURE_HOST",
}
"""pip's settings that uv takes by a variable instead."""


def install(extras: str) -> None:
    """Make .venv and install the project with ``extras``, unless these or more were installed for this pyproject.toml."""
    stamp = VENV / "installed"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    for line in stamp.read_text().splitlines() if stamp.is_file() else ():
        had, of = line.split()
        if of == digest and set(extras.split(",")) <= set(had.split(",")):
            return
    print(f"installing visionad[{extras}] into {VENV} (some minutes the first time: PyTorch is large)", flush=True)
    start = time.monotonic()
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    packages = ["--editable", f"{ROOT}[{extras}]"]
    if not install_by_uv(packages):
        call(*PIP, *packages)
    if "dev" in extras.split(",") and not install_by_uv(["--no-deps", STUBS]):
        call(*PIP, "--no-deps", STUBS)
    with stamp.open("a") as f:
        f.write(f"{extras} {digest}\n")
    print(f"installed in {time.monotonic() - start:.0f} s", flush=True)


def install_by_uv(packages: list[str]) -> bool:
    """Install by uv, which takes a third of pip's time. Return False where uv cannot be had or does not succeed."""
    if subprocess.run([*map(str, PIP), "uv"], stderr=subprocess.DEVNULL).returncode:
        return False
    command = [str(PYTHON), "-m", "uv", "pip", "install", "--quiet", "--python", str(PYTHON), *packages]
    return not subprocess.run(command, cwd=ROOT, env={**os.environ, **uv_environment()}).returncode


def uv_environment() -> dict[str, str]:
    """Return pip's settings as variables for uv, which does not read pip's."""
    listed = subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    # As pip does, take the best version of all indexes.
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name = UV_SETTINGS.get(key.rpartition(".")[2])
        if name:  # values are printed as Python's repr; of several places of one setting, the last one counts
            found[name] = " ".join(shlex.split(value))
    return {name: value for name, value in found.items() if name not in os.environ}


def call(*command: object) -> None:
    """Run a command in the project's folder; end with its status if it fails."""
    status = subprocess.run([str(c) for c in command], cwd=ROOT).returncode
    if status:
        sys.exit(status)


def call_together(*commands: tuple[object, ...]) -> None:
    """Run commands at the same time; print what each says, in order; end with the status of the first that fails."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen([str(c) for c in command], cwd=ROOT, **pipe) for command in commands]  # type: ignore[call-overload]
    said = [process.communicate()[0] for process in running]
    for command, text in zip(commands, said, strict=True):
        print(f"{shlex.join(map(str, command[2:]))}\n{text}", end="", flush=True)
    for process in running:
        if process.returncode:
            sys.exit(process.returncode)


def demo(arguments: list[str]) -> None:
    """Run the main job end to end."""
    install("export")
    call(BIN / "visionad", "demo", *arguments)


def check() -> None:
    """Check lint, types and layers."""
    start = time.monotonic()
    call(PYTHON, "-m", "ruff", "check", ".")
    call(PYTHON, "-m", "ruff", "format", "--check", ".")
    # The standard library's types tell what Windows lacks.
    types = [
        (PYTHON, "-m", "mypy", "--platform", system, "--cache-dir", f".mypy_cache/{system}")
        for system in ("linux", "win32")
    ]
    call_together(*types)
    if "[tool.importlinter]" in (ROOT / "pyproject.toml").read_text("utf-8"):
        call(BIN / "lint-imports")
    print(f"lint, types and layers: {time.monotonic() - start:.0f} s", flush=True)


def pytest(expression: str, arguments: list[str]) -> None:
    """Run the tests that ``expression`` selects: first those that must be alone, then the others in two processes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share the cores
    if not arguments:
        alone = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.serial" in p.read_text("utf-8")]
        call(PYTHON, "-m", "pytest", "-q", "-m", f"serial and {expression}", *alone)
        expression = f"not serial and {expression}"
    call(PYTHON, "-m", "pytest", "-q", "-n", "2", "--dist=loadscope", "--durations=15", "-m", expression, *arguments)


def test(arguments: list[str]) -> None:
    """Check lint, types and layers, and run the tests that are not slow."""
    install("export,eval,dev")
    check()
    pytest("not slow", arguments)


def test_all(arguments: list[str]) -> None:
    """Check lint, types and layers, and run all tests."""
    install("export,eval,dev")
    check()
    call(PYTHON, "-m", "tests.fakes.pretend_driver")  # says why where it cannot; its tests are skipped then
    os.environ.setdefault("VISIONAD_HYPOTHESIS", "slow")
    pytest("(slow or not slow)", arguments)


COMMANDS = {"demo": demo, "test": test, "test-all": test_all}

if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit(f"run.py: expected Python 3.11 or newer, got {sys.version.split()[0]}")
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python3 run.py {'|'.join(COMMANDS)} [further arguments]")
    COMMANDS[sys.argv[1]](sys.argv[2:])
