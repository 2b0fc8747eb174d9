"""TensorRT and TensorRT-RTX. This module imports neither."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import NVIDIA_GPU, BackendSpec, Engine, Probe, run_isolated
from .api import RTX_CAPABILITIES, TENSORRT, TENSORRT_RTX, Library
from .cache import EngineCache, EngineNotFoundError

if TYPE_CHECKING:
    from ...formats.manifest import ModelManifest


def _open(library: Library, folder: Path, manifest: ModelManifest, *, batch_size: int, **_: object) -> Engine:
    from .engine import TensorRTEngine

    return TensorRTEngine(folder, manifest, library.backend, batch_size)


def _build(
    library: Library,
    folder: Path,
    manifest: ModelManifest,
    *,
    target: str | None = None,
    step: Callable[[], None] = lambda: None,
    rebuild: bool = False,
) -> dict[str, Any]:
    from .builder import build

    entry, fresh = build(folder, manifest, library.backend, target, step, rebuild)
    return {**entry.key, **entry.built, "folder": str(entry.folder), "fresh": fresh}


def _require_engine(library: Library, folder: Path) -> None:
    if not EngineCache(folder).has_engine_for(library.backend):
        raise EngineNotFoundError(
            f"no engine has been built; run `visionad build {folder} --backend {library.backend}`"
        )


def _probe(library: Library, install: str) -> Probe:
    if importlib.util.find_spec(library.module) is None:
        return Probe(False, f"not installed: {install}")
    code = (
        "import json\n"
        "from visionad_runtime.engine.tensorrt.api import load_api\n"
        "from visionad_runtime.cuda.device import Device\n"
        "from visionad_runtime.errors import VisionADError\n"
        "facts = {}\n"
        "try:\n"
        f"    facts['version'] = load_api({library.backend!r}).version\n"
        "    with Device.open() as device:\n"
        "        facts['capability'] = '.'.join(map(str, device.capability))\n"
        "        facts['gpu'] = f'{device.name}, compute capability ' + facts['capability']\n"
        "except VisionADError as exc:\n"
        "    facts['error'] = str(exc)\n"
        "print(json.dumps(facts))\n"
    )
    facts = run_isolated(code)
    if facts is None:
        return Probe(False, f"{library.module} crashes when it is imported: {library.reinstall}")
    if library.rtx and facts.get("capability") not in (None, *RTX_CAPABILITIES):
        known = ", ".join(RTX_CAPABILITIES)
        return Probe(
            False,
            f"{facts['version']} runs on compute capability {known}; got {facts['gpu']}: use tensorrt or onnxruntime-cuda",
        )
    if "error" not in facts:
        built = f"used once `visionad build MODEL --backend {library.backend}` has made an engine"
        return Probe(True, f"{facts['version']} on {facts['gpu']}; {built}")
    builds = f"{facts['version']} can build engines here, not run them: " if "version" in facts and library.rtx else ""
    return Probe(False, builds + facts["error"])


SPECS = (
    BackendSpec(
        name=TENSORRT.backend,
        device=NVIDIA_GPU,
        open=partial(_open, TENSORRT),
        probe=partial(
            _probe,
            TENSORRT,
            "pip install 'visionad[tensorrt]'; on Jetson it is JetPack's, use a venv with --system-site-packages",
        ),
        priority=400,
        extra=TENSORRT.extra,
        packages=("tensorrt", "pycuda"),
        build=partial(_build, TENSORRT),
        require_engine=partial(_require_engine, TENSORRT),
        not_run={"tensorrt": "10.3 and 11.4: driven against stand-ins of their API only"},
        needs="`pip install 'visionad[tensorrt]'` (JetPack 6 brings 10.3), driver, `visionad build`",
        verified="10.3 and 11.4 against stand-ins of their API only",
    ),
    BackendSpec(
        name=TENSORRT_RTX.backend,
        device=NVIDIA_GPU,
        open=partial(_open, TENSORRT_RTX),
        probe=partial(_probe, TENSORRT_RTX, "pip install 'visionad[rtx]'"),
        priority=300,
        extra=TENSORRT_RTX.extra,
        packages=("tensorrt-rtx-cu13", "pycuda"),
        build=partial(_build, TENSORRT_RTX),
        build_targets=RTX_CAPABILITIES,
        require_engine=partial(_require_engine, TENSORRT_RTX),
        tested={"tensorrt-rtx-cu13": ("1.7",)},
        not_run={
            "tensorrt-rtx-cu13": "1.7: engines built by the real builder, not yet run on a GPU (an H100's 9.0 it refuses)"
        },
        needs=(
            "`pip install 'visionad[rtx]'`, driver, `visionad build`; compute capability 8.0-8.9 and 12.x, "
            "7.5 in fp16 only, not 9.0"
        ),
        verified="engines built by the real builder (1.7), not yet run on a GPU",
    ),
)
