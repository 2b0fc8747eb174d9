"""ONNX Runtime's CUDA provider on the fake GPU: what a run enqueues happens late, on the stream that the session was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest
from fake_gpu import FakeDevice
from visionad_runtime.artefacts import ModelManifest
from visionad_runtime.cuda.device import Owner
from visionad_runtime.engine import ort as leaf

CUDA = "CUDAExecutionProvider"


class Binding:
    """Addresses and shapes by name; only what lies in live memory can be bound."""

    def __init__(self) -> None:
        self.bound: dict[str, tuple[int, tuple[int, ...]]] = {}

    def bind_input(self, name: str, kind: str, number: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
        assert (kind, number, dtype) == ("cuda", 0, np.float32)
        _device().read(address, np.float32, *shape)
        self.bound[name] = address, shape

    bind_output = bind_input


class Session:
    """Computes on the CPU. What it reads while a run goes on is spoilt by another one, as with an engine's own memory."""

    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        self._real = ort.InferenceSession(str(folder / "backbone.onnx"), providers=["CPUExecutionProvider"])
        self._stream = _device().stream_of(int(options["user_compute_stream"]))
        self._scratch = np.empty(0, np.float32)

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: ort.RunOptions) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        device = _device()

        def gather() -> None:
            address, shape = binding.bound["images"]
            self._scratch = device.read(address, np.float32, *shape).copy()

        def finish() -> None:
            names = ["patch_tokens", "class_token"]
            rows = [self._real.run(names, {"images": row[None]}) for row in self._scratch]  # each alone, as on the CPU
            for i, name in enumerate(names):
                address, shape = binding.bound[name]
                device.read(address, np.float32, *shape)[:] = np.concatenate([row[i] for row in rows])

        self._stream.add(gather)
        for _ in range(8):
            self._stream.add(lambda: None)
        self._stream.add(finish)


def _device() -> FakeDevice:
    return cast("FakeDevice", Owner.of(0).run(lambda device: device))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box whose ONNX Runtime has the provider, and the driver for it."""

    def session(
        folder: Path, _manifest: ModelManifest, backend: str, _threads: int | None, options: dict[str, str]
    ) -> Any:
        if backend == "onnxruntime-cpu":
            return plain(folder, _manifest, backend, _threads, options)
        return Session(folder, options)

    plain = leaf._session
    monkeypatch.setattr(leaf, "_session", session)
    monkeypatch.setattr(leaf, "_check_provider", lambda _: None)
