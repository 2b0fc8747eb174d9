"""A model's graph retyped, as an export in another precision would write it: everything in half, the borders fp32."""

from __future__ import annotations

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from visionad_runtime.formats.files import sha256_file
from visionad_runtime.formats.manifest import MANIFEST, ModelManifest, read_manifest, to_json

_TYPES = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}


def retyped(model: Path, out: Path, precision: str) -> ModelManifest:
    """Copy a model folder with all of its arithmetic in ``precision``. The manifest returned says so, not the one on disk."""
    shutil.copytree(model, out)
    kind, dtype = _TYPES[precision]
    graph_file = out / "backbone.onnx"
    proto = onnx.load(graph_file)
    graph = proto.graph

    def convert(tensor: onnx.TensorProto) -> None:
        new = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name)
        new.data_type = kind
        tensor.CopyFrom(new)

    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            convert(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                convert(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
        node.input[:] = [f"{n}_half" if n in ("images", "patch_tokens", "class_token") else n for n in node.input]
        node.output[:] = [f"{n}_half" if n in ("patch_tokens", "class_token") else n for n in node.output]
    graph.node.insert(0, helper.make_node("Cast", ["images"], ["images_half"], to=kind, name="to_half"))
    for name in ("patch_tokens", "class_token"):
        graph.node.append(
            helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT, name=f"{name}_to_float")
        )
    del graph.value_info[:]
    onnx.save(proto, graph_file)
    old = read_manifest(out, ModelManifest)
    manifest = old.model_copy(update={"files": {**old.files, "backbone.onnx": sha256_file(graph_file)}})
    (out / MANIFEST).write_bytes(to_json(manifest))
    return manifest.model_copy(update={"precision": precision})
