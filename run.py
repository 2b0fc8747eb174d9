#!/usr/bin/env python3
"""Set up and run the project with nothing but python3 and pip.

    python3 run.py demo        the main job end to end
    python3 run.py test        lint, types, layers, and every test that is not slow
    python3 run.py test-all    the slow tests too
    python3 run.py test-line   the tests with real components of a line, which .ci/line_components installs, at full length
    python3 run.py test-fleet  the tests with real components of a fleet, which .ci/fleet_components installs, at full length
    python3 run.py test-lean   the tests that need no export extra, in an environment of their own
                               [--python X] [--resolution highest|lowest-direct]

Further arguments of the tests go to pytest. The first three install into the folder .venv beside this file, or into the one that
the variable VISIONAD_VENV names. `make` has targets of the same names.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("VISIONAD_VENV", ROOT / ".venv"))
QUIET_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
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


def python_of(folder: Path) -> Path:
    """Return the Python of an environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


PYTHON = python_of(VENV)


def install(extras: str, folder: Path = VENV, interpreter: str = sys.executable, resolution: str = "highest") -> None:
    """Make an environment and install the project there, unless this was done for this pyproject.toml.

    Args:
        extras: Of the project, with commas between.
        folder: Of the environment.
        interpreter: The Python that it is made of.
        resolution: ``lowest-direct`` installs the oldest releases that pyproject.toml allows; it needs uv.
    """
    stamp, python = folder / "installed", python_of(folder)
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    for line in stamp.read_text().splitlines() if stamp.is_file() else ():
        had, of = line.split()
        if of == digest and set(extras.split(",")) <= set(had.split(",")):
            return
    print(f"installing visionad[{extras}] into {folder} (some minutes the first time: PyTorch is large)", flush=True)
    start = time.monotonic()
    if not python.exists():
        call(interpreter, "-m", "venv", folder)
    packages = ["--editable", f"{ROOT}[{extras}]"]
    if not install_by_uv(python, "--resolution", resolution, *packages):
        if resolution != "highest":
            sys.exit(f"run.py: --resolution {resolution} needs uv, which could not install; its message stands above")
        call(python, *QUIET_PIP, *packages)
    if "dev" in extras.split(",") and not install_by_uv(python, "--no-deps", STUBS):
        call(python, *QUIET_PIP, "--no-deps", STUBS)
    with stamp.open("a") as f:
        f.write(f"{extras} {digest}\n")
    print(f"installed in {time.monotonic() - start:.0f} s", flush=True)


def install_by_uv(python: Path, *packages: str) -> bool:
    """Install by uv, which takes a third of pip's time. Return False where uv cannot be had or does not succeed."""
    if subprocess.run([str(python), *QUIET_PIP, "uv"], stderr=subprocess.DEVNULL).returncode:
        return False
    command = [str(python), "-m", "uv", "pip", "install", "--quiet", "--python", str(python), *packages]
    return not subprocess.run(command, cwd=ROOT, env={**os.environ, **uv_environment(python)}).returncode


def uv_environment(python: Path) -> dict[str, str]:
    """Return pip's settings as variables for uv, which does not read pip's."""
    listed = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
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


def demo(arguments: list[str]) -> None:
    """Run the main job end to end."""
    install("export")
    call(PYTHON.with_name("visionad"), "demo", *arguments)


@contextmanager
def checks() -> Iterator[None]:
    """Check lint and layers first, and types beside what is done within: that is one process, and mostly one core is free."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as said:
        types = subprocess.Popen([str(PYTHON), "-m", "mypy", "--platform", "linux"], cwd=ROOT, stdout=said, stderr=said)
        try:
            call(PYTHON, "-m", "ruff", "check", ".")
            call(PYTHON, "-m", "ruff", "format", "--check", ".")
            call(PYTHON.with_name("lint-imports"))
            print(f"lint and layers: {time.monotonic() - start:.0f} s", flush=True)
            yield
        finally:
            status = types.wait()
            said.seek(0)
            print(f"types:\n{said.read().decode(errors='replace')}", end="", flush=True)
        if status:
            sys.exit(status)


def together(expression: str, arguments: list[str], python: Path = PYTHON) -> None:
    """Run the tests that ``expression`` selects in two processes, but for those that must be alone."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share the cores
    if not arguments:
        expression = f"not serial and {expression}"
    workers = ("-n", "2", "--dist=loadscope", "--no-loadscope-reorder")
    call(python, "-m", "pytest", *workers, "--durations=15", "-m", expression, *arguments)


def alone(expression: str, arguments: list[str], python: Path = PYTHON) -> None:
    """Run the tests that ``expression`` selects and that must be alone. Arguments choose tests, and then they ran already."""
    if not arguments:
        paths = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.serial" in p.read_text("utf-8")]
        call(python, "-m", "pytest", "-m", f"serial and {expression}", *paths)


def test(arguments: list[str]) -> None:
    """Check lint, types and layers, and run the tests that are not slow."""
    install("export,eval,dev")
    with checks():
        together("not slow", arguments)
    alone("not slow", arguments)


def test_all(arguments: list[str]) -> None:
    """Check lint, types and layers, and run all tests."""
    install("export,eval,dev")
    with checks():
        call(PYTHON, "-m", "tests.fakes.pretend_driver")  # says why where it cannot; its tests are skipped then
        os.environ.setdefault("VISIONAD_HYPOTHESIS", "slow")
        together("(slow or not slow)", arguments)
    alone("(slow or not slow)", arguments)


def test_line(arguments: list[str]) -> None:
    """Run the tests of the group ``line``, and the page beside it, at full length. A component that is missing fails its tests."""
    install("export,eval,dev")
    os.environ["VISIONAD_DEMAND_LINE"] = "1"
    os.environ.setdefault("VISIONAD_LINE_BLOWS", "50")
    os.environ.setdefault("VISIONAD_LINE_SOAK_S", "600")
    os.environ.setdefault("VISIONAD_LINE_SYSTEMD", "1")
    os.environ.setdefault("VISIONAD_PAGE_MINUTES", "10")
    os.environ.setdefault("VISIONAD_LINE_RESULTS", str(ROOT / "benchmarks" / "results" / "line.json"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # One after another: they measure how fast a station answers.
    call(
        PYTHON,
        "-m",
        "pytest",
        "--durations=15",
        "-m",
        "slow or not slow",
        *(arguments or ["tests/line", "tests/browser/test_endurance.py"]),
    )


def test_fleet(arguments: list[str]) -> None:
    """Run the acceptance tests S1 to S13 of a fleet at full length. A component that is missing fails its tests."""
    install("export,eval,dev")
    os.environ["VISIONAD_DEMAND_FLEET"] = "1"
    os.environ.setdefault("VISIONAD_RAY_KILLS", "20")
    os.environ.setdefault("VISIONAD_STORE_KILLS", "100")
    os.environ.setdefault("VISIONAD_SYNC_KILLS", "50")
    os.environ.setdefault("VISIONAD_BASE_PYTHON", str(PYTHON))
    os.environ.setdefault("VISIONAD_FLEET_RESULTS", str(ROOT / "benchmarks" / "results" / "fleet-tests.json"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    call(PYTHON, "-m", "pytest", "--durations=15", "-m", "slow or not slow", *(arguments or ["tests/fleet"]))


def test_lean(arguments: list[str]) -> None:
    """Run the tests that are not slow and need no export extra, on another Python or with other releases."""
    parser = argparse.ArgumentParser(prog="run.py test-lean")
    parser.add_argument("--python", default=sys.executable, help="the Python to make the environment of")
    parser.add_argument("--resolution", default="highest", choices=["highest", "lowest-direct"])
    options, further = parser.parse_known_args(arguments)
    asked = "import sys; print('{}.{}'.format(*sys.version_info))"
    version = subprocess.run([options.python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    folder = VENV.with_name(f"{VENV.name}-lean-{version}-{options.resolution}")
    install("serve,eval,test", folder, options.python, options.resolution)
    together("not slow", further, python_of(folder))
    alone("not slow", further, python_of(folder))


COMMANDS = {
    "demo": demo,
    "test": test,
    "test-all": test_all,
    "test-line": test_line,
    "test-fleet": test_fleet,
    "test-lean": test_lean,
}

if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit(f"run.py: expected Python 3.11 or newer, got {sys.version.split()[0]}")
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python3 run.py {'|'.join(COMMANDS)} [further arguments]")
    COMMANDS[sys.argv[1]](sys.argv[2:])
