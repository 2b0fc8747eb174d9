"""What a precision costs on real images, and what int8 would: `python benchmarks/precision.py [--every N]`.

Half precision and tf32 are emulated as export's accuracy gate does it (every result rounded, float32 sums), so no GPU is
needed. Each is scored with a bank of its own precision and with an fp32 bank. 1 shot, original view. int8 is ONNX Runtime's own,
static Q/DQ (weights per channel, calibrated on good parts) and dynamic, timed side by side with fp32 and with the fp16 graph on
this CPU: it is here to show why the project does not offer it. fp8 (E4M3), and int8 again, are emulated in PyTorch: both inputs of
every linear layer are rounded, weights with a scale a row, activations with one a tensor (calibrated) or one a token (dynamic).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import common
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from sklearn.metrics import roc_auc_score
from visionad_export.exporter import export_model
from visionad_export.graph.precision import emulate, lower
from visionad_runtime.formats.manifest import ModelManifest, Precision, read_manifest
from visionad_runtime.images import decode
from visionad_runtime.preprocess import encoding_names, prepare, support_encodings
from visionad_runtime.scoring.anomaly_map import fuse, image_score, upsample
from visionad_runtime.search import nearest

from visionad_ref import Reference

BACKBONES, SET, THREADS, ROUNDS = ("deit_tiny_patch16_224", "efficientnet_lite0"), "mvtec_bottle", 2, 15
F32 = NDArray[np.float32]


def main() -> None:
    """Measure, print tables, write ``benchmarks/results/precision.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1, help="take every Nth test image (for a quick look)")
    every = parser.parse_args().every
    shared, result = (
        common.shared(),
        {
            "set": SET,
            "every": every,
            "shots": 1,
            "view": "original",
            "rows": [],
            "int8": [],
            "emulated": [],
            "time": [],
        },
    )
    good = sorted((shared / "data" / SET / "train" / "good").iterdir())
    tests = sorted((shared / "data" / SET / "test").glob("*/*"))[::every]
    with tempfile.TemporaryDirectory() as folder:
        for backbone in BACKBONES:
            weights = shared / "weights" / backbone / "model.safetensors"
            model = Path(folder) / backbone
            export_model(backbone, model, weights=weights if weights.exists() else None)
            result["rows"] += study(backbone, model, good[0], tests, Path(folder))
            if backbone == BACKBONES[0]:
                result["int8"] = study_int8(model, good[1:9], good[0], tests, Path(folder))
                result["emulated"] = study_emulated(backbone, weights, good[1:9], good[0], tests)
        random = common.export_random("dinov2_vits14_reg", Path(folder) / "random")
        for name, place in ((BACKBONES[0], Path(folder) / BACKBONES[0]), ("dinov2_vits14_reg, random weights", random)):
            result["time"].append({"backbone": name, **side_by_side(place, good[1:9], Path(folder))})
            print(result["time"][-1], flush=True)
    print(f"written to {common.write('precision', result).relative_to(common.ROOT)}")


def study(backbone: str, model: Path, support: Path, tests: list[Path], folder: Path) -> list[dict[str, Any]]:
    """One row a precision and bank: AUROC, and how far scores move from those of fp32 throughout."""
    encoded: dict[str, tuple[F32, list[F32]]] = {}
    rows, labels = [], np.array([path.parent.name != "good" for path in tests])
    scores: dict[tuple[str, str], NDArray[np.float64]] = {}
    for precision in get_args(Precision):
        graph = ir.load(model / "backbone.onnx")
        lower(graph, precision)
        emulate(graph, precision)
        ir.save(graph, folder / "emulated.onnx")
        encoded[precision] = encode(folder / "emulated.onnx", model, support, tests)
        cosines = compare(encoded[precision][1], encoded["fp32"][1])
        for bank in dict.fromkeys((precision, "fp32")):
            scores[precision, bank] = score(encoded[precision][1], encoded[bank][0])
            wanted = scores["fp32", "fp32"]
            move = np.abs(scores[precision, bank] / wanted - 1)
            rows.append(
                {
                    "backbone": backbone,
                    "precision": precision,
                    "bank": bank,
                    "auroc": float(roc_auc_score(labels, scores[precision, bank])),
                    "score_moves_at_most": float(move.max()),
                    "spread_of_good": float(wanted[~labels].std() / wanted[~labels].mean()),
                    "token_cosine_min": float(cosines.min()),
                    "token_cosine_mean": float(cosines.mean()),
                }
            )
            print(rows[-1], flush=True)
    return rows


def study_int8(
    model: Path, normals: list[Path], support: Path, tests: list[Path], folder: Path
) -> list[dict[str, Any]]:
    """One row a way to int8."""
    rows, labels = [], np.array([path.parent.name != "good" for path in tests])
    wanted = encode(model / "backbone.onnx", model, support, tests)[1]
    for name, path in quantised(model, normals, folder).items():
        rows_of_bank, tokens = encode(path, model, support, tests)
        cosines, found = compare(tokens, wanted), score(tokens, rows_of_bank)
        rows.append(
            {
                "graph": name,
                "auroc": float(roc_auc_score(labels, found)),
                "token_cosine_min": float(cosines.min()),
                "token_cosine_mean": float(cosines.mean()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def study_emulated(
    backbone: str, weights: Path, normals: list[Path], support: Path, tests: list[Path]
) -> list[dict[str, Any]]:
    """One row an 8-bit type and way to scale activations, with its own bank, by the reference."""
    rows, labels = [], np.array([path.parent.name != "good" for path in tests])
    _, wanted = encode_by(Reference.load(backbone, weights), support, tests)
    for kind, scales in itertools.product(ROUNDED, ("tensor", "token")):
        reference = Reference.load(backbone, weights)
        images = [torch.from_numpy(prepare(decode.load(path), reference.spec)[None]) for path in normals]
        round_linears(reference, ROUNDED[kind], images if scales == "tensor" else None)
        bank, tokens = encode_by(reference, support, tests)
        cosines = compare(tokens, wanted)
        rows.append(
            {
                "type": kind,
                "activations": f"a scale a {scales}",
                "auroc": float(roc_auc_score(labels, score(tokens, bank))),
                "token_cosine_min": float(cosines.min()),
                "token_cosine_mean": float(cosines.mean()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def round_linears(reference: Reference, rounded: Rounded, images: list[torch.Tensor] | None) -> None:
    """Have every linear layer multiply rounded weights by rounded inputs. With ``images`` an input's scale is their largest."""
    linears = [module for module in reference.backbone.modules() if isinstance(module, torch.nn.Linear)]
    largest: dict[torch.nn.Module, torch.Tensor] = {}

    def seen(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        largest[module] = torch.maximum(largest.get(module, torch.zeros(())), inputs[0].abs().max())

    def given(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        scale = inputs[0].abs().amax(-1, keepdim=True) if images is None else largest[module]
        return (rounded(inputs[0], scale),)

    hooks = [linear.register_forward_pre_hook(seen) for linear in linears]
    for image in images or ():
        reference.encode(image)
    for hook in hooks:
        hook.remove()
    for linear in linears:
        weight = linear.weight.data
        linear.weight.data = rounded(weight, weight.abs().amax(1, keepdim=True))
        linear.register_forward_pre_hook(given)


def to_fp8(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Rounded to E4M3, whose largest number is 448, where ``largest`` is."""
    scale = largest.clamp_min(1e-30) / 448
    return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def to_int8(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Rounded to -127..127, where ``largest`` is 127."""
    scale = largest.clamp_min(1e-30) / 127
    return (values / scale).clamp(-127, 127).round() * scale


Rounded = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ROUNDED: dict[str, Rounded] = {"fp8": to_fp8, "int8": to_int8}


def encode_by(reference: Reference, support: Path, tests: list[Path]) -> tuple[F32, list[F32]]:
    """:func:`encode` by the reference."""

    def tokens(image: F32) -> F32:
        found: F32 = reference.encode(torch.from_numpy(np.ascontiguousarray(image[None])))[0][0].numpy()
        return found

    poses = support_encodings(prepare(decode.load(support), reference.spec), encoding_names(("original",)))
    return np.concatenate([tokens(pose) for pose in poses]), [
        tokens(prepare(decode.load(path), reference.spec)) for path in tests
    ]


def quantised(model: Path, normals: list[Path], folder: Path) -> dict[str, Path]:
    """int8 graphs: products with weights only; attention, LayerNorm, softmax and residual sums stay float32."""
    spec = read_manifest(model, ModelManifest).identity.preprocess

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter([{"images": prepare(decode.load(path), spec)[None]} for path in normals])

        def get_next(self) -> dict[str, F32] | None:
            return next(self.images, None)

    prepared = folder / "prepared.onnx"
    quant_pre_process(model / "backbone.onnx", prepared, skip_symbolic_shape=True)
    common_settings: dict[str, Any] = {"op_types_to_quantize": ["MatMul"], "per_channel": True}
    made = {"dynamic": folder / "dynamic.onnx"}
    quantize_dynamic(prepared, made["dynamic"], extra_options={"MatMulConstBOnly": True}, **common_settings)
    for method in (CalibrationMethod.MinMax, CalibrationMethod.Percentile):
        made[f"static, {method.name}"] = folder / f"{method.name}.onnx"
        quantize_static(
            prepared,
            made[f"static, {method.name}"],
            Reader(),
            activation_type=QuantType.QUInt8,  # with int8 weights, what VNNI multiplies
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            extra_options={"MatMulConstBOnly": True, "CalibPercentile": 99.99},
            **common_settings,
        )
    return made


def side_by_side(model: Path, normals: list[Path], folder: Path) -> dict[str, float]:
    """Median milliseconds of one encoding in fp32, and the others' as ratios to it, taken in turns."""
    graph = ir.load(model / "backbone.onnx")
    lower(graph, "fp16")
    ir.save(graph, folder / "fp16.onnx")
    paths = {
        "fp32": model / "backbone.onnx",
        "fp16": folder / "fp16.onnx",
        **{f"int8 {k}": v for k, v in quantised(model, normals, folder).items()},
    }
    sessions = {name: session(path) for name, path in paths.items()}
    image = np.zeros((1, *sessions["fp32"].get_inputs()[0].shape[1:]), np.float32)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, one in sessions.items():
            start = time.perf_counter()
            one.run(None, {"images": image})
            taken[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times[2:]) for name, times in taken.items()}
    return {"fp32_ms": median["fp32"] * 1e3, **{f"{k} / fp32": v / median["fp32"] for k, v in median.items()}}


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = THREADS
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def encode(path: Path, model: Path, support: Path, tests: list[Path]) -> tuple[F32, list[F32]]:
    """Bank rows of one support image in its six poses, and the test images' tokens."""
    spec, run = read_manifest(model, ModelManifest).identity.preprocess, session(path)

    def tokens(image: F32) -> F32:
        found: F32 = run.run(["patch_tokens"], {"images": np.ascontiguousarray(image[None])})[0][0]
        return found

    poses = support_encodings(prepare(decode.load(support), spec), encoding_names(("original",)))
    return np.concatenate([tokens(pose) for pose in poses]), [tokens(prepare(decode.load(p), spec)) for p in tests]


def compare(found: list[F32], wanted: list[F32]) -> NDArray[np.float64]:
    return np.concatenate([(a.astype(np.float64) * b).sum(-1) for a, b in zip(found, wanted, strict=True)])


def score(tokens: list[F32], rows: F32) -> NDArray[np.float64]:
    side = round(len(tokens[0]) ** 0.5)
    grids = (nearest(one, rows).distance.reshape(side, side) for one in tokens)
    return np.array([image_score(upsample(fuse({"original": grid}))) for grid in grids])


if __name__ == "__main__":
    main()
