"""What every backend provides and uses: the engine's interface, its specification, and helpers for fixed-size batches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import VisionADError

if TYPE_CHECKING:
    from ..cuda.interface import DeviceEngine
    from ..formats.manifest import Precision

CPU, NVIDIA_GPU = "cpu", "nvidia-gpu"
"""Values of :attr:`BackendSpec.device` that the rest of the code knows. A backend may name another one."""

PROBE_TIMEOUT = 60
"""Seconds after which a probe in its own process counts as crashed."""


class Tokens(NamedTuple):
    """Tokens of N images.

    Attributes:
        patch: float32 (N, P, D), unit rows.
        cls: float32 (N, Dc), unit rows; ``None`` if not requested.
    """

    patch: NDArray[np.float32]
    cls: NDArray[np.float32] | None


class Engine(Protocol):
    """An opened backbone. Rows are independent: the result of a row never depends on the others in the call.

    Attributes:
        name: The backend's name.
        batch_size: Rows that the device computes together. 1: each row alone. See :func:`registry.open_engine`.
        precision: The precision in which the products are computed. It decides the tolerances of the self-test.
        info: Versions, devices, realized precision, why the backend was chosen. For people.
        requires_device_pipeline: Whether the whole pipeline must run on the device. If it is false and the pipeline on the device
            fails its test, preprocessing, search and map run on the host.
        device_engine: Makes the engine's form for work in place on an NVIDIA GPU, with memory of its own. ``None``: the engine
            only takes and returns arrays in host memory.
    """

    name: str
    batch_size: int
    precision: Precision
    info: dict[str, str]
    requires_device_pipeline: bool

    @property
    def device_engine(self) -> Callable[[], DeviceEngine] | None: ...

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """Encode images.

        Args:
            images: float32 (N, 3, crop, crop), normalised, N >= 1.
            class_token: Whether the class tokens are needed. If not, the backend may skip their computation.

        Raises:
            VisionADError: The engine was closed.
        """
        ...

    def close(self) -> None:
        """Release all memory. The engine refuses work afterwards. A second call does nothing."""
        ...


class Probe(NamedTuple):
    """Whether a backend can run here.

    Attributes:
        runs: Whether it can.
        why: One line. If it cannot run, the line names what fixes that.
    """

    runs: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """Registry entry of a backend: all that the rest of the program knows of it.

    Attributes:
        name: As ``--backend`` takes it.
        device: Where it computes: ``"cpu"``, ``"nvidia-gpu"`` or another name.
        open: ``open(folder, manifest, *, threads, batch_size, precision, device)`` returns an :class:`Engine`. ``precision`` and
            ``device`` are ``None`` unless the user asked for one that this spec offers. It raises :class:`VisionADError` if the
            backend cannot run here, and the message names what fixes that.
        probe: Tells whether the backend can run here. It must not raise, and must not import a library that may crash.
        priority: ``auto`` tries larger ones first. ``None``: ``auto`` never takes this backend.
        extra: The extra of this distribution that installs the backend's packages, if there is one.
        packages: The distributions that the backend needs in addition to the lean install, for ``visionad doctor``.
        experimental: Whether it has never passed on its hardware.
        precisions: The precisions that a user can ask for at opening, beside the model's own.
        takes_device: Whether a user can name a device at opening.
        build: For a backend that runs engines built beforehand: ``build(folder, manifest, *, target, step, rebuild)`` builds one or
            takes it from the cache. It returns JSON-ready facts. ``step`` is called up to 100 times.
        build_targets: What ``build`` can be given as ``target``; empty: it builds for the device that is here.
        require_engine: For a backend with ``build``: raises :class:`VisionADError` if no engine was built for the model folder.
            It must not import a GPU library.
        tested: Distribution -> version prefixes that the test suite passed with.
        not_run: Distribution -> what has not run on its hardware for this release.
        needs: What the backend needs on the machine, for the table in the docs.
        verified: What was verified on which hardware, for the table in the docs.
    """

    name: str
    device: str
    open: Callable[..., Engine]
    probe: Callable[[], Probe]
    priority: int | None = None
    extra: str | None = None
    packages: tuple[str, ...] = ()
    experimental: bool = False
    precisions: tuple[Precision, ...] = ()
    takes_device: bool = False
    build: Callable[..., dict[str, Any]] | None = None
    build_targets: tuple[str, ...] = ()
    require_engine: Callable[[Path], None] | None = None
    tested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""
    verified: str = ""

    @property
    def needs_build(self) -> bool:
        """Whether an engine must be built before the backend can run."""
        return self.build is not None


def closed_error(name: str) -> VisionADError:
    """Return the error for the use of a closed engine."""
    return VisionADError(f"{name}: this engine was closed")


def encode_in_batches(
    images: NDArray[np.float32], host: Mapping[str, NDArray[np.float32]], run: Callable[[], None], class_token: bool
) -> Tokens:
    """Encode rows in batches of a fixed size.

    Args:
        images: float32 (N, 3, crop, crop), N >= 1.
        host: The arrays of one batch: ``images``, ``patch_tokens``, ``class_token``.
        run: Computes the tokens of ``host["images"]`` into the other two arrays.
        class_token: Whether to return class tokens.
    """
    batch_size, count = len(host["images"]), len(images)
    patch = np.empty((count, *host["patch_tokens"].shape[1:]), np.float32)
    cls = np.empty((count, *host["class_token"].shape[1:]), np.float32) if class_token else None
    for start in range(0, count, batch_size):
        rows = images[start : start + batch_size]
        host["images"][: len(rows)] = rows
        host["images"][len(rows) :] = rows[-1]  # padding: the same shape, and no data of another call
        run()
        patch[start : start + len(rows)] = host["patch_tokens"][: len(rows)]
        if cls is not None:
            cls[start : start + len(rows)] = host["class_token"][: len(rows)]
    return Tokens(patch, cls)


def run_isolated(code: str) -> Any:
    """Run Python code in its own process, to probe a library that may crash.

    Args:
        code: The code. Its last line of output is a JSON value.

    Returns:
        That value; ``None`` if the process crashes or takes longer than :data:`PROBE_TIMEOUT`.
    """
    try:
        completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_TIMEOUT)
        return json.loads(completed.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
