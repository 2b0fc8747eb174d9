"""Load the kernels built for a GPU and launch them. They were compiled ahead of time (``docs/kernels.md``)."""

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
"""Compiled by the driver, for GPUs newer than the machine code at hand."""


@cache
def read_manifest() -> dict[str, Any]:
    """``cubins/manifest.json``: what was built, from what, and how each kernel is called.

    Raises:
        VisionADError: missing or of another format.
    """
    path = FOLDER / "manifest.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise VisionADError(f"{path} cannot be read ({exc}); install visionad again") from None
    if found.get("format") != "visionad-kernels" or found.get("schema_version") != 1:
        raise VisionADError(
            f"{path}: expected visionad-kernels of schema 1, got {found.get('format')}; install visionad again"
        )
    return found


def choose_target(capability: tuple[int, int], targets: Sequence[str]) -> str:
    """Target whose code runs on a compute capability.

    Up to 8.9 machine code also runs on later minor versions of its major one. From 9.0 on it is built for the one
    architecture (its tensor cores are programmed by instructions no other has), so everything else takes the PTX.

    Raises:
        VisionADError: older than 8.0.
    """
    major, minor = capability
    fitting = [
        t for t in targets
        if t.startswith("sm_") and int(t[3:-1]) == major and (int(t[-1]) <= minor if major < 9 else int(t[-1]) == minor)
    ]  # fmt: skip
    if fitting:
        return max(fitting, key=lambda t: int(t[3:]))
    if capability < (8, 9):
        raise VisionADError(
            f"the GPU has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer; use --backend onnxruntime-cpu"
        )
    return PTX


class Kernel:
    """One kernel on a device.

    Attributes:
        constants: what it was compiled for, such as the sizes of its blocks.
        per_multiprocessor: programs that fit a multiprocessor at once.
    """

    def __init__(self, name: str, record: Mapping[str, Any], function: Function) -> None:
        self.name = name
        self.constants: Mapping[str, int] = record["constants"]
        self.per_multiprocessor = int(record["per_multiprocessor"])
        self._arguments: list[str] = record["arguments"]
        self._named = len(self._arguments) - self._arguments.count("null")
        self._block = (int(record["threads"]), 1, 1)
        self._shared = int(record["shared_bytes"])
        self._function = function

    def launch(self, grid: tuple[int, int], args: Sequence[int | float | Buffer], stream: Stream) -> None:
        """Enqueue it on ``grid`` programs. A pointer is a Buffer or an address; Triton's own trailing pointers are passed
        as 0."""
        if len(args) != self._named:
            raise TypeError(f"kernel {self.name}: expected {self._named} arguments, got {len(args)}")
        values = [_convert(kind, value) for kind, value in zip(self._arguments, args, strict=False)]
        values += [np.uint64(0)] * (len(self._arguments) - self._named)
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
        target: which build is used.
    """

    def __init__(self, device: Device) -> None:
        """Load them.

        Raises:
            VisionADError: GPU too old; a file is missing or damaged; the driver refuses the code.
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
        """Unload them; twice is harmless."""
        self._modules.close()


def read_target(target: str) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Kernel → (manifest record, code) of a target, every digest checked.

    Raises:
        VisionADError: missing or damaged, naming the file.
    """
    path = FOLDER / f"{target}.zip"
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, record in read_manifest()["targets"][target].items():
                code = archive.read(name)
                if hashlib.sha256(code).hexdigest() != record["sha256"]:
                    raise VisionADError(f"{path}: kernel {name} is damaged; install visionad again")
                out[name] = (record, code)
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        raise VisionADError(f"{path} cannot be read ({exc}); install visionad again") from None
    return out
