"""Which backend is taken and why; ONNX Runtime never falls back by itself; `visionad doctor`'s account of it."""

from __future__ import annotations

import _ctypes
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from visionad_runtime import Inspector, system
from visionad_runtime.cli.main import run
from visionad_runtime.cuda import thread
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.engine import onnxruntime, registry, tensorrt
from visionad_runtime.engine.base import Engine, Probe, Tokens
from visionad_runtime.engine.native import STDERR, STDOUT, capture_fd
from visionad_runtime.engine.onnxruntime import cuda as leaf
from visionad_runtime.engine.onnxruntime import providers
from visionad_runtime.engine.onnxruntime import session as sessions
from visionad_runtime.engine.onnxruntime.cpu import OrtCpuEngine
from visionad_runtime.engine.onnxruntime.cuda import OrtDeviceEngine, OrtStreamEngine, SessionVariant
from visionad_runtime.engine.registry import auto_backends, backends
from visionad_runtime.engine.tensorrt.cache import EngineCache
from visionad_runtime.errors import ModelError, VisionADError
from visionad_runtime.formats.manifest import ModelManifest, read_manifest
from visionad_runtime.formats.model_folder import read_model
from visionad_runtime.pipeline.host import HostPipeline
from visionad_runtime.pipeline.opening import open_engine
from visionad_runtime.pipeline.self_test import read_golden, self_test
from visionad_runtime.tools import doctor

from tests.data import part
from tests.fakes import cuda_provider as fake_ort
from tests.fakes.gpu import FakeDevice

CPU = providers.CPU.name


@pytest.fixture
def manifest(tiny_model: Path) -> ModelManifest:
    return read_manifest(tiny_model, ModelManifest)


def bound(model: Path, manifest: ModelManifest, group: int) -> OrtDeviceEngine:
    """The path for GPUs, with its buffers bound on the CPU."""
    session = ort.InferenceSession(str(model / "backbone.onnx"), providers=[CPU])
    variants = [SessionVariant("", False, lambda _: session)]
    return OrtDeviceEngine(variants, providers.CUDA, manifest, group, device="cpu")


def gives_the_cpus_tokens(
    engine: Engine, model: Path, manifest: ModelManifest, count: int
) -> tuple[NDArray[np.float32], Tokens]:
    """The images that were encoded, and their tokens."""
    images = np.random.default_rng(0).standard_normal((count, 3, 64, 64)).astype(np.float32)
    right = open_engine(model, manifest, "onnxruntime-cpu").encode(images)
    found = engine.encode(images)
    np.testing.assert_allclose(found.patch, right.patch, atol=2e-6)
    np.testing.assert_allclose(found.cls, right.cls, atol=2e-6)
    assert engine.encode(images, class_token=False).cls is None
    return images, found


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_bound_buffers_give_the_same_tokens(tiny_model: Path, manifest: ModelManifest, group: int, count: int) -> None:
    engine = bound(tiny_model, manifest, group)
    images, found = gives_the_cpus_tokens(engine, tiny_model, manifest, count)
    again = engine.encode(images[:1])  # results are not views of a buffer that the next call overwrites
    np.testing.assert_array_equal(found.patch[0], engine.encode(np.concatenate([images, images])).patch[0])
    assert again.patch.shape == (1, 16, 192)


def test_a_short_group_has_no_neighbour_from_the_call_before(tiny_model: Path, manifest: ModelManifest) -> None:
    engine = bound(tiny_model, manifest, 3)
    seen: list[Any] = []
    engine._session = SimpleNamespace(
        run_with_iobinding=lambda _: seen.append(engine._buffers["images"].numpy().copy())
    )
    one, two = np.random.default_rng(0).standard_normal((2, 1, 3, 64, 64)).astype(np.float32)
    engine.encode(np.concatenate([two, two, two]))
    engine.encode(one)
    np.testing.assert_array_equal(seen[-1], np.concatenate([one, one, one]))


def test_bound_buffers_pass_the_self_test(tiny_model: Path, manifest: ModelManifest) -> None:
    worst = self_test(bound(tiny_model, manifest, 3), manifest, read_golden(tiny_model))
    assert set(worst) == {"patch_tokens", "class_token", "rows", "score", "rms"}


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    FakeDevice.reset()
    monkeypatch.setattr(thread, "Device", FakeDevice)
    fake_ort.install(monkeypatch)
    yield
    DeviceThread.of(0).close()


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_stream_of_ones_own_gives_the_same_tokens(
    tiny_model: Path, manifest: ModelManifest, fake_gpu: None, group: int, count: int
) -> None:
    engine = open_engine(tiny_model, manifest, "onnxruntime-cuda", batch_size=group)
    assert isinstance(engine, OrtStreamEngine) and engine.device_engine is not None
    images, _ = gives_the_cpus_tokens(engine, tiny_model, manifest, count)
    engine.close()
    engine.close()
    with pytest.raises(VisionADError, match="onnxruntime-cuda: this engine was closed"):
        engine.encode(images)
    with pytest.raises(VisionADError, match="onnxruntime-cuda: this engine was closed"):
        DeviceThread.of(0).run(lambda d: engine.enqueue(1, 2, 3, group, d.stream()))
    assert not DeviceThread.of(0).run(lambda d: {k: n for k, n in d.live().items() if k != "streams"})


def test_where_the_runtime_cannot_use_the_gpu_the_chain_is_the_hosts(
    tiny_model: Path, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch, fake_gpu: None, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "visionad")
    monkeypatch.setattr(leaf, "OrtDeviceEngine", partial(OrtDeviceEngine, device="cpu"))
    plain = ort.InferenceSession(str(tiny_model / "backbone.onnx"), providers=[CPU])
    monkeypatch.setattr(leaf, "create_session", lambda *_: plain)
    for gpu, why in (
        ({"capability": (7, 5)}, "expected compute capability 8.0"),
        ({}, "the GPU is reached by pycuda, which is missing"),
    ):
        DeviceThread.of(0).close()
        FakeDevice.gpu |= gpu
        FakeDevice.missing = None if gpu else "the GPU is reached by pycuda, which is missing"
        with Inspector.open(tiny_model, backend="onnxruntime-cuda") as inspector:
            assert isinstance(inspector.engine, OrtDeviceEngine) and isinstance(inspector.pipeline, HostPipeline)
            # any thread may call it, and ONNX Runtime keeps each thread's graphs
            assert inspector.engine.info["operators"] == "operators as in the file, no CUDA graph"
        assert f"stay on the CPU: {why}" in caplog.text
        caplog.clear()


def test_a_chain_that_differs_from_the_hosts_is_not_used(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, fake_gpu: None, caplog: Any
) -> None:
    def wrong(device: FakeDevice, grid: Any, block: Any, maps: Any, scores: Any, *_: Any) -> None:
        device.read(int(scores), np.float64, grid[0], 2)[:] = 1

    monkeypatch.setitem(FakeDevice.kernels, "top_mean", wrong)
    with Inspector.open(tiny_model, backend="onnxruntime-cuda") as inspector:
        assert isinstance(inspector.engine, OrtStreamEngine) and isinstance(inspector.pipeline, HostPipeline)
        assert "self-test of the GPU pipeline failed at score" in inspector.engine.info["chain"]
    assert "stay on the CPU: self-test of the GPU pipeline failed at score" in caplog.text


class Session:
    """What ONNX Runtime gives when a provider cannot start: a session on the CPU, and a warning."""

    def __init__(self, *_: Any, providers: Any, disabled_optimizers: list[str]) -> None:
        self.asked = providers

    def get_providers(self) -> list[str]:
        return [CPU]


@pytest.fixture
def cuda_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver, and an ONNX Runtime that has the provider for it."""
    for module in (sessions, onnxruntime):
        monkeypatch.setattr(module, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda **_: None, raising=False)


SAID = (
    b"\x1b[1;31m2026-01-01 00:00:00 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] /src/a.cc:2043 Get() "
    b"[ONNXRuntimeError] : 1 : FAIL : Failed to load library /lib/libonnxruntime_providers_cuda.so with error: "
    b"libcublasLt.so.13: cannot open shared object file: No such file or directory\n\x1b[m\n"
    b"\x1b[0;93m2026-01-01 00:00:00 [W:onnxruntime:Default, a.cc:1295 Create] Failed to create CUDAExecutionProvider.\x1b[m\n"
)


def test_a_fall_back_to_the_cpu_is_an_error(
    tiny_model: Path,
    manifest: ModelManifest,
    monkeypatch: pytest.MonkeyPatch,
    cuda_box: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", Session)
    with pytest.raises(
        VisionADError, match="expected CUDAExecutionProvider, ONNX Runtime fell back to CPUExecutionProvider;"
    ):
        open_engine(tiny_model, manifest, "onnxruntime-cuda")
    cases = {
        SAID: r"libcublasLt\.so\.13: cannot open shared object file: No such file or directory",
        b"[E:onnxruntime:Default, cuda_call.cc:148 CudaCall] CUDA failure 35: too old ; GPU=-1\n": "CUDA failure 35: too old",
    }
    for said, why in cases.items():

        def session(*arguments: Any, _said: bytes = said, **more: Any) -> Session:
            os.write(2, _said)
            sys.stdout.write("EP Error\n")
            return Session(*arguments, **more)

        monkeypatch.setattr(ort, "InferenceSession", session)
        with pytest.raises(VisionADError, match=f"fell back to CPUExecutionProvider: {why}; it needs"):
            open_engine(tiny_model, manifest, "onnxruntime-cuda")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("library", "way"),
    [
        (
            "libcublasLt.so.13",
            r"needs an NVIDIA driver and the CUDA 13\.0 and cuDNN that .* 'onnxruntime-gpu\[cuda,cudnn\]'",
        ),
        ("libnvinfer.so.10", r"needs the TensorRT that this ONNX Runtime was built for .*, or use --backend tensorrt$"),
        ("libcuda.so.1", r"needs the NVIDIA driver: install it"),
    ],
)
def test_what_mends_a_fall_back_is_of_the_library_that_is_missing(
    tiny_model: Path, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch, cuda_box: None, library: str, way: str
) -> None:
    def session(*arguments: Any, **more: Any) -> Session:
        os.write(2, SAID.replace(b"libcublasLt.so.13", library.encode()))
        return Session(*arguments, **more)

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", CPU])
    other = manifest.model_copy(update={"precision": "fp16"})
    with pytest.raises(VisionADError, match=f"fell back to {CPU}: {library}: .*; it {way}"):
        open_engine(tiny_model, other, "onnxruntime-tensorrt")


def test_doctor_loads_what_a_provider_is_linked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda_box: None
) -> None:
    """ONNX Runtime offers CUDA on every box with its GPU package: where CUDA is missing, that would be said to run."""
    monkeypatch.setattr(onnxruntime, "run_isolated", lambda _: sessions.provider_problem(providers.CUDA))
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir()
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    assert "has no library of CUDAExecutionProvider" in doctor.diagnose()["backends"]["onnxruntime-cuda"]["why"]
    library.write_bytes(b"")
    report = doctor.diagnose()
    state = report["backends"]["onnxruntime-cuda"]
    assert not state["runs"] and library.name in state["why"] and "; it needs" in state["why"]
    assert report["chosen"] == "onnxruntime-cpu"
    library.unlink()
    shutil.copy(_ctypes.__file__, library)  # any that loads
    assert doctor.diagnose()["backends"]["onnxruntime-cuda"]["runs"]


def test_cuda_of_an_environment_below_is_loaded(
    tiny_model: Path, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch, cuda_box: None, tmp_path: Path
) -> None:
    """ONNX Runtime's own search is beside its package alone."""
    folders = [tmp_path / "below" / "nvidia" / name / "lib" for name in ("cu13", "cudnn")]
    for folder in folders:
        folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "below"))
    asked: list[str | None] = []
    monkeypatch.setattr(ort, "preload_dlls", lambda directory=None: asked.append(directory), raising=False)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    with pytest.raises(VisionADError, match="fell back to CPUExecutionProvider"):
        open_engine(tiny_model, manifest, "onnxruntime-cuda")
    opened = asked[: 1 + len(folders)]
    assert opened == [None, *map(str, folders)]


def test_without_a_driver_onnx_runtime_is_not_asked(
    tiny_model: Path, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch, cuda_box: None
) -> None:
    monkeypatch.setattr(sessions, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(ort, "preload_dlls", None, raising=False)
    with pytest.raises(VisionADError, match="no NVIDIA driver is loaded here, and onnxruntime-cuda needs one; install"):
        open_engine(tiny_model, manifest, "onnxruntime-cuda")


@pytest.mark.parametrize("stream", [STDOUT, STDERR])
def test_what_native_code_prints_does_not_reach_the_stream(stream: int, capfd: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []
    with capture_fd(stream, printed):
        os.write(stream, b"WARNING: in op node_clamp\n")
        os.write(3 - stream, b"the other\n")
    os.write(stream, b"after\n")
    streams = {STDOUT: ("after\n", "the other\n"), STDERR: ("the other\n", "after\n")}
    assert (printed, capfd.readouterr()) == (["WARNING: in op node_clamp"], streams[stream])


@pytest.mark.parametrize("stream", [STDOUT, STDERR])
def test_python_without_the_stream_is_no_reason_to_fail(stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, {STDOUT: "stdout", STDERR: "stderr"}[stream], None)  # as a service's Python has it
    printed: list[str] = []
    with capture_fd(stream, printed):
        os.write(stream, b"WARNING\n")
    assert printed == ["WARNING"]


def test_the_real_onnx_runtime_would_have_fallen_back(tiny_model: Path) -> None:
    """Why the check is needed: asking for CUDA where there is none succeeds, with a warning."""
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("CUDA is here")
    with pytest.warns(UserWarning, match="not in available provider"):
        session = ort.InferenceSession(str(tiny_model / "backbone.onnx"), providers=["CUDAExecutionProvider"])
    assert session.get_providers() == [CPU]


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_that_is_not_in_this_build(
    tiny_model: Path, manifest: ModelManifest, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("CUDA is here")
    other = manifest.model_copy(update={"precision": "tf32"})
    way = "pip uninstall onnxruntime onnxruntime-gpu"
    with pytest.raises(VisionADError, match=rf"has no \w+ExecutionProvider .*{way}"):
        open_engine(tiny_model, other, backend)


def test_what_the_providers_are_told(tiny_model: Path, manifest: ModelManifest) -> None:
    def of(precision: str) -> ModelManifest:
        return manifest.model_copy(update={"precision": precision})

    assert leaf.cuda_options(of("fp32"))["use_tf32"] == leaf.cuda_options(of("fp16"))["use_tf32"] == "0"
    assert leaf.cuda_options(of("tf32"))["use_tf32"] == "1"
    trt = leaf.tensorrt_options(tiny_model, of("fp16"), 3)
    assert (trt["trt_fp16_enable"], trt["trt_bf16_enable"]) == ("1", "0")
    assert trt["trt_profile_min_shapes"] == trt["trt_profile_max_shapes"] == "images:3x3x64x64"
    assert ".engines" in trt["trt_engine_cache_path"]
    with pytest.raises(VisionADError, match="cannot promise fp32: it has no switch for TF32"):
        leaf.tensorrt_options(tiny_model, of("fp32"), 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Failed to allocate memory for requested buffer of size 9", "out of GPU memory; close other programs"),
        ("CUDA failure 2: out of memory", "out of GPU memory"),
        ("Protobuf parsing failed.", "Protobuf parsing failed"),
    ],
)
def test_what_a_session_throws_is_one_line(
    tiny_model: Path, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch, cuda_box: None, text: str, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(ModelError, match=said):
        open_engine(tiny_model, manifest, "onnxruntime-cuda")


def test_bf16_does_not_run_on_a_cpu(tiny_model: Path, manifest: ModelManifest) -> None:
    with pytest.raises(
        ModelError, match=r"is in bf16, which ONNX Runtime .* cannot run on a CPU; open it on a GPU, or export"
    ):
        open_engine(tiny_model, manifest.model_copy(update={"precision": "bf16"}), "onnxruntime-cpu")


def test_auto_says_what_it_took_and_why(
    tiny_model: Path, manifest: ModelManifest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("CUDA is here")
    caplog.set_level(logging.INFO, "visionad")
    engine = open_engine(tiny_model, manifest)
    assert engine.name == "onnxruntime-cpu"
    assert "passes its self-test" in engine.info["chosen because"]
    for name in [spec.name for spec in auto_backends()][:3]:
        assert f"{name}: " in engine.info["passed over"] and f"not {name}: " in caplog.text
    assert [r.levelname for r in caplog.records] == ["INFO"]
    caplog.clear()
    monkeypatch.setattr(registry, "has_nvidia_driver", lambda: True)  # a GPU that is not used is worth a warning
    open_engine(tiny_model, manifest)
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_nothing_runs(
    tiny_model: Path, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "visionad")
    monkeypatch.setattr(ort, "get_available_providers", list)
    monkeypatch.setitem(sys.modules, "openvino", None)  # not installed: it runs without ONNX Runtime
    with pytest.raises(VisionADError, match=r"ONNX Runtime .* has no CPUExecutionProvider"):  # not the others' reasons
        open_engine(tiny_model, manifest)
    assert "not tensorrt: no engine has been built" in caplog.text
    with pytest.raises(
        VisionADError, match="expected auto or one of tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu"
    ):
        open_engine(tiny_model, manifest, "abacus")


def test_opening_imports_no_gpu_library(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")  # beside it nobody has built an engine
    code = (
        f"import sys; from visionad_runtime import Inspector; Inspector.open({str(model)!r});"
        "heavy = {'tensorrt', 'tensorrt_rtx', 'pycuda', 'torch', 'onnx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_result_says_which_backend(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll("disc", [part(0)])
    assert inspector.inspect(part(1)).backend == inspector.engine.name


def test_verbose_tells_on_stderr(
    tiny_model: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bank", "add", str(tiny_model), str(tmp_path / "bank"), "--class", "disc", str(good[0])]
    assert run(["--verbose", *args]) == 0
    err = capsys.readouterr().err
    assert "visionad: backend onnxruntime-" in err
    predict = [
        "predict",
        str(tiny_model),
        str(tmp_path / "bank"),
        str(good[1]),
        "--json",
        "--backend",
        "onnxruntime-cpu",
    ]
    assert run(predict) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["backend"] == "onnxruntime-cpu" and not err


def test_doctor_says_what_runs_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *_: None if n == "tensorrt" else real(n, *_))
    report = doctor.diagnose()
    states = report["backends"]
    assert list(states) == list(backends())
    assert states["onnxruntime-cpu"] == {"runs": True, "why": "ONNX Runtime has CPUExecutionProvider"}
    assert not states["tensorrt"]["runs"] and "pip install 'visionad[tensorrt]'; on Jetson" in states["tensorrt"]["why"]
    text = doctor.format_report(report)
    for name in backends():
        assert name in text
    assert "not yet run on a GPU" in text
    assert json.loads(json.dumps(report)) == report


def test_doctor_names_tensorrt_only_once_there_is_an_engine(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cannot: set[str] = set()
    specs = {
        name: replace(spec, probe=lambda name=name: Probe(name not in cannot, "")) for name, spec in backends().items()
    }
    monkeypatch.setattr(registry, "backends", lambda: specs)
    monkeypatch.setattr(doctor, "backends", lambda: specs)
    monkeypatch.setattr(doctor, "_self_test", lambda *_: "")
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    assert doctor.diagnose()["chosen"] == doctor.diagnose(model)["chosen"] == "onnxruntime-cuda"
    monkeypatch.setattr(EngineCache, "has_engine_for", lambda _, name: name == "tensorrt-rtx")
    assert (doctor.diagnose()["chosen"], doctor.diagnose(model)["chosen"]) == ("onnxruntime-cuda", "tensorrt-rtx")
    cannot |= {"onnxruntime-cuda", "onnxruntime-cpu", "openvino"}
    assert doctor.diagnose()["chosen"] is None  # those that auto never takes are no choice either


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "on a device"])
def test_a_closed_engine_says_so(tiny_model: Path, backend: str) -> None:
    manifest = read_model(tiny_model)
    session = ort.InferenceSession(str(tiny_model / "backbone.onnx"), providers=[CPU])
    engine = OrtCpuEngine(session, manifest, 1) if backend == "onnxruntime-cpu" else bound(tiny_model, manifest, 1)
    crop = manifest.identity.preprocess.crop
    images = np.zeros((1, 3, crop, crop), np.float32)
    assert len(engine.encode(images).patch) == 1
    for _ in range(2):
        engine.close()
        with pytest.raises(VisionADError, match=f"{engine.name}: this engine was closed"):
            engine.encode(images)


def test_doctor_survives_a_library_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    state = doctor.diagnose()["backends"]["tensorrt-rtx"]
    assert state == {
        "runs": False,
        "why": "tensorrt_rtx crashes when it is imported: pip install --force-reinstall tensorrt-rtx-cu13",
    }


@pytest.mark.parametrize("tool", [None, "/no/nvidia-smi"])
@pytest.mark.parametrize("driver", [True, False])
def test_doctor_asks_for_the_driver_as_the_backends_do(
    monkeypatch: pytest.MonkeyPatch, cuda_box: None, tool: str | None, driver: bool
) -> None:
    """The tool may be here without the driver, and a container may have the driver without the tool."""
    monkeypatch.setattr(system.shutil, "which", lambda _: tool)
    for module in (system, onnxruntime):
        monkeypatch.setattr(module, "has_nvidia_driver", lambda: driver)
    monkeypatch.setattr(onnxruntime, "run_isolated", lambda _: "")
    monkeypatch.setattr(tensorrt, "run_isolated", lambda _: None)
    report = doctor.diagnose()
    assert report["gpus"] == [f"driver present, but nvidia-smi {'does not answer' if tool else 'is not here'}"] * driver
    state = report["backends"]["onnxruntime-cuda"]
    assert state["runs"] is driver and ("no NVIDIA driver is loaded here" in state["why"]) is not driver


def test_doctor_knows_which_gpus_tensorrt_rtx_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for capability, runs in (("8.9", True), ("9.0", False)):
        facts = {"version": "1.7.1", "gpu": f"NVIDIA, compute capability {capability}", "capability": capability}
        monkeypatch.setattr(tensorrt, "run_isolated", lambda _, facts=facts: facts)
        found = backends()["tensorrt-rtx"].probe()
        assert found.runs is runs and ("runs on compute capability 7.5, 8.0," in found.why) is not runs
        assert backends()["tensorrt"].probe().runs


def test_doctor_names_what_an_extra_lacks() -> None:
    report = doctor.diagnose()
    report["extras"] = {"rtx": {"ready": False, "missing": ["pycuda"]}}
    assert "Extra    rtx: without pycuda; pip install 'visionad[rtx]'" in doctor.format_report(report)


def test_doctor_sees_two_onnx_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.package_version
    monkeypatch.setattr(doctor, "package_version", lambda n: "1.31.1" if n == "onnxruntime-gpu" else real(n))
    problems = doctor.diagnose()["problems"]
    assert any("pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu" in p for p in problems)
