"""ONNX Runtime: on the CPU, on a GPU by its CUDA provider, and by its TensorRT providers where they are installed.

ONNX Runtime falls back to the CPU with a warning when a provider cannot start. Here that is an error: the providers of the session
are compared with what was asked for.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import re
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..artefacts import ONNX_FILE, ModelManifest
from ..cuda.device import Device, Event, Owner
from ..cuda.memory import Memory
from ..errors import ModelError, VisionADError
from . import Engine, Tokens, closed, encode_groups, gpu_here
from .fused import fuse
from .native import quiet

if TYPE_CHECKING:
    from ..cuda.interface import DeviceEngine

T = TypeVar("T")
log = logging.getLogger("visionad")

if not hasattr(ort, "InferenceSession"):  # Python imports the folder that is left
    _left = ", ".join(map(str, getattr(ort, "__path__", [ort])))
    raise VisionADError(
        f"of ONNX Runtime only remains are in {_left}: one of onnxruntime and onnxruntime-gpu was uninstalled beside the other; "
        "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu (without a GPU: onnxruntime)"
    )

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "onnxruntime-cpu": CPU,
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
LIBRARIES = {
    "onnxruntime-cuda": "cuda",
    "onnxruntime-tensorrt": "tensorrt",
    "onnxruntime-tensorrt-rtx": "nv_tensorrt_rtx",
}
"""Of the providers that are a library of their own, which is loaded with the first session: how its file is called."""
OUTPUTS = ("patch_tokens", "class_token")
SLOW_ON_GPUS = ["MatMulAddFusion"]
"""Of ONNX Runtime's optimisers: it makes a Gemm of a product and its bias, which on a GPU copies the bias to every row first. On an
H100 that took longer than the product (ViT-L, fp16)."""
MOST_BINDINGS = 16


def open_ort(folder: Path, manifest: ModelManifest, backend: str, threads: int | None, group: int) -> Engine:
    """Open the model with one of :data:`PROVIDERS`.

    Raises:
        VisionADError: the provider is not in this ONNX Runtime, or cannot start. ModelError: the ONNX file cannot be loaded.
    """
    _check_provider(backend)
    if backend == "onnxruntime-cpu":
        if manifest.precision == "bf16":  # its products are not implemented there
            raise ModelError(
                f"{folder} is in bf16, which ONNX Runtime {ort.__version__} cannot run on a CPU; open it on a GPU, or export "
                "the model with --precision fp32 for this box (its banks fit both)"
            )
        return OrtCpuEngine(_session(folder, manifest, backend, threads, {}), threads)
    options = provider_options(folder, manifest, backend, group)
    if backend != "onnxruntime-cuda":
        session = partial(_session, folder, manifest, backend, threads)
        return OrtDeviceEngine([Way("", False, lambda more: session(options | more))], backend, manifest, group)
    ways = ways_to_run(folder, manifest, threads, options, group)
    if _shares_the_gpu():
        return OrtStreamEngine(ways, backend, manifest, group)
    # ONNX Runtime keeps the graphs of each thread that calls for good, and here any thread may
    return OrtDeviceEngine([way for way in ways if not way.graph], backend, manifest, group)


class Way(NamedTuple):
    """One way to run a model, in ``words``: whether a call is a CUDA graph, and how a session is opened, with more options for the
    provider."""

    words: str
    graph: bool
    open: Callable[[dict[str, str]], Any]


def ways_to_run(
    folder: Path, manifest: ModelManifest, threads: int | None, options: dict[str, str], group: int
) -> list[Way]:
    """With ONNX Runtime's CUDA provider, the fastest first: ONNX Runtime takes a graph for a call only where all of it is on the
    GPU, and has not each operator for each type."""
    model, words = None, "operators as in the file"
    if manifest.precision != "fp32":  # nothing says which kernels its attention takes, and some use TF32
        try:
            model, attentions, norms = fuse(_mapped(folder / ONNX_FILE), ONNX_FILE)
        except ValueError as exc:
            log.info("onnxruntime-cuda: operators cannot be fused: %s", exc)
        else:
            if attentions:
                words = f"{attentions} attentions and {norms} residual norms fused"
            else:
                model = None

    def way(model: bytes | None, words: str, graph: bool) -> Way:
        def session(more: dict[str, str]) -> Any:
            given = options | more | ({"enable_cuda_graph": "1"} if graph else {})
            return _session(folder, manifest, "onnxruntime-cuda", threads, given, group, model)

        return Way(f"{words}, {'a CUDA graph' if graph else 'no CUDA graph'}", graph, session)

    ways = [way(model, words, graph) for graph in (True, False)]
    return ways if model is None else [*ways, way(None, "operators as in the file", False)]


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} cannot be read ({exc}); export the model again") from None


def first_that_runs(ways: Sequence[Way], try_it: Callable[[Way], T]) -> T:
    """What comes of the first way that does not fail.

    Raises:
        VisionADError: the last one failed too.
    """
    for way in ways[:-1]:
        try:
            return try_it(way)
        except VisionADError as exc:
            log.info("onnxruntime-cuda, %s: %s", way.words, exc)
    return try_it(ways[-1])


def _shares_the_gpu() -> bool:
    """Whether the runtime itself can use the GPU (pycuda is here, it is an Ampere or newer): all of the chain can be there then."""
    try:
        capability = Owner.of(0).run(lambda device: device.capability)
        if capability >= (8, 0):
            return True
        why = f"wanted compute capability 8.0 or newer, found {capability[0]}.{capability[1]}"
    except VisionADError as exc:
        why = str(exc)
    log.info("onnxruntime-cuda: preprocessing, search and map stay on the CPU: %s", why)
    return False


def provider_options(folder: Path, manifest: ModelManifest, backend: str, group: int) -> dict[str, str]:
    """What the provider is told.

    Raises:
        VisionADError: it cannot keep the model's precision.
    """
    if backend == "onnxruntime-cuda":
        # `use_tf32` is on by default; an exhaustive search would choose other kernels on every start
        tf32 = str(int(manifest.precision == "tf32"))
        return {"device_id": "0", "use_tf32": tf32, "cudnn_conv_algo_search": "HEURISTIC"}
    if manifest.precision == "fp32":
        raise VisionADError(
            f"{backend} cannot promise fp32: it has no switch for TF32; export the model with --precision tf32, or use "
            f"--backend {backend.removeprefix('onnxruntime-')}"
        )
    side = manifest.identity.preprocess.crop
    shape = f"images:{group}x3x{side}x{side}"
    if backend == "onnxruntime-tensorrt-rtx":
        shapes = dict.fromkeys(("nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes"), shape)
        return {"device_id": "0", **shapes}
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


def _check_provider(backend: str) -> None:
    """Before anything is asked of ONNX Runtime or the GPU."""
    wanted = PROVIDERS[backend]
    available = ort.get_available_providers()
    if wanted not in available:
        way = (
            "no onnxruntime-gpu on PyPI has it: install an ONNX Runtime that was built with it, or use --backend tensorrt-rtx"
            if backend == "onnxruntime-tensorrt-rtx"
            else "the packages onnxruntime and onnxruntime-gpu overwrite each other: pip uninstall onnxruntime onnxruntime-gpu, "
            "then pip install onnxruntime-gpu"
        )
        raise VisionADError(
            f"this ONNX Runtime {ort.__version__} has no {wanted} (it has {', '.join(available)}); {way}"
        )
    if wanted != CPU and not gpu_here():
        raise VisionADError(
            f"no NVIDIA driver is loaded here, and {backend} needs one; install it (then `nvidia-smi` works), or use "
            "--backend onnxruntime-cpu"
        )


def provider_problem(backend: str) -> str:
    """Why the provider's library does not load here, and what mends that; empty where it loads. For a process of its own: it loads
    all of CUDA."""
    _preload()
    folder = Path(ort.__file__).parent / "capi"
    try:
        for kind in ("shared", LIBRARIES[backend]):
            paths = list(folder.glob(f"*onnxruntime_providers_{kind}.*"))
            for path in paths:
                ctypes.CDLL(str(path))
            if not paths and kind != "shared":
                return f"{folder} has no library of {PROVIDERS[backend]}; pip install --force-reinstall onnxruntime-gpu"
    except OSError as exc:
        return f"{exc}; {_remedy(backend, str(exc))}"
    return ""


def _session(
    folder: Path,
    manifest: ModelManifest,
    backend: str,
    threads: int | None,
    provider: dict[str, str],
    rows: int | None = None,
    model: bytes | None = None,
) -> ort.InferenceSession:
    """``rows`` of every call, where that is known: then shapes are worked out now. ``model``: what is run instead of the file, to
    which it refers for weights."""
    wanted = PROVIDERS[backend]
    if wanted != CPU:
        _preload()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.use_deterministic_compute = wanted != CPU
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads that go on spinning after a run take the cores from the search that follows.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if rows is not None:
        options.add_free_dimension_override_by_name("batch", rows)
    path = folder / ONNX_FILE
    if model is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
    printed: list[str] = []
    try:
        # It tells of a fall-back by warnings, on stderr, and on stdout amid a command's JSON; below it is an error.
        with warnings.catch_warnings(), quiet(printed) if wanted != CPU else nullcontext():
            warnings.simplefilter("ignore")
            providers = [(wanted, provider)] if provider else [wanted]
            left_out = SLOW_ON_GPUS if wanted == PROVIDERS["onnxruntime-cuda"] else []
            session = ort.InferenceSession(
                model or str(path), options, providers=providers, disabled_optimizers=left_out
            )
    except Exception as exc:  # ONNX Runtime's own exception types share no base
        raise _failure(backend, f"{path} cannot be loaded by ONNX Runtime {ort.__version__}", exc) from None
    chosen = session.get_providers()
    if chosen[:1] != [wanted] or not set(chosen) <= {wanted, CPU}:
        raise VisionADError(
            f"wanted {wanted}, ONNX Runtime fell back to {', '.join(chosen)}{_why(printed)}; {_remedy(backend, _why(printed))}"
        )
    for line in printed:
        log.info("ONNX Runtime: %s", line)
    wanted_out = {name: list(shape[1:]) for name, shape in _shapes(manifest, 1).items()}
    wanted_in = {"images": wanted_out.pop("images")}
    found_in = {i.name: i.shape[1:] for i in session.get_inputs()}
    found_out = {o.name: o.shape[1:] for o in session.get_outputs()}
    if found_in != wanted_in or found_out != wanted_out:
        raise ModelError(
            f"{path}: wanted inputs {wanted_in} and outputs {wanted_out}, found {found_in} and {found_out}; "
            "export the model again"
        )
    return session


def _preload() -> None:
    """Load CUDA and cuDNN of pip packages, which no loader finds by itself. ONNX Runtime looks beside its own package alone; in an
    environment on another one they lie in the one below."""
    if not hasattr(ort, "preload_dlls"):
        return
    with quiet([]):  # it prints what it misses
        ort.preload_dlls()
        for place in sys.path:
            for folder in sorted(Path(place).glob("nvidia/*/lib")):
                ort.preload_dlls(directory=str(folder.absolute()))


def _why(printed: Sequence[str]) -> str:
    """``: `` and the library that it did not find, or whatever else it gives as an error first."""
    said = next((re.sub(r"\x1b\[[0-9;]*m", "", line) for line in printed if "[E:" in line), None)
    if said is None:
        return ""
    text = re.split(r"with error: ", re.sub(r"^.*?\[E:[^]]*\] ?", "", said))[-1]
    return f": {text.split(' ; GPU=')[0].strip()[:300]}"


def _remedy(backend: str, why: str) -> str:
    """What a provider needs that did not start, by the library that it did not find."""
    if re.search("libnvinfer|libnvonnxparser|tensorrt_rtx[^:]*: cannot open", why):
        return (
            "it needs the TensorRT that this ONNX Runtime was built for where the loader looks (LD_LIBRARY_PATH), or use "
            f"--backend {backend.removeprefix('onnxruntime-')}"
        )
    if "libcuda.so" in why:
        return "it needs the NVIDIA driver: install it (then `nvidia-smi` works), or use --backend onnxruntime-cpu"
    cuda = f"CUDA {getattr(ort, 'cuda_version', '')}".rstrip()
    return (
        f"it needs an NVIDIA driver and the {cuda} and cuDNN that ONNX Runtime {ort.__version__} was built for (pip install "
        "'onnxruntime-gpu[cuda,cudnn]')"
    )


def _failure(backend: str, what: str, exc: Exception) -> ModelError:
    text = str(exc)
    if any(s in text.lower() for s in ("out of memory", "failed to allocate memory", "bad allocation")):
        where = "memory" if backend == "onnxruntime-cpu" else "GPU memory"
        return ModelError(
            f"{what}: out of {where}; close other programs, or use a smaller model or lower precision ({text})"
        )
    return ModelError(f"{what}: {text}")


class OrtCpuEngine:
    """Runs each row of a call alone: measured as fast as or faster than batches on CPUs (smaller working set), and it makes
    every result independent of batch size and order by construction."""

    name = "onnxruntime-cpu"
    group = 1

    def __init__(self, session: ort.InferenceSession, threads: int | None) -> None:
        self.device_engine = None
        self._session: ort.InferenceSession | None = session
        self._patch_only = ort.RunOptions()
        self._patch_only.only_execute_path_to_fetches = (
            True  # a known class skips the blocks behind a final class token
        )
        self.details = {"onnxruntime": ort.__version__, "provider": CPU, "threads": str(threads or "all cores")}

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.Engine`."""
        session = self._session
        if session is None:
            raise closed(self.name)
        names = ["patch_tokens", "class_token"] if class_token else ["patch_tokens"]
        options = None if class_token else self._patch_only
        rows = [
            session.run(names, {"images": np.ascontiguousarray(images[i : i + 1])}, options) for i in range(len(images))
        ]
        patch = np.concatenate([r[0] for r in rows])
        return Tokens(patch, np.concatenate([r[1] for r in rows]) if class_token else None)

    def close(self) -> None:
        """See :class:`~visionad_runtime.engine.Engine`."""
        self._session = None


class OrtDeviceEngine:
    """Runs groups of a fixed size with inputs and outputs bound to buffers of ONNX Runtime's that stay on the device.

    One call at a time: the buffers are shared.
    """

    def __init__(
        self, ways: Sequence[Way], backend: str, manifest: ModelManifest, group: int, device: str = "cuda"
    ) -> None:
        """Takes the first of ``ways`` that runs.

        Raises:
            VisionADError, ModelError: none does; or no memory.
        """
        self.name, self.group = backend, group
        self.device_engine = None
        self._lock = threading.Lock()
        self._shapes, self._kind = _shapes(manifest, group), device
        self._host = {name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()}
        self._session: ort.InferenceSession | None = None
        self._buffers: dict[str, Any] = {}
        self._binding: Any = None
        self.details = first_that_runs(ways, self._open) | {"precision": f"{manifest.precision} as in the graph"}

    def _open(self, way: Way) -> dict[str, str]:
        session = self._session = way.open({})
        try:
            self._buffers = {
                name: ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._kind, 0)
                for name, shape in self._shapes.items()
            }
        except Exception as exc:
            raise _failure(self.name, "device buffers cannot be taken", exc) from None
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("images", self._buffers["images"])
        for name in OUTPUTS:
            self._binding.bind_ortvalue_output(name, self._buffers[name])
        self._run()
        return _details(session, way)

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.Engine`."""
        with self._lock:
            if self._session is None:
                raise closed(self.name)
            return encode_groups(images, self._host, self._run, class_token)

    def _run(self) -> None:
        self._buffers["images"].update_inplace(self._host["images"])
        _run(self.name, self._session, self._binding)
        for name in OUTPUTS:
            self._host[name][:] = self._buffers[name].numpy()

    def close(self) -> None:
        """See :class:`~visionad_runtime.engine.Engine`."""
        with self._lock:
            self._buffers.clear()
            self._binding = self._session = None


class OrtStreamEngine:
    """The CUDA provider on a stream and in buffers of the runtime's own, all by the GPU's owner thread: so it can work amid other
    work on the GPU, and preprocessing, search and map can be there too."""

    capturable = False  # it may take memory at any call, and captures what it runs itself

    def __init__(
        self, ways: Sequence[Way], backend: str, manifest: ModelManifest, group: int, device: str = "cuda"
    ) -> None:
        """Takes the first of ``ways`` that runs.

        Raises:
            VisionADError, ModelError: none does; or no memory.
        """
        self.name, self.group, self.max_rows = backend, group, group
        self._owner, self._ways, self._kind = Owner.of(0), ways, device
        self._shapes = _shapes(manifest, group)
        self._memory: Memory | None = None
        self._encoding = threading.Lock()
        self._session: Any = None
        self._graph = False
        self._bindings: dict[tuple[int, ...], tuple[Any, ort.RunOptions]] = {}
        self._bound = 0
        try:
            self.details = self._owner.run(self._take) | {"precision": f"{manifest.precision} as in the graph"}
        except BaseException:
            self.close()
            raise

    def _take(self, device: Device) -> dict[str, str]:
        memory = self._memory = Memory(device)
        self._before, self._after, self._done = (memory.hold(device.event()) for _ in range(3))
        self._host = {name: memory.pinned(shape, np.float32) for name, shape in self._shapes.items()}
        self._buffers = {name: memory.hold(device.alloc(host.nbytes)) for name, host in self._host.items()}
        return first_that_runs(self._ways, partial(self._open, memory, device)) | {"gpu": device.name}

    def _open(self, memory: Memory, device: Device, way: Way) -> dict[str, str]:
        self._bindings.clear()
        self._session, self._graph = None, way.graph
        # a new one, since the last way's may have been left recording a graph; so `memory` does not wait for it either
        self._stream = memory.hold(device.stream())
        self._session = way.open({"user_compute_stream": str(self._stream.handle)})
        self._enqueue(*(self._buffers[name].ptr for name in self._shapes))
        self._stream.synchronize()
        return _details(self._session, way)

    @property
    def device_engine(self) -> Callable[[], DeviceEngine] | None:
        """See :class:`~visionad_runtime.engine.Engine`."""
        return lambda: self

    def enqueue(self, images: int, patch: int, cls: int, rows: int, stream: Any) -> None:
        """See :class:`~visionad_runtime.cuda.interface.DeviceEngine`.

        Raises:
            VisionADError: not a whole group, or the engine was closed. ModelError: ONNX Runtime fails.
        """
        self._check_open()
        if rows != self.group:
            raise VisionADError(f"{self.name}: wanted {self.group} pictures a call, found {rows}")
        self._before.record(stream)
        self._stream.wait(self._before)
        try:
            self._enqueue(images, patch, cls)
        finally:  # if it fails midway, what it has enqueued still writes there
            self._after.record(self._stream)
            stream.wait(self._after)

    def _enqueue(self, *addresses: int) -> None:
        bound = self._bindings.get(addresses)
        if bound is None:
            if len(self._bindings) > MOST_BINDINGS:  # of chains that are no more
                self._bindings.clear()
            bound = self._bindings[addresses] = self._session.io_binding(), self._run_options()
            for (name, shape), address in zip(self._shapes.items(), addresses, strict=True):
                bind = bound[0].bind_input if name == "images" else bound[0].bind_output
                bind(name, self._kind, 0, np.float32, shape, address)
        _run(self.name, self._session, *bound)

    def _run_options(self) -> ort.RunOptions:
        """A graph is of the addresses that it was captured with, and is enqueued without waiting. Without one ONNX Runtime has to
        wait: else it keeps page-locked memory of every call, and at the session's end gives it back in a callback of the driver's,
        where that is forbidden (seen on an H100: the process is aborted)."""
        options = ort.RunOptions()
        if self._graph:
            self._bound += 1
            options.add_run_config_entry("gpu_graph_id", str(self._bound))
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.Engine`."""
        with self._encoding:
            self._check_open()
            return encode_groups(images, self._host, self._round_trip, class_token)

    def _check_open(self) -> None:
        if self._session is None:
            raise closed(self.name)

    def _round_trip(self) -> None:
        """One group; the owner's thread serves cameras between two."""

        def begin(device: Device) -> Event:
            self._check_open()
            device.upload(self._buffers["images"], self._host["images"], self._stream)
            self._enqueue(*(self._buffers[name].ptr for name in self._shapes))
            for name in OUTPUTS:
                device.download(self._host[name], self._buffers[name], self._stream)
            self._done.record(self._stream)
            return self._done

        self._owner.serve(begin, lambda _: self._done.synchronize())

    def close(self) -> None:
        """See :class:`~visionad_runtime.engine.Engine`. Twice is harmless."""
        with self._encoding:
            self._owner.run(self._release)

    def _release(self, _: Device) -> None:
        try:
            if self._session is not None:
                self._stream.synchronize()  # what it has enqueued reads its memory
        finally:
            self._bindings.clear()
            self._session = None
            if self._memory is not None:
                self._memory.close()


def _details(session: Any, way: Way) -> dict[str, str]:
    found = {"onnxruntime": ort.__version__, "provider": session.get_providers()[0]}
    return found | ({"operators": way.words} if way.words else {})


def _shapes(manifest: ModelManifest, group: int) -> dict[str, tuple[int, ...]]:
    identity = manifest.identity
    side = identity.preprocess.crop
    return {
        "images": (group, 3, side, side),
        "patch_tokens": (group, identity.grid**2, identity.dim),
        "class_token": (group, identity.class_token_dim),
    }


def _run(backend: str, session: Any, *arguments: Any) -> None:
    try:
        session.run_with_iobinding(*arguments)
    except Exception as exc:  # ONNX Runtime's own exception types share no base
        raise _failure(backend, f"{backend} failed to run", exc) from None
