"""One API over TensorRT 10, TensorRT 11 and TensorRT-RTX. All differences between them are in this module.

============================  =====================  ==================  ==========================
..                            TensorRT 10.x          TensorRT 11.x       TensorRT-RTX 1.x
============================  =====================  ==================  ==========================
module                        ``tensorrt``           ``tensorrt``        ``tensorrt_rtx``
network is strongly typed     by a creation flag     always              by a creation flag
engine is for                 the GPU it was         the same            compute capabilities; the
                              built on                                   GPU's kernels come at load
timing cache                  yes                    yes                 does nothing
JIT results can be kept       no                     no                  yes, ``IRuntimeCache``
============================  =====================  ==================  ==========================

The weakly typed flags of 10.x (such as ``BuilderFlag.FP16``) are never used: the graph's types decide the precision.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ModelError, VisionADError
from ...system import has_nvidia_driver

if TYPE_CHECKING:
    import tensorrt as trt  # its published stubs (10.13) type what the releases share

log = logging.getLogger("visionad")


class Library(NamedTuple):
    """One of NVIDIA's two TensorRT libraries.

    Attributes:
        backend: The backend's name.
        module: The Python module.
        extra: The extra of this distribution that installs it.
        reinstall: The command that reinstalls a broken library. To install the extra again does nothing: its requirements are met.
        rtx: Whether it is TensorRT-RTX.
    """

    backend: str
    module: str
    extra: str
    reinstall: str
    rtx: bool


TENSORRT = Library("tensorrt", "tensorrt", "tensorrt", "pip install --force-reinstall tensorrt", rtx=False)
TENSORRT_RTX = Library(
    "tensorrt-rtx", "tensorrt_rtx", "rtx", "pip install --force-reinstall tensorrt-rtx-cu13", rtx=True
)
LIBRARIES = {library.backend: library for library in (TENSORRT, TENSORRT_RTX)}
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
PORTABLE = "portable"
"""One TensorRT-RTX engine for compute capability 8.0 and newer; Turing (7.5) needs its own."""


class IncompatibleEngineError(ModelError):
    """TensorRT rejects an engine, and a new build may succeed."""


class Message(NamedTuple):
    """A line of TensorRT's log. ``severity`` has TensorRT's name."""

    severity: str
    text: str


class LogCollector:
    """Target of the process's only TensorRT logger. TensorRT ignores every logger but the first."""

    def __init__(self) -> None:
        self.recent: deque[Message] = deque(maxlen=50)
        self._sinks: list[list[Message]] = []
        self._lock = threading.Lock()

    def write(self, severity: str, text: str) -> None:
        """Record a message. TensorRT calls this from any of its threads."""
        message = Message(severity, text.strip())
        with self._lock:
            if severity not in ("INFO", "VERBOSE"):
                self.recent.append(message)
            for sink in self._sinks:
                sink.append(message)

    @contextmanager
    def collect(self) -> Iterator[list[Message]]:
        """Collect every message within the block."""
        sink: list[Message] = []
        with self._lock:
            self._sinks.append(sink)
        try:
            yield sink
        finally:
            with self._lock:
                self._sinks = [s for s in self._sinks if s is not sink]


@dataclass(frozen=True)
class TensorRT:
    """An installed TensorRT.

    Attributes:
        backend: The backend's name.
        module: The Python module.
        version: Its version.
        logger: The process's logger of it, which writes to ``collector``.
        collector: Messages of the logger.
    """

    backend: str
    module: Any
    version: str
    logger: Any
    collector: LogCollector

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return LIBRARIES[self.backend].rtx

    def create_network(self, builder: trt.Builder) -> trt.INetworkDefinition:
        """Create an empty strongly typed network.

        Raises:
            VisionADError: This TensorRT has no strongly typed networks.
        """
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        if flag is None and (self.rtx or major(self.version) < 11):
            raise VisionADError(
                f"{self.backend} {self.version} has no strongly typed networks; expected TensorRT 10.3 or newer"
            )
        return builder.create_network(0 if flag is None else 1 << int(flag))

    def choose_tf32(self, config: trt.IBuilderConfig, allowed: bool) -> None:
        """Switch TF32. It is on by default in every release; here it is on only if the model's precision is TF32.

        Raises:
            VisionADError: The flag does not take effect.
        """
        flag = self.module.BuilderFlag.TF32
        (config.set_flag if allowed else config.clear_flag)(flag)
        if config.get_flag(flag) != allowed:
            raise VisionADError(
                f"{self.backend} {self.version} ignores the switch of TF32 to {'on' if allowed else 'off'}; use another release"
            )

    def choose_target(self, config: trt.IBuilderConfig, capability: str) -> None:
        """Set the GPUs that an engine is for: TensorRT-RTX builds for a compute capability, TensorRT for the GPU that is here.

        Raises:
            VisionADError: TensorRT-RTX does not know or refuses the compute capability.
        """
        if not self.rtx or capability == PORTABLE:
            return
        target = getattr(self.module.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if target is None:
            known = ", ".join(RTX_CAPABILITIES)
            raise VisionADError(f"tensorrt-rtx {self.version}: expected compute capability {known}, got {capability}")
        rtx_config: Any = config
        rtx_config.num_compute_capabilities = 1
        if not rtx_config.set_compute_capability(target, 0):
            raise VisionADError(f"tensorrt-rtx {self.version} refuses compute capability {capability}{self.why()}")

    def create_context(self, engine: trt.ICudaEngine, jit: bytes | None) -> tuple[trt.IExecutionContext | None, Any]:
        """Create an execution context.

        By default TensorRT-RTX first runs general kernels and replaces them later by specialised ones, which changes the last bits
        of results while a line is running. Here it specialises at once.

        Args:
            engine: The engine.
            jit: TensorRT-RTX's JIT results of an earlier start.

        Returns:
            The context (``None`` if TensorRT refuses), and the object that holds the JIT results.
        """
        if not self.rtx:
            return engine.create_execution_context(), None
        config: Any = engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = (
            self.module.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        cache = config.create_runtime_cache()
        if jit:
            cache.deserialize(jit)
        config.set_runtime_cache(cache)
        return engine.create_execution_context(config), cache

    def graph_allowed(self, context: trt.IExecutionContext, stream: int) -> bool:
        """Return whether the context's work can be recorded in a CUDA graph."""
        is_capturable: Any = getattr(context, "is_stream_capturable", None)
        return True if is_capturable is None else bool(is_capturable(stream))

    def why(self, messages: Sequence[Message] | None = None) -> str:
        """Return ``: `` and TensorRT's first error, which is the cause of the others; empty if there is none."""
        errors = [
            m.text for m in (messages if messages is not None else self.collector.recent) if "ERROR" in m.severity
        ]
        return f": {errors[0]}" if errors else ""

    def failure(self, action: str, messages: Sequence[Message]) -> ModelError:
        """Return the one-line error for a failure, with what fixes it.

        Args:
            action: What failed, such as "to build an engine".
            messages: TensorRT's log of it.
        """
        why = self.why(messages)
        text = " ".join(m.text for m in messages).lower()
        if "out of memory" in text or "outofmemory" in text or "cudaerror 2:" in text:
            remedy = "out of GPU memory: close other programs on this GPU, or use a smaller model or lower precision"
        elif "sm75" in text:  # no float32 product, no bfloat16 at all
            remedy = "on Turing it computes in fp16 only: `visionad export --precision fp16`, or use another --backend"
        elif "compute capability" in text or "unsupported_cc" in text or "unsupported sm" in text:
            known = f" (it runs on {', '.join(RTX_CAPABILITIES)})" if self.rtx else ""
            remedy = f"this GPU is not supported by {self.backend} {self.version}{known}; use another --backend"
        elif "driver version is insufficient" in text:
            remedy = (
                "the NVIDIA driver is missing or too old: install a newer one (`visionad doctor` says which is here)"
            )
        else:
            remedy = "see `visionad doctor`, or use another --backend"
            return IncompatibleEngineError(f"{self.backend} {self.version} failed {action}{why[:400]}; {remedy}")
        return ModelError(f"{self.backend} {self.version} failed {action}{why[:400]}; {remedy}")


_APIS: dict[str, TensorRT] = {}


def load_api(backend: str) -> TensorRT:
    """Import TensorRT or TensorRT-RTX.

    Args:
        backend: A key of :data:`LIBRARIES`.

    Raises:
        VisionADError: It is missing, broken, too old, or only its type stubs are installed. The message has the command that fixes
            this.
    """
    library = LIBRARIES[backend]
    name = library.module
    remedy = f"pip install 'visionad[{library.extra}]'"
    try:
        module = importlib.import_module(name)
    except Exception as exc:  # a native library of another CUDA raises anything
        if isinstance(exc, ModuleNotFoundError) and exc.name == name:
            raise VisionADError(
                f"{backend} is not installed: {remedy}{_jetson(library)}{_no_driver(library)}"
            ) from None
        raise VisionADError(f"{backend} does not load ({exc}): {library.reinstall}{_jetson(library)}") from None
    if not hasattr(module, "__version__"):
        raise VisionADError(f"{backend} is not installed, only its type stubs are: {remedy}{_jetson(library)}")
    cached = _APIS.get(backend)
    if cached is not None and cached.module is module:
        return cached
    version = str(module.__version__)
    if not library.rtx and major(version) < 10:
        raise VisionADError(f"tensorrt {version} is too old: expected 10.3 or newer ({remedy}; JetPack 6 brings it)")
    collector = LogCollector()
    api = _APIS[backend] = TensorRT(backend, module, version, _logger(module, collector), collector)
    return api


def major(version: str) -> int:
    """Return the major version: 10 for ``"10.3.0"``."""
    return int(version.split(".", 1)[0])


def _jetson(library: Library) -> str:
    return "" if library.rtx else " (on Jetson it comes with JetPack: make the venv with --system-site-packages)"


def _no_driver(library: Library) -> str:
    """Return the hint that the driver is missing too, before the user installs gigabytes. TensorRT-RTX builds without a driver."""
    if library.rtx or has_nvidia_driver():
        return ""
    return "; it needs an NVIDIA driver as well, and none is loaded here"


def _logger(module: Any, collector: LogCollector) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]  # the class is only known at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            collector.write(str(severity.name), msg)

    return Logger()


class BuildProgress:
    """Turns TensorRT's nested phases into percents of one build, and into lines of the build log.

    Attributes:
        finished: Phases that have ended, with their numbers of steps.
    """

    def __init__(self, step: Any, cancelled: threading.Event) -> None:
        self.finished: list[tuple[str, int]] = []
        self._step, self._cancelled = step, cancelled
        self._stack: list[list[Any]] = []  # name, steps, steps done
        self._shown = 0
        self._lock = threading.Lock()

    def start(self, name: str, steps: int) -> None:
        """Record the start of a phase."""
        with self._lock:
            self._stack.append([name, max(steps, 1), 0])

    def finish(self, name: str) -> None:
        """Record the end of a phase, even if not all of its steps were reported."""
        with self._lock:
            while self._stack:
                phase, steps, _ = self._stack.pop()
                if phase == name:
                    self.finished.append((name, steps))
                    break
            self._show(100 if not self._stack else None)

    def done(self, name: str, step: int) -> bool:
        """Record the end of a step. Return ``False`` to stop the build."""
        with self._lock:
            for phase in self._stack:
                if phase[0] == name:
                    phase[2] = step + 1
            self._show()
        return not self._cancelled.is_set()

    def _show(self, percent: int | None = None) -> None:
        if percent is None:
            fraction, step = 0.0, 1.0
            for _, steps, done in self._stack:
                step /= steps
                fraction += step * min(done, steps)
            percent = min(int(100 * fraction), 99)
        for _ in range(self._shown, percent):
            self._step()
        self._shown = max(self._shown, percent)

    def monitor(self, module: Any) -> Any:
        """Return this as TensorRT's ``IProgressMonitor``."""
        outer = self

        class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the class is only known at run time
            def __init__(self) -> None:
                module.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
                outer.start(phase_name, num_steps)

            def phase_finish(self, phase_name: str) -> None:
                outer.finish(phase_name)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return outer.done(phase_name, step)

        return Monitor()
