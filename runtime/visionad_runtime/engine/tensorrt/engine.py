"""The engine of TensorRT 10.x, 11.x and TensorRT-RTX. ``api.py`` has the differences between them.

All calls of an opened engine have the same size: the views of one image. So the same kernels see the same shapes whatever the
batch, and a result cannot depend on it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...cuda.device import Buffer, Device, Event, Graph, Stream
from ...cuda.memory import ResourceScope
from ...cuda.thread import DeviceThread
from ...errors import ModelError, VisionADError
from ...formats.manifest import ModelManifest
from ..base import Tokens, closed_error, encode_in_batches
from . import inspection
from .api import IncompatibleEngineError, TensorRT, load_api
from .builder import (
    build,
    capability_of,
    check_io,
    default_target,
    engine_key,
    expected_io,
    save_results,
    summarize_engine,
)
from .cache import EngineCache, EngineEntry, EngineNotFoundError

if TYPE_CHECKING:
    import tensorrt as trt

    from ...cuda.interface import DeviceEngine

log = logging.getLogger("visionad")


class TensorRTEngine:
    """A backbone on a GPU. The GPU's owner thread does all GPU work; any thread may call :meth:`encode`."""

    _context: Any

    requires_device_pipeline = True

    def __init__(self, folder: Path, manifest: ModelManifest, backend: str, batch_size: int) -> None:
        """Load the engine for this GPU from the cache. If it is missing, stale or damaged, build it; the log says why.

        Args:
            folder: The model folder.
            manifest: Its manifest.
            backend: The backend's name.
            batch_size: Images that belong together, the views of one: at most the model's number of views.

        Raises:
            VisionADError, ModelError: The engine cannot be built (:func:`build`) or loaded on this GPU.
        """
        if not 1 <= batch_size <= len(manifest.views):
            raise VisionADError(f"{backend}: expected batches of 1 to {len(manifest.views)} images, got {batch_size}")
        self.name = backend
        self.batch_size = batch_size
        self.precision = manifest.precision
        self.info: dict[str, str] = {}
        self._api = load_api(backend)
        self._manifest = manifest
        self._owner = DeviceThread.of(0)
        self._host: dict[str, NDArray[np.float32]] = {}
        self._device: dict[str, Buffer] = {}
        self._graph: Graph | None = None
        self._jit: bytes | None = None
        self._resources: ResourceScope | None = None
        self._encoding = threading.Lock()
        self._shared: list[SharedContext] = []
        entry, fresh = self._entry(folder)
        try:
            self._load(entry)
        except IncompatibleEngineError as exc:  # not for lack of memory, which is no reason to discard an engine
            if fresh:
                raise
            log.warning("%s: the engine in the cache does not work here (%s); building it again", backend, exc)
            EngineCache(folder).drop(entry.key)
            entry, _ = self._entry(folder)
            self._load(entry)

    def _entry(self, folder: Path) -> tuple[EngineEntry, bool]:
        """Return the engine of this GPU, and whether it was built now. One for its compute capability is preferred."""
        cache = EngineCache(folder)
        default = self._owner.run(default_target if self._api.rtx else capability_of)
        for target in dict.fromkeys((self._owner.run(capability_of), default)):
            try:
                return cache.find(self._owner.run(partial(self._key, target))), False
            except EngineNotFoundError as exc:
                reason = exc
        duration = "" if self._api.rtx else ", which takes minutes"
        log.warning("%s: %s; building one for this box%s", self.name, reason, duration)
        return build(folder, self._manifest, self.name, default, _logged_steps(self.name))

    def _key(self, target: str, device: Device) -> dict[str, Any]:
        return engine_key(self._api, self._manifest, device, target)

    def _load(self, entry: EngineEntry) -> None:
        """Load the engine; on a failure, release everything."""
        try:
            self._owner.run(lambda device: self._start(device, entry))
        except BaseException:
            self.close()
            raise

    def _start(self, device: Device, entry: EngineEntry) -> None:
        # Only attributes refer to GPU objects: the traceback of a failure would keep local variables alive.
        api, module, manifest = self._api, self._api.module, self._manifest
        with api.collector.collect() as messages:
            self._runtime: trt.Runtime = module.Runtime(api.logger)
            self._engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(entry.plan.read_bytes())
            if self._engine is None:
                raise api.failure(f"to load {entry.plan}", messages)
            check_io(api, self._engine, manifest)
            built = summarize_engine(self._engine, module)
            inspection.check_engine(built, entry.built["graph"], manifest.precision)
            jit_file = (
                entry.folder / f"jit-{hashlib.sha256(f'{device.name} {device.driver}'.encode()).hexdigest()[:16]}.cache"
            )
            jit = jit_file.read_bytes() if jit_file.exists() else None
            self._context, jit_cache = api.create_context(self._engine, jit)
            if self._context is None:
                raise api.failure(f"to start {entry.plan}", messages)
            self._allocate(device)
            self._enqueue()  # warm-up: the first call creates kernels, handles and TensorRT-RTX's JIT results
            self._stream.synchronize()
        if jit_cache is not None and jit is None:
            jit = save_results(jit_file, jit_cache)
        self._jit = jit
        self._built = built
        self._graph, graph = self._record(device)
        self.info |= {
            self.name: api.version,
            "gpu": f"{device.name} (compute capability {capability_of(device)}, driver for CUDA {device.driver})",
            "precision": built.describe(),
            "memory": _describe(built.memory, contexts=1),
            "engine": entry.folder.name[:12],
            "cuda graph": graph,
        }

    def _allocate(self, device: Device) -> None:
        """Allocate all buffers. Arrays that a call copies are in page-locked memory."""
        resources = self._resources = ResourceScope(device)
        self._stream: Stream = resources.stream(device.stream())
        self._done: Event = resources.own(device.event())
        shapes = {name: (self.batch_size, *shape[1:]) for name, shape in expected_io(self._manifest).items()}
        if not self._context.set_input_shape("images", shapes["images"]):
            raise ModelError(
                f"{self.name} refuses {self.batch_size} images a call{self._api.why()}; build the engine again"
            )
        for name, shape in shapes.items():
            host = self._host[name] = resources.pinned(shape, np.float32)
            buffer = self._device[name] = resources.own(device.alloc(host.nbytes))
            if not self._context.set_tensor_address(name, buffer.ptr):
                raise ModelError(f"{self.name} refuses a buffer for {name}{self._api.why()}")
        self._host["images"][:] = 0

    def _record(self, device: Device) -> tuple[Graph | None, str]:
        """Record a whole call, copies and kernels, in a CUDA graph.

        Returns:
            The graph, if the engine can be recorded, and a description for people.
        """
        if not self._api.graph_allowed(self._context, self._stream.handle):
            return None, "no: this engine cannot be recorded"
        try:
            with device.capture(self._stream) as graph:
                self._enqueue(device)
        except VisionADError as exc:
            assert self._resources is not None
            self._stream = self._resources.stream(device.stream())  # a failed recording leaves its stream unusable
            return None, f"no: {exc}"
        return graph, "yes"

    def _enqueue(self, device: Device | None = None) -> None:
        if device is not None:
            device.upload(self._device["images"], self._host["images"], self._stream)
        if not self._context.execute_async_v3(self._stream.handle):
            raise ModelError(f"{self.name} failed to run{self._api.why()}; run `visionad doctor`")
        if device is not None:
            for name in ("patch_tokens", "class_token"):
                device.download(self._host[name], self._device[name], self._stream)

    @property
    def device_engine(self) -> Callable[[], DeviceEngine] | None:
        """See :class:`~visionad_runtime.engine.base.Engine`. The pipeline's kernels need Ampere; Turing uses the host pipeline."""
        return self.on_device if self._owner.run(lambda device: device.capability) >= (8, 0) else None

    def on_device(self) -> SharedContext:
        """Return the engine in another context, because the recorded graph keeps using the memory of the first.

        Raises:
            VisionADError: The GPU is out of memory, or the engine was closed.
        """
        return self._owner.run(lambda _: self._create_shared())

    def _create_shared(self) -> SharedContext:
        self._check_open()
        assert self._engine is not None
        with self._api.collector.collect() as messages:
            context, _ = self._api.create_context(self._engine, self._jit)
            shape = (self.batch_size, *expected_io(self._manifest)["images"][1:])
            if context is None or not context.set_input_shape("images", shape):
                raise self._api.failure(f"to start {self.name} a second time", messages)
        self._shared.append(SharedContext(self._api, context, self.batch_size, capturable=self._graph is not None))
        self.info["memory"] = _describe(self._built.memory, contexts=1 + len(self._shared))
        return self._shared[-1]

    def close(self) -> None:
        """See :class:`~visionad_runtime.engine.base.Engine`. This also closes the contexts of :meth:`on_device`."""
        with self._encoding:
            self._owner.run(self._release)

    def _release(self, _: Device) -> None:
        with ExitStack() as cleanup:  # runs every step, whatever fails, in reverse order
            for name in ("_runtime", "_engine", "_context"):  # each depends on the one before
                cleanup.callback(vars(self).pop, name, None)
            for shared in self._shared:
                cleanup.callback(shared.release)
            for resource in (self._resources, self._graph):
                if resource is not None:
                    cleanup.callback(resource.close)
            self._shared, self._host, self._device, self._graph, self._resources = [], {}, {}, None, None

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        with self._encoding:
            self._check_open()
            return encode_in_batches(images, self._host, self._round_trip, class_token)

    def _round_trip(self) -> None:
        """Run one batch. The owner thread does other work between batches."""

        def enqueue(device: Device) -> Event:
            self._check_open()
            if self._graph is not None:
                self._graph.launch(self._stream)
            else:
                self._enqueue(device)
            self._done.record(self._stream)
            return self._done

        self._owner.submit(enqueue, lambda _: self._done.synchronize())

    def _check_open(self) -> None:
        if not self._host:
            raise closed_error(self.name)


class SharedContext:
    """A :class:`~visionad_runtime.cuda.interface.DeviceEngine` in a context of its own. Every call is a whole batch."""

    def __init__(self, api: TensorRT, context: trt.IExecutionContext, batch_size: int, capturable: bool) -> None:
        self._api = api
        self._context: trt.IExecutionContext | None = context
        self.max_rows, self.capturable = batch_size, capturable

    def enqueue(self, images: int, patch: int, cls: int, rows: int, stream: Any) -> None:
        """See :class:`~visionad_runtime.cuda.interface.DeviceEngine`.

        Raises:
            VisionADError: ``rows`` is not the batch size, or the engine was closed.
            ModelError: TensorRT refuses.
        """
        if self._context is None:
            raise closed_error(self._api.backend)
        if rows != self.max_rows:
            raise VisionADError(f"{self._api.backend}: expected {self.max_rows} images a call, got {rows}")
        for name, address in (("images", images), ("patch_tokens", patch), ("class_token", cls)):
            if not self._context.set_tensor_address(name, address):
                raise ModelError(f"{self._api.backend} refuses a buffer for {name}{self._api.why()}")
        if not self._context.execute_async_v3(stream.handle):
            raise ModelError(f"{self._api.backend} failed to run{self._api.why()}; run `visionad doctor`")

    def release(self) -> None:
        """Destroy the context, on the owner thread."""
        self._context = None


def _describe(memory: Mapping[str, int], contexts: int) -> str:
    """Describe memory for people: ``weights 80 MiB, activation 2 x 12 MiB``. Each context has its own activations."""
    parts = []
    for name, nbytes in memory.items():
        times = f"{contexts} x " if name == "activation_bytes" and contexts > 1 else ""
        parts.append(f"{name.removesuffix('_bytes')} {times}{nbytes / 2**20:.0f} MiB")
    return ", ".join(parts)


def _logged_steps(name: str) -> Callable[[], None]:
    """Return a callback for the 100 steps of a build that logs every quarter."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done % 25 == 0:
            log.info("%s: building, %d %%", name, done)

    return step
