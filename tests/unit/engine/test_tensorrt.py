"""TensorRT 10, 11 and TensorRT-RTX through one implementation, on stand-ins that reject what each release rejects."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import tensorrt as fake_tensorrt

pytest.importorskip("onnx", reason="the stand-in parses with it")

from visionad_runtime import Inspector
from visionad_runtime.cli.main import run
from visionad_runtime.cuda import thread
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.engine.tensorrt import api as tensorrt_api
from visionad_runtime.engine.tensorrt.builder import build
from visionad_runtime.engine.tensorrt.cache import EngineCache
from visionad_runtime.errors import ModelError, VisionADError
from visionad_runtime.formats.manifest import ModelManifest, read_manifest
from visionad_runtime.pipeline.opening import open_engine

from tests.data import part
from tests.fakes.gpu import FakeDevice

BACKEND = {"10": "tensorrt", "11": "tensorrt", "rtx": "tensorrt-rtx"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeDevice]]:
    FakeDevice.reset()
    monkeypatch.setattr(thread, "Device", FakeDevice)
    yield FakeDevice
    DeviceThread.of(0).close()


@pytest.fixture
def install(gpu: type[FakeDevice], monkeypatch: pytest.MonkeyPatch) -> Any:
    """install(flavour, version) puts a stand-in where `import` finds it."""

    def put(flavour: str, version: str | None = None) -> Any:
        module = fake_tensorrt.make(flavour, version)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    return put


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    out = tmp_path / "model"
    shutil.copytree(tiny_model, out)
    return out


@pytest.fixture
def manifest(model: Path) -> ModelManifest:
    return read_manifest(model, ModelManifest)


@pytest.fixture(params=["10", "11", "rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_build_and_run_gives_the_cpus_tokens(
    flavour: str, install: Any, model: Path, manifest: ModelManifest, gpu: type[FakeDevice]
) -> None:
    module = install(flavour)
    engine = open_engine(model, manifest, BACKEND[flavour])
    assert engine.batch_size == 3 and engine.info["cuda graph"] == "yes" and "fp32 in" in engine.info["precision"]
    assert engine.info["chosen because"] == "it was requested" and " x " not in engine.info["memory"]
    assert (
        "create_network",
        {"10": 2, "11": 0, "rtx": 1}[flavour],
    ) in module.calls  # strongly typed in each one's words
    assert [c for c in module.calls if c[0] == "build"] == [("build", [])]  # fp32: TF32 switched off, nothing else on
    images = np.random.default_rng(0).standard_normal((7, 3, 64, 64)).astype(np.float32)
    cpu = open_engine(model, manifest, "onnxruntime-cpu").encode(images)
    found = engine.encode(images)
    np.testing.assert_array_equal(found.patch, cpu.patch)
    np.testing.assert_array_equal(found.cls, cpu.cls)
    assert engine.encode(images, class_token=False).cls is None
    device = DeviceThread.of(0).run(lambda d: d)
    before = device.made
    engine.encode(images)
    assert device.made == before  # nothing is taken per call


@pytest.mark.parametrize("views", [None, ["original"], ["original", "clamp"]])
def test_results_do_not_depend_on_batch_order_or_threads(
    install: Any, model: Path, tmp_path: Path, views: list[str] | None
) -> None:
    install("11")
    inspector = Inspector.open(model, tmp_path / "bank", backend="tensorrt", views=views)
    inspector.enroll("disc", [part(0), part(1)])
    images = [part(i, defect=i % 2 == 1) for i in range(5)]
    alone = [inspector.inspect(p) for p in images]
    together = inspector.inspect_batch(images[::-1])[::-1]
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: inspector.inspect(images[i])})) for i in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, one in enumerate(alone):
        assert one == alone[i] and one.score == together[i].score == found[i].score
        assert one.backend == "tensorrt" and one.to_dict("x")["backend"] == "tensorrt"
    assert len({r.score for r in alone}) == 5


def test_the_second_start_takes_the_engine_from_the_cache(
    flavour: str, install: Any, model: Path, manifest: ModelManifest, caplog: pytest.LogCaptureFixture
) -> None:
    module = install(flavour)
    open_engine(model, manifest, BACKEND[flavour])
    assert "no engine has been built" in caplog.text
    caplog.clear()
    open_engine(model, manifest, BACKEND[flavour])
    assert [c[0] for c in module.calls].count("build") == 1 and not caplog.text
    if flavour == "rtx":  # the kernels made for this GPU are kept as well
        assert [c[1] for c in module.calls if c[0] == "jit"] == [b"", b"jit of 1.7.1.116"]
    assert not [p for p in model.iterdir() if p.name not in {"manifest.json", *manifest.files}]


def test_measured_timings_serve_the_next_build(install: Any, model: Path, manifest: ModelManifest) -> None:
    module = install("10")
    build(model, manifest, "tensorrt")
    build(model, manifest, "tensorrt", rebuild=True)
    timing = next(EngineCache(model).folder.glob("timing-*.cache"))
    timing.write_bytes(b"rubbish")
    build(model, manifest, "tensorrt", rebuild=True)  # damaged: measured anew
    assert [c[1] for c in module.calls if c[0] == "timing cache"] == [b"", b"timings 10.3.0", b"rubbish", b""]
    assert timing.read_bytes() == b"timings 10.3.0"


@pytest.mark.parametrize("change", ["version", "gpu", "damage", "driver"])
def test_an_engine_that_does_not_fit_is_built_again_and_said(
    install: Any,
    model: Path,
    manifest: ModelManifest,
    gpu: type[FakeDevice],
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    install("10")
    first, _ = build(model, manifest, "tensorrt")
    DeviceThread.of(0).close()
    module = install("10", "10.8.0" if change == "version" else None)
    if change == "gpu":
        gpu.gpu["name"] = "NVIDIA L40S"
    if change == "damage":
        with open(first.plan, "r+b") as f:
            f.write(b"rubbish")
    if change == "driver":  # the same engine, but a new driver refuses it
        module.load_error = "the engine was built for another driver"
        tries = iter(["the engine was built for another driver"])
        real = module.Runtime.deserialize_cuda_engine

        def once(self: Any, data: bytes) -> Any:
            module.load_error = next(tries, None)
            return real(self, data)

        module.Runtime.deserialize_cuda_engine = once
    engine = open_engine(model, manifest, "tensorrt")
    assert [c[0] for c in module.calls].count("build") == 1
    said = {
        "version": r"builder 10.3.0, here 10.8.0",
        "gpu": "gpu Fake L4, here NVIDIA L40S",
        "damage": "is damaged: expected sha256",
        "driver": "does not work here (tensorrt 10.3.0 failed to load",
    }[change]
    assert said in caplog.text and "which takes minutes" in caplog.text
    assert engine.encode(np.zeros((1, 3, 64, 64), np.float32)).patch.shape == (1, 16, 192)


@pytest.mark.parametrize("flavour", ["10", "11", "rtx"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precision_is_the_graphs_and_read_back(
    install: Any, model: Path, tmp_path: Path, flavour: str, precision: str
) -> None:
    pytest.importorskip("ml_dtypes")
    from tests.typed_onnx import retyped

    module = install(flavour)
    manifest = retyped(model, tmp_path / "typed", precision)
    entry, fresh = build(tmp_path / "typed", manifest, BACKEND[flavour])
    assert fresh and set(entry.built["matrix_types"]) == {precision} == set(entry.built["graph"])
    assert entry.built["fused_attention"] == entry.built["attentions"] == 2
    # the same engine, had TensorRT quietly built it in float32
    module.realise = {
        fake_tensorrt.DataType.HALF: fake_tensorrt.DataType.FLOAT,
        fake_tensorrt.DataType.BF16: fake_tensorrt.DataType.FLOAT,
    }
    with pytest.raises(
        ModelError, match=f"realized precision is not {precision}.*layer by layer: .*refused.log"
    ) as said:
        build(tmp_path / "typed", manifest, BACKEND[flavour], rebuild=True)
    assert EngineCache(tmp_path / "typed").has_engine_for(BACKEND[flavour]) is False  # not kept
    told = (tmp_path / "typed.engines" / "refused.log").read_text()
    assert told.partition("\n")[0] in str(said.value) and told.count("Float") + told.count("FLOAT") > 2


def test_a_graph_that_is_not_what_the_manifest_says(install: Any, model: Path, manifest: ModelManifest) -> None:
    module = install("11")
    with pytest.raises(ModelError, match=r"expected matrix products in fp16, got \d+ in fp32; export it again"):
        build(model, manifest.model_copy(update={"precision": "fp16"}), "tensorrt")
    assert not [c for c in module.calls if c[0] == "build"]  # before minutes are spent


def test_tf32_is_a_named_choice(install: Any, model: Path, manifest: ModelManifest) -> None:
    module = install("11")
    module.tactic = "sm80_xmma_gemm_tf32f32_tf32f32_f32"
    with pytest.raises(ModelError, match="layers use TF32 kernels"):
        build(model, manifest, "tensorrt")
    entry, _ = build(model, manifest.model_copy(update={"precision": "tf32"}), "tensorrt")
    assert entry.built["tf32_kernels"] > 0 and ("build", [6]) in module.calls


@pytest.mark.parametrize(
    ("knob", "message", "said"),
    [
        ("build_error", "Error Code 2: OutOfMemory (9 GB)", "to build an engine: .*OutOfMemory.*; out of GPU memory: close"),
        ("build_error", "Error Code 10: Could not find any implementation", "Could not find any impl.*visionad doctor"),
        ("load_error", "CUDA driver version is insufficient for CUDA runtime version", "driver is missing or too old"),
        ("context_error", "Error Code 1: Cuda Runtime (out of memory)", "to start .*out of GPU memory: close"),
    ],
)  # fmt: skip
def test_failures_are_one_line_with_the_way_out(
    install: Any, model: Path, knob: str, message: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = install("10")
    setattr(module, knob, message)
    assert run(["build", str(model), "--backend", "tensorrt"]) == 2
    import re

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("visionad:")]
    assert len(lines) == 1 and re.search(said, lines[0]), lines


def test_an_unsupported_gpu_says_so(install: Any, model: Path, manifest: ModelManifest, gpu: type[FakeDevice]) -> None:
    install("rtx")
    gpu.gpu["capability"] = (9, 0)
    with pytest.raises(
        ModelError,
        match=r"this GPU is not supported by tensorrt-rtx 1\.7\.1\.116 \(it runs on 7\.5, .*use another --backend",
    ):
        open_engine(model, manifest, "tensorrt-rtx")


def test_rtx_targets(install: Any, model: Path, manifest: ModelManifest, gpu: type[FakeDevice]) -> None:
    module = install("rtx")
    portable, _ = build(model, manifest, "tensorrt-rtx")
    assert (portable.key["capability"], portable.key["gpu"]) == ("portable", None)
    open_engine(model, manifest, "tensorrt-rtx")
    assert [c[0] for c in module.calls].count("build") == 1
    one, _ = build(model, manifest, "tensorrt-rtx", "8.9")
    engine = open_engine(model, manifest, "tensorrt-rtx")  # the one for just this GPU comes first
    assert engine.info["engine"] == one.folder.name[:12]
    DeviceThread.of(0).close()
    gpu.gpu["capability"] = (7, 5)  # Turing: the portable engine does not run there
    entry, fresh = build(model, manifest, "tensorrt-rtx")
    assert fresh and entry.key["capability"] == "7.5"
    with pytest.raises(VisionADError, match=r"expected compute capability 7\.5.*, got 9\.0"):
        build(model, manifest, "tensorrt-rtx", "9.0")


def test_rtx_builds_where_there_is_no_gpu(
    install: Any, model: Path, gpu: type[FakeDevice], capsys: pytest.CaptureFixture[str]
) -> None:
    install("rtx")
    gpu.missing = "no NVIDIA driver here"
    assert run(["build", str(model), "--backend", "tensorrt-rtx", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (
        facts["fresh"] and facts["self_test"] is None and set(facts["matrix_types"]) == set(facts["graph"]) == {"fp32"}
    )
    assert run(["build", str(model), "--backend", "tensorrt-rtx"]) == 0
    out = capsys.readouterr().out
    assert "was built already" in out and "2 of 2 fused" in out and "at the first start on the target" in out
    assert "phases (steps)" in (Path(facts["folder"]) / "build.log").read_text()
    assert run(["predict", str(model), str(model), str(model), "--backend", "tensorrt-rtx"]) == 2


def test_build_on_a_gpu_tests_the_engine(install: Any, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = install("10")
    assert run(["build", str(model), "--backend", "tensorrt"]) == 0
    out = capsys.readouterr().out
    assert "for Fake L4: built in" in out and "self-test  passed: patch_tokens" in out
    module.fault = fake_tensorrt.constant
    assert run(["build", str(model), "--backend", "tensorrt"]) == 2
    assert "the same output for two different images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--backend", "onnxruntime-cpu"], "expected tensorrt or tensorrt-rtx"),
        (["--backend", "tensorrt", "--precision", "fp16"], "was exported in fp32.*visionad export --precision fp16"),
        (["--backend", "tensorrt", "--capability", "8.6"], "--capability is for tensorrt-rtx"),
    ],
)
def test_mistakes_of_the_build_command(
    install: Any, model: Path, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    install("10")
    assert run(["build", str(model), *args]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_the_library_missing_too_old_or_only_its_stubs(
    model: Path, manifest: ModelManifest, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10", "8.6.1")
    with pytest.raises(VisionADError, match=r"tensorrt 8\.6\.1 is too old: expected 10\.3"):
        build(model, manifest, "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    with pytest.raises(VisionADError, match="only its type stubs are: pip install"):
        build(model, manifest, "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        VisionADError, match=r"tensorrt is not installed: pip install 'visionad\[tensorrt\]' \(on Jetson"
    ):
        build(model, manifest, "tensorrt")
    for driver in (True, False):
        monkeypatch.setattr(tensorrt_api, "has_nvidia_driver", lambda driver=driver: driver)
        with pytest.raises(VisionADError, match="is not installed") as caught:
            build(model, manifest, "tensorrt")
        assert ("needs an NVIDIA driver as well, and none is loaded here" in str(caught.value)) is not driver
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(VisionADError, match=r"pip install 'visionad\[rtx\]'$"):
        build(model, manifest, "tensorrt-rtx")


@pytest.mark.parametrize(
    "line", ["import tensorrt_bindings_", "raise ImportError('libnvonnxparser.so.11: cannot open')"]
)
def test_a_library_of_which_a_part_is_missing_is_reinstalled(
    model: Path, manifest: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """pip, asked for what is installed already, does nothing."""
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (tmp_path / "tensorrt.py").write_text(line)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(VisionADError, match=r"tensorrt does not load \(.*\): pip install --force-reinstall tensorrt"):
        build(model, manifest, "tensorrt")


def test_no_driver_is_one_line(
    install: Any, model: Path, gpu: type[FakeDevice], capsys: pytest.CaptureFixture[str]
) -> None:
    install("10")
    gpu.missing = "no NVIDIA driver here; install the driver"
    assert run(["build", str(model), "--backend", "tensorrt"]) == 2
    assert capsys.readouterr().err == "visionad: no NVIDIA driver here; install the driver\n"


def test_auto_takes_tensorrt_once_it_was_built(
    install: Any, model: Path, manifest: ModelManifest, caplog: pytest.LogCaptureFixture
) -> None:
    module = install("10")
    caplog.set_level(logging.INFO, "visionad")
    engine = open_engine(model, manifest)
    assert engine.name == "onnxruntime-cpu" and "`visionad build" in engine.info["passed over"]
    assert not module.calls  # nobody asked for a build of minutes
    build(model, manifest, "tensorrt")
    assert open_engine(model, manifest).name == "tensorrt"
    assert "backend tensorrt: the best that runs here" in caplog.text
    module.fault = fake_tensorrt.overflow
    engine = open_engine(model, manifest)  # the best that passes
    assert engine.name == "onnxruntime-cpu" and "NaN or Inf" in engine.info["passed over"]
    with pytest.raises(ModelError, match="self-test of tensorrt failed at patch_tokens: NaN or Inf"):
        open_engine(model, manifest, "tensorrt")  # by name there is no way around


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (fake_tensorrt.rolled, "patch_tokens: the rows of a call come back in another order"),
        (fake_tensorrt.reversed_rows, "patch_tokens: "),
        (fake_tensorrt.constant, "patch_tokens: the same output for two different images"),
        (fake_tensorrt.overflow, "patch_tokens: NaN or Inf"),
        (fake_tensorrt.other_output, "patch_tokens: differs from the reference by"),
        (fake_tensorrt.unequal_rows, "differs from the reference by|rows: one image's tokens differ"),
        (fake_tensorrt.one_bad_place, "rows: one image's tokens differ by"),
        (fake_tensorrt.neighbours, "rows: one image's tokens differ by"),
    ],
)
def test_faults_of_the_library_are_caught(
    install: Any, model: Path, manifest: ModelManifest, fault: Any, said: str
) -> None:
    module = install("11")
    module.fault = fault
    with pytest.raises(ModelError, match=f"self-test of tensorrt failed at .*({said})"):
        open_engine(model, manifest, "tensorrt")
    device = DeviceThread.of(0).run(lambda d: d)
    assert DeviceThread.of(0).run(lambda d: d.free_memory()) == device.total_memory  # and its memory was given back


def test_a_short_group_has_no_neighbour_from_the_call_before(
    install: Any, model: Path, manifest: ModelManifest
) -> None:
    """Even were rows to leak into each other, a result would be that of its own call alone."""
    module = install("11")
    engine = open_engine(model, manifest, "tensorrt")
    module.fault = lambda _, outputs: {n: v + v[::-1] for n, v in outputs.items()}
    one, two, three = np.random.default_rng(0).standard_normal((3, 1, 3, 64, 64)).astype(np.float32)
    engine.encode(np.concatenate([one, two, three]))
    after = engine.encode(one).patch
    engine.encode(np.concatenate([three, three, two]))
    np.testing.assert_array_equal(engine.encode(one).patch, after)


def test_one_logger_a_process(install: Any, model: Path, manifest: ModelManifest) -> None:
    """TensorRT ignores every logger but the first; a second one would lose the words that explain a failure."""
    module = install("10")
    build(model, manifest, "tensorrt")
    api = tensorrt_api.load_api("tensorrt")
    with api.collector.collect() as messages:
        build(model, manifest, "tensorrt", rebuild=True)
    assert messages and not [m for m in messages if "ignored" in m.text]
    module.build_error = "the reason"
    with pytest.raises(ModelError, match="the reason"):
        build(model, manifest, "tensorrt", rebuild=True)


def test_progress_counts_to_a_hundred(install: Any, model: Path, manifest: ModelManifest) -> None:
    install("10")
    steps: list[None] = []
    build(model, manifest, "tensorrt", step=lambda: steps.append(None))
    assert len(steps) == 100
