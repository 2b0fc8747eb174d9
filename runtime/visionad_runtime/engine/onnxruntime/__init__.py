"""ONNX Runtime: on the CPU, and on a GPU by its CUDA provider, or by its TensorRT provider if installed.

Importing this module does not import ONNX Runtime.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...system import has_nvidia_driver
from ..base import CPU, NVIDIA_GPU, BackendSpec, Engine, Probe, run_isolated
from . import providers
from .providers import Provider

if TYPE_CHECKING:
    from ...formats.manifest import ModelManifest

_INSTALL_GPU = "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"


def _open_cpu(folder: Path, manifest: ModelManifest, *, threads: int | None, **_: object) -> Engine:
    from .cpu import open_cpu

    return open_cpu(folder, manifest, threads)


def _open_cuda(folder: Path, manifest: ModelManifest, *, threads: int | None, batch_size: int, **_: object) -> Engine:
    from .cuda import open_cuda

    return open_cuda(folder, manifest, threads, batch_size)


def _open_tensorrt(
    folder: Path, manifest: ModelManifest, *, threads: int | None, batch_size: int, **_: object
) -> Engine:
    from .cuda import open_tensorrt

    return open_tensorrt(folder, manifest, threads, batch_size)


def _probe(provider: Provider, install: str) -> Probe:
    """Probe a provider. ONNX Runtime lists a provider even if the libraries that it links to are missing."""
    try:
        import onnxruntime

        available = onnxruntime.get_available_providers()
    except Exception:  # a broken native library raises anything; `visionad doctor` reports it separately
        available = []
    if provider.name not in available:
        return Probe(False, f"ONNX Runtime has no {provider.name}: {install}")
    if provider.on_gpu:
        if not has_nvidia_driver():
            return Probe(False, "no NVIDIA driver is loaded here: install it, then `nvidia-smi` works")
        code = (
            "import json\n"
            "from visionad_runtime.engine.onnxruntime import providers, session\n"
            f"print(json.dumps(session.provider_problem(providers.Provider(*{tuple(provider)!r}))))\n"
        )
        problem = run_isolated(code)
        if problem is None:
            remedy = "pip install --force-reinstall --no-deps onnxruntime-gpu"
            return Probe(False, f"its library crashes when it is loaded: {remedy}")
        if problem:
            return Probe(False, str(problem))
    return Probe(True, f"ONNX Runtime has {provider.name}")


SPECS = (
    BackendSpec(
        name=providers.CUDA.backend,
        device=NVIDIA_GPU,
        open=_open_cuda,
        probe=partial(_probe, providers.CUDA, _INSTALL_GPU),
        priority=200,
        extra="gpu",
        packages=("onnxruntime-gpu", "nvidia-ml-py"),
        not_run={
            "onnxruntime-gpu": "its TensorRT provider; the CUDA provider ran on an H100 (1.31), with pycuda 2026.1"
        },
        needs="`onnxruntime-gpu` instead of `onnxruntime`, driver, CUDA, cuDNN; `pip install pycuda` for the whole pipeline",
        verified="H100, ONNX Runtime 1.31",
    ),
    BackendSpec(
        name=providers.CPU.backend,
        device=CPU,
        open=_open_cpu,
        probe=partial(_probe, providers.CPU, "pip install --force-reinstall onnxruntime"),
        priority=100,
        tested={"onnxruntime": ("1.32",)},
        needs="nothing more",
        verified="x86-64 and the whole test suite, ONNX Runtime 1.32",
    ),
    BackendSpec(
        name=providers.TENSORRT.backend,
        device=NVIDIA_GPU,
        open=_open_tensorrt,
        probe=partial(
            _probe,
            providers.TENSORRT,
            f"{_INSTALL_GPU}, and the TensorRT that it was built for on LD_LIBRARY_PATH",
        ),
        experimental=True,
        needs="an ONNX Runtime with that provider; not in fp32 (it has no switch for TF32)",
        verified="nothing: it has not passed on a GPU",
    ),
)
