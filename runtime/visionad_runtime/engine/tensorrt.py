"""TensorRT 10.x, 11.x and TensorRT-RTX: one implementation; what differs between them is in ``nvidia.py``.

An engine serves 1 to V pictures a call (V views), in a profile that is optimal at V. All calls of an opened backend have the same
size, the views of one picture: the same kernels see the same shapes whatever the batch, so a result cannot depend on it.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..artefacts import ONNX_FILE, ModelManifest, atomic_write
from ..cuda.device import Buffer, Device, Event, Graph, Owner, Stream
from ..cuda.memory import Memory
from ..errors import ModelError, VisionADError
from . import Tokens, closed, encode_groups, realised
from .cache import EngineCache, Entry, NoEngineError
from .native import STDOUT, captured
from .nvidia import PORTABLE, Api, Message, Progress, UnfitEngineError, load_api

if TYPE_CHECKING:
    import tensorrt as trt

    from ..cuda.interface import DeviceEngine

log = logging.getLogger("visionad")

WORKSPACE_MIB = 4096
"""Scratch memory a kernel may ask for while it is chosen; half of the GPU's where that is less (a Jetson shares its memory)."""

_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")


def parts_of(api: Api, manifest: ModelManifest, device: Device | None, capability: str) -> dict[str, Any]:
    """All that decides an engine: its cache key. ``capability`` is the GPU's, or what a TensorRT-RTX engine is to be for."""
    workspace = WORKSPACE_MIB if device is None else min(WORKSPACE_MIB, device.total_memory // 2**21)
    return {
        "backend": api.backend,
        "builder": api.version,
        "platform": f"{sys.platform}-{platform.machine()}",
        "gpu": None if api.rtx or device is None else device.name,
        "capability": capability,
        "onnx": {name: sha for name, sha in manifest.files.items() if name.startswith(ONNX_FILE)},
        "precision": manifest.precision,
        "profile": [1, len(manifest.views), len(manifest.views)],
        "options": {"workspace_mib": WORKSPACE_MIB if api.rtx else workspace, "verbosity": "detailed"},
    }


def capability_of(device: Device) -> str:
    """``8.6``."""
    return f"{device.capability[0]}.{device.capability[1]}"


def build(
    folder: Path,
    manifest: ModelManifest,
    backend: str,
    capability: str | None = None,
    step: Callable[[], None] = lambda: None,
    rebuild: bool = False,
) -> tuple[Entry, bool]:
    """Build an engine, or take it from the cache.

    Args:
        capability: TensorRT-RTX only: what it is for (default: all GPUs from 8.0 on, or the Turing GPU that is here).
        step: called up to 100 times while it goes on.
        rebuild: even if there is one.

    Returns:
        The engine, and whether it was built now.

    Raises:
        VisionADError: library, driver or memory is missing. ModelError: the graph or the realised precision is not what the
            manifest promises; no engine is kept then, but a listing of one that was built.
    """
    api = load_api(backend)
    cancelled = threading.Event()

    def work(device: Device | None, target: str) -> tuple[Entry, bool]:
        cache, parts = EngineCache(folder), parts_of(api, manifest, device, target)
        if rebuild:
            cache.drop(parts)
        try:
            return cache.find(parts), False
        except NoEngineError:
            return _build(api, folder, manifest, device, parts, cache, Progress(step, cancelled)), True

    with ThreadPoolExecutor(1, "visionad-build") as pool:
        try:
            if not api.rtx:
                return Owner.of(0).run(lambda device: work(device, capability_of(device)))
            # not in this thread: TensorRT's callbacks would swallow a Ctrl-C, and the build would go on
            return pool.submit(work, None, capability or _default_target()).result()
        except KeyboardInterrupt:
            cancelled.set()  # before the pool waits for it
            raise


def _default_target() -> str:
    """Turing needs an engine of its own; everything else, and a PC without a GPU, the portable one."""
    try:
        return Owner.of(0).run(_rtx_target)
    except VisionADError:
        return PORTABLE


def _rtx_target(device: Device) -> str:
    return capability_of(device) if device.capability < (8, 0) else PORTABLE


def _build(
    api: Api,
    folder: Path,
    manifest: ModelManifest,
    device: Device | None,
    parts: dict[str, Any],
    cache: EngineCache,
    progress: Progress,
) -> Entry:
    started = time.perf_counter()
    module, path = api.module, folder / ONNX_FILE
    printed: list[str] = []
    with api.collector.collect() as messages, captured(STDOUT, printed):
        builder: trt.Builder = module.Builder(api.logger)
        network = api.create_network(builder)
        parser: trt.OnnxParser = module.OnnxParser(network, api.logger)
        if not parser.parse_from_file(str(path)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise ModelError(f"{path} cannot be read by {api.backend} {api.version}: {errors[:400]}; export it again")
        graph_types = _graph_types(network)
        realised.check_graph(graph_types, manifest.precision, str(path))
        config = _configure(api, builder, manifest, parts, progress)
        timing_file = _use_timing_cache(api, config, cache, parts)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise api.failure("to build an engine", messages)
    texts = [m.text for m in messages]
    listing = "\n".join(texts)
    try:
        if device is not None:
            with api.collector.collect() as loading:
                runtime: trt.Runtime = module.Runtime(api.logger)
                engine = runtime.deserialize_cuda_engine(plan)
                if engine is None:
                    raise api.failure("to load the engine it has just built", loading)
                listing = inspected(engine, module)
                built = read_back(engine, module)
                _check_io(api, engine, manifest)
        else:
            built = realised.summarise(realised.from_log(texts), realised.memory_from_log(texts))
            _check_listed_io(realised.io_from_log(texts), manifest, parts["profile"])
        realised.check_engine(built, graph_types, manifest.precision)
    except ModelError as exc:
        if (kept := cache.keep_refused(f"{exc}\n\n{listing}\n")) is None:
            raise
        raise type(exc)(f"{exc} (layer by layer: {kept})") from None
    seconds = time.perf_counter() - started
    facts = {
        "seconds": round(seconds, 1),
        "graph": graph_types,
        "attentions": sum(layer.type.name == "SOFTMAX" for layer in map(network.get_layer, range(network.num_layers))),
        **asdict(built),
    }
    entry = cache.store(parts, memoryview(plan), facts, _build_log(parts, facts, messages, printed, progress))
    if timing_file is not None:
        _keep(timing_file, config.get_timing_cache())
    return entry


def _configure(
    api: Api, builder: trt.Builder, manifest: ModelManifest, parts: dict[str, Any], progress: Progress
) -> trt.IBuilderConfig:
    """How to build: what ``parts`` says, and a listing of what was."""
    module = api.module
    config = builder.create_builder_config()
    config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, parts["options"]["workspace_mib"] * 2**20)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # or the inspector could not say what was built
    config.progress_monitor = progress.monitor(module)
    api.choose_tf32(config, manifest.precision == "tf32")
    api.choose_target(config, parts["capability"])
    shapes: list[Any] = [(n, *_sides(manifest)) for n in parts["profile"]]
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *shapes)
    config.add_optimization_profile(profile)
    return config


def _sides(manifest: ModelManifest) -> tuple[int, int, int]:
    side = manifest.identity.preprocess.crop
    return 3, side, side


def _graph_types(network: trt.INetworkDefinition) -> dict[str, int]:
    """Matrix products and convolutions of a parsed graph, by the type they read."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    types = (realised.type_name(layer.get_input(0).dtype.name) for layer in layers if layer.type.name in _PRODUCTS)
    return dict(Counter(types).most_common())


def _use_timing_cache(api: Api, config: trt.IBuilderConfig, cache: EngineCache, parts: dict[str, Any]) -> Path | None:
    """Give the builder what it measured on this GPU before; returns where to keep what it measures now."""
    if api.rtx:
        return None
    name = hashlib.sha256(
        f"{api.version} {parts['gpu']} {parts['capability']} {parts['platform']}".encode()
    ).hexdigest()
    path = cache.folder / f"timing-{name[:16]}.cache"
    try:
        old = path.read_bytes()
    except OSError:
        old = b""
    timing = config.create_timing_cache(old)
    if timing is None or not config.set_timing_cache(timing, False):  # damaged, or of another build of the library
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path


def read_back(engine: trt.ICudaEngine, module: Any) -> realised.Realised:
    """What an engine is made of, by its inspector.

    Raises:
        ModelError: it carries no layer details.
    """
    size: Any = getattr(engine, "device_memory_size_v2", None)  # older 10.x have only the name that 11 dropped
    memory = {"activation_bytes": int(engine.device_memory_size if size is None else size)}
    stat: Any = getattr(module, "EngineStat", None)
    if stat is not None:
        newer: Any = engine  # not in 10.x
        memory["weights_bytes"] = int(newer.get_engine_stat(stat.TOTAL_WEIGHTS_SIZE))
    return realised.summarise(realised.from_json(inspected(engine, module)), memory)


def inspected(engine: trt.ICudaEngine, module: Any) -> str:
    """An engine's layers, as its inspector lists them in JSON."""
    text: str = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return text


def _wanted_io(manifest: ModelManifest) -> dict[str, list[int]]:
    identity = manifest.identity
    return {
        "images": [-1, *_sides(manifest)],
        "patch_tokens": [-1, identity.grid**2, identity.dim],
        "class_token": [-1, identity.class_token_dim],
    }


def _batch_open(shape: list[int], manifest: ModelManifest) -> list[int]:
    """A profile of one picture a call leaves nothing dynamic, and TensorRT-RTX then says 1 for the batch."""
    return [-1, *shape[1:]] if len(manifest.views) == 1 and shape[0] == 1 else shape


def _sizes(dims: trt.Dims) -> list[int]:
    return [int(dims[i]) for i in range(len(dims))]


def _check_io(api: Api, engine: trt.ICudaEngine, manifest: ModelManifest) -> None:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {n: _batch_open(_sizes(engine.get_tensor_shape(n)), manifest) for n in names}
    wanted = _wanted_io(manifest)
    types = {n: realised.type_name(engine.get_tensor_dtype(n).name) for n in names}
    if found != wanted or set(types.values()) != {"fp32"}:
        raise ModelError(
            f"{api.backend} engine: wanted fp32 tensors {wanted}, found {found} of {types}; build it again"
        )
    batches = [shape[0] for shape in engine.get_tensor_profile_shape("images", 0)]
    if batches != [1, len(manifest.views), len(manifest.views)]:
        raise ModelError(
            f"{api.backend} engine: wanted 1 to {len(manifest.views)} pictures a call, found {batches}; build it again"
        )


def _check_listed_io(found: dict[str, dict[str, Any]], manifest: ModelManifest, profile: Sequence[int]) -> None:
    wanted: dict[str, dict[str, Any]] = {
        name: {"mode": "Output", "type": "fp32", "shape": shape} for name, shape in _wanted_io(manifest).items()
    }
    wanted["images"] |= {"mode": "Input", "profile": [[n, *_sides(manifest)] for n in profile]}
    found = {name: {**one, "shape": _batch_open(one["shape"], manifest)} for name, one in found.items()}
    if found != wanted:
        raise ModelError(
            f"the engine's own tensors are not the model's: wanted {wanted}, found {found}; export it again"
        )


def _build_log(
    parts: dict[str, Any],
    facts: dict[str, Any],
    messages: Sequence[Message],
    printed: Sequence[str],
    progress: Progress,
) -> str:
    lines = [f"{parts['backend']} {parts['builder']} engine, built in {facts['seconds']} s", ""]
    lines += [f"{name:<12} {value}" for name, value in parts.items()]
    lines += ["", "realised"]
    lines += [f"  {name:<16} {value}" for name, value in facts.items() if name != "seconds"]
    lines += ["", "phases (steps)"]
    lines += [f"  {name} ({steps})" for name, steps in progress.finished]
    lines += ["", "messages of the builder"]
    lines += [f"  {m.severity:<8} {' '.join(m.text.split())}" for m in messages if m.severity != "VERBOSE"]
    lines += [f"  PRINTED  {line}" for line in printed]
    return "\n".join(lines) + "\n"


class TensorRTEngine:
    """A backbone on a GPU. All GPU work is done by the GPU's owner thread; any thread may call :meth:`encode`."""

    _context: Any

    def __init__(self, folder: Path, manifest: ModelManifest, backend: str, group: int) -> None:
        """Load the engine for this GPU from the cache; one that is missing, foreign or damaged is built, and the log says why.

        Args:
            group: pictures that belong together, the views of one: at most the model's number of views.

        Raises:
            VisionADError, ModelError: as :func:`build`; or the engine cannot be loaded on this GPU.
        """
        if not 1 <= group <= len(manifest.views):
            raise VisionADError(f"{backend}: wanted groups of 1 to {len(manifest.views)} pictures, found {group}")
        self.name = backend
        self.group = group
        self.details: dict[str, str] = {}
        self._api = load_api(backend)
        self._manifest = manifest
        self._owner = Owner.of(0)
        self._host: dict[str, NDArray[np.float32]] = {}
        self._device: dict[str, Buffer] = {}
        self._graph: Graph | None = None
        self._jit: bytes | None = None
        self._memory: Memory | None = None
        self._encoding = threading.Lock()
        self._others: list[OnDevice] = []
        entry, fresh = self._entry(folder)
        try:
            self._load(entry)
        except UnfitEngineError as exc:  # not out of memory: a good engine is not thrown away for that
            if fresh:
                raise
            log.warning("%s: the engine in the cache does not work here (%s); building it again", backend, exc)
            EngineCache(folder).drop(entry.parts)
            entry, _ = self._entry(folder)
            self._load(entry)

    def _entry(self, folder: Path) -> tuple[Entry, bool]:
        """The engine of this GPU, and whether it was built now. One for its compute capability alone comes first."""
        from ..cli.console import progress  # a bar on a terminal, nothing in a pipe

        cache = EngineCache(folder)
        default = self._owner.run(_rtx_target if self._api.rtx else capability_of)
        for target in dict.fromkeys((self._owner.run(capability_of), default)):
            try:
                return cache.find(self._owner.run(partial(self._parts, target))), False
            except NoEngineError as exc:
                miss = exc
        slow = "" if self._api.rtx else ", which takes minutes"
        log.warning("%s: %s; building one for this box%s", self.name, miss, slow)
        with progress(f"building {self.name}", 100) as step:
            return build(folder, self._manifest, self.name, default, step)

    def _parts(self, target: str, device: Device) -> dict[str, Any]:
        return parts_of(self._api, self._manifest, device, target)

    def _load(self, entry: Entry) -> None:
        """Take all that it needs, or nothing."""
        try:
            self._owner.run(lambda device: self._take(device, entry))
        except BaseException:
            self.close()
            raise

    def _take(self, device: Device, entry: Entry) -> None:
        # What lives on the GPU is held by this object alone: a variable here would live on in the trace of a failure.
        api, module, manifest = self._api, self._api.module, self._manifest
        with api.collector.collect() as messages:
            self._runtime: trt.Runtime = module.Runtime(api.logger)
            self._engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(entry.plan.read_bytes())
            if self._engine is None:
                raise api.failure(f"to load {entry.plan}", messages)
            _check_io(api, self._engine, manifest)
            built = read_back(self._engine, module)
            realised.check_engine(built, entry.built["graph"], manifest.precision)
            jit_file = (
                entry.folder / f"jit-{hashlib.sha256(f'{device.name} {device.driver}'.encode()).hexdigest()[:16]}.cache"
            )
            jit = jit_file.read_bytes() if jit_file.exists() else None
            self._context, jit_cache = api.create_context(self._engine, jit)
            if self._context is None:
                raise api.failure(f"to start {entry.plan}", messages)
            self._take_memory(device)
            self._enqueue()  # makes what it makes at the first call: kernels, handles, TensorRT-RTX's JIT
            self._stream.synchronize()
        if jit_cache is not None and jit is None:
            jit = _keep(jit_file, jit_cache)
        self._jit = jit
        self._built = built
        self._graph, graph = self._record(device)
        self.details |= {
            self.name: api.version,
            "gpu": f"{device.name} (compute capability {capability_of(device)}, driver for CUDA {device.driver})",
            "precision": built.describe(),
            "memory": _describe(built.memory, contexts=1),
            "engine": entry.folder.name[:12],
            "cuda graph": graph,
        }

    def _take_memory(self, device: Device) -> None:
        """Buffers, once. What a call copies lies in page-locked memory."""
        memory = self._memory = Memory(device)
        self._stream: Stream = memory.stream(device.stream())
        self._done: Event = memory.hold(device.event())
        shapes = {name: (self.group, *shape[1:]) for name, shape in _wanted_io(self._manifest).items()}
        if not self._context.set_input_shape("images", shapes["images"]):
            raise ModelError(
                f"{self.name} refuses {self.group} pictures a call{self._api.why()}; build the engine again"
            )
        for name, shape in shapes.items():
            host = self._host[name] = memory.pinned(shape, np.float32)
            buffer = self._device[name] = memory.hold(device.alloc(host.nbytes))
            if not self._context.set_tensor_address(name, buffer.ptr):
                raise ModelError(f"{self.name} refuses a buffer for {name}{self._api.why()}")
        self._host["images"][:] = 0

    def _record(self, device: Device) -> tuple[Graph | None, str]:
        """One CUDA graph for a whole call: copies and kernels start with one launch."""
        if not self._api.graph_allowed(self._context, self._stream.handle):
            return None, "no: this engine cannot be recorded"
        try:
            with device.capture(self._stream) as graph:
                self._enqueue(device)
        except VisionADError as exc:
            assert self._memory is not None
            self._stream = self._memory.stream(device.stream())  # a failed capture leaves its stream unusable
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
        """See :class:`~visionad_runtime.engine.Engine`. The chain's kernels need Ampere; Turing has the host's chain."""
        return self.on_device if self._owner.run(lambda device: device.capability) >= (8, 0) else None

    def on_device(self) -> OnDevice:
        """The engine in a context of its own: this one's recorded graph goes on using this one's memory.

        Raises:
            VisionADError: no memory for it, or closed.
        """
        return self._owner.run(lambda _: self._second())

    def _second(self) -> OnDevice:
        self._check_open()
        assert self._engine is not None
        with self._api.collector.collect() as messages:
            context, _ = self._api.create_context(self._engine, self._jit)
            shape = (self.group, *_wanted_io(self._manifest)["images"][1:])
            if context is None or not context.set_input_shape("images", shape):
                raise self._api.failure(f"to start {self.name} a second time", messages)
        self._others.append(OnDevice(self._api, context, self.group, capturable=self._graph is not None))
        self.details["memory"] = _describe(self._built.memory, contexts=1 + len(self._others))
        return self._others[-1]

    def close(self) -> None:
        """Give the GPU's memory back, that of :meth:`on_device` too; twice is harmless."""
        with self._encoding:
            self._owner.run(self._release)

    def _release(self, _: Device) -> None:
        with ExitStack() as rest:  # all of it, whatever fails; the last named goes first
            for name in ("_runtime", "_engine", "_context"):  # each lives in the one before
                rest.callback(vars(self).pop, name, None)
            for other in self._others:
                rest.callback(other.release)
            for part in (self._memory, self._graph):
                if part is not None:
                    rest.callback(part.close)
            self._others, self._host, self._device, self._graph, self._memory = [], {}, {}, None, None

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.Engine`."""
        with self._encoding:
            self._check_open()
            return encode_groups(images, self._host, self._round_trip, class_token)

    def _round_trip(self) -> None:
        """One group; the owner's thread serves cameras between two."""

        def begin(device: Device) -> Event:
            self._check_open()
            if self._graph is not None:
                self._graph.launch(self._stream)
            else:
                self._enqueue(device)
            self._done.record(self._stream)
            return self._done

        self._owner.serve(begin, lambda _: self._done.synchronize())

    def _check_open(self) -> None:
        if not self._host:
            raise closed(self.name)


class OnDevice:
    """The engine amid other work on the GPU: :class:`~visionad_runtime.cuda.interface.DeviceEngine`. Always whole groups."""

    def __init__(self, api: Api, context: trt.IExecutionContext, group: int, capturable: bool) -> None:
        self._api = api
        self._context: trt.IExecutionContext | None = context
        self.max_rows, self.capturable = group, capturable

    def enqueue(self, images: int, patch: int, cls: int, rows: int, stream: Any) -> None:
        """See :class:`~visionad_runtime.cuda.interface.DeviceEngine`.

        Raises:
            VisionADError: not a whole group, or the engine was closed. ModelError: the library refuses.
        """
        if self._context is None:
            raise closed(self._api.backend)
        if rows != self.max_rows:
            raise VisionADError(f"{self._api.backend}: wanted {self.max_rows} pictures a call, found {rows}")
        for name, address in (("images", images), ("patch_tokens", patch), ("class_token", cls)):
            if not self._context.set_tensor_address(name, address):
                raise ModelError(f"{self._api.backend} refuses a buffer for {name}{self._api.why()}")
        if not self._context.execute_async_v3(stream.handle):
            raise ModelError(f"{self._api.backend} failed to run{self._api.why()}; run `visionad doctor`")

    def release(self) -> None:
        """Let the context go, on the owner's thread."""
        self._context = None


def _describe(memory: Mapping[str, int], contexts: int) -> str:
    """``weights 80 MiB, activation 2 x 12 MiB``: each execution context has activations of its own."""
    parts = []
    for name, nbytes in memory.items():
        times = f"{contexts} x " if name == "activation_bytes" and contexts > 1 else ""
        parts.append(f"{name.removesuffix('_bytes')} {times}{nbytes / 2**20:.0f} MiB")
    return ", ".join(parts)


def _keep(path: Path, results: Any) -> bytes:
    """Keep what was measured or compiled for the next time; if it cannot be written, that only costs the next time."""
    data = memoryview(results.serialize()).tobytes()
    try:
        atomic_write(path, data)
    except VisionADError as exc:
        log.info("not kept: %s", exc)
    return data
