"""Sessions of ONNX Runtime with exactly the requested execution provider.

If a provider cannot start, ONNX Runtime falls back to the CPU with a warning. Here that is an error: the session's providers are
compared with the requested one.
"""

from __future__ import annotations

import ctypes
import logging
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ...errors import ModelError, VisionADError
from ...formats.manifest import ONNX_FILE, ModelManifest
from ...system import has_nvidia_driver
from ..native import silence
from .providers import CPU, Provider

log = logging.getLogger("visionad")

if not hasattr(ort, "InferenceSession"):  # Python imports the remaining folder as a namespace package
    _remains = ", ".join(map(str, getattr(ort, "__path__", [ort])))
    raise VisionADError(
        f"{_remains} holds only remains of ONNX Runtime: onnxruntime and onnxruntime-gpu share it, and one was uninstalled; "
        "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu (without a GPU: onnxruntime)"
    )

OUTPUTS = ("patch_tokens", "class_token")


def check_provider(provider: Provider) -> None:
    """Check a provider before ONNX Runtime or the GPU is used.

    Raises:
        VisionADError: This ONNX Runtime does not have it, or the NVIDIA driver is missing.
    """
    available = ort.get_available_providers()
    if provider.name not in available:
        raise VisionADError(
            f"this ONNX Runtime {ort.__version__} has no {provider.name} (it has {', '.join(available)}); the packages onnxruntime "
            "and onnxruntime-gpu overwrite each other: pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
        )
    if provider.on_gpu and not has_nvidia_driver():
        raise VisionADError(
            f"no NVIDIA driver is loaded here, and {provider.backend} needs one; install it (then `nvidia-smi` works), or use "
            f"--backend {CPU.backend}"
        )


def provider_problem(provider: Provider) -> str:
    """Return why the provider's library does not load here, and what fixes that; empty if it loads.

    Call it in a process of its own: it loads all of CUDA.
    """
    _preload()
    folder = Path(ort.__file__).parent / "capi"
    try:
        for kind in ("shared", provider.library):
            paths = list(folder.glob(f"*onnxruntime_providers_{kind}.*"))
            for path in paths:
                ctypes.CDLL(str(path))
            if not paths and kind != "shared":
                return f"{folder} has no library of {provider.name}; pip install --force-reinstall onnxruntime-gpu"
    except OSError as exc:
        return f"{exc}; {_remedy(provider, str(exc))}"
    return ""


def create_session(
    folder: Path,
    manifest: ModelManifest,
    provider: Provider,
    threads: int | None,
    provider_options: Mapping[str, str],
    rows: int | None = None,
    file: str = ONNX_FILE,
) -> ort.InferenceSession:
    """Create a session with the requested provider, and check its inputs and outputs.

    Args:
        folder: The model folder.
        manifest: Its manifest.
        provider: The execution provider.
        threads: CPU threads. Default: all cores.
        provider_options: As ONNX Runtime takes them.
        rows: Rows of every call, if known. Then ONNX Runtime infers shapes at once.
        file: The ONNX file in the folder.

    Raises:
        VisionADError: ONNX Runtime fell back to another provider.
        ModelError: The file cannot be loaded, or its inputs and outputs are not the model's.
    """
    if provider.on_gpu:
        _preload()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.use_deterministic_compute = provider.on_gpu
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads that spin after a run take cores from the search that follows.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if rows is not None:
        options.add_free_dimension_override_by_name("batch", rows)
    path = folder / file
    printed: list[str] = []
    try:
        # ONNX Runtime reports a fall-back by warnings, on stderr, and on stdout between a command's JSON. Below it is an error.
        with warnings.catch_warnings(), silence(printed) if provider.on_gpu else nullcontext():
            warnings.simplefilter("ignore")
            requested = [(provider.name, dict(provider_options))] if provider_options else [provider.name]
            session = ort.InferenceSession(
                str(path), options, providers=requested, disabled_optimizers=list(provider.disabled_optimizers)
            )
    except Exception as exc:  # ONNX Runtime's own exception types share no base
        raise failure(provider, f"{path} cannot be loaded by ONNX Runtime {ort.__version__}", exc) from None
    started = session.get_providers()
    if started[:1] != [provider.name] or not set(started) <= {provider.name, CPU.name}:
        reason = _reason(printed)
        raise VisionADError(
            f"expected {provider.name}, ONNX Runtime fell back to {', '.join(started)}{reason}; {_remedy(provider, reason)}"
        )
    for line in printed:
        log.info("ONNX Runtime: %s", line)
    expected_out = {name: list(shape[1:]) for name, shape in tensor_shapes(manifest, 1).items()}
    expected_in = {"images": expected_out.pop("images")}
    inputs = {i.name: i.shape[1:] for i in session.get_inputs()}
    outputs = {o.name: o.shape[1:] for o in session.get_outputs()}
    if inputs != expected_in or outputs != expected_out:
        raise ModelError(
            f"{path}: expected inputs {expected_in} and outputs {expected_out}, got {inputs} and {outputs}; "
            "export the model again"
        )
    return session


def _preload() -> None:
    """Load CUDA and cuDNN from pip packages. The system's loader does not search there.

    ONNX Runtime searches only beside its own package. In an environment on top of another one, the packages may be in the lower
    one.
    """
    if not hasattr(ort, "preload_dlls"):
        return
    with silence([]):  # it prints the names of missing libraries
        ort.preload_dlls()
        for place in sys.path:
            for folder in sorted(Path(place).glob("nvidia/*/lib")):
                ort.preload_dlls(directory=str(folder.absolute()))


def _reason(printed: Sequence[str]) -> str:
    """Return ``: `` and the missing library, or the first error that ONNX Runtime printed; empty if it printed none."""
    error = next((re.sub(r"\x1b\[[0-9;]*m", "", line) for line in printed if "[E:" in line), None)
    if error is None:
        return ""
    text = re.split(r"with error: ", re.sub(r"^.*?\[E:[^]]*\] ?", "", error))[-1]
    return f": {text.split(' ; GPU=')[0].strip()[:300]}"


def _remedy(provider: Provider, reason: str) -> str:
    """Return what fixes a provider that did not start, by the library that is missing."""
    if re.search("libnvinfer|libnvonnxparser", reason):
        return (
            "it needs the TensorRT that this ONNX Runtime was built for where the loader looks (LD_LIBRARY_PATH), or use "
            f"--backend {provider.alternative}"
        )
    if "libcuda.so" in reason:
        return f"it needs the NVIDIA driver: install it (then `nvidia-smi` works), or use --backend {CPU.backend}"
    cuda = f"CUDA {getattr(ort, 'cuda_version', '')}".rstrip()
    return (
        f"it needs an NVIDIA driver and the {cuda} and cuDNN that ONNX Runtime {ort.__version__} was built for (pip install "
        "'onnxruntime-gpu[cuda,cudnn]')"
    )


def failure(provider: Provider, what: str, exc: Exception) -> ModelError:
    """Return the one-line error for an exception of ONNX Runtime.

    Args:
        provider: The execution provider.
        what: What failed.
        exc: The exception.
    """
    text = str(exc)
    if any(s in text.lower() for s in ("out of memory", "failed to allocate memory", "bad allocation")):
        where = "GPU memory" if provider.on_gpu else "memory"
        return ModelError(
            f"{what}: out of {where}; close other programs, or use a smaller model or lower precision ({text})"
        )
    return ModelError(f"{what}: {text}")


def tensor_shapes(manifest: ModelManifest, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's input and outputs by name."""
    identity = manifest.identity
    side = identity.preprocess.crop
    return {
        "images": (batch_size, 3, side, side),
        "patch_tokens": (batch_size, identity.grid**2, identity.dim),
        "class_token": (batch_size, identity.class_token_dim),
    }


def run_session(provider: Provider, session: Any, *arguments: Any) -> None:
    """Run a session with bound inputs and outputs.

    Raises:
        ModelError: ONNX Runtime fails.
    """
    try:
        session.run_with_iobinding(*arguments)
    except Exception as exc:  # ONNX Runtime's own exception types share no base
        raise failure(provider, f"{provider.backend} failed to run", exc) from None
