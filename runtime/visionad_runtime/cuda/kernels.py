"""Load and launch the kernels, which were compiled ahead of time (``docs/kernels.md``)."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import VisionADError
from .interface import Buffer, Device, Function, Stream

FOLDER = Path(__file__).with_name("cubins")
PTX = "ptx_89"
"""Target that the driver compiles, for GPUs newer than the machine code in this package."""


@cache
def read_manifest() -> dict[str, Any]:
    """Read ``cubins/manifest.json``: what was built, from what, and the arguments of each kernel.

    Raises:
        VisionADError: The file is missing or has another format.
    """
    path = FOLDER / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise VisionADError(f"{path} cannot be read ({exc}); install visionad again") from None
    if manifest.get("format") != "visionad-kernels" or manifest.get("schema_version") != 1:
        raise VisionADError(
            f"{path}: expected visionad-kernels of schema 1, got {manifest.get('format')}; install visionad again"
        )
    return manifest


def choose_target(capability: tuple[int, int], targets: Sequence[str]) -> str:
    """Return the target whose code runs on a compute capability.

    Up to 8.9, machine code also runs on later minor versions of the same major version. From 9.0 on it runs on one architecture
    only, because its tensor cores have instructions of their own. Everything else takes the PTX.

    Args:
        capability: Compute capability (major, minor).
        targets: The targets that were built.

    Raises:
        VisionADError: The capability is below 8.0.
    """
    major, minor = capability
    compatible = [
        t for t in targets
        if t.startswith("sm_") and int(t[3:-1]) == major and (int(t[-1]) <= minor if major < 9 else int(t[-1]) == minor)
    ]  # fmt: skip
    if compatible:
        return max(compatible, key=lambda t: int(t[3:]))
    if capability < (8, 9):
        raise VisionADError(
            f"the kernels need compute capability 8.0 (Ampere) or newer, got {major}.{minor}; use --backend onnxruntime-cpu"
        )
    return PTX


class Kernel:
    """One kernel on a device.

    Attributes:
        constants: Compile-time constants, such as block sizes.
        per_multiprocessor: How many programs fit a multiprocessor at once.
    """

    def __init__(self, name: str, record: Mapping[str, Any], function: Function) -> None:
        self.name = name
        self.constants: Mapping[str, int] = record["constants"]
        self.per_multiprocessor = int(record["per_multiprocessor"])
        self._arguments: list[str] = record["arguments"]
        self._argument_count = len(self._arguments) - self._arguments.count("null")
        self._block = (int(record["threads"]), 1, 1)
        self._shared = int(record["shared_bytes"])
        self._function = function

    def launch(self, grid: tuple[int, int], args: Sequence[int | float | Buffer], stream: Stream) -> None:
        """Enqueue the kernel. Triton's own trailing pointers are passed as 0.

        Args:
            grid: Number of programs along x and y.
            args: Arguments. A pointer is a Buffer or an address.
            stream: The stream.

        Raises:
            TypeError: The arguments are not the kernel's.
        """
        if len(args) != self._argument_count:
            raise TypeError(f"kernel {self.name}: expected {self._argument_count} arguments, got {len(args)}")
        values = [_convert(kind, value) for kind, value in zip(self._arguments, args, strict=False)]
        values += [np.uint64(0)] * (len(self._arguments) - self._argument_count)
        self._function.launch((*grid, 1), self._block, values, self._shared, stream)


def _convert(kind: str, value: int | float | Buffer) -> np.number[Any]:
    if kind == "fp32":
        return np.float32(value)  # type: ignore[arg-type]
    if kind == "i32":
        assert isinstance(value, int)
        return np.int32(value)
    address = value if isinstance(value, int | float) else value.ptr
    if not isinstance(address, int) or not address or address % 16:
        raise TypeError(f"kernel pointer {value!r}: expected an address that is a multiple of 16")
    return np.uint64(address)


class Kernels:
    """All kernels, loaded for one device.

    Attributes:
        target: The target in use.
    """

    def __init__(self, device: Device) -> None:
        """Load the kernels.

        Raises:
            VisionADError: The GPU is too old, a file is missing or damaged, or the driver refuses the code.
        """
        targets = read_manifest()["targets"]
        self.target = choose_target(device.capability, list(targets))
        self._kernels: dict[str, Kernel] = {}
        with ExitStack() as loading:
            for name, (record, code) in read_target(self.target).items():
                module = device.load(code)
                loading.callback(module.close)
                self._kernels[name] = Kernel(name, record, module.function(record["entry"]))
            self._modules = loading.pop_all()

    def __getitem__(self, name: str) -> Kernel:
        return self._kernels[name]

    def close(self) -> None:
        """Unload the kernels. A second call does nothing."""
        self._modules.close()


def read_target(target: str) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Read the kernels of a target and check their digests.

    Returns:
        Kernel -> (record of the manifest, code).

    Raises:
        VisionADError: The file is missing or damaged.
    """
    path = FOLDER / f"{target}.zip"
    kernels = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, record in read_manifest()["targets"][target].items():
                code = archive.read(name)
                if hashlib.sha256(code).hexdigest() != record["sha256"]:
                    raise VisionADError(f"{path}: kernel {name} is damaged; install visionad again")
                kernels[name] = (record, code)
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        raise VisionADError(f"{path} cannot be read ({exc}); install visionad again") from None
    return kernels
