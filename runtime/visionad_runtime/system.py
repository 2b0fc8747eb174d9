"""Facts about this machine: CPU, GPUs, driver, installed packages. It imports nothing heavy and loads no driver."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ._release import __version__
from ._threads import available_cpus

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
"""Distributions whose versions are recorded with a measurement."""


def package_version(name: str) -> str | None:
    """Return the version of a distribution, or ``None`` if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the CPU name that the operating system reports."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def has_nvidia_driver() -> bool:
    """Return whether an NVIDIA driver is loaded (desktop, Jetson, WSL, Windows). It loads nothing itself."""
    if sys.platform == "win32":
        return Path(r"C:\Windows\System32\nvcuda.dll").exists()
    desktop, jetsons, wsl = "/dev/nvidiactl", ("/dev/nvhost-gpu", "/dev/nvgpu"), "/usr/lib/wsl/lib/libcuda.so.1"
    return any(Path(p).exists() for p in (desktop, *jetsons, wsl))


def gpu_names() -> list[str]:
    """Return one line per NVIDIA GPU, as ``nvidia-smi`` prints it; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    query = ["--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    try:
        completed = subprocess.run([tool or "", *query], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        # Either of tool and driver may be installed without the other.
        problem = "does not answer" if tool else "is not here"
        return [f"driver present, but nvidia-smi {problem}"] if has_nvidia_driver() else []
    return [line.strip() for line in completed.stdout.splitlines() if line.strip()]


def environment() -> dict[str, Any]:
    """Return the conditions of a measurement, in JSON types: date, hardware, versions, and the commit if this is a checkout."""
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
        completed = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return completed.stdout.strip() or None
