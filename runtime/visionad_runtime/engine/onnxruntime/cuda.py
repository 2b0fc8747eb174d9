"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, and its TensorRT provider if installed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...cuda.device import Device, Event
from ...cuda.memory import ResourceScope
from ...cuda.thread import DeviceThread
from ...errors import VisionADError
from ...formats.manifest import CUDA_ONNX_FILE, ONNX_FILE, ModelManifest
from ..base import Tokens, closed_error, encode_in_batches
from .providers import CUDA, TENSORRT, Provider
from .session import OUTPUTS, check_provider, create_session, failure, run_session, tensor_shapes

if TYPE_CHECKING:
    from ...cuda.interface import DeviceEngine

T = TypeVar("T")
log = logging.getLogger("visionad")

MAX_BINDINGS = 16
"""Sets of addresses that a session keeps bindings for."""


def open_cuda(
    folder: Path, manifest: ModelManifest, threads: int | None, batch_size: int
) -> OrtStreamEngine | OrtDeviceEngine:
    """Open the model with ONNX Runtime's CUDA provider.

    Args:
        folder: The model folder.
        manifest: Its manifest.
        threads: CPU threads. Default: all cores.
        batch_size: Rows of a call.

    Raises:
        VisionADError: The provider is not in this ONNX Runtime, or cannot start.
        ModelError: The ONNX file cannot be loaded.
    """
    check_provider(CUDA)
    variants = session_variants(folder, manifest, threads, batch_size)
    if _can_share_gpu():
        return OrtStreamEngine(variants, CUDA, manifest, batch_size)
    # ONNX Runtime never frees the graphs of a calling thread, and any thread may call this engine.
    return OrtDeviceEngine([v for v in variants if not v.cuda_graph], CUDA, manifest, batch_size)


def open_tensorrt(folder: Path, manifest: ModelManifest, threads: int | None, batch_size: int) -> OrtDeviceEngine:
    """Open the model with ONNX Runtime's TensorRT provider, which builds an engine at the first start.

    Args:
        folder: The model folder.
        manifest: Its manifest.
        threads: CPU threads. Default: all cores.
        batch_size: Rows of a call.

    Raises:
        VisionADError: The provider is not in this ONNX Runtime, cannot start, or cannot keep the model's precision.
        ModelError: The ONNX file cannot be loaded.
    """
    check_provider(TENSORRT)
    options = tensorrt_options(folder, manifest, batch_size)

    def create(more: dict[str, str]) -> Any:
        return create_session(folder, manifest, TENSORRT, threads, options | more)

    return OrtDeviceEngine([SessionVariant("", False, create)], TENSORRT, manifest, batch_size)


class SessionVariant(NamedTuple):
    """One way to run a model.

    Attributes:
        description: For people.
        cuda_graph: Whether a call is a CUDA graph.
        open: Creates a session, with further options for the provider.
    """

    description: str
    cuda_graph: bool
    open: Callable[[dict[str, str]], Any]


def session_variants(
    folder: Path, manifest: ModelManifest, threads: int | None, batch_size: int
) -> list[SessionVariant]:
    """Return the variants of a session with the CUDA provider, the fastest first.

    Each may fail: ONNX Runtime captures a CUDA graph only if the whole call is on the GPU, and it does not have each fused operator
    for each type.

    Args:
        folder: The model folder.
        manifest: Its manifest.
        threads: CPU threads. Default: all cores.
        batch_size: Rows of a call.
    """

    def variant(file: str, operators: str, cuda_graph: bool) -> SessionVariant:
        def create(more: dict[str, str]) -> Any:
            options = cuda_options(manifest) | more | ({"enable_cuda_graph": "1"} if cuda_graph else {})
            return create_session(folder, manifest, CUDA, threads, options, batch_size, file)

        return SessionVariant(f"{operators}, {'a CUDA graph' if cuda_graph else 'no CUDA graph'}", cuda_graph, create)

    plain = ONNX_FILE, "operators as in the file"
    if CUDA_ONNX_FILE not in manifest.files:
        return [variant(*plain, cuda_graph) for cuda_graph in (True, False)]
    fused = CUDA_ONNX_FILE, "attention and residual norms fused"
    return [variant(*fused, True), variant(*fused, False), variant(*plain, False)]


def first_working(variants: Sequence[SessionVariant], attempt: Callable[[SessionVariant], T]) -> T:
    """Return the result of ``attempt`` for the first variant for which it does not fail.

    Raises:
        VisionADError: It failed for all variants. This is the last error.
    """
    for variant in variants[:-1]:
        try:
            return attempt(variant)
        except VisionADError as exc:
            log.info("%s, %s: %s", CUDA.backend, variant.description, exc)
    return attempt(variants[-1])


def _can_share_gpu() -> bool:
    """Return whether the whole pipeline can run on the GPU: pycuda is installed, and the GPU is an Ampere or newer."""
    try:
        capability = DeviceThread.of(0).run(lambda device: device.capability)
        if capability >= (8, 0):
            return True
        why = f"expected compute capability 8.0 or newer, got {capability[0]}.{capability[1]}"
    except VisionADError as exc:
        why = str(exc)
    log.info("%s: preprocessing, search and map stay on the CPU: %s", CUDA.backend, why)
    return False


def cuda_options(manifest: ModelManifest) -> dict[str, str]:
    """Return the options of the CUDA provider."""
    # `use_tf32` is on by default. An exhaustive search would choose other kernels at every start.
    tf32 = str(int(manifest.precision == "tf32"))
    return {"device_id": "0", "use_tf32": tf32, "cudnn_conv_algo_search": "HEURISTIC"}


def tensorrt_options(folder: Path, manifest: ModelManifest, batch_size: int) -> dict[str, str]:
    """Return the options of the TensorRT provider.

    Raises:
        VisionADError: It cannot keep the model's precision.
    """
    if manifest.precision == "fp32":
        raise VisionADError(
            f"{TENSORRT.backend} cannot promise fp32: it has no switch for TF32; export the model with --precision tf32, or use "
            f"--backend {TENSORRT.alternative}"
        )
    side = manifest.identity.preprocess.crop
    shape = f"images:{batch_size}x3x{side}x{side}"
    shapes = dict.fromkeys(("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"), shape)
    cache = (
        folder.absolute().with_name(f"{folder.absolute().name}.engines")
        / "onnxruntime"
        / manifest.files[ONNX_FILE][:16]
    )
    return {
        "device_id": "0",
        "trt_fp16_enable": str(int(manifest.precision == "fp16")),
        "trt_bf16_enable": str(int(manifest.precision == "bf16")),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        **shapes,
    }


class OrtDeviceEngine:
    """Runs batches of a fixed size, with inputs and outputs bound to ONNX Runtime's own buffers on the device.

    Calls run one at a time, because they share the buffers.
    """

    requires_device_pipeline = False

    def __init__(
        self,
        variants: Sequence[SessionVariant],
        provider: Provider,
        manifest: ModelManifest,
        batch_size: int,
        device: str = "cuda",
    ) -> None:
        """Take the first of ``variants`` that runs.

        Raises:
            VisionADError, ModelError: No variant runs, or the GPU is out of memory.
        """
        self.name, self.batch_size, self.precision = provider.backend, batch_size, manifest.precision
        self.device_engine = None
        self._provider = provider
        self._lock = threading.Lock()
        self._shapes, self._kind = tensor_shapes(manifest, batch_size), device
        self._host = {name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()}
        self._session: ort.InferenceSession | None = None
        self._buffers: dict[str, Any] = {}
        self._binding: Any = None
        self.info = first_working(variants, self._open) | {"precision": f"{manifest.precision} as in the graph"}

    def _open(self, variant: SessionVariant) -> dict[str, str]:
        session = self._session = variant.open({})
        try:
            self._buffers = {
                name: ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._kind, 0)
                for name, shape in self._shapes.items()
            }
        except Exception as exc:
            raise failure(self._provider, "device buffers cannot be taken", exc) from None
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("images", self._buffers["images"])
        for name in OUTPUTS:
            self._binding.bind_ortvalue_output(name, self._buffers[name])
        self._run()
        return _info(session, variant)

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        with self._lock:
            if self._session is None:
                raise closed_error(self.name)
            return encode_in_batches(images, self._host, self._run, class_token)

    def _run(self) -> None:
        self._buffers["images"].update_inplace(self._host["images"])
        run_session(self._provider, self._session, self._binding)
        for name in OUTPUTS:
            self._host[name][:] = self._buffers[name].numpy()

    def close(self) -> None:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        with self._lock:
            self._buffers.clear()
            self._binding = self._session = None


class OrtStreamEngine:
    """The CUDA provider on a stream and in buffers of this runtime, on the GPU's owner thread.

    So the engine runs in order with other GPU work, and preprocessing, search and map can run on the GPU too.
    """

    requires_device_pipeline = False
    capturable = False  # ONNX Runtime may allocate memory at any call, and captures graphs itself

    def __init__(
        self,
        variants: Sequence[SessionVariant],
        provider: Provider,
        manifest: ModelManifest,
        batch_size: int,
        device: str = "cuda",
    ) -> None:
        """Take the first of ``variants`` that runs.

        Raises:
            VisionADError, ModelError: No variant runs, or the GPU is out of memory.
        """
        self.name, self.batch_size, self.precision = provider.backend, batch_size, manifest.precision
        self._provider, self.max_rows = provider, batch_size
        self._owner, self._variants, self._kind = DeviceThread.of(0), variants, device
        self._shapes = tensor_shapes(manifest, batch_size)
        self._resources: ResourceScope | None = None
        self._encoding = threading.Lock()
        self._session: Any = None
        self._graph = False
        self._bindings: dict[tuple[int, ...], tuple[Any, ort.RunOptions]] = {}
        self._graph_ids = 0
        try:
            self.info = self._owner.run(self._start) | {"precision": f"{manifest.precision} as in the graph"}
        except BaseException:
            self.close()
            raise

    def _start(self, device: Device) -> dict[str, str]:
        resources = self._resources = ResourceScope(device)
        self._before, self._after, self._done = (resources.own(device.event()) for _ in range(3))
        self._host = {name: resources.pinned(shape, np.float32) for name, shape in self._shapes.items()}
        self._buffers = {name: resources.own(device.alloc(host.nbytes)) for name, host in self._host.items()}
        return first_working(self._variants, partial(self._open, resources, device)) | {"gpu": device.name}

    def _open(self, resources: ResourceScope, device: Device, variant: SessionVariant) -> dict[str, str]:
        self._bindings.clear()
        self._session, self._graph = None, variant.cuda_graph
        # A new stream: the last variant's may still record a graph. For that reason `resources` must not wait for it, either.
        self._stream = resources.own(device.stream())
        self._session = variant.open({"user_compute_stream": str(self._stream.handle)})
        self._enqueue(*(self._buffers[name].ptr for name in self._shapes))
        self._stream.synchronize()
        return _info(self._session, variant)

    @property
    def device_engine(self) -> Callable[[], DeviceEngine] | None:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        return lambda: self

    def enqueue(self, images: int, patch: int, cls: int, rows: int, stream: Any) -> None:
        """See :class:`~visionad_runtime.cuda.interface.DeviceEngine`.

        Raises:
            VisionADError: ``rows`` is not the batch size, or the engine was closed.
            ModelError: ONNX Runtime failed.
        """
        self._check_open()
        if rows != self.batch_size:
            raise VisionADError(f"{self.name}: expected {self.batch_size} images a call, got {rows}")
        self._before.record(stream)
        self._stream.wait(self._before)
        try:
            self._enqueue(images, patch, cls)
        finally:  # also after a failure: work that is already enqueued still writes to the buffers
            self._after.record(self._stream)
            stream.wait(self._after)

    def _enqueue(self, *addresses: int) -> None:
        binding = self._bindings.get(addresses)
        if binding is None:
            if len(self._bindings) > MAX_BINDINGS:  # of closed pipelines
                self._bindings.clear()
            binding = self._bindings[addresses] = self._session.io_binding(), self._run_options()
            for (name, shape), address in zip(self._shapes.items(), addresses, strict=True):
                bind = binding[0].bind_input if name == "images" else binding[0].bind_output
                bind(name, self._kind, 0, np.float32, shape, address)
        run_session(self._provider, self._session, *binding)

    def _run_options(self) -> ort.RunOptions:
        """Return the options of a binding.

        A CUDA graph belongs to the addresses that it was captured with, and is enqueued without waiting. Without a graph, ONNX
        Runtime must wait. Otherwise it keeps page-locked memory of every call and frees it at the session's end in a callback of
        the driver, where that is forbidden: on an H100 the process was aborted.
        """
        options = ort.RunOptions()
        if self._graph:
            self._graph_ids += 1
            options.add_run_config_entry("gpu_graph_id", str(self._graph_ids))
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        with self._encoding:
            self._check_open()
            return encode_in_batches(images, self._host, self._round_trip, class_token)

    def _check_open(self) -> None:
        if self._session is None:
            raise closed_error(self.name)

    def _round_trip(self) -> None:
        """Run one batch. The owner thread does other work between batches."""

        def enqueue(device: Device) -> Event:
            self._check_open()
            device.upload(self._buffers["images"], self._host["images"], self._stream)
            self._enqueue(*(self._buffers[name].ptr for name in self._shapes))
            for name in OUTPUTS:
                device.download(self._host[name], self._buffers[name], self._stream)
            self._done.record(self._stream)
            return self._done

        self._owner.submit(enqueue, lambda _: self._done.synchronize())

    def close(self) -> None:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        with self._encoding:
            self._owner.run(self._release)

    def _release(self, _: Device) -> None:
        try:
            if self._session is not None:
                self._stream.synchronize()  # enqueued work still uses the buffers
        finally:
            self._bindings.clear()
            self._session = None
            if self._resources is not None:
                self._resources.close()


def _info(session: Any, variant: SessionVariant) -> dict[str, str]:
    info = {"onnxruntime": ort.__version__, "provider": session.get_providers()[0]}
    return info | ({"operators": variant.description} if variant.description else {})
