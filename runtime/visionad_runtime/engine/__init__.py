"""Backbone engines: one small interface, each backend a leaf module that is imported only when it is chosen.

A backend that is asked for by name and cannot run is an error. ``auto`` takes the best one that runs here and passes its
self-test, and says why (``engine.details``, and the log ``visionad``). It never starts a build of minutes that nobody asked for: a
TensorRT engine comes into play when `visionad build` has made one for the model; from then on it is kept up to date by itself.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..artefacts import ModelManifest
from ..errors import VisionADError

if TYPE_CHECKING:
    from ..cuda.interface import DeviceEngine

log = logging.getLogger("visionad")

BACKENDS = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-cuda",
    "onnxruntime-cpu",
    "onnxruntime-tensorrt",
    "onnxruntime-tensorrt-rtx",
)
AUTO = BACKENDS[:4]
"""What ``auto`` tries, best first. The last two build inside ONNX Runtime at every change, so they are for who asks for them."""


class Tokens(NamedTuple):
    """``patch`` float32 (N, P, D) with unit rows; ``cls`` float32 (N, Dc) with unit rows, or ``None`` where not asked for."""

    patch: NDArray[np.float32]
    cls: NDArray[np.float32] | None


class Engine(Protocol):
    """What a backend provides. Rows are independent: the result of a row never depends on the others in the call.

    Attributes:
        name: of the backend. group: rows the device computes together (1: each alone); see :func:`open_engine`.
        details: versions, devices, realised precision, why it was chosen; for people.
        device_engine: where the backbone can run amid other work on an NVIDIA GPU, gives it in that form (with memory of its own);
            ``None``: it takes and gives arrays of the host only.
    """

    name: str
    group: int
    details: dict[str, str]

    @property
    def device_engine(self) -> Callable[[], DeviceEngine] | None: ...

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """float32 (N, 3, crop, crop), normalised → :class:`Tokens`. With ``class_token=False`` a backend may skip its work."""
        ...

    def close(self) -> None:
        """Give memory back; the engine refuses work after that. Twice is harmless."""
        ...


def open_engine(
    folder: Path,
    manifest: ModelManifest,
    backend: str = "auto",
    threads: int | None = None,
    group: int | None = None,
) -> Engine:
    """Open the model's backbone with a backend (``auto`` or one of :data:`BACKENDS`) and test it on this box.

    Args:
        threads: CPU threads, for the backends on the CPU (default: all cores).
        group: how many consecutive rows belong together, the views of one picture (default: all of the model's views). On a
            GPU they are one call of always the same size, so a picture's result cannot depend on what else is in a batch.

    Raises:
        VisionADError: unknown backend, or one that cannot run here. ModelError: it fails its self-test, or nothing runs.
    """
    if backend not in ("auto", *BACKENDS):
        raise VisionADError(f"backend {backend!r} is not known; choose auto or {', '.join(BACKENDS)}")
    group = group or len(manifest.views)
    if backend != "auto":
        engine = _open_tested(backend, folder, manifest, threads, group)
        engine.details["chosen because"] = "it was asked for"
        log.info("backend %s: it was asked for", backend)
        return engine
    passed_over: dict[str, str] = {}
    last = VisionADError("no backend runs here")
    for name in AUTO:
        try:
            check_built(name, folder)
            engine = _open_tested(name, folder, manifest, threads, group)
        except VisionADError as exc:
            passed_over[name], last = str(exc), exc
            continue
        why = "the best that runs here and passes its self-test"
        engine.details["chosen because"] = why
        if passed_over:
            engine.details["passed over"] = "; ".join(f"{n}: {r}" for n, r in passed_over.items())
        said = log.warning if name == "onnxruntime-cpu" and gpu_here() else log.info
        said("backend %s: %s%s", name, why, _listed(passed_over))
        return engine
    # The CPU runs everywhere: why it does not is about this model. The others are of interest where a GPU is.
    (log.warning if gpu_here() else log.info)("no backend runs here:%s", _listed(passed_over))
    raise last


def _listed(passed_over: dict[str, str]) -> str:
    return "".join(f"\n  not {name}: {reason}" for name, reason in passed_over.items())


def check_built(name: str, folder: Path) -> None:
    """Before a GPU library is imported: is there anything for it to run?

    Raises:
        NoEngineError: it runs engines that somebody has built, and none was built for this model.
    """
    if not name.startswith("tensorrt"):
        return
    from .cache import EngineCache, NoEngineError

    if not EngineCache(folder).holds(name):
        raise NoEngineError(f"no engine has been built; `visionad build {folder} --backend {name}` makes one")


def _open_tested(name: str, folder: Path, manifest: ModelManifest, threads: int | None, group: int) -> Engine:
    from .selftest import read_golden, self_test

    engine: Engine
    if name.startswith("tensorrt"):
        from .tensorrt import TensorRTEngine

        engine = TensorRTEngine(folder, manifest, name, group)
    else:
        from .ort import open_ort

        engine = open_ort(folder, manifest, name, threads, group)
    try:
        worst = self_test(engine, manifest, read_golden(folder))
    except BaseException:
        engine.close()  # another backend may be tried, and it will want the memory
        raise
    engine.details["self-test"] = ", ".join(f"{k} {v:.2g}" for k, v in worst.items())
    return engine


def closed(name: str) -> VisionADError:
    """What an engine says that is used after it was closed."""
    return VisionADError(f"{name}: this engine was closed")


def encode_groups(
    images: NDArray[np.float32], host: Mapping[str, NDArray[np.float32]], run: Callable[[], None], class_token: bool
) -> Tokens:
    """Encode rows in groups of a fixed size. ``run`` computes what lies in ``host["images"]`` into the others."""
    group, count = len(host["images"]), len(images)
    patch = np.empty((count, *host["patch_tokens"].shape[1:]), np.float32)
    cls = np.empty((count, *host["class_token"].shape[1:]), np.float32) if class_token else None
    for start in range(0, count, group):
        rows = images[start : start + group]
        host["images"][: len(rows)] = rows
        host["images"][len(rows) :] = rows[-1]  # a short group has the same shape, and no neighbour of another call
        run()
        patch[start : start + len(rows)] = host["patch_tokens"][: len(rows)]
        if cls is not None:
            cls[start : start + len(rows)] = host["class_token"][: len(rows)]
    return Tokens(patch, cls)


def gpu_here() -> bool:
    """Whether an NVIDIA driver is loaded (desktop, Jetson or Windows), without loading anything."""
    if sys.platform == "win32":
        return Path(r"C:\Windows\System32\nvcuda.dll").exists()
    desktop, jetsons, wsl = "/dev/nvidiactl", ("/dev/nvhost-gpu", "/dev/nvgpu"), "/usr/lib/wsl/lib/libcuda.so.1"
    return any(Path(p).exists() for p in (desktop, *jetsons, wsl))
