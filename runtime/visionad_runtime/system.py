"""Facts of this machine: CPU, GPUs, driver, installed packages. Imports nothing heavy and loads no driver."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ._threads import available_cpus
from ._version import __version__

MEASURED_WITH = (
    "numpy",
    "pillow",
    "opencv-python-headless",
    "simplejpeg",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "pycuda",
    "torch",
    "timm",
)
"""Distributions whose versions belong to a measurement."""


def package_version(name: str) -> str | None:
    """Return the version of an installed distribution, ``None`` if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the CPU's name as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def has_nvidia_driver() -> bool:
    """Return whether an NVIDIA driver is loaded (desktop, Jetson, WSL or Windows), without loading anything."""
    if sys.platform == "win32":
        return Path(r"C:\Windows\System32\nvcuda.dll").exists()
    desktop, jetsons, wsl = "/dev/nvidiactl", ("/dev/nvhost-gpu", "/dev/nvgpu"), "/usr/lib/wsl/lib/libcuda.so.1"
    return any(Path(p).exists() for p in (desktop, *jetsons, wsl))


def gpu_names() -> list[str]:
    """Return the NVIDIA GPUs as ``nvidia-smi`` lists them; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    query = ["--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run([tool or "", *query], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        # The tool may be here without the driver, and the driver without the tool.
        says = "does not answer" if tool else "is not here"
        return [f"driver present, but nvidia-smi {says}"] if has_nvidia_driver() else []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def environment() -> dict[str, Any]:
    """Return what a measurement must be read with, JSON types: hardware, versions, and the commit in a checkout."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": available_cpus(),
        "gpus": gpu_names(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "visionad": __version__,
        "versions": {name: version for name in MEASURED_WITH if (version := package_version(name))},
        "commit": _commit(),
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
