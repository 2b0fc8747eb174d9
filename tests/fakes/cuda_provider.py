"""ONNX Runtime's CUDA provider on the fake GPU: what a run enqueues happens late, on the stream that the session was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import onnxruntime as ort
import pytest
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.engine.onnxruntime import cuda as leaf
from visionad_runtime.engine.onnxruntime.providers import Provider
from visionad_runtime.errors import ModelError
from visionad_runtime.formats.manifest import CUDA_ONNX_FILE, ONNX_FILE, ModelManifest

from tests.data import cpu_session
from tests.fakes.gpu import FakeDevice

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
    """Computes on the CPU. What it reads while a run goes on is spoilt by another one, as with an engine's own memory. With a CUDA
    graph, a run is what was captured under its number, whatever is bound; without one, it must be waited for."""

    refused: ClassVar[set[str]] = set()
    """``graph``: it takes no CUDA graph. ``fused``: it does not run ONNX Runtime's own operators; ``plain``: nor anything else."""
    opened: ClassVar[list[tuple[bool, bool]]] = []
    """Of each session: whether it was fused, and a CUDA graph."""

    def __init__(self, folder: Path, options: dict[str, str], rows: int, fused: bool) -> None:
        self._graph = options.get("enable_cuda_graph") == "1"
        self._rows, self._fused = rows, fused
        self.opened.append((fused, self._graph))
        if self._graph and "graph" in self.refused:
            raise ModelError("cannot use the graph capture feature")
        self._real = cpu_session(folder / "backbone.onnx")
        self._stream = _device().stream_of(int(options["user_compute_stream"]))
        self._scratch = np.empty(0, np.float32)
        self._captured: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {}

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: ort.RunOptions) -> None:
        if "plain" in self.refused or (self._fused and "fused" in self.refused):
            raise RuntimeError("it runs nothing" if "plain" in self.refused else "no kernel for MultiHeadAttention")
        assert _entry(options, "disable_synchronize_execution_providers") == ("1" if self._graph else None)
        device, bound = _device(), binding.bound
        assert {shape[0] for _, shape in bound.values()} == {self._rows}
        if self._graph:
            bound = self._captured.setdefault(_entry(options, "gpu_graph_id") or "", dict(bound))

        def gather() -> None:
            address, shape = bound["images"]
            self._scratch = device.read(address, np.float32, *shape).copy()

        def finish() -> None:
            names = ["patch_tokens", "class_token"]
            rows = [self._real.run(names, {"images": row[None]}) for row in self._scratch]  # each alone, as on the CPU
            for i, name in enumerate(names):
                address, shape = bound[name]
                device.read(address, np.float32, *shape)[:] = np.concatenate([row[i] for row in rows])

        self._stream.add(gather)
        for _ in range(8):
            self._stream.add(lambda: None)
        self._stream.add(finish)
        if not self._graph:
            self._stream.synchronize()


def _entry(options: ort.RunOptions, key: str) -> str | None:
    try:
        return str(options.get_run_config_entry(key))
    except RuntimeError:
        return None


def _device() -> FakeDevice:
    return cast("FakeDevice", DeviceThread.of(0).run(lambda device: device))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box whose ONNX Runtime has the provider, and the driver for it."""

    def session(
        folder: Path,
        manifest: ModelManifest,
        provider: Provider,
        threads: int | None,
        options: dict[str, str],
        rows: int | None = None,
        file: str = ONNX_FILE,
    ) -> Any:
        assert rows is not None
        return Session(folder, options, rows, file == CUDA_ONNX_FILE)

    monkeypatch.setattr(Session, "refused", set())
    monkeypatch.setattr(Session, "opened", [])
    monkeypatch.setattr(leaf, "create_session", session)
    monkeypatch.setattr(leaf, "check_provider", lambda _: None)
