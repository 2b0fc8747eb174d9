"""Precision in the graph: types where they were promised, numbers as hardware rounds them, and no graph that costs too much."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import cache
from tests.data import part

pytest.importorskip("torch")
pytest.importorskip("onnx")

import ml_dtypes
import onnx
import onnx_ir as ir
import onnxruntime as ort
import timm
import torch
from safetensors.torch import save_file
from visionad_export import exporter
from visionad_export.describe import describe
from visionad_export.exporter import export_model
from visionad_export.graph import precision
from visionad_export.graph.precision import emulate, lower, lower_file, realised
from visionad_export.parity import _auroc, _order, tolerances
from visionad_runtime.bank.store import Bank
from visionad_runtime.cli.main import run
from visionad_runtime.errors import ModelError
from visionad_runtime.formats.manifest import Calibration, ModelManifest, Precision, read_manifest
from visionad_runtime.inspector import Inspector
from visionad_runtime.pipeline.self_test import GOLDEN_TOLERANCE, read_golden, self_test
from visionad_runtime.scoring.spec import ScoringSpec

from visionad_ref import REGISTRY, Reference

SMALL = {
    "deit_tiny_patch16_224": {"resize": 64, "crop": 64, "layers": (0, 1)},
    "dinov2_vits14_reg": {"resize": 56, "crop": 56, "layers": (0, 1)},
    "efficientnet_lite0": {"resize": 64, "crop": 64},
}
VITS = [name for name in SMALL if name != "efficientnet_lite0"]
Weights = Callable[[torch.nn.Module], None]


def random_weights(name: str, path: Path, change: Weights = lambda _: None) -> Path:
    """Random weights with a LayerScale that lets the blocks matter (timm starts it at 1e-5)."""
    torch.manual_seed(7)
    net = timm.create_model(REGISTRY[name].timm_name, pretrained=False, num_classes=0)
    with torch.no_grad():
        for key, p in net.named_parameters():
            p.add_(1.0 if "gamma" in key else torch.randn_like(p) * 0.05)
        change(net)
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def graphs() -> dict[str, tuple[Path, precision.Probes]]:
    """fp32 graphs of a ViT without and one with registers and LayerScale, and a CNN; with what they are tried on."""
    made = {}
    for name, small in SMALL.items():
        arguments = {"class_token": "final" if "reg" in name else "fused", **small}

        def write(folder: Path, name: str = name, arguments: dict = arguments) -> None:
            weights = None if name == "efficientnet_lite0" else random_weights(name, folder / "random.safetensors")
            reference = Reference.load(name, weights, **arguments)
            exporter._write_onnx(reference.backbone, folder / f"{name}.onnx", exporter.EXTERNAL_DATA_LIMIT)

        folder = cache.get(f"graph of {name}, {sorted(arguments.items())}", write)
        weights = None if name == "efficientnet_lite0" else folder / "random.safetensors"
        reference = Reference.load(name, weights, **arguments)
        probes = exporter._probes(reference, exporter._golden(reference)["image"])
        made[name] = folder / f"{name}.onnx", probes
    return made


def nodes(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op]


def run_graph(path: Path, images: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["patch_tokens", "class_token"], {"images": images})


# --- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow(group="precision")
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("name", VITS)
def test_a_vit_computes_products_in_half_and_the_rest_in_float32(
    name: str, kind: str, graphs: dict[str, tuple[Path, precision.Probes]], tmp_path: Path
) -> None:
    source, _ = graphs[name]
    model = ir.load(source)
    lower(model, kind)
    precision.save_onnx(model, tmp_path / "g.onnx", 1 << 30)
    model = ir.load(tmp_path / "g.onnx")
    onnx.checker.check_model(
        onnx.load(tmp_path / "g.onnx"), full_check=True
    )  # every operator takes the types it is given
    blocks = 12 if "reg" in name else 2  # the final class token takes all blocks
    types = realised(model)
    assert types["MatMul"] == {kind: 6 * blocks}
    assert types["Softmax"] == types["Gelu"] == {kind: blocks}
    assert types["Conv"] == {"fp32": 1}  # reads the images
    assert types["ReduceL2"] == {"fp32": 2}
    assert set(types["LayerNormalization"]) == {"fp32"}
    assert types["Cast"] == {kind: 2 * blocks, "fp32": 2 * blocks}  # in and out of attention, in and out of the MLP
    for node in nodes(model, "Add"):
        constants = [v for v in node.inputs if v is not None and v.is_initializer()]
        assert node.outputs[0].dtype == (precision.HALF[kind] if _is_bias_of_half(node, kind) else ir.DataType.FLOAT)
        assert len(constants) == 1 or node.outputs[0].dtype == ir.DataType.FLOAT  # residuals and the mean over layers
    weights = [v for node in nodes(model, "MatMul") for v in node.inputs if v is not None and v.is_initializer()]
    assert {v.dtype for v in weights} == {precision.HALF[kind]}
    assert (tmp_path / "g.onnx").stat().st_size < 0.6 * source.stat().st_size
    assert {v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}


def _is_bias_of_half(node: ir.Node, kind: str) -> bool:
    """A bias whose sum goes on to a half operator: of q, k, v and of the MLP's first layer."""
    return any(use.node.op_type in ("Reshape", "Gelu") for use in node.outputs[0].uses())


@pytest.mark.slow(group="precision")
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", VITS)
def test_attention_keeps_the_form_that_engines_fuse(
    name: str, kind: str, graphs: dict[str, tuple[Path, precision.Probes]]
) -> None:
    model = ir.load(graphs[name][0])
    lower(model, kind)
    softmaxes = nodes(model, "Softmax")
    assert softmaxes
    for softmax in softmaxes:
        scores = softmax.inputs[0].producer()
        (after,) = [use.node for use in softmax.outputs[0].uses()]
        assert (scores.op_type, after.op_type) == ("MatMul", "MatMul")
        query, key = (value.producer() for value in scores.inputs)
        assert (query.op_type, key.op_type) == (
            "Mul",
            "Transpose",
        )  # the query is scaled before the product can overflow
        kinds = {v.dtype for node in (query, key, scores, softmax, after) for v in (*node.inputs, *node.outputs)}
        assert len(kinds) == 1


@pytest.mark.slow(group="precision")
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_cnn_computes_its_convolutions_in_half(
    kind: str, graphs: dict[str, tuple[Path, precision.Probes]], tmp_path: Path
) -> None:
    model = ir.load(graphs["efficientnet_lite0"][0])
    lower(model, kind)
    ir.save(model, tmp_path / "g.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "g.onnx"), full_check=True)
    types = realised(model)
    assert types["Conv"]["fp32"] == 1 and types["Conv"][kind] > 30
    assert set(types["Add"]) == set(types["Resize"]) == {"fp32"}  # residual sums, and what leads out
    assert sum(types["Cast"].values()) <= 16


@pytest.mark.slow(group="precision")
def test_fp32_and_tf32_leave_the_graph_as_it_is(graphs: dict[str, tuple[Path, precision.Probes]]) -> None:
    source, _ = graphs["deit_tiny_patch16_224"]
    before = ir.to_proto(ir.load(source)).SerializeToString(deterministic=True)
    for kind in ("fp32", "tf32"):
        model = ir.load(source)
        lower(model, kind)
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.slow(group="precision")
def test_tf32_costs_something_though_the_file_stays(
    graphs: dict[str, tuple[Path, precision.Probes]], tmp_path: Path
) -> None:
    source, probes = graphs["deit_tiny_patch16_224"]
    path = Path(shutil.copy(source, tmp_path / "backbone.onnx"))
    accuracy = lower_file(path, "tf32", probes, 1 << 30)
    assert accuracy is not None and 0.999 < accuracy.min_cosine < 1
    assert 1e-6 < accuracy.golden_max_abs <= accuracy.max_abs
    assert path.read_bytes() == source.read_bytes()
    assert lower_file(path, "fp32", probes, 1 << 30) is None


def test_every_precision_has_its_tolerances() -> None:
    assert set(GOLDEN_TOLERANCE) == set(precision.HALF) | {"fp32", "tf32"} == set(get_args(Precision))
    assert all(tolerances(kind)["preprocess"] == 0 for kind in get_args(Precision))


@pytest.mark.slow(group="precision")
def test_large_weights_stay_in_a_file_of_their_own(
    graphs: dict[str, tuple[Path, precision.Probes]], tmp_path: Path
) -> None:
    source, probes = graphs["deit_tiny_patch16_224"]
    path = tmp_path / "backbone.onnx"
    precision.save_onnx(ir.load(source), path, 1000)
    before = (tmp_path / "backbone.onnx.data").stat().st_size
    assert lower_file(path, "fp16", probes, 1000) is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone.onnx", "backbone.onnx.data"]
    assert (tmp_path / "backbone.onnx.data").stat().st_size < 0.7 * before
    assert path.stat().st_size < 200_000
    patch, _ = run_graph(path, probes.images)
    assert (patch.astype(np.float64) * probes.patch).sum(-1).min() > 0.999


# --- numbers -------------------------------------------------------------------------------------------------------


def product_graph(weights: np.ndarray) -> ir.Model:
    """images → · weights (+ 1) · weights → patch_tokens: two products with a bias between."""
    g = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Identity", ["images"], ["x"]),
            onnx.helper.make_node("MatMul", ["x", "w"], ["a"]),
            onnx.helper.make_node("Add", ["a", "b"], ["c"]),
            onnx.helper.make_node("MatMul", ["c", "w"], ["d"]),
            onnx.helper.make_node("Identity", ["d"], ["patch_tokens"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [4, 4])],
        [onnx.helper.make_tensor_value_info("patch_tokens", onnx.TensorProto.FLOAT, [4, 4])],
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(np.ones(4, np.float32), "b")],
    )
    proto = onnx.helper.make_model(g, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize("kind", ["fp16", "bf16", "tf32"])
def test_emulation_rounds_what_the_hardware_rounds(kind: str) -> None:
    # One non-zero a row: products are exact, so only the roundings show.
    rng = np.random.default_rng(0)
    weights = np.diag(rng.standard_normal(4)).astype(np.float32)
    x = rng.standard_normal((4, 4)).astype(np.float32)
    model = product_graph(weights)
    lower(model, kind)
    emulate(model, kind)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": x})[0]

    def r(v: np.ndarray) -> np.ndarray:
        return v.astype(np.float16 if kind == "fp16" else ml_dtypes.bfloat16).astype(np.float32)

    wanted = r(r(r(r(x) @ r(weights)) + 1) @ r(weights))  # the bias leads to a half product, so it is added in half
    if kind == "tf32":
        wanted = tf32(tf32(x) @ tf32(weights) + 1) @ tf32(weights)
    assert np.array_equal(found, wanted)
    assert not np.array_equal(found, (x @ weights + 1) @ weights)


def tf32(v: np.ndarray) -> np.ndarray:
    """Round to 10 stored bits, ties to even, on the bits."""
    bits = np.ascontiguousarray(v, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~np.uint64(0x1FFF)).astype(np.uint32).view(np.float32)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=16, max_size=16))
def test_splitting_rounds_to_tf32(values: list[float]) -> None:
    weights = np.array(values, np.float32).reshape(4, 4)
    weights[np.abs(weights) < 1e-30] = 0
    model = product_graph(weights)
    emulate(model, "tf32")
    found = next(v for name, v in model.graph.initializers.items() if name.endswith(".tf32")).const_value.numpy()
    assert np.array_equal(found, tf32(weights))


@pytest.mark.slow(group="precision")
@pytest.mark.parametrize("name", SMALL)
def test_the_fp16_graph_gives_about_the_emulated_tokens(
    name: str, graphs: dict[str, tuple[Path, precision.Probes]], tmp_path: Path
) -> None:
    """ONNX Runtime runs the typed graph on a CPU (in float32 where it likes), so it must lie between fp32 and the emulation."""
    source, probes = graphs[name]
    path = Path(shutil.copy(source, tmp_path / "backbone.onnx"))
    accuracy = lower_file(path, "fp16", probes, 1 << 30)
    assert accuracy is not None and accuracy.min_cosine < 1
    for batch in (1, 5):
        patch, cls = run_graph(path, probes.images[:batch])
        for ours, theirs in ((patch, probes.patch), (cls, probes.cls)):
            assert np.abs(ours - theirs[:batch]).max() <= 3 * accuracy.max_abs


# --- the gate ------------------------------------------------------------------------------------------------------


@pytest.mark.slow(group="precision")
def test_activations_beyond_fp16_in_the_residual_survive(tmp_path: Path) -> None:
    def massive(net: torch.nn.Module) -> None:
        net.blocks[0].ls2.gamma[3] = 1e6  # as DINOv2 grows them, and more
        net.pos_embed[..., 5] = 1e5

    weights = random_weights("dinov2_vits14_reg", tmp_path / "w.safetensors", massive)
    out = tmp_path / "model"
    export_model("dinov2_vits14_reg", out, weights=weights, precision="fp16", **SMALL["dinov2_vits14_reg"])
    model = ir.load(out / "backbone.onnx")
    sums = [n.outputs[0] for n in nodes(model, "Add") if not any(v.is_initializer() for v in n.inputs)]
    for value in sums:
        value.shape = None
    model.graph.outputs.extend(sums[:4])
    ir.save(model, tmp_path / "open.onnx")
    session = ort.InferenceSession(tmp_path / "open.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": np.zeros((1, 3, 56, 56), np.float32)})
    assert max(np.abs(f).max() for f in found) > 65504
    assert all(np.isfinite(f).all() for f in found)


@pytest.mark.slow(group="precision")
def test_a_product_beyond_fp16_is_refused_with_a_way_out(tmp_path: Path) -> None:
    def massive(net: torch.nn.Module) -> None:
        net.blocks[1].mlp.fc1.weight[:8] *= 1e6
        net.blocks[1].mlp.fc2.weight[:, :8] *= 1e-6

    name = "dinov2_vits14_reg"
    weights = random_weights(name, tmp_path / "w.safetensors", massive)
    with pytest.raises(ModelError) as info:
        export_model(name, tmp_path / "model", weights=weights, precision="fp16", **SMALL[name])
    assert "is not finite: fp16 ends at 65504); --precision bf16 passes, with 0.99" in str(info.value)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.slow(group="precision")
def test_a_precision_that_costs_too_much_is_refused(
    graphs: dict[str, tuple[Path, precision.Probes]], tmp_path: Path
) -> None:
    source, probes = graphs["efficientnet_lite0"]
    path = Path(shutil.copy(source, tmp_path / "backbone.onnx"))
    with pytest.raises(ModelError, match=r"bf16 costs .* image has cosine 0\.9.* --precision fp16 passes, with 0\.999"):
        lower_file(path, "bf16", probes, 1 << 30)
    assert path.read_bytes() == source.read_bytes()
    wrong = probes._replace(patch=np.roll(probes.patch, 1, axis=-1))
    with pytest.raises(ModelError, match="stay with --precision fp32"):
        lower_file(path, "fp16", wrong, 1 << 30)


# --- model folder, bank, command -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def half_model(tiny_weights: Path) -> tuple[Path, dict]:
    """``tiny_model`` in fp16. Read only."""
    out = cache.export_tiny(tiny_weights, precision="fp16")
    return out, json.loads((out.parent / "summary.json").read_text())


def test_the_folder_says_what_it_is(half_model: tuple[Path, dict], tiny_model: Path) -> None:
    out, summary = half_model
    manifest, fp32 = (read_manifest(folder, ModelManifest) for folder in (out, tiny_model))
    assert manifest.precision == "fp16" and manifest.accuracy.min_cosine > 0.999
    assert (fp32.precision, fp32.accuracy) == ("fp32", None)
    assert manifest.identity == fp32.identity  # banks are shared
    assert read_golden(out).keys() == read_golden(tiny_model).keys()
    for key, value in read_golden(out).items():
        assert np.array_equal(value, read_golden(tiny_model)[key])  # the fp32 reference's, whatever the precision
    assert sum(p.stat().st_size for p in out.iterdir()) == summary["bytes"]
    assert summary["onnx_bytes"] < 0.6 * summary["onnx_bytes_fp32"]
    assert json.loads(json.dumps(summary))["types"]["MatMul"] == {"fp16": 12}
    text = describe(summary)
    assert "12 MatMul" in text and "4 LayerNormalization" in text and "8 casts" in text
    assert "accuracy   smallest cosine to fp32 " in text


def test_the_self_test_tells_half_from_wrong(half_model: tuple[Path, dict], tiny_weights: Path, tmp_path: Path) -> None:
    inspector = Inspector.open(half_model[0])
    golden = read_golden(half_model[0])
    found = self_test(inspector.engine, inspector.manifest, golden)
    assert 0 < found["patch_tokens"] < GOLDEN_TOLERANCE["fp16"] / 2
    other = Reference.load("deit_tiny_patch16_224", tiny_weights, resize=72, crop=64, layers=(1,))
    wrong = {**golden, **{k: v for k, v in exporter._golden(other).items() if k != "image"}}
    with pytest.raises(ModelError, match=r"differs from the reference by .* \(allowed 0\.02\)"):
        self_test(inspector.engine, inspector.manifest, wrong)


def test_bf16_on_a_cpu_is_one_clear_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # not installed: it may run bf16 on this CPU
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps({**manifest, "precision": "bf16"}))
    cv2.imwrite(str(tmp_path / "a.png"), part(0))
    assert run(["bank", "add", str(model), str(tmp_path / "bank"), "--class", "x", str(tmp_path / "a.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is in bf16" in line and "--precision fp32 for this box" in line


def test_one_bank_serves_both_and_parity_holds(
    half_model: tuple[Path, dict],
    tiny_model: Path,
    good: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bank, bad = tmp_path / "bank", tmp_path / "scratch"
    bad.mkdir()
    for i in range(3):
        cv2.imwrite(str(bad / f"{i}.png"), part(10 + i, defect=True))
    assert run(["bank", "add", str(tiny_model), str(bank), "--class", "disc", str(good[0])]) == 0
    scores = {}
    for model in (tiny_model, half_model[0]):
        capsys.readouterr()
        assert run(["predict", str(model), str(bank), *map(str, good[1:]), str(bad), "--json", "--class", "disc"]) == 0
        scores[model] = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    assert np.allclose(scores[tiny_model], scores[half_model[0]], rtol=tolerances("fp16")["score"])
    assert scores[tiny_model] != scores[half_model[0]]

    args = ["parity", str(half_model[0]), str(bank), *map(str, good[1:]), str(bad), "--class", "disc"]
    assert run([*args, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["precision"], report["pass"]) == ("fp16", True)
    allowed = {name: stage["tolerance"] for name, stage in report["stages"].items()}
    assert allowed == {k: v for k, v in tolerances("fp16").items() if k != "class token"}  # the class was given
    assert report["stages"]["preprocess"]["max_abs"] == 0
    assert 1e-5 < report["stages"]["patch features"]["max_rel"] <= 5e-2
    assert report["auroc"]["good"], report["auroc"]["anomalous"] == (3, 3)
    assert report["auroc"]["pass"] and report["order"]["kendall_tau"] > 0.7
    assert run(args) == 0
    text = capsys.readouterr().out
    assert "image AUROC" in text and "in fp16 against PyTorch in fp32" in text


def test_a_threshold_of_another_precision_is_used_where_it_holds(
    tiny_model: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspector = Inspector.open(tiny_model, tmp_path / "bank")
    inspector.enroll_files("disc", good[:2])
    calibrate = ["calibrate", str(tiny_model), str(tmp_path / "bank"), "--class", "disc", str(good[0].parent)]
    assert run([*calibrate, "--max-false-reject", "0.25"]) == 0
    bank = Bank.open(tmp_path / "bank")
    entry = bank.classes["disc"].entry
    assert entry.calibration.precision == "fp32"
    predict = ["predict", str(tiny_model), str(tmp_path / "bank"), str(good[3])]
    for found, verdict in (("fp16", "ok"), ("bf16", "unknown")):
        record = entry.calibration.model_copy(update={"precision": found})
        changed = entry.model_copy(update={"threshold": 10.0, "calibration": record})
        Bank.open(tmp_path / "bank").update("disc", "calibrate disc", lambda _, changed=changed: changed)
        capsys.readouterr()
        assert run(predict) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith(verdict)
        assert ("over 0.01 of the map in bf16" in captured.err) == (verdict == "unknown")


@pytest.mark.parametrize(
    ("calibrated", "used", "holds"),
    [
        ("fp32", "fp16", True),
        ("tf32", "fp32", True),
        ("bf16", "bf16", True),
        ("bf16", "fp32", False),
        ("fp16", "bf16", False),
    ],
)
def test_where_a_threshold_holds(calibrated: str, used: Precision, holds: bool) -> None:
    record = Calibration.model_construct(views=("original",), precision=calibrated)
    spec = ScoringSpec(("original",))
    assert spec.holds_for(record, used) is holds
    for other in (
        replace(spec, views=("flip",)),
        replace(spec, top_fraction=0.002),
        replace(spec, self_similarity=True),
    ):
        assert not other.holds_for(record, used)


# --- parity's orders -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool]]) -> None:
    scores, good = np.array([s for s, _ in rows], float), np.array([g for _, g in rows])
    pairs = [(a > b) + (a == b) / 2 for a in scores[~good] for b in scores[good]]
    if pairs:
        assert _auroc(scores, good) == pytest.approx(sum(pairs) / len(pairs))


def test_order_faults_are_those_that_rounding_does_not_explain() -> None:
    close = [(0.500, 0.502, "a"), (0.501, 0.500, "b"), (0.9, 0.9, "c")]
    order = _order(close, 6e-3)
    assert (order.pairs, order.swapped, order.faults) == (3, 1, [])
    assert order.tau == pytest.approx(1 / 3)
    assert _order(close, 1e-4).faults == ["a before b"]


# --- NVIDIA's own builder ------------------------------------------------------------------------------------------


@pytest.mark.slow(group="precision")
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_tensorrt_rtx_takes_the_graph_and_fuses_attention(
    kind: str, graphs: dict[str, tuple[Path, precision.Probes]], tmp_path: Path
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="NVIDIA's builder comes with the rtx extra")
    model = ir.load(graphs["deit_tiny_patch16_224"][0])
    lower(model, kind)
    ir.save(model, tmp_path / "g.onnx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(tmp_path / "g.onnx")), [
        str(parser.get_error(i)) for i in range(parser.num_errors)
    ]
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    profile.set_shape("images", (1, 3, 64, 64), (3, 3, 64, 64), (8, 3, 64, 64))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    plan = bytes(builder.build_serialized_network(network, config))
    assert plan.count(b"__global__ void _gemm_mha") == 2  # one fused kernel a block
