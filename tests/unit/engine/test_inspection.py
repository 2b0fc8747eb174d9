"""What TensorRT says it built, in the words of each release, and what is refused because of it."""

from __future__ import annotations

import json

import pytest
from visionad_runtime.engine.tensorrt import inspection
from visionad_runtime.engine.tensorrt.inspection import (
    Layer,
    check_engine,
    check_graph,
    io_from_log,
    layers_from_build_log,
    layers_from_inspector,
    summarize,
)
from visionad_runtime.errors import ModelError

# As TensorRT-RTX 1.7 writes them, shortened.
RTX_LOG = """Layers:
Name: __myl_CastReplConc_myl0_1, LayerType: kgen, Inputs: [ { Name: images, Dimensions: [-1,3,392,392], Strides: [460992,153664,392,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: c, Dimensions: [-1,4,392,392], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: __myl_CastReplConc_0x5, StreamId: 0, Metadata:
Name: node_conv2d_myl0_2, LayerType: correlation, Inputs: [ { Name: c, Dimensions: [-1,4,392,392], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: b, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: d, Dimensions: [-1,384,28,28], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_conv2d]
Name: __myl_FcAdd_myl0_4, LayerType: runtime_fusion, Inputs: [ { Name: e, Dimensions: [-1,384], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: w, Dimensions: [384,1152], Datatype: Half, Format: (Linear) Row major linear format }], Outputs: [ { Name: f, Dimensions: [-1,1152], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_MatMul_17]
Name: _gemm_mha_v2_myl0_8, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [-1,789,64], Datatype: Half, Format: (Arbitrary) Format with stride order = [1,2,0] }, { Name: k, Dimensions: [-1,64,789], Datatype: Half, Format: (Arbitrary) Format with stride order = [1,0,2] }], Constants: [], Outputs: [ { Name: o, Dimensions: [-1,789,64], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: _gemm_mha_v2_0x7, StreamId: 0, Metadata: [ONNX Layer: node_MatMul_66][ONNX Layer: node_Softmax_67]

I/O Tensors:
 Name: images, IOMode: Input, DataType: Float, Dimensions: [-1,3,392,392], Location: Device, IsShapeInferenceIO: false, ProfileInfo: [ { MinShape: [1,3,392,392], OptShape: [3,3,392,392], MaxShape: [12,3,392,392], Format: Row major linear FP32 format (kLINEAR) }]
 Name: patch_tokens, IOMode: Output, DataType: Float, Dimensions: [-1,784,384], Location: Device, IsShapeInferenceIO: false, ProfileInfo: [ { Format: Row major linear FP32 format (kLINEAR) }]
"""  # noqa: E501


def test_the_builders_own_listing() -> None:
    layers = layers_from_build_log(["something else", RTX_LOG])
    assert [(x.name, x.inputs, x.multiplies, x.fused_attention) for x in layers] == [
        ("__myl_CastReplConc_myl0_1", ("fp32",), False, False),
        ("node_conv2d_myl0_2", ("fp16",), True, False),
        ("__myl_FcAdd_myl0_4", ("fp16",), True, False),
        ("_gemm_mha_v2_myl0_8", ("fp16", "fp16"), True, True),
    ]
    built = summarize(
        layers, inspection.memory_from_log(["Total Activation Memory: 5 bytes", "Total Weights Memory: 7 bytes"])
    )
    assert (dict(built.matrix_types), built.fused_attention) == ({"fp16": 3}, 1)
    assert built.memory == {"activation_bytes": 5, "weights_bytes": 7}
    sides = [3, 392, 392]
    assert io_from_log([RTX_LOG]) == {
        "images": {
            "mode": "Input",
            "type": "fp32",
            "shape": [-1, *sides],
            "profile": [[n, *sides] for n in (1, 3, 12)],
        },
        "patch_tokens": {"mode": "Output", "type": "fp32", "shape": [-1, 784, 384]},
    }


@pytest.mark.parametrize(
    "tensor",
    [
        {"Format/Datatype": "Half"},
        {"Format/Datatype": "Row major linear FP16 format"},
        {"Format/Datatype": "Thirty-two wide channel vectorized row major FP16 format"},
        {"Datatype": "Half", "Format": "(Linear) Row major linear format"},
    ],
    ids=["10 Myelin", "10 others", "10 vectorised", "11"],
)
def test_the_inspectors_spellings(tensor: dict[str, str]) -> None:
    scalar = {"Name": "alpha", "Dimensions": [1], "Format/Datatype": "Float"}  # 10.x lists it among the inputs
    layer = {
        "Name": "x",
        "LayerType": "gemm",
        "TacticName": "sm80_xmma_gemm_f16f16",
        "Inputs": [scalar, {"Dimensions": [-1, 4], **tensor}],
    }
    assert layers_from_inspector(json.dumps({"Layers": [layer]}))[0].inputs == ("fp16",)


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("Float", "fp32"), ("DataType.FLOAT", "fp32"), ("HALF", "fp16"), ("BFloat16", "bf16"), ("BF16", "bf16"), ("Int8", "int8"),
        ("FP8", "fp8"), ("Row major linear FP32", "fp32"), ("Row major linear BF16 format", "bf16"), ("Bool", "Bool"),
    ],
)  # fmt: skip
def test_names_of_types(text: str, type_: str) -> None:
    assert inspection.type_name(text) == type_


@pytest.mark.parametrize("text", ["not json", "{}", '{"Layers": ["a", "b"]}', '{"Layers": [{"Name": "a"}]}'])
def test_an_engine_without_details_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="realized precision is unknown"):
        layers_from_inspector(text)


@pytest.mark.parametrize(
    ("name", "kind", "tactic", "fused"),
    [
        ("_gemm_mha_v2_myl0_8", "kgen", "_gemm_mha_v2_0x7", True),
        ("{ForeignNode[a]}", "kgen", "_gemm_mha_v2_0x7", True),
        ("attention", "attention", "", True),
        (
            "/layers.2/mha/attn/value/MatMul_myl0_16",
            "gemm",
            "sm80_xmma_gemm",
            False,
        ),  # a node's own name proves nothing
        ("node_scaled_dot_product_attention_3", "gemm", "__myelin_CASK_STUB", False),
        ("__myl_SlicReshMaxrSubExpSumDivMul", "kgen", "__myl_0x1", False),
    ],
)
def test_fused_attention(name: str, kind: str, tactic: str, fused: bool) -> None:
    assert Layer(name, kind, tactic, ("fp16",)).fused_attention is fused


@pytest.mark.parametrize(
    ("inputs", "weights", "type_"),
    [
        (("fp32", "fp16"), ("fp16",), "fp16"),  # a product in half, added to the float32 residual in the same kernel
        (("fp32", "fp16"), (), "fp16"),  # the same where the release lists no constants
        (("fp16",), ("fp32",), "fp32"),  # half read, but multiplied in float32
        (("fp32", "fp32"), (), "fp32"),
        (("Int64", "fp16"), (), "fp16"),
        (("Bool",), (), None),
    ],
)
def test_what_a_layer_multiplies_in(inputs: tuple[str, ...], weights: tuple[str, ...], type_: str | None) -> None:
    assert Layer("__myl_FcAddMulAdd", "runtime_fusion", "", inputs, weights).type == type_


def test_weights_are_constants_of_two_dimensions() -> None:
    layer = {
        "Name": "__myl_FcAdd_myl0_4", "LayerType": "runtime_fusion",
        "Inputs": [{"Dimensions": [-1, 384], "Datatype": "Float"}, {"Dimensions": [-1, 1536], "Datatype": "Half"}],
        "Constants": [{"Dimensions": [1, 384], "Datatype": "Float"}, {"Dimensions": [1536, 384], "Datatype": "Half"}],
    }  # fmt: skip
    (found,) = layers_from_inspector(json.dumps({"Layers": [layer]}))
    assert (found.inputs, found.weights, found.type, found.multiplies) == (("fp32", "fp16"), ("fp16",), "fp16", True)


def engine(*layers: tuple[str, str]) -> inspection.EngineSummary:
    return summarize([Layer(f"x{i}", "gemm", tactic, (t,)) for i, (t, tactic) in enumerate(layers)], {})


@pytest.mark.parametrize(
    ("precision", "graph", "layers", "said"),
    [
        ("fp16", {"fp16": 4}, [("fp16", "")], None),
        ("fp16", {"fp16": 4, "fp32": 1}, [("fp16", ""), ("fp32", "")], None),  # the graph keeps one product in fp32
        ("fp32", {"fp32": 4}, [("fp32", "sm80_gemm_f32")], None),
        ("tf32", {"fp32": 4}, [("fp32", "sm80_gemm_tf32")], None),
        ("fp16", {"fp16": 4}, [("fp32", "")], "built 1 in fp32"),  # silently fp32
        (
            "fp16",
            {"fp16": 4, "fp32": 1},
            [("fp16", ""), ("fp32", ""), ("fp32", "")],
            "built 2 in fp32, 1 in fp16",
        ),  # in part
        ("fp16", {"fp16": 4}, [("fp16", ""), ("fp32", "")], "built 1 in fp16, 1 in fp32"),
        ("fp32", {"fp32": 4}, [("fp32", ""), ("fp16", "")], "built 1 in fp32, 1 in fp16"),
        ("bf16", {"bf16": 4}, [("fp16", "")], "realized precision is not bf16"),
        ("fp32", {"fp32": 4}, [("fp32", "sm80_xmma_gemm_tf32f32_tf32f32")], "1 layers use TF32"),
        ("fp16", {"fp16": 4}, [], "no matrix layer"),
    ],
)
def test_a_mismatch_is_an_error(
    precision: str, graph: dict[str, int], layers: list[tuple[str, str]], said: str | None
) -> None:
    if said is None:
        check_engine(engine(*layers), graph, precision)
        return
    with pytest.raises(ModelError, match=said):
        check_engine(engine(*layers), graph, precision)


@pytest.mark.parametrize(
    ("graph", "precision", "fits"),
    [
        ({"fp32": 61}, "fp32", True), ({"fp32": 61}, "tf32", True), ({"fp16": 60, "fp32": 1}, "fp16", True),
        ({"bf16": 61}, "bf16", True),
        ({"fp32": 61}, "fp16", False), ({"fp32": 60, "fp16": 1}, "fp16", False), ({"fp16": 61}, "fp32", False), ({}, "fp32", False),
    ],
)  # fmt: skip
def test_a_graph_of_another_precision_is_never_built(graph: dict[str, int], precision: str, fits: bool) -> None:
    if fits:
        check_graph(graph, precision, "m/backbone.onnx")
        return
    with pytest.raises(
        ModelError,
        match=rf"m/backbone.onnx: expected matrix products in {precision}.*export it again with .*--precision {precision}",
    ):
        check_graph(graph, precision, "m/backbone.onnx")
