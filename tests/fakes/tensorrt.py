"""Stand-ins for TensorRT 10.x, 11.x and TensorRT-RTX that build from a real ONNX file, run it on the fake GPU, and reject what the
real release rejects: names it does not have, weakly typed switches, no-op caches, addresses outside live buffers, foreign plans.
"""

from __future__ import annotations

import enum
import functools
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.files import sha256_file

from tests.data import cpu_session
from tests.fakes.gpu import FakeDevice

onnx = pytest.importorskip("onnx", reason="it parses networks with onnx")

Outputs = dict[str, NDArray[np.float32]]
MAGIC = b"fake plan "
VERSIONS = {"10": "10.3.0", "11": "11.4.0", "rtx": "1.7.1.116"}


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64, BOOL = range(5)


class LayerType(enum.Enum):
    CONVOLUTION, MATRIX_MULTIPLY, SOFTMAX, ELEMENTWISE = range(4)


_ONNX_TYPES = {1: DataType.FLOAT, 10: DataType.HALF, 16: DataType.BF16}
_LAYERS = {
    "MatMul": LayerType.MATRIX_MULTIPLY,
    "Gemm": LayerType.MATRIX_MULTIPLY,
    "Conv": LayerType.CONVOLUTION,
    "Softmax": LayerType.SOFTMAX,
}
_WORDS = {
    DataType.FLOAT: ("Float", "Row major linear FP32 format"),
    DataType.HALF: ("Half", "Half"),
    DataType.BF16: ("BFloat16", "BFloat16"),
}


class Closed:
    """Only what is declared can be read or set, as in a native class."""

    def __setattr__(self, name: str, value: object) -> None:
        if not any(name in vars(c) or name in vars(c).get("__annotations__", {}) for c in type(self).__mro__):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        super().__setattr__(name, value)


class OnGpu:
    """Memory on the GPU that lives as long as this object."""

    def __init__(self, nbytes: int) -> None:
        assert FakeDevice.current is not None
        self._buffer = FakeDevice.current.alloc(nbytes)

    def __del__(self) -> None:
        if hasattr(
            self, "_buffer"
        ):  # on any thread: TensorRT frees by the CUDA runtime, which has the context everywhere
            self._buffer.device._buffers.pop(self._buffer.ptr, None)


class HostMemory(bytearray):
    @property
    def nbytes(self) -> int:
        return len(self)


def make(flavour: str, version: str | None = None) -> Any:
    """A module. Its knobs: ``realise`` (graph type → type that is built), ``tactic`` (name of every kernel), ``build_error`` and
    ``load_error`` and ``context_error`` (messages), ``fault`` (images, outputs → outputs). It records into ``calls``."""
    m: Any = ModuleType("tensorrt_rtx" if flavour == "rtx" else "tensorrt")
    m.__version__ = version or VERSIONS[flavour]
    m.calls = []
    m.realise = {}
    m.tactic = "kernel"
    m.build_error = m.load_error = m.context_error = None
    m.details = True
    m.fused = True
    m.fault = None
    m.DataType, m.LayerType = DataType, LayerType
    rtx = flavour == "rtx"

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

        def __init__(self) -> None:
            self.ready = True

    class IProgressMonitor:
        def __init__(self) -> None:
            self.ready = True

    m.ILogger, m.IProgressMonitor = ILogger, IProgressMonitor
    typed = {
        "10": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        "11": {"PREFER_JIT_PYTHON_PLUGINS": 2},
        "rtx": {"STRONGLY_TYPED": 0},
    }
    m.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", typed[flavour])
    weak = {"FP16": 0, "INT8": 1, "BF16": 17, "OBEY_PRECISION_CONSTRAINTS": 9} if flavour == "10" else {}
    m.BuilderFlag = enum.IntEnum("BuilderFlag", {**weak, "TF32": 6, "REFIT": 4})
    m.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE TACTIC_DRAM")
    m.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    m.LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
    if flavour != "10":
        m.EngineStat = enum.Enum("EngineStat", "TOTAL_WEIGHTS_SIZE STRIPPED_WEIGHTS_SIZE")
    if rtx:
        m.ComputeCapability = enum.Enum("ComputeCapability", "NONE CURRENT SM75 SM80 SM86 SM89 SM120 SM121")
        m.DynamicShapesKernelSpecializationStrategy = enum.Enum("Strategy", "LAZY EAGER NONE")
    state: dict[str, Any] = {"logger": None}

    def register(logger: Any) -> Any:
        assert isinstance(logger, ILogger) and logger.ready, "expected an ILogger whose base __init__ was called"
        if state["logger"] is None:
            state["logger"] = logger
        elif state["logger"] is not logger:
            logger.log(
                ILogger.Severity.WARNING, "The logger passed in differs from one already registered and is ignored"
            )
        return state["logger"]

    def say(severity: str, text: str) -> None:
        state["logger"].log(ILogger.Severity[severity], text)

    class Tensor:
        def __init__(self, name: str, dtype: DataType, shape: tuple[int, ...]) -> None:
            self.name, self.dtype, self.shape = name, dtype, shape

    class Layer:
        def __init__(self, name: str, kind: LayerType, dtype: DataType) -> None:
            self.name, self.type, self._dtype = name, kind, dtype

        def get_input(self, index: int) -> Tensor:
            return Tensor("x", self._dtype, ())

    class Network(Closed):
        typed: bool
        path: Path
        layers: list[Layer]
        num_layers = property(lambda self: len(self.layers))

        def __init__(self, typed: bool) -> None:
            self.typed, self.layers = typed, []

        def get_layer(self, index: int) -> Layer:
            return self.layers[index]

    class Profile(Closed):
        shapes: tuple[Any, ...]

        def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
            assert name == "images" and tuple(low) <= tuple(best) <= tuple(high)
            self.shapes = (tuple(low), tuple(best), tuple(high))

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def serialize(self) -> HostMemory:
            return HostMemory(b"timings " + m.__version__.encode())

    class Config(Closed):
        flags: set[int]
        profiles: list[Profile]
        pools: dict[Any, int]
        timing: Any
        targets: list[Any]
        profiling_verbosity = m.ProfilingVerbosity.LAYER_NAMES_ONLY
        progress_monitor: Any = None
        if rtx:
            num_compute_capabilities = 0

        def __init__(self) -> None:
            self.flags, self.profiles, self.pools, self.timing, self.targets = {6}, [], {}, None, []

        def set_flag(self, flag: Any) -> None:
            self.flags.add(int(m.BuilderFlag(flag)))

        def clear_flag(self, flag: Any) -> None:
            self.flags.discard(int(m.BuilderFlag(flag)))

        def get_flag(self, flag: Any) -> bool:
            return int(flag) in self.flags

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            assert size > 0
            self.pools[pool] = size

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, data: bytes) -> TimingCache | None:
            assert not rtx, "timing caches do nothing in TensorRT-RTX"
            m.calls.append(("timing cache", bytes(data)))
            return TimingCache(data)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            fits = cache.data in (b"", b"timings " + m.__version__.encode())
            self.timing = cache if fits else self.timing
            return fits

        def get_timing_cache(self) -> TimingCache:
            return self.timing

        if rtx:

            def set_compute_capability(self, capability: Any, index: int) -> bool:
                assert index < self.num_compute_capabilities
                self.targets.append(capability.name)
                return True

    class Builder(Closed):
        def __init__(self, logger: Any) -> None:
            register(logger)
            if not rtx:
                assert FakeDevice.current is not None, "TensorRT builds on a GPU only"
                FakeDevice.current.check()

        def create_network(self, flags: int = 0) -> Network:
            known = m.NetworkDefinitionCreationFlag.__members__
            assert flags >> 8 == 0 and all(flags >> bit & 1 == 0 or bit in map(int, known.values()) for bit in range(8))
            strongly = flavour == "11" or bool(flags >> int(known["STRONGLY_TYPED"]) & 1)
            m.calls.append(("create_network", flags))
            return Network(strongly)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
            m.calls.append(("build", sorted(config.flags)))
            if m.build_error:
                say("ERROR", m.build_error)
                say("ERROR", "a second error that follows from the first")
                return None
            if network.typed and config.flags & {0, 1, 17, 9}:
                say("ERROR", "strongly typed networks do not take precision flags")
                return None
            if not config.profiles:
                say("ERROR", "Network has dynamic shapes, but no optimization profile has been defined.")
                return None
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            for half in range(2):
                monitor.phase_start("Timing tactics", "Building engine", 3)
                for step in range(3):
                    if not monitor.step_complete("Timing tactics", step):
                        return None
                monitor.phase_finish("Timing tactics")
                monitor.step_complete("Building engine", half)
            monitor.phase_finish("Building engine")
            device = FakeDevice.current
            layers = [
                (
                    layer.name,
                    layer.type.name,
                    (
                        m.realise.get(layer.get_input(0).dtype, layer.get_input(0).dtype)
                        if network.typed
                        else DataType.FLOAT
                    ).name,
                )
                for layer in network.layers
            ]
            plan = {
                "flavour": flavour,
                "version": m.__version__,
                "gpu": None if rtx or device is None else device.name,
                "targets": config.targets,
                "onnx": str(network.path),
                "sha256": sha256_file(network.path),
                "profile": config.profiles[0].shapes,
                "detailed": config.profiling_verbosity is m.ProfilingVerbosity.DETAILED and m.details,
                "tf32": 6 in config.flags,
                "layers": layers,
            }
            engine = Engine(plan)
            say("INFO", "Total Activation Memory: 4096 bytes\nTotal Weights Memory: 8192 bytes")
            say("VERBOSE", "Layers:\n" + engine.oneline())
            return HostMemory(MAGIC + json.dumps(plan).encode())

    class Parser(Closed):
        network: Network
        errors: list[str]
        num_errors = property(lambda self: len(self.errors))

        def __init__(self, network: Network, logger: Any) -> None:
            register(logger)
            self.network, self.errors = network, []

        def get_error(self, index: int) -> str:
            return self.errors[index]

        def parse_from_file(self, path: str) -> bool:
            try:
                model = onnx.shape_inference.infer_shapes(onnx.load(path))
            except Exception as exc:
                self.errors.append(f"{type(exc).__name__} in {path}")
                return False
            values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
            types = {v.name: v.type.tensor_type.elem_type for v in values}
            types |= {i.name: i.data_type for i in model.graph.initializer}
            for node in model.graph.node:
                kind = _LAYERS.get(node.op_type, LayerType.ELEMENTWISE)
                dtype = _ONNX_TYPES.get(types.get(node.input[0], 0) if node.input else 0, DataType.INT64)
                self.network.layers.append(Layer(node.name, kind, dtype))
            self.network.path = Path(path)
            return True

    class Inspector:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine

        def get_engine_information(self, kind: Any) -> str:
            assert kind is m.LayerInformationFormat.JSON
            return self._engine.json()

    class Engine:
        def __init__(self, plan: dict[str, Any]) -> None:
            self.plan = plan
            self.weights: OnGpu | None = None
            graph = onnx.load(plan["onnx"]).graph
            shapes = {t.name: t.type.tensor_type.shape.dim for t in (*graph.input, *graph.output)}
            self.tensors = {name: [-1, *(d.dim_value for d in dims[1:])] for name, dims in shapes.items()}
            self.num_io_tensors = len(self.tensors)
            setattr(self, "device_memory_size" if flavour == "10" else "device_memory_size_v2", 4096)

        @functools.cached_property
        def session(self) -> Any:
            return cpu_session(self.plan["onnx"])

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(self.tensors[name])

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType.FLOAT

        def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
            assert (name, index) == ("images", 0)
            return [tuple(s) for s in self.plan["profile"]]

        if flavour != "10":

            def get_engine_stat(self, stat: Any) -> int:
                return 8192

        def create_engine_inspector(self) -> Inspector:
            return Inspector(self)

        def _layers(self) -> list[tuple[str, str, str, DataType]]:
            """Name, kind, tactic, type, as a builder fuses them: products of attention vanish into `_gemm_mha_v2`."""
            found = []
            for name, kind, dtype in self.plan["layers"]:
                if kind == "SOFTMAX" and m.fused:
                    found.append(("_gemm_mha_v2_myl0_1", "kgen", "_gemm_mha_v2_0x1", DataType[dtype]))
                elif kind in ("MATRIX_MULTIPLY", "CONVOLUTION"):
                    found.append((name + "_myl0_1", "gemm", m.tactic, DataType[dtype]))
                else:
                    found.append(("__myl_Add_myl0_1", "kgen", "", DataType.FLOAT))
            return found

        def json(self) -> str:
            layers = self._layers()
            if not self.plan["detailed"]:
                return json.dumps({"Layers": [name for name, *_ in layers], "Bindings": list(self.tensors)})

            def tensor(dtype: DataType) -> dict[str, Any]:
                word, old = _WORDS.get(dtype, (dtype.name, dtype.name))
                shape = {"Name": "x", "Dimensions": [-1, 4, 4]}
                return (
                    {**shape, "Format/Datatype": old}
                    if flavour == "10"
                    else {**shape, "Datatype": word, "Format": "(Linear)"}
                )

            alpha = {
                "Name": "alpha",
                "Dimensions": [1],
                "Format/Datatype": "Float",
            }  # 10.x lists scalars among the inputs
            return json.dumps(
                {
                    "Layers": [
                        {
                            "Name": name,
                            "LayerType": kind,
                            "Inputs": [*([alpha] if flavour == "10" else []), tensor(dtype)],
                            "Outputs": [tensor(dtype)],
                            "TacticName": tactic,
                        }
                        for name, kind, tactic, dtype in layers
                    ]
                }
            )

        def oneline(self) -> str:
            lines = []
            for name, kind, tactic, dtype in self._layers():
                word = _WORDS.get(dtype, (dtype.name,))[0]
                io = f"[ {{ Name: x, Dimensions: [-1,4], Strides: [4,1], Datatype: {word}, Format: (Linear) Row major }}]"
                lines.append(
                    f"Name: {name}, LayerType: {kind}, Inputs: {io}, Constants: [], Outputs: {io}, TacticName: {tactic}, "
                    "StreamId: 0"
                )
            lines += ["", "I/O Tensors:"]
            for name, shape in self.tensors.items():
                mode = "Input" if name == "images" else "Output"
                sides = (",".join(map(str, s)) for s in self.plan["profile"])
                low, best, high = sides
                extra = f"MinShape: [{low}], OptShape: [{best}], MaxShape: [{high}], " if mode == "Input" else ""
                dims = ",".join(map(str, shape))
                lines.append(
                    f" Name: {name}, IOMode: {mode}, DataType: Float, Dimensions: [{dims}], Location: Device, "
                    f"IsShapeInferenceIO: false, ProfileInfo: [ {{ {extra}Format: Row major linear FP32 format (kLINEAR) }}]"
                )
            return "\n".join(lines)

        if rtx:

            def create_runtime_config(self) -> RuntimeConfig:
                return RuntimeConfig()

        def create_execution_context(self, config: Any = None) -> Context | None:
            assert (config is not None) == rtx
            if m.context_error:
                say("ERROR", m.context_error)
                return None
            try:
                return Context(self, config)
            except VisionADError as exc:
                say("ERROR", str(exc))
                return None

    class RuntimeCache:
        def __init__(self) -> None:
            self.data = b""

        def deserialize(self, data: bytes) -> bool:
            self.data = bytes(data)
            return True

        def serialize(self) -> HostMemory:
            return HostMemory(b"jit of " + m.__version__.encode())

    class RuntimeConfig(Closed):
        dynamic_shapes_kernel_specialization_strategy: Any = None
        cache: Any = None

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> None:
            self.cache = cache

    class Context:
        def __init__(self, engine: Engine, config: Any) -> None:
            self.engine, self.config = engine, config
            self.activations = OnGpu(4096)
            self.addresses: dict[str, int] = {}
            self.shape: tuple[int, ...] | None = None
            if config is not None:
                assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
                m.calls.append(("jit", config.cache.data))

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self.engine.plan["profile"]
            fits = name == "images" and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
            self.shape = tuple(shape) if fits else self.shape
            return fits

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return name in self.engine.tensors

        if rtx:

            def is_stream_capturable(self, stream: int) -> bool:
                return True

        def execute_async_v3(self, handle: int) -> bool:
            assert FakeDevice.current is not None
            stream = FakeDevice.current.stream_of(handle)
            if self.shape is None or set(self.addresses) != set(self.engine.tensors):
                say("ERROR", "not all shapes and addresses are set")
                return False
            alive, addresses = weakref.ref(self), dict(self.addresses)  # as they are now, in a recorded graph too

            def work() -> None:
                context = alive()
                assert context is not None, "runs in an execution context that was destroyed"
                context._run(addresses)

            stream.add(work)
            return True

        def _array(self, name: str, address: int) -> NDArray[np.float32]:
            assert FakeDevice.current is not None and self.shape is not None
            shape = (self.shape[0], *self.engine.tensors[name][1:])
            return FakeDevice.current.read(address, np.float32, *shape)

        def _run(self, at: dict[str, int]) -> None:
            images = self._array("images", at["images"])
            names = [n for n in self.engine.tensors if n != "images"]
            rows = [self.engine.session.run(names, {"images": images[i : i + 1].copy()}) for i in range(len(images))]
            outputs = {n: np.concatenate([r[i] for r in rows]) for i, n in enumerate(names)}
            fault: Callable[[NDArray[np.float32], Outputs], Outputs] | None = m.fault
            for name, value in (fault(images, outputs) if fault else outputs).items():
                self._array(name, at[name])[...] = value

    class Runtime:
        def __init__(self, logger: Any) -> None:
            register(logger)

        def deserialize_cuda_engine(self, data: Any) -> Engine | None:
            device = FakeDevice.current
            assert device is not None
            device.check()
            raw = bytes(data)
            if m.load_error:
                say("ERROR", m.load_error)
                return None
            if not raw.startswith(MAGIC):
                say("ERROR", "Magic tag does not match")
                return None
            plan = json.loads(raw[len(MAGIC) :])
            if (plan["flavour"], plan["version"]) != (flavour, m.__version__):
                say("ERROR", f"Version tag does not match: engine {plan['version']}, library {m.__version__}")
                return None
            here = f"SM{device.capability[0]}{device.capability[1]}"
            if (
                (plan["gpu"] not in (None, device.name))
                or (plan["targets"] and here not in plan["targets"])
                or (rtx and here == "SM90")
            ):
                say(
                    "ERROR",
                    f"Platform (Cuda) mismatch: the engine does not support compute capability {device.capability}",
                )
                return None
            engine = Engine(plan)
            try:
                engine.weights = OnGpu(8192)
            except VisionADError as exc:
                say("ERROR", str(exc))
                return None
            return engine

    m.Builder, m.OnnxParser, m.Runtime = Builder, Parser, Runtime
    return m


def rolled(_: NDArray[np.float32], outputs: Outputs) -> Outputs:
    """Each row comes back one place too late."""
    return {n: np.roll(v, 1, axis=0) for n, v in outputs.items()}


def reversed_rows(_: NDArray[np.float32], outputs: Outputs) -> Outputs:
    """Rows of a call come back in another order."""
    return {n: v[::-1] for n, v in outputs.items()}


def constant(_: NDArray[np.float32], outputs: Outputs) -> Outputs:
    """Whatever is put in, the same comes out."""
    rng = np.random.default_rng(0)
    return {
        n: np.broadcast_to(rng.standard_normal(v.shape[1:]).astype(np.float32) / 14, v.shape)
        for n, v in outputs.items()
    }


def overflow(_: NDArray[np.float32], outputs: Outputs) -> Outputs:
    """Half precision ran over in one patch."""
    broken = {n: v.copy() for n, v in outputs.items()}
    broken["patch_tokens"][:, 3] = np.nan
    return broken


def neighbours(_: NDArray[np.float32], outputs: Outputs) -> Outputs:
    """The first row leaks a little into the others: each is still near the reference."""
    return {n: (v + 1e-3 * (v[:1] - v)).astype(np.float32) for n, v in outputs.items()}


def unequal_rows(_: NDArray[np.float32], outputs: Outputs) -> Outputs:
    """Identical rows in, different rows out (TensorRT#4853): all rows but the first are off."""
    return {n: np.concatenate([v[:1], v[1:] * np.float32(1.01)]) for n, v in outputs.items()}


def one_bad_place(_: NDArray[np.float32], outputs: Outputs) -> Outputs:
    """Only the last place of a call is off, by more than rounding."""
    broken = {n: v.copy() for n, v in outputs.items()}
    broken["patch_tokens"][-1] += np.float32(1e-4)
    return broken


def other_output(_: NDArray[np.float32], outputs: Outputs) -> Outputs:
    """Patches in another order."""
    return {**outputs, "patch_tokens": outputs["patch_tokens"][:, ::-1]}
