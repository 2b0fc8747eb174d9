"""Build TensorRT engines from a model folder: parse the graph, build, check the result, and store it in the cache.

An engine takes 1 to V images a call (V views). Its profile is optimised for V.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cuda.device import Device
from ...cuda.thread import DeviceThread
from ...errors import ModelError, VisionADError
from ...formats.files import atomic_write
from ...formats.manifest import ONNX_FILE, ModelManifest
from ..native import STDOUT, capture_fd
from . import inspection
from .api import PORTABLE, BuildProgress, Message, TensorRT, load_api
from .cache import EngineCache, EngineEntry, EngineNotFoundError

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger("visionad")

WORKSPACE_MIB = 4096
"""Scratch memory that a kernel may use, or half of the GPU's memory if that is less (a Jetson shares its memory)."""

_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")


def engine_key(api: TensorRT, manifest: ModelManifest, device: Device | None, capability: str) -> dict[str, Any]:
    """Return everything that determines an engine: its cache key.

    Args:
        api: The library.
        manifest: The model's manifest.
        device: The GPU, if there is one.
        capability: The GPU's compute capability, or the target of a TensorRT-RTX engine.
    """
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
    """Return a device's compute capability, such as ``8.6``."""
    return f"{device.capability[0]}.{device.capability[1]}"


def build(
    folder: Path,
    manifest: ModelManifest,
    backend: str,
    capability: str | None = None,
    step: Callable[[], None] = lambda: None,
    rebuild: bool = False,
) -> tuple[EngineEntry, bool]:
    """Build an engine, or take it from the cache.

    Args:
        folder: The model folder.
        manifest: Its manifest.
        backend: The backend's name.
        capability: The target of a TensorRT-RTX engine. Default: all GPUs from 8.0 on, or the Turing GPU that is here.
        step: Called up to 100 times during the build.
        rebuild: Whether to build even if the cache has the engine.

    Returns:
        The engine, and whether it was built now.

    Raises:
        VisionADError: The library, the driver or memory is missing.
        ModelError: The graph's or the realized precision is not the manifest's. Then no engine is stored, only a report on it.
    """
    api = load_api(backend)
    cancelled = threading.Event()

    def work(device: Device | None, target: str) -> tuple[EngineEntry, bool]:
        cache, key = EngineCache(folder), engine_key(api, manifest, device, target)
        if rebuild:
            cache.drop(key)
        try:
            return cache.find(key), False
        except EngineNotFoundError:
            return _build(api, folder, manifest, device, key, cache, BuildProgress(step, cancelled)), True

    with ThreadPoolExecutor(1, "visionad-build") as pool:
        try:
            if not api.rtx:
                return DeviceThread.of(0).run(lambda device: work(device, capability_of(device)))
            # In another thread: in this one, TensorRT's callbacks would swallow a Ctrl-C, and the build would go on.
            return pool.submit(work, None, capability or _target_here()).result()
        except KeyboardInterrupt:
            cancelled.set()  # before the pool waits for the build
            raise


def _target_here() -> str:
    """Return the default target of TensorRT-RTX: the portable engine without a GPU, else :func:`default_target`."""
    try:
        return DeviceThread.of(0).run(default_target)
    except VisionADError:
        return PORTABLE


def default_target(device: Device) -> str:
    """Return the default target for a GPU: Turing needs its own engine, every other GPU takes the portable one."""
    return capability_of(device) if device.capability < (8, 0) else PORTABLE


def _build(
    api: TensorRT,
    folder: Path,
    manifest: ModelManifest,
    device: Device | None,
    key: dict[str, Any],
    cache: EngineCache,
    progress: BuildProgress,
) -> EngineEntry:
    started = time.perf_counter()
    module, path = api.module, folder / ONNX_FILE
    printed: list[str] = []
    with api.collector.collect() as messages, capture_fd(STDOUT, printed):
        builder: trt.Builder = module.Builder(api.logger)
        network = api.create_network(builder)
        parser: trt.OnnxParser = module.OnnxParser(network, api.logger)
        if not parser.parse_from_file(str(path)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise ModelError(f"{path} cannot be read by {api.backend} {api.version}: {errors[:400]}; export it again")
        graph_types = _graph_types(network)
        inspection.check_graph(graph_types, manifest.precision, str(path))
        config = _configure(api, builder, manifest, key, progress)
        timing_file = _use_timing_cache(api, config, cache, key)
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
                listing = layer_information(engine, module)
                built = summarize_engine(engine, module)
                check_io(api, engine, manifest)
        else:
            built = inspection.summarize(inspection.layers_from_build_log(texts), inspection.memory_from_log(texts))
            _check_listed_io(inspection.io_from_log(texts), manifest, key["profile"])
        inspection.check_engine(built, graph_types, manifest.precision)
    except ModelError as exc:
        if (report := cache.save_rejected(f"{exc}\n\n{listing}\n")) is None:
            raise
        raise type(exc)(f"{exc} (layer by layer: {report})") from None
    seconds = time.perf_counter() - started
    facts = {
        "seconds": round(seconds, 1),
        "graph": graph_types,
        "attentions": sum(layer.type.name == "SOFTMAX" for layer in map(network.get_layer, range(network.num_layers))),
        **asdict(built),
    }
    entry = cache.store(key, memoryview(plan), facts, _build_log(key, facts, messages, printed, progress))
    if timing_file is not None:
        save_results(timing_file, config.get_timing_cache())
    return entry


def _configure(
    api: TensorRT, builder: trt.Builder, manifest: ModelManifest, key: dict[str, Any], progress: BuildProgress
) -> trt.IBuilderConfig:
    """Return the builder's configuration for a key."""
    module = api.module
    config = builder.create_builder_config()
    config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, key["options"]["workspace_mib"] * 2**20)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # the inspector needs it to list layers
    config.progress_monitor = progress.monitor(module)
    api.choose_tf32(config, manifest.precision == "tf32")
    api.choose_target(config, key["capability"])
    shapes: list[Any] = [(n, *_sides(manifest)) for n in key["profile"]]
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *shapes)
    config.add_optimization_profile(profile)
    return config


def _sides(manifest: ModelManifest) -> tuple[int, int, int]:
    side = manifest.identity.preprocess.crop
    return 3, side, side


def _graph_types(network: trt.INetworkDefinition) -> dict[str, int]:
    """Count the matrix products and convolutions of a parsed graph by the type of their input."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    types = (inspection.type_name(layer.get_input(0).dtype.name) for layer in layers if layer.type.name in _PRODUCTS)
    return dict(Counter(types).most_common())


def _use_timing_cache(
    api: TensorRT, config: trt.IBuilderConfig, cache: EngineCache, key: dict[str, Any]
) -> Path | None:
    """Give the builder its earlier measurements on this GPU. Return where to save the new ones; ``None`` for TensorRT-RTX."""
    if api.rtx:
        return None
    name = hashlib.sha256(f"{api.version} {key['gpu']} {key['capability']} {key['platform']}".encode()).hexdigest()
    path = cache.folder / f"timing-{name[:16]}.cache"
    try:
        measurements = path.read_bytes()
    except OSError:
        measurements = b""
    timing = config.create_timing_cache(measurements)
    if timing is None or not config.set_timing_cache(timing, False):  # damaged, or from another build of the library
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path


def summarize_engine(engine: trt.ICudaEngine, module: Any) -> inspection.EngineSummary:
    """Summarise an engine by its inspector.

    Raises:
        ModelError: The engine has no layer details.
    """
    size: Any = getattr(engine, "device_memory_size_v2", None)  # older 10.x have only the name that 11 removed
    memory = {"activation_bytes": int(engine.device_memory_size if size is None else size)}
    stat: Any = getattr(module, "EngineStat", None)
    if stat is not None:
        newer: Any = engine  # not in 10.x
        memory["weights_bytes"] = int(newer.get_engine_stat(stat.TOTAL_WEIGHTS_SIZE))
    return inspection.summarize(inspection.layers_from_inspector(layer_information(engine, module)), memory)


def layer_information(engine: trt.ICudaEngine, module: Any) -> str:
    """Return an engine's layers as the JSON of its inspector."""
    text: str = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return text


def expected_io(manifest: ModelManifest) -> dict[str, list[int]]:
    """Return the shapes of the engine's tensors by name; -1 is the batch."""
    identity = manifest.identity
    return {
        "images": [-1, *_sides(manifest)],
        "patch_tokens": [-1, identity.grid**2, identity.dim],
        "class_token": [-1, identity.class_token_dim],
    }


def _with_dynamic_batch(shape: list[int], manifest: ModelManifest) -> list[int]:
    """Return the shape with a dynamic batch. For a profile of one image, nothing is dynamic, and TensorRT-RTX reports 1."""
    return [-1, *shape[1:]] if len(manifest.views) == 1 and shape[0] == 1 else shape


def _sizes(dims: trt.Dims) -> list[int]:
    return [int(dims[i]) for i in range(len(dims))]


def check_io(api: TensorRT, engine: trt.ICudaEngine, manifest: ModelManifest) -> None:
    """Check an engine's tensors and its profile.

    Raises:
        ModelError: They are not the model's.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    got = {n: _with_dynamic_batch(_sizes(engine.get_tensor_shape(n)), manifest) for n in names}
    expected = expected_io(manifest)
    types = {n: inspection.type_name(engine.get_tensor_dtype(n).name) for n in names}
    if got != expected or set(types.values()) != {"fp32"}:
        raise ModelError(
            f"{api.backend} engine: expected fp32 tensors {expected}, got {got} of {types}; build it again"
        )
    batches = [shape[0] for shape in engine.get_tensor_profile_shape("images", 0)]
    if batches != [1, len(manifest.views), len(manifest.views)]:
        raise ModelError(
            f"{api.backend} engine: expected 1 to {len(manifest.views)} images a call, got {batches}; build it again"
        )


def _check_listed_io(listed: dict[str, dict[str, Any]], manifest: ModelManifest, profile: Sequence[int]) -> None:
    expected: dict[str, dict[str, Any]] = {
        name: {"mode": "Output", "type": "fp32", "shape": shape} for name, shape in expected_io(manifest).items()
    }
    expected["images"] |= {"mode": "Input", "profile": [[n, *_sides(manifest)] for n in profile]}
    got = {name: {**tensor, "shape": _with_dynamic_batch(tensor["shape"], manifest)} for name, tensor in listed.items()}
    if got != expected:
        raise ModelError(f"the engine's tensors are not the model's: expected {expected}, got {got}; export it again")


def _build_log(
    key: dict[str, Any],
    facts: dict[str, Any],
    messages: Sequence[Message],
    printed: Sequence[str],
    progress: BuildProgress,
) -> str:
    lines = [f"{key['backend']} {key['builder']} engine, built in {facts['seconds']} s", ""]
    lines += [f"{name:<12} {value}" for name, value in key.items()]
    lines += ["", "realized"]
    lines += [f"  {name:<16} {value}" for name, value in facts.items() if name != "seconds"]
    lines += ["", "phases (steps)"]
    lines += [f"  {name} ({steps})" for name, steps in progress.finished]
    lines += ["", "messages of the builder"]
    lines += [f"  {m.severity:<8} {' '.join(m.text.split())}" for m in messages if m.severity != "VERBOSE"]
    lines += [f"  PRINTED  {line}" for line in printed]
    return "\n".join(lines) + "\n"


def save_results(path: Path, results: Any) -> bytes:
    """Save measurements or compiled kernels for the next start. If that fails, only the next start takes longer.

    Args:
        path: The file.
        results: TensorRT's object with ``serialize``.

    Returns:
        The serialised bytes.
    """
    data = memoryview(results.serialize()).tobytes()
    try:
        atomic_write(path, data)
    except VisionADError as exc:
        log.info("not saved: %s", exc)
    return data
