"""The graph in ONNX Runtime's own operators: the same tokens, and nothing is taken for attention that is none."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest

pytest.importorskip("torch", reason="exporting takes the export extra")

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from visionad_export.graph.fuse_onnxruntime import write_fused
from visionad_export.graph.precision import HALF, lower
from visionad_runtime.cuda import thread
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.files import sha256_file
from visionad_runtime.formats.manifest import CUDA_ONNX_FILE, ModelManifest, Precision, read_manifest
from visionad_runtime.pipeline.opening import open_engine

from tests import cache
from tests.data import ROOT
from tests.fakes import cuda_provider as fake_ort
from tests.fakes.gpu import FakeDevice

FILE = "backbone.onnx"
F32 = NDArray[np.float32]


class Result(NamedTuple):
    """The fused model and how many operators were replaced."""

    model: bytes
    attentions: int
    norms: int


def fuse(plain: bytes, folder: Path) -> Result:
    """Fuse a model as export does, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(plain)
    counts = write_fused(folder / FILE, folder / CUDA_ONNX_FILE)
    assert counts is not None
    return Result((folder / CUDA_ONNX_FILE).read_bytes(), *counts)


def tokens(path: Path) -> list[F32]:
    """Of two images of noise: patch tokens and class token."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[2]
    images = np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)
    return session.run(None, {"images": images})  # type: ignore[no-any-return]


def assert_same_tokens(folder: Path, count: int | None = None) -> None:
    fused, plain = tokens(folder / CUDA_ONNX_FILE)[:count], tokens(folder / FILE)[:count]
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def kinds(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


def test_attention_and_residuals_are_replaced_and_tokens_stay(tiny_model: Path, tmp_path: Path) -> None:
    plain = (tiny_model / FILE).read_bytes()
    found = fuse(plain, tmp_path)
    before, after = kinds(plain), kinds(found.model)
    assert found.attentions == before["Softmax"] == after["MultiHeadAttention"] > 0
    assert (
        found.norms == after["SkipLayerNormalization"] == before["LayerNormalization"] - 1
    )  # the first has no sum before it
    assert after["BiasGelu"] == before["Gelu"] > 0 == after["Gelu"]
    assert not after["Softmax"] and after["MatMul"] == before["MatMul"] - 2 * found.attentions
    assert_same_tokens(tmp_path)


def test_only_the_query_is_given_its_bias(tiny_model: Path, tmp_path: Path) -> None:
    plain = (tiny_model / FILE).read_bytes()
    model = onnx.load_from_string(fuse(plain, tmp_path).model)
    for split in (n for n in model.graph.node if n.op_type == "Split"):
        assert maker(model.graph, split.input[0]).op_type == "MatMul"
        (added,) = [n for n in model.graph.node if n.input[0] == split.output[0]]
        assert added.op_type == "Add"
        (bias,) = [w for w in model.graph.initializer if w.name == added.input[1]]
        assert list(bias.dims) == [192] and numpy_helper.to_array(bias).any()


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_the_query_s_bias_keeps_its_type(tiny_model: Path, tmp_path: Path, kind: Precision) -> None:
    half = ir.load(tiny_model / FILE)
    lower(half, kind)
    plain = ir.to_proto(half).SerializeToString()
    model = onnx.load_from_string(fuse(plain, tmp_path).model)
    stored = {w.name: w for w in model.graph.initializer}
    queries = {n.output[0] for n in splits(model.SerializeToString())}
    found = [stored[n.input[1]] for n in model.graph.node if n.op_type == "Add" and n.input[0] in queries]
    whole = [w for w in onnx.load_from_string(plain).graph.initializer if list(w.dims) == [3 * 192]]
    thirds = {w.raw_data[: len(w.raw_data) // 3] for w in whole if w.data_type != onnx.TensorProto.FLOAT}
    assert len(found) == 2 and {w.raw_data for w in found} == thirds
    assert {w.data_type for w in found} == {helper.np_dtype_to_tensor_dtype(np.dtype(HALF[kind].numpy()))}


@pytest.mark.parametrize("third", [1, 2])
def test_another_third_s_bias_is_added_before_they_are_parted(tiny_model: Path, tmp_path: Path, third: int) -> None:
    model = onnx.load(tiny_model / FILE)
    weight = next(w for w in model.graph.initializer if list(w.dims) == [3 * 192])
    values = numpy_helper.to_array(weight).copy()
    values[third * 192 + 191] = 1e-3
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    found = splits(fuse(model.SerializeToString(), tmp_path).model)
    assert sorted(maker(model.graph, n.input[0]).op_type for n in found) == ["Add", "MatMul"]


def test_a_model_exported_before_is_fused_too(tiny_model: Path, tmp_path: Path) -> None:
    """Its biases of k and v are as trained, and LayerScale stands between a product and its residual sum."""
    model = onnx.load(tiny_model / FILE)
    graph, rng = model.graph, np.random.default_rng(0)
    for number, node in enumerate([n for n in graph.node if is_branch(graph, n)]):
        scale = rng.uniform(0.5, 2, 192).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(scale, f"gamma{number}"))
        branch = next(i for i, name in enumerate(node.input) if is_biased(graph, name))
        scaled = helper.make_node("Mul", [node.input[branch], f"gamma{number}"], [f"scaled{number}"])
        node.input[branch] = f"scaled{number}"
        graph.node.insert(list(graph.node).index(node), scaled)
    for weight in graph.initializer:
        if list(weight.dims) == [3 * 192]:
            weight.CopyFrom(numpy_helper.from_array(rng.standard_normal(3 * 192).astype(np.float32), weight.name))
    plain = model.SerializeToString()
    found = fuse(plain, tmp_path)
    assert found[1:] == (2, 3) and kinds(found.model)["Mul"] == 3 + 1  # the last sum has no LayerNorm behind it
    assert all(maker(graph, n.input[0]).op_type == "Add" for n in splits(found.model))
    assert_same_tokens(tmp_path)


def splits(model: bytes) -> list[onnx.NodeProto]:
    return [n for n in onnx.load_from_string(model).graph.node if n.op_type == "Split"]


def is_biased(graph: onnx.GraphProto, name: str) -> bool:
    """Whether it is a product and its bias."""
    return maker_is(graph, name, "Add") and maker_is(graph, maker(graph, name).input[0], "MatMul")


def is_branch(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Whether it adds what a block's attention or MLP gives to the residual stream."""
    return node.op_type == "Add" and any(is_biased(graph, name) for name in node.input)


def test_weights_stay_in_the_file(tiny_model: Path, tmp_path: Path) -> None:
    plain = (tiny_model / FILE).read_bytes()
    model = fuse(plain, tmp_path).model
    assert len(model) < len(plain) / 20
    weights = onnx.load_from_string(plain).graph.initializer
    stored = {w.name: w for w in onnx.load_from_string(model).graph.initializer}
    referred = [w for w in stored.values() if w.data_location == onnx.TensorProto.EXTERNAL]
    assert sum(int(next(e.value for e in w.external_data if e.key == "length")) for w in referred) > 0.9 * len(plain)
    for weight in weights:
        if weight.name in stored and stored[weight.name] in referred:
            where = {e.key: e.value for e in stored[weight.name].external_data}
            begin = int(where["offset"])
            assert where["location"] == FILE
            assert plain[begin : begin + int(where["length"])] == weight.raw_data
            assert list(stored[weight.name].dims) == list(weight.dims)


def test_weights_of_a_data_file_stay_there(tiny_model: Path, tmp_path: Path) -> None:
    """A large model has its weights in ``backbone.onnx.data``."""
    ir.save(ir.load(tiny_model / FILE), tmp_path / FILE, external_data=f"{FILE}.data")
    assert write_fused(tmp_path / FILE, tmp_path / CUDA_ONNX_FILE) == (2, 3)
    assert (tmp_path / CUDA_ONNX_FILE).stat().st_size < (tiny_model / FILE).stat().st_size / 20
    stored = onnx.load(tmp_path / CUDA_ONNX_FILE, load_external_data=False).graph.initializer
    places = {e.value for w in stored for e in w.external_data if e.key == "location"}
    assert places == {f"{FILE}.data"}
    assert_same_tokens(tmp_path)


# -- what is no attention ----------------------------------------------------------------------------------------------

Spoil = Callable[[onnx.GraphProto], None]


def first(
    graph: onnx.GraphProto, kind: str, wanted: Callable[[onnx.NodeProto], bool] = lambda _: True
) -> onnx.NodeProto:
    return next(n for n in graph.node if n.op_type == kind and wanted(n))


def maker(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(n for n in graph.node if name in n.output)


def set_constant(graph: onnx.GraphProto, node: onnx.NodeProto, at: int, value: NDArray[Any]) -> None:
    name = f"{node.output[0]}/other"
    graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[at] = name


def value_before_query(graph: onnx.GraphProto) -> None:
    """q and v change places in the layer's output: the same products, of other thirds."""
    product = first(graph, "MatMul", lambda n: maker_is(graph, n.input[0], "Softmax"))
    scaled = maker(graph, maker(graph, maker(graph, product.input[0]).input[0]).input[0])
    scaled.input[0], product.input[1] = product.input[1], scaled.input[0]


def maker_is(graph: onnx.GraphProto, name: str, kind: str) -> bool:
    return any(name in n.output and n.op_type == kind for n in graph.node)


def scale_by_column(graph: onnx.GraphProto) -> None:
    scores = maker(graph, first(graph, "Softmax").input[0])
    width = 192 // 3
    scale = np.linspace(0.1, 0.2, width, dtype=np.float32)
    set_constant(graph, maker(graph, scores.input[0]), 1, scale)


def softmax_over_queries(graph: onnx.GraphProto) -> None:
    for attribute in first(graph, "Softmax").attribute:
        if attribute.name == "axis":
            attribute.i = 2


def scores_used_elsewhere(graph: onnx.GraphProto) -> None:
    """The attention itself is added to the tokens' output, in a way that leaves it as it is."""
    softmax = first(graph, "Softmax")
    at = list(graph.node).index(softmax) + 1
    graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"))
    graph.node.insert(at, helper.make_node("ReduceSum", [softmax.output[0], "axes"], ["seen"], keepdims=0))
    graph.output.append(helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, ["batch"]))


def third_cut_short(graph: onnx.GraphProto) -> None:
    """k is taken where q is."""
    scores = maker(graph, first(graph, "Softmax").input[0])
    key, query = maker(graph, scores.input[1]), maker(graph, scores.input[0])
    key.input[0] = query.input[0]


@pytest.mark.parametrize(
    "spoil", [value_before_query, scale_by_column, softmax_over_queries, scores_used_elsewhere, third_cut_short]
)
def test_what_only_looks_like_attention_is_left_alone(tiny_model: Path, tmp_path: Path, spoil: Spoil) -> None:
    model = onnx.load(tiny_model / FILE)
    spoil(model.graph)
    plain = model.SerializeToString()
    found = fuse(plain, tmp_path)
    assert found.attentions == kinds(plain)["Softmax"] - 1
    assert_same_tokens(tmp_path)


def test_a_model_without_attention_is_left_as_it_is(tmp_path: Path) -> None:
    """LayerNorm after a sum of images is nothing that ONNX Runtime's operator takes."""
    value = helper.make_tensor_value_info
    shape = [1, 4, 4, 8]
    nodes = [
        helper.make_node("Add", ["x", "x"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "w", "b"], ["y"], axis=-1),
    ]
    weights = [numpy_helper.from_array(np.ones(8, np.float32), n) for n in "wb"]
    graph = helper.make_graph(nodes, "g", [value("x", 1, shape)], [value("y", 1, shape)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / FILE)
    assert write_fused(tmp_path / FILE, tmp_path / CUDA_ONNX_FILE) is None
    assert not (tmp_path / CUDA_ONNX_FILE).exists()


@pytest.mark.parametrize("spoilt", ["tanh", "used twice"])
def test_another_gelu_is_left_alone(tiny_model: Path, tmp_path: Path, spoilt: str) -> None:
    model = onnx.load(tiny_model / FILE)
    gelu = first(model.graph, "Gelu")
    if spoilt == "tanh":
        (attribute,) = [a for a in gelu.attribute if a.name == "approximate"]
        attribute.s = b"tanh"
    else:
        model.graph.output.append(helper.make_tensor_value_info(gelu.input[0], onnx.TensorProto.FLOAT, None))
    plain = model.SerializeToString()
    found = fuse(plain, tmp_path)
    assert (kinds(found.model)["Gelu"], kinds(found.model)["BiasGelu"]) == (1, kinds(plain)["Gelu"] - 1)
    assert_same_tokens(tmp_path, 2)


@pytest.mark.slow(group="export")
@pytest.mark.parametrize(("precision", "has_fused_file"), [("fp32", False), ("tf32", True), ("fp16", True)])
def test_export_writes_it_beside_the_model(tiny_weights: Path, precision: str, has_fused_file: bool) -> None:
    out = cache.export_tiny(tiny_weights, **({} if precision == "fp32" else {"precision": precision}))
    summary = json.loads((out.parent / "summary.json").read_text())
    manifest = read_manifest(out, ModelManifest)
    assert (CUDA_ONNX_FILE in manifest.files) is (out / CUDA_ONNX_FILE).exists() is has_fused_file
    assert summary["fused"] == ({"attentions": 2, "norms": 3} if has_fused_file else None)
    if has_fused_file:
        assert manifest.files[CUDA_ONNX_FILE] == sha256_file(out / CUDA_ONNX_FILE)
    if precision == "tf32":  # ONNX Runtime has these operators in float32 on a CPU
        assert_same_tokens(out)


# -- the engine's choice -----------------------------------------------------------------------------------------------


@pytest.fixture
def half_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder with the fused file."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "half"))
    write_fused(model / FILE, model / CUDA_ONNX_FILE)
    return model


@pytest.fixture
def half(half_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelManifest]:
    """A box with a GPU, and a model that says it is of 16 bits."""
    FakeDevice.reset()
    monkeypatch.setattr(thread, "Device", FakeDevice)
    fake_ort.install(monkeypatch)
    manifest = read_manifest(half_model, ModelManifest)
    files = manifest.files | {CUDA_ONNX_FILE: sha256_file(half_model / CUDA_ONNX_FILE)}
    yield manifest.model_copy(update={"precision": "fp16", "files": files})
    DeviceThread.of(0).close()


CASES = {
    "": ([(True, True)], "attention and residual norms fused, a CUDA graph"),
    "graph": ([(True, True), (True, False)], "attention and residual norms fused, no CUDA graph"),
    "fused": ([(True, True), (True, False), (False, False)], "operators as in the file, no CUDA graph"),
}


@pytest.mark.parametrize("refused", CASES)
def test_the_fastest_way_that_runs_is_taken(
    half_model: Path, half: ModelManifest, refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "visionad")
    fake_ort.Session.refused.add(refused)
    engine = open_engine(half_model, half, "onnxruntime-cuda", batch_size=3)
    assert (fake_ort.Session.opened, engine.info["operators"]) == CASES[refused]
    assert caplog.text.count("onnxruntime-cuda, ") == len(CASES[refused][0]) - 1
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    right = open_engine(half_model, half, "onnxruntime-cpu").encode(images)
    np.testing.assert_allclose(engine.encode(images).patch, right.patch, atol=2e-6)
    engine.close()


def test_a_folder_without_the_fused_file_runs_as_it_stands(half_model: Path, half: ModelManifest) -> None:
    """One exported before, in fp32, or without attention."""
    files = {name: digest for name, digest in half.files.items() if name != CUDA_ONNX_FILE}
    engine = open_engine(half_model, half.model_copy(update={"files": files}), "onnxruntime-cuda", batch_size=3)
    assert engine.info["operators"] == "operators as in the file, a CUDA graph"
    assert fake_ort.Session.opened == [(False, True)]
    engine.close()


def test_no_way_runs(half_model: Path, half: ModelManifest) -> None:
    fake_ort.Session.refused |= {"graph", "fused", "plain"}
    with pytest.raises(VisionADError, match="onnxruntime-cuda failed to run: it runs nothing"):
        open_engine(half_model, half, "onnxruntime-cuda", batch_size=3)
    assert len(fake_ort.Session.opened) == 3
    assert not DeviceThread.of(0).run(lambda d: {k: n for k, n in d.live().items() if k != "streams"})


def test_a_graph_is_of_the_addresses_that_it_was_captured_with(half_model: Path, half: ModelManifest) -> None:
    """Two cameras in turn: each gets its own tokens (the stand-in plays back what was captured, whatever is bound)."""
    from visionad_runtime.engine.onnxruntime.cuda import OrtStreamEngine

    engine = open_engine(half_model, half, "onnxruntime-cuda", batch_size=1)
    assert isinstance(engine, OrtStreamEngine)
    images = np.random.default_rng(0).standard_normal((2, 1, 3, 64, 64)).astype(np.float32)
    right = [open_engine(half_model, half, "onnxruntime-cpu").encode(p) for p in images]

    def work(device: Any) -> list[F32]:
        stream, found = device.stream(), []
        cameras = []
        for image, token in zip(images, right, strict=True):
            assert token.cls is not None
            arrays = [device.pinned(a.shape, np.float32) for a in (image, token.patch, token.cls)]
            arrays[0][...] = image
            cameras.append((arrays, [device.alloc(a.nbytes) for a in arrays]))
        for arrays, buffers in [*cameras, *cameras]:
            device.upload(buffers[0], arrays[0], stream)
            engine.enqueue(*(b.ptr for b in buffers), 1, stream)
            device.download(arrays[1], buffers[1], stream)
            stream.synchronize()
            found.append(arrays[1].copy())
        return found

    for found, wanted in zip(DeviceThread.of(0).run(work), [*right, *right], strict=True):
        np.testing.assert_allclose(found, wanted.patch, atol=2e-6)
    engine.close()


# -- benchmarks/gpu_ways.py --------------------------------------------------------------------------------------------


def test_the_race_of_the_ways_times_each_and_names_what_fails(
    half_model: Path,
    half: ModelManifest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu_ways = importlib.import_module("gpu_ways")
    monkeypatch.setattr(gpu_ways, "read_model", lambda _: half)
    kernel = {"name": "flash", "calls": 12.0, "ms": 0.5}
    monkeypatch.setattr(gpu_ways, "_kernels", lambda call: call() and [kernel])
    monkeypatch.setattr(gpu_ways, "WARM", 1)
    fake_ort.Session.refused.add("graph")
    assert gpu_ways.main([str(half_model), "--seconds", "0.01", "--out", str(tmp_path / "ways.json")]) == 0
    ways = json.loads((tmp_path / "ways.json").read_text())["ways"]
    assert fake_ort.Session.opened == [(False, False), (True, False), (True, True)]
    assert ["fails" in way for way in ways] == [False, False, True]
    assert all(abs(way["cosine"] - 1) < 1e-6 and way["gpu_ms"]["p50"] >= 0 for way in ways[:2])
    out = capsys.readouterr().out
    assert "fails: cannot use the graph" in out and "flash" not in out
    fake_ort.Session.refused.clear()
    assert gpu_ways.main([str(half_model), "--seconds", "0.01", "--kernels"]) == 0
    out = capsys.readouterr().out
    assert "0.500 ms   12.0 x  flash" in out and len(out.splitlines()) == 2
    fake_ort.Session.refused.add("plain")
    assert gpu_ways.main([str(half_model)]) == 2 and "no variant runs" in capsys.readouterr().err
