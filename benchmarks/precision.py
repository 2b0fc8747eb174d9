"""Effect of precision on real images, and of int8 and fp8: `python benchmarks/precision.py [--every N]`.

Half precision and tf32 are emulated as in export's accuracy check (every result rounded, float32 sums), so no GPU is needed. Each
is scored with a bank of its own precision and with an fp32 bank; one shot, original view.

int8 is ONNX Runtime's, static Q/DQ (weights per channel, calibrated on good parts) and dynamic, timed side by side with fp32 and
with the fp16 graph on this CPU. It shows why the project does not offer int8. fp8 (E4M3) and int8 are also emulated in PyTorch:
both inputs of every linear layer are rounded, weights with a scale per row, activations with one per tensor (calibrated) or per
token (dynamic).
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
    """Return one row per precision and bank: AUROC, and the change of the scores from fp32 for both."""
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
            expected = scores["fp32", "fp32"]
            move = np.abs(scores[precision, bank] / expected - 1)
            rows.append(
                {
                    "backbone": backbone,
                    "precision": precision,
                    "bank": bank,
                    "auroc": float(roc_auc_score(labels, scores[precision, bank])),
                    "score_moves_at_most": float(move.max()),
                    "spread_of_good": float(expected[~labels].std() / expected[~labels].mean()),
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
    expected = encode(model / "backbone.onnx", model, support, tests)[1]
    for name, path in quantized(model, normals, folder).items():
        rows_of_bank, tokens = encode(path, model, support, tests)
        cosines, scores = compare(tokens, expected), score(tokens, rows_of_bank)
        rows.append(
            {
                "graph": name,
                "auroc": float(roc_auc_score(labels, scores)),
                "token_cosine_min": float(cosines.min()),
                "token_cosine_mean": float(cosines.mean()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def study_emulated(
    backbone: str, weights: Path, normals: list[Path], support: Path, tests: list[Path]
) -> list[dict[str, Any]]:
    """Return one row per 8-bit type and scaling of activations, each with its own bank, by the reference."""
    rows, labels = [], np.array([path.parent.name != "good" for path in tests])
    _, expected = encode_by(Reference.load(backbone, weights), support, tests)
    for kind, scales in itertools.product(ROUNDED, ("tensor", "token")):
        reference = Reference.load(backbone, weights)
        images = [torch.from_numpy(prepare(decode.load(path), reference.spec)[None]) for path in normals]
        round_linears(reference, ROUNDED[kind], images if scales == "tensor" else None)
        bank, tokens = encode_by(reference, support, tests)
        cosines = compare(tokens, expected)
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
    """Make every linear layer multiply rounded weights by rounded inputs. With ``images``, their maximum sets an input's scale."""
    linears = [module for module in reference.backbone.modules() if isinstance(module, torch.nn.Linear)]
    largest: dict[torch.nn.Module, torch.Tensor] = {}

    def record_largest(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        largest[module] = torch.maximum(largest.get(module, torch.zeros(())), inputs[0].abs().max())

    def round_input(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        scale = inputs[0].abs().amax(-1, keepdim=True) if images is None else largest[module]
        return (rounded(inputs[0], scale),)

    hooks = [linear.register_forward_pre_hook(record_largest) for linear in linears]
    for image in images or ():
        reference.encode(image)
    for hook in hooks:
        hook.remove()
    for linear in linears:
        weight = linear.weight.data
        linear.weight.data = rounded(weight, weight.abs().amax(1, keepdim=True))
        linear.register_forward_pre_hook(round_input)


def to_fp8(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Round to E4M3, whose largest number 448 stands for ``largest``."""
    scale = largest.clamp_min(1e-30) / 448
    return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def to_int8(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Round to -127..127, where 127 stands for ``largest``."""
    scale = largest.clamp_min(1e-30) / 127
    return (values / scale).clamp(-127, 127).round() * scale


Rounded = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ROUNDED: dict[str, Rounded] = {"fp8": to_fp8, "int8": to_int8}


def encode_by(reference: Reference, support: Path, tests: list[Path]) -> tuple[F32, list[F32]]:
    """Encode as :func:`encode` does, by the reference."""

    def tokens(image: F32) -> F32:
        found: F32 = reference.encode(torch.from_numpy(np.ascontiguousarray(image[None])))[0][0].numpy()
        return found

    poses = support_encodings(prepare(decode.load(support), reference.spec), encoding_names(("original",)))
    return np.concatenate([tokens(pose) for pose in poses]), [
        tokens(prepare(decode.load(path), reference.spec)) for path in tests
    ]


def quantized(model: Path, normals: list[Path], folder: Path) -> dict[str, Path]:
    """Write int8 graphs. Only products with weights are int8; attention, LayerNorm, softmax and residual sums stay float32."""
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
    """Return the median milliseconds of one encoding in fp32, and the ratios of the others to it. They take turns."""
    graph = ir.load(model / "backbone.onnx")
    lower(graph, "fp16")
    ir.save(graph, folder / "fp16.onnx")
    paths = {
        "fp32": model / "backbone.onnx",
        "fp16": folder / "fp16.onnx",
        **{f"int8 {k}": v for k, v in quantized(model, normals, folder).items()},
    }
    sessions = {name: session(path) for name, path in paths.items()}
    image = np.zeros((1, *sessions["fp32"].get_inputs()[0].shape[1:]), np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, run_session in sessions.items():
            start = time.perf_counter()
            run_session.run(None, {"images": image})
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times[2:]) for name, times in seconds.items()}
    return {"fp32_ms": median["fp32"] * 1e3, **{f"{k} / fp32": v / median["fp32"] for k, v in median.items()}}


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = THREADS
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def encode(path: Path, model: Path, support: Path, tests: list[Path]) -> tuple[F32, list[F32]]:
    """Return the bank rows of one support in its six poses, and the tokens of the test images."""
    spec, run = read_manifest(model, ModelManifest).identity.preprocess, session(path)

    def tokens(image: F32) -> F32:
        found: F32 = run.run(["patch_tokens"], {"images": np.ascontiguousarray(image[None])})[0][0]
        return found

    poses = support_encodings(prepare(decode.load(support), spec), encoding_names(("original",)))
    return np.concatenate([tokens(pose) for pose in poses]), [tokens(prepare(decode.load(p), spec)) for p in tests]


def compare(tokens: list[F32], expected: list[F32]) -> NDArray[np.float64]:
    return np.concatenate([(a.astype(np.float64) * b).sum(-1) for a, b in zip(tokens, expected, strict=True)])


def score(tokens: list[F32], rows: F32) -> NDArray[np.float64]:
    side = round(len(tokens[0]) ** 0.5)
    grids = (nearest(one, rows).distance.reshape(side, side) for one in tokens)
    return np.array([image_score(upsample(fuse({"original": grid}))) for grid in grids])


if __name__ == "__main__":
    main()
