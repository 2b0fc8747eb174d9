"""The self-test passes what is right and names what is not: on real graphs with real faults in them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from safetensors.numpy import load_file, save
from visionad_runtime import Inspector
from visionad_runtime.engine.base import Engine, Tokens
from visionad_runtime.engine.onnxruntime.cpu import OrtCpuEngine
from visionad_runtime.errors import ModelError
from visionad_runtime.formats.files import sha256_file
from visionad_runtime.formats.manifest import GOLDEN_FILE, MANIFEST, ModelManifest, read_manifest, to_json
from visionad_runtime.pipeline import self_test as module
from visionad_runtime.pipeline.opening import open_engine
from visionad_runtime.pipeline.self_test import (
    GOLDEN_TOLERANCE,
    POSITION_TOLERANCE,
    RMS_TOLERANCE,
    read_golden,
    self_test,
)
from visionad_runtime.scoring import score

from tests import cache

onnx = pytest.importorskip("onnx", reason="faults are put into the graph with it")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    out = tmp_path / "model"
    shutil.copytree(tiny_model, out)
    return out


@pytest.fixture
def manifest(model: Path) -> ModelManifest:
    return read_manifest(model, ModelManifest)


def resealed(model: Path) -> ModelManifest:
    """As if somebody had made the digests fit."""
    old = read_manifest(model, ModelManifest)
    manifest = old.model_copy(update={"files": {name: sha256_file(model / name) for name in old.files}})
    (model / MANIFEST).write_bytes(to_json(manifest))
    return manifest


def test_a_sound_model_passes_close_to_the_reference(model: Path, manifest: ModelManifest) -> None:
    engine = open_engine(model, manifest, "onnxruntime-cpu")
    worst = self_test(engine, manifest, read_golden(model))
    assert set(worst) == {"patch_tokens", "class_token", "score", "rms"}
    assert max(worst.values()) < GOLDEN_TOLERANCE["fp32"] / 20  # the tolerance is not what makes it pass
    assert worst["rms"] < RMS_TOLERANCE["fp32"] / 20


def test_the_golden_images_are_worth_comparing(model: Path) -> None:
    golden = read_golden(model)
    assert golden["image"].shape == golden["blemished"].shape == (64, 64, 3)
    changed = (golden["image"] != golden["blemished"]).any(axis=2)
    assert changed.sum() == 100 and changed[21:31, 21:31].all()  # a sixth of the side, from a third on
    assert golden["blemished_score"].dtype == np.float32 and golden["blemished_score"] > 0.05
    assert np.abs(golden["patch_tokens"] - golden["blemished_patch_tokens"]).max() > 0.05


@pytest.mark.parametrize("bit", [30, 29, 28, 25])
@pytest.mark.parametrize("which", [0, 5, 11])
def test_a_wrong_weight_bit_is_caught(model: Path, bit: int, which: int) -> None:
    """One bit of one weight: an exponent bit, digests mended. (Any bit at all is caught by the digest before that.)"""
    path = model / "backbone.onnx"
    proto = onnx.load(path)
    matrices = [i for i in proto.graph.initializer if i.data_type == 1 and len(i.dims) == 2 and min(i.dims) > 64]
    tensor = matrices[which % len(matrices)]
    weights = onnx.numpy_helper.to_array(tensor).copy()
    place = np.unravel_index(np.abs(weights).argmax(), weights.shape)
    bits = weights.view(np.uint32)
    bits[place] ^= np.uint32(1 << bit)
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    onnx.save(proto, path)
    with pytest.raises(ModelError, match=r"backbone\.onnx is damaged"):
        Inspector.open(model)
    with pytest.raises(ModelError, match="self-test of onnxruntime-cpu failed at patch_tokens"):
        open_engine(model, resealed(model), "onnxruntime-cpu")


def edit(model: Path, change: Any) -> ModelManifest:
    proto = onnx.load(model / "backbone.onnx")
    change(proto.graph)
    onnx.save(proto, model / "backbone.onnx")
    return resealed(model)


def last_node(graph: Any, output: str) -> Any:
    return next(n for n in graph.node if output in n.output)


def constant_output(graph: Any) -> None:
    last_node(graph, "patch_tokens").output[0] = "unused"
    graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 16, 192), 0.07, np.float32), "same"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    graph.node.append(onnx.helper.make_node("Mul", ["unused", "zero"], ["nothing"]))
    graph.node.append(onnx.helper.make_node("Add", ["nothing", "same"], ["patch_tokens"]))


def half_overflow(graph: Any) -> None:
    """A product beyond 65504, as an activation of a ViT in half precision can be."""
    last_node(graph, "patch_tokens").output[0] = "fine"
    graph.initializer.append(onnx.numpy_helper.from_array(np.full(1, 1e6, np.float32), "large"))
    nodes = [
        onnx.helper.make_node("Mul", ["fine", "large"], ["huge"]),
        onnx.helper.make_node("Cast", ["huge"], ["half"], to=onnx.TensorProto.FLOAT16),
        onnx.helper.make_node("Cast", ["half"], ["wide"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Div", ["wide", "large"], ["patch_tokens"]),
    ]
    graph.node.extend(nodes)


def patches_reversed(graph: Any) -> None:
    last_node(graph, "patch_tokens").output[0] = "right"
    graph.initializer.append(onnx.numpy_helper.from_array(np.arange(16)[::-1].copy(), "order"))
    graph.node.append(onnx.helper.make_node("Gather", ["right", "order"], ["patch_tokens"], axis=1))


def class_token_off(graph: Any) -> None:
    last_node(graph, "class_token").output[0] = "right"
    graph.initializer.append(onnx.numpy_helper.from_array(np.full(1, 0.99, np.float32), "less"))
    graph.node.append(onnx.helper.make_node("Mul", ["right", "less"], ["class_token"]))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (constant_output, "patch_tokens: the same output for two different images"),
        (half_overflow, "patch_tokens: NaN or Inf; numbers beyond the range of fp32"),
        (patches_reversed, "patch_tokens: differs from the reference"),
        (class_token_off, "class_token: differs from the reference"),
    ],
)
def test_faults_in_the_graph_are_named(model: Path, fault: Any, said: str) -> None:
    with pytest.raises(ModelError, match=f"failed at {said}"):
        open_engine(model, edit(model, fault), "onnxruntime-cpu")


def test_outputs_in_the_wrong_place_are_refused(model: Path) -> None:
    def swap(graph: Any) -> None:
        a, b = graph.output
        a.name, b.name = b.name, a.name
        first, second = last_node(graph, "patch_tokens"), last_node(graph, "class_token")
        first.output[0], second.output[0] = "class_token", "patch_tokens"

    with pytest.raises(ModelError, match=r"expected inputs .* and outputs"):
        open_engine(model, edit(model, swap), "onnxruntime-cpu")


class Faulty:
    """A right engine with a fault behind it. Batches of three, as on a GPU."""

    name, batch_size, device_engine, requires_device_pipeline = "faulty", 3, None, False

    def __init__(self, engine: Engine, fault: Any, precision: str = "fp32") -> None:
        self._engine, self._fault = engine, fault
        self.precision = precision
        self.info: dict[str, str] = {}

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        tokens = self._engine.encode(images)
        assert tokens.cls is not None
        return Tokens(*self._fault(tokens.patch.copy(), tokens.cls.copy()))


def last_row(patch: Any, cls: Any) -> Any:
    if len(patch) == 3:
        patch[2] += np.float32(4 * POSITION_TOLERANCE * GOLDEN_TOLERANCE["fp32"])
    return patch, cls


def swapped(patch: Any, cls: Any) -> Any:
    return patch[::-1], cls


def only_classes_swapped(patch: Any, cls: Any) -> Any:
    return patch, cls[::-1]


def too_few(patch: Any, cls: Any) -> Any:
    return patch[:, :-1], cls


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (last_row, "rows: one image's tokens differ by"),
        (swapped, "patch_tokens: the rows of a call come back in another order"),
        (only_classes_swapped, "class_token: the rows of a call come back in another order"),
        (too_few, r"patch_tokens: expected shape \(2, 16, 192\), got \(2, 15, 192\)"),
    ],
)
def test_faults_of_a_device_are_named(model: Path, manifest: ModelManifest, fault: Any, said: str) -> None:
    right = open_engine(model, manifest, "onnxruntime-cpu")
    self_test(Faulty(right, lambda p, c: (p, c)), manifest, read_golden(model))
    with pytest.raises(ModelError, match=f"self-test of faulty failed at {said}"):
        self_test(Faulty(right, fault), manifest, read_golden(model))


def parallel_for(length: float) -> Any:
    """A fault that moves every token by ``length``, in no direction much."""

    def fault(patch: Any, cls: Any) -> Any:
        off = np.random.default_rng(0).standard_normal(patch.shape[1:])
        return patch + (off * length / np.linalg.norm(off, axis=-1, keepdims=True)).astype(np.float32), cls

    return fault


def spiky(patch: Any, cls: Any) -> Any:
    """What rounding looks like: one element of a token in eight is far off."""
    patch[:, ::8, 5] += np.float32(0.035)
    return patch, cls


def test_a_fault_that_moves_all_tokens_a_little_is_no_rounding(model: Path, manifest: ModelManifest) -> None:
    right, half = open_engine(model, manifest, "onnxruntime-cpu"), manifest.model_copy(update={"precision": "bf16"})
    found = self_test(Faulty(right, spiky, "bf16"), half, read_golden(model))
    assert found["patch_tokens"] > 0.03 and found["rms"] < 0.02
    for length, passes in ((0.025, True), (0.035, False)):
        faulty = Faulty(right, parallel_for(length), "bf16")
        if passes:
            assert self_test(faulty, half, read_golden(model))["rms"] == pytest.approx(length, abs=1e-6)
            continue
        with pytest.raises(ModelError, match=r"patch_tokens: differs .* by 0\.00.* \(allowed 0\.1\), tokens by 0\.035"):
            self_test(faulty, half, read_golden(model))


@pytest.fixture(scope="module")
def eight_layers(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> dict[str, Path]:
    """DeiT-Tiny as the method uses it, random weights: as it is; with a layer missing; with one other. All behind one manifest."""
    folder = tmp_path_factory.mktemp("layers")
    usual = tuple(range(2, 10))
    layers = {"right": usual, "missing": usual[:4] + usual[5:], "other": (*usual[:7], 10)}
    for name, chosen in layers.items():
        shutil.copytree(cache.export_tiny(tiny_weights, layers=chosen), folder / name)
        if name != "right":
            for kept in (GOLDEN_FILE, MANIFEST):
                shutil.copyfile(folder / "right" / kept, folder / name / kept)
    return {name: folder / name for name in layers}


@pytest.mark.slow(group="precision")
@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_rounding_passes_and_one_wrong_layer_of_eight_does_not(
    eight_layers: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    ir = pytest.importorskip("onnx_ir")
    from visionad_export.graph.precision import emulate, lower

    right = eight_layers["right"]
    golden = read_golden(right)
    manifest = read_manifest(right, ModelManifest).model_copy(update={"precision": precision})

    def found(graph: Path) -> dict[str, float]:
        engine = OrtCpuEngine(InferenceSession(str(graph), providers=["CPUExecutionProvider"]), manifest, 1)
        return self_test(engine, manifest, golden)

    rounded = ir.load(right / "backbone.onnx")
    lower(rounded, precision)
    emulate(rounded, precision)
    ir.save(rounded, tmp_path / "rounded.onnx")
    assert 1e-4 < found(tmp_path / "rounded.onnx")["rms"] < RMS_TOLERANCE[precision] / 2
    for fault in ("missing", "other"):
        with pytest.raises(ModelError, match="failed at patch_tokens: differs from the reference"):
            found(eight_layers[fault] / "backbone.onnx")


@pytest.mark.parametrize("stage", ["nearest", "upsample", "top_k_mean"])
def test_search_and_map_are_tested_too(
    model: Path, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The very functions that inspection scores with."""
    place = module if stage == "nearest" else score
    right: Any = getattr(place, stage)

    def wrong(*args: Any) -> Any:
        found = right(*args)
        if stage == "nearest":
            return found._replace(distance=found.distance * 1.01)
        return found * 1.01 if stage == "upsample" else (found[0] * 1.01, found[1])

    monkeypatch.setattr(place, stage, wrong)
    with pytest.raises(ModelError, match=r"failed at score: expected 0\.\d+, got 0\.\d+"):
        open_engine(model, manifest, "onnxruntime-cpu")


def test_a_model_of_an_older_release_is_refused_and_its_banks_are_not(model: Path) -> None:
    golden = load_file(model / GOLDEN_FILE)
    (model / GOLDEN_FILE).write_bytes(save({k: v for k, v in golden.items() if not k.startswith("blemished")}))
    identity = read_manifest(model, ModelManifest).identity.digest()
    manifest = resealed(model)
    with pytest.raises(ModelError, match=r"lacks blemished, .*export it again \(its banks stay valid\)"):
        open_engine(model, manifest, "onnxruntime-cpu")
    assert manifest.identity.digest() == identity


def test_a_golden_file_that_cannot_be_read_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    for content in (b"", b"\xff" * 64, (model / "golden.safetensors").read_bytes()[:-100]):
        (model / "golden.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"golden\.safetensors cannot be read \(.*\); export the model again"):
            read_golden(model)
    (model / "golden.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_golden(model)
