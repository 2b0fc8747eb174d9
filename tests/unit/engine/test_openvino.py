"""OpenVINO: what is asked for is realized or refused in words, rows are independent, nothing is sent anywhere.

Everything runs in fp32 on any CPU. What needs bf16 instructions is skipped, with that reason, where the CPU has none; the refusal
is tested everywhere, with a CPU that is said to have none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.cli.main import run
from visionad_runtime.engine import openvino as module
from visionad_runtime.engine.base import CPU
from visionad_runtime.engine.openvino import OpenVINOEngine, check_capability, check_realized, choose_device
from visionad_runtime.engine.registry import auto_backends, backends
from visionad_runtime.errors import ModelError, VisionADError
from visionad_runtime.formats.manifest import BankManifest, ModelManifest, Precision, read_manifest
from visionad_runtime.pipeline.opening import open_engine
from visionad_runtime.pipeline.self_test import RMS_TOLERANCE, SCORE_TOLERANCE, read_golden, self_test

from tests.data import in_threads, part

pytest.importorskip("openvino", reason="pip install 'visionad[openvino]'")
pytest.importorskip("onnx", reason="graphs are typed anew with it")
from tests.typed_onnx import retyped


def capabilities() -> list[str]:
    """What OpenVINO finds this CPU to compute in."""
    found: list[str] = module.load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return found


needs_bf16 = pytest.mark.skipif("BF16" not in capabilities(), reason="this CPU has no bf16 instructions")
ALL = [
    pytest.param("fp32", id="fp32"),
    pytest.param("bf16", id="bf16", marks=needs_bf16),
]


@pytest.fixture
def manifest(tiny_model: Path) -> ModelManifest:
    return read_manifest(tiny_model, ModelManifest)


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU that is said to compute in fp32 alone."""
    true = check_capability

    def check(capable: Any, *rest: Any) -> None:
        true([one for one in capable if one not in ("BF16", "FP16")], *rest)

    monkeypatch.setattr(module, "check_capability", check)
    yield


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 3, 64, 64)).astype(np.float32)


# -- what is computed --------------------------------------------------------------------------------------------------


def test_fp32_gives_the_tokens_of_onnx_runtime(tiny_model: Path, manifest: ModelManifest) -> None:
    ours, theirs = (open_engine(tiny_model, manifest, name, threads=1) for name in ("openvino", "onnxruntime-cpu"))
    found, right = (engine.encode(images(3)) for engine in (ours, theirs))
    assert found.patch.dtype == np.float32 and found.patch.shape == right.patch.shape
    np.testing.assert_allclose(found.patch, right.patch, atol=5e-6)
    np.testing.assert_allclose(found.cls, right.cls, atol=5e-6)
    assert ours.precision == "fp32" and ours.info["precision"].startswith("fp32 in ") and "bf16" not in str(ours.info)


@pytest.mark.parametrize("precision", ALL)
def test_a_row_never_depends_on_the_others_of_its_call(
    tiny_model: Path, manifest: ModelManifest, precision: Precision
) -> None:
    engine = open_engine(tiny_model, manifest, "openvino", threads=2, precision=precision)
    rows = images(5)
    together = engine.encode(rows)
    assert together.cls is not None
    for order in ([3], [4, 0], [2, 2, 1, 0, 4, 3]):
        again = engine.encode(rows[order])
        np.testing.assert_array_equal(again.patch, together.patch[order])
        np.testing.assert_array_equal(again.cls, together.cls[order])
    first = engine.encode(rows[:1])
    engine.encode(images(1, seed=9))  # results are not views of a buffer that the next call overwrites
    np.testing.assert_array_equal(first.patch, together.patch[:1])


@pytest.mark.parametrize("precision", ALL)
def test_without_a_class_token_the_patch_tokens_are_the_same_bits(
    tiny_model: Path, manifest: ModelManifest, precision: Precision
) -> None:
    engine = open_engine(tiny_model, manifest, "openvino", threads=1, precision=precision)
    whole, known = engine.encode(images(2)), engine.encode(images(2), class_token=False)
    assert known.cls is None
    np.testing.assert_array_equal(known.patch, whole.patch)


def test_blocks_behind_a_final_class_token_are_a_model_of_their_own(tiny_model: Path, manifest: ModelManifest) -> None:
    """The tiny model takes its patch tokens from two of twelve blocks, and its class token from the last or from these."""
    engine = OpenVINOEngine(tiny_model, manifest, 1)
    final = manifest.identity.class_token == "final"
    assert len(engine._requests) == (2 if final else 1)


def test_many_threads_share_an_engine(tiny_model: Path, manifest: ModelManifest) -> None:
    engine = open_engine(tiny_model, manifest, "openvino", threads=1)
    right = [engine.encode(images(1, seed)).patch for seed in range(4)]

    def work(seed: int) -> None:
        for _ in range(5):
            np.testing.assert_array_equal(engine.encode(images(1, seed)).patch, right[seed])

    in_threads(*(lambda seed=seed: work(seed) for seed in range(4)))  # type: ignore[misc]


def test_a_closed_engine_refuses_work(tiny_model: Path, manifest: ModelManifest) -> None:
    engine = open_engine(tiny_model, manifest, "openvino")
    engine.close()
    engine.close()
    with pytest.raises(VisionADError, match="openvino: this engine was closed"):
        engine.encode(images(1))


# -- precision ---------------------------------------------------------------------------------------------------------


@needs_bf16
def test_bf16_is_realized_but_for_the_convolution_that_reads_the_image(
    tiny_model: Path, manifest: ModelManifest
) -> None:
    engine = open_engine(tiny_model, manifest, "openvino", precision="bf16")
    assert engine.precision == "bf16"
    lowered, kept = engine.info["precision"].removeprefix("bf16 in ").split(" products")[0].split(", fp32 in ")
    assert int(lowered) > 5 and int(kept) == 1
    assert engine.info["precision"].endswith("told to stay in fp32: the first 1 convolution")


@needs_bf16
def test_keeping_the_first_convolutions_in_fp32_brings_tokens_nearer(
    tiny_model: Path, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = read_golden(tiny_model)
    off = {}
    for kept in (module.FP32_CONVOLUTIONS, 0):
        monkeypatch.setattr(module, "FP32_CONVOLUTIONS", kept)
        engine = OpenVINOEngine(tiny_model, manifest, 1, "bf16")
        off[kept] = self_test(engine, manifest, golden)["rms"]
        assert ("told to stay" in engine.info["precision"]) == bool(kept)
    assert 1e-4 < off[module.FP32_CONVOLUTIONS or 5] < off[0]


@needs_bf16
def test_the_self_test_is_of_the_realized_precision(tiny_model: Path, manifest: ModelManifest) -> None:
    golden = read_golden(tiny_model)
    found = self_test(OpenVINOEngine(tiny_model, manifest, 1, "bf16"), manifest, golden)
    assert RMS_TOLERANCE["fp32"] < found["rms"] < RMS_TOLERANCE["bf16"]
    assert found["score"] < SCORE_TOLERANCE["bf16"] * golden["blemished_score"][0]
    engine = OpenVINOEngine(tiny_model, manifest, 1, "bf16")
    engine.precision = "fp32"
    with pytest.raises(ModelError, match="self-test of openvino failed at patch_tokens"):
        self_test(engine, manifest, golden)


@pytest.mark.usefixtures("without_bf16")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_cpu_lacks_is_an_error_in_words(
    tiny_model: Path, manifest: ModelManifest, precision: Precision
) -> None:
    for backend in ("openvino", "auto"):  # `auto` falls back to no other precision either
        with pytest.raises(
            VisionADError,
            match=rf"expected precision fp32 on this CPU, got {precision}.*no instructions.*--precision fp32",
        ):
            open_engine(tiny_model, manifest, backend, precision=precision)


@pytest.mark.usefixtures("without_bf16")
def test_the_command_line_says_it_too(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, bank = tmp_path / "part.png", tmp_path / "bank"
    cv2.imwrite(str(image), part(0))
    assert run(["bank", "add", str(tiny_model), str(bank), "--class", "disc", str(image)]) == 0
    capsys.readouterr()
    assert run(["predict", str(tiny_model), str(bank), str(image), "--precision", "bf16"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.strip().splitlines()) == 1
    assert "got bf16, which it has no instructions for: it takes AVX512_BF16 or AMX" in said.err
    assert run(["predict", str(tiny_model), str(bank), str(image), "--precision", "int8"]) == 2
    assert "precision 'int8': expected one of fp32, tf32, bf16, fp16" in capsys.readouterr().err


def test_capabilities_decide() -> None:
    check_capability(["FP32", "BF16"], "bf16", "CPU")
    with pytest.raises(VisionADError, match=r"expected precision fp16 on this NPU, got fp32.*choose --precision fp16"):
        check_capability(["FP16", "INT8"], "fp32", "NPU")
    with pytest.raises(VisionADError, match="choose another --device"):
        check_capability(["INT8"], "fp32", "NPU")


@pytest.mark.parametrize(
    ("types", "hint", "asked"),
    [
        ({"fp32": 11}, "fp32", "bf16"),  # fell back
        ({"fp32": 6, "bf16": 5}, "bf16", "bf16"),  # most of it did
        ({"bf16": 11}, "bf16", "fp32"),  # OpenVINO's own default
        ({"fp32": 10, "bf16": 1}, "fp32", "fp32"),
        ({"bf16": 10, "int8": 1}, "bf16", "bf16"),
        ({"bf16": 11}, "fp32", "bf16"),
        ({}, None, "fp16"),  # nothing says so
    ],
)
def test_another_realized_precision_is_refused(types: dict[str, int], hint: str | None, asked: Precision) -> None:
    with pytest.raises(ModelError, match=rf"realized precision is not {asked}: OpenVINO .* on CPU has products in"):
        check_realized(Counter(types), hint, asked, "CPU")


@pytest.mark.parametrize(
    ("types", "hint", "asked"),
    [
        ({"fp32": 11}, "fp32", "fp32"),
        ({"fp32": 5, "bf16": 28}, "bf16", "bf16"),
        ({}, "fp16", "fp16"),
        ({"fp16": 9}, None, "fp16"),
    ],
)
def test_the_realized_precision_passes(types: dict[str, int], hint: str | None, asked: Precision) -> None:
    check_realized(Counter(types), hint, asked, "CPU")


def test_a_compiled_model_of_another_precision_is_caught(
    tiny_model: Path, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back from the compiled model, not from what it was told."""
    if "BF16" not in capabilities():
        pytest.skip("this CPU has no bf16 instructions")
    monkeypatch.setitem(module._HINTS, "fp32", "bf16")
    with pytest.raises(ModelError, match=r"realized precision is not fp32.*products in bf16 in"):
        OpenVINOEngine(tiny_model, manifest, 1)


def test_a_model_exported_in_half_keeps_its_precision(tiny_model: Path, tmp_path: Path) -> None:
    manifest = retyped(tiny_model, tmp_path / "bf16", "bf16")
    with pytest.raises(VisionADError, match="expected precision bf16, got fp32; the weights of this model are in bf16"):
        OpenVINOEngine(tmp_path / "bf16", manifest, 1, "fp32")
    if "BF16" in capabilities():
        assert OpenVINOEngine(tmp_path / "bf16", manifest, 1).precision == "bf16"
    else:
        with pytest.raises(VisionADError, match="got bf16"):
            OpenVINOEngine(tmp_path / "bf16", manifest, 1)


def test_a_tf32_model_is_computed_in_fp32(tiny_model: Path, manifest: ModelManifest) -> None:
    engine = OpenVINOEngine(tiny_model, manifest.model_copy(update={"precision": "tf32"}), 1)
    assert engine.precision == "fp32"


# -- calibration -------------------------------------------------------------------------------------------------------


@needs_bf16
def test_a_threshold_calibrated_in_bf16_holds_in_bf16_alone(tiny_model: Path, tmp_path: Path, good: list[Path]) -> None:
    bank, backend = tmp_path / "bank", ["--backend", "openvino"]
    assert run(["bank", "add", str(tiny_model), str(bank), "--class", "disc", str(good[0])]) == 0
    told = ["calibrate", str(tiny_model), str(bank), "--class", "disc", "--max-false-reject", "0.3"]
    assert run([*told, *map(str, good[1:]), *backend, "--precision", "bf16"]) == 0
    record = read_manifest(bank, BankManifest).classes["disc"].calibration
    assert record is not None and record.precision == "bf16"
    pixels = part(0)
    with Inspector.open(tiny_model, bank, backend="openvino", precision="bf16") as inspector:
        result = inspector.inspect(pixels)
        assert result.verdict == "ok" and result.precision == "bf16" and not inspector.calibration_warnings()
        assert inspector.inspect(part(0, defect=True)).verdict == "anomalous"
        assert result.to_dict("x")["precision"] == "bf16"
    with Inspector.open(tiny_model, bank, backend="openvino") as inspector:
        assert inspector.inspect(pixels).verdict == "unknown"
        (line,) = inspector.calibration_warnings()
        assert "in bf16, which does not hold for" in line and "in fp32" in line


@needs_bf16
def test_parity_in_bf16(tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    bank = tmp_path / "bank"
    assert run(["bank", "add", str(tiny_model), str(bank), "--class", "disc", str(good[0])]) == 0
    capsys.readouterr()
    told = ["parity", str(tiny_model), str(bank), *map(str, good[1:]), "--json", "--backend", "openvino"]
    status = run([*told, "--precision", "bf16"])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["pass"]) == (0, True) and report["precision"] == "bf16" and report["backend"] == "openvino"


# -- the registry and the choice ---------------------------------------------------------------------------------------


def test_auto_takes_it_for_a_precision_that_only_it_offers(tiny_model: Path, manifest: ModelManifest) -> None:
    assert backends()["openvino"].device == CPU
    names = [spec.name for spec in auto_backends()]
    assert names.index("onnxruntime-cpu") < names.index("openvino")
    assert open_engine(tiny_model, manifest).name == "onnxruntime-cpu"
    assert open_engine(tiny_model, manifest, precision="fp32").name == "onnxruntime-cpu"
    assert open_engine(tiny_model, manifest, device="cpu").name == "openvino"
    if "BF16" in capabilities():
        engine = open_engine(tiny_model, manifest, precision="bf16")
        assert (engine.name, engine.precision) == ("openvino", "bf16")


def test_a_device_is_found_or_named() -> None:
    available = ["CPU", "GPU.0", "GPU.1", "NPU"]
    assert [choose_device(available, name) for name in (None, "cpu", "gpu", "Gpu.1", "npu")] == [
        "CPU",
        "CPU",
        "GPU",
        "GPU.1",
        "NPU",
    ]
    with pytest.raises(VisionADError, match=r"finds here \(cpu\), got npu; .* driver"):
        choose_device(["CPU"], "npu")
    with pytest.raises(VisionADError, match=r"got gpu\.7"):
        choose_device(available, "gpu.7")


def test_other_backends_take_no_device(tiny_model: Path, manifest: ModelManifest) -> None:
    with pytest.raises(VisionADError, match="onnxruntime-cpu: expected no device, got 'gpu'; use --backend openvino"):
        open_engine(tiny_model, manifest, "onnxruntime-cpu", device="gpu")


def test_the_probe_names_the_devices() -> None:
    found = module.SPEC.probe()
    able = [name for name in ("fp32", "bf16", "fp16") if name.upper() in capabilities()]
    assert found.runs and "devices: cpu (" in found.why and f": {', '.join(able)})" in found.why


def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, manifest: ModelManifest
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(VisionADError, match=r"openvino is not installed: pip install 'visionad\[openvino\]'"):
        open_engine(tiny_model, manifest, "openvino")


def test_a_damaged_graph_is_refused(tiny_model: Path, manifest: ModelManifest, tmp_path: Path) -> None:
    (tmp_path / "backbone.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"backbone\.onnx cannot be compiled by OpenVINO"):
        OpenVINOEngine(tmp_path, manifest)
    other = manifest.identity.model_copy(update={"dim": 77})
    with pytest.raises(ModelError, match=r"expected inputs and outputs .*77.* export the model again"):
        OpenVINOEngine(tiny_model, manifest.model_copy(update={"identity": other}))


# -- what the process sees ---------------------------------------------------------------------------------------------


def test_nothing_is_sent_and_nothing_printed(tiny_model: Path) -> None:
    code = (
        "import sys, socket\n"
        "def refuse(*_): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "from pathlib import Path\n"
        "from visionad_runtime.formats.manifest import ModelManifest, read_manifest\n"
        "import visionad_runtime.engine.registry as registry\n"
        "registry.backends()\n"
        "assert 'openvino' not in sys.modules, 'a list of backends loads none'\n"
        f"folder = Path({str(tiny_model)!r})\n"
        "from visionad_runtime.engine.openvino import OpenVINOEngine\n"
        "OpenVINOEngine(folder, read_manifest(folder, ModelManifest), 1).close()\n"
        "assert 'openvino' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.slow(group="benchmarks")
@needs_bf16
def test_bench_prints_the_ratio(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ["bench", str(tiny_model), "--backend", "onnxruntime-cpu,openvino", "--precision", "bf16", "--batch", "1"]
    assert (
        run(
            [*told, "--seconds", "0.2", "--rounds", "3", "--starts", "0", "--threads", "1", "--class", "gear", "--json"]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    precisions = {name: entry["precision"] for name, entry in report["backends"].items()}
    assert precisions == {"onnxruntime-cpu": "fp32", "openvino": "bf16"}
    ratios = {row["what"]: row["by"] for row in report["against"]}
    assert ratios == {"openvino": "onnxruntime-cpu", "openvino, from pixels": "onnxruntime-cpu, from pixels"}
