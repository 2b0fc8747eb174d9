"""Reference → model folder: export to ONNX, prove it against torch, bring it to its precision, write golden tensors and the
manifest, all or nothing."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import PIL
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import save
from visionad_ref.method import VIEWS, normalise, out_of_distribution_image
from visionad_runtime.errors import ModelError
from visionad_runtime.formats.files import sha256_file
from visionad_runtime.formats.manifest import (
    CUDA_ONNX_FILE,
    GOLDEN_FILE,
    MANIFEST,
    ONNX_FILE,
    Accuracy,
    FeatureIdentity,
    ModelManifest,
    Precision,
    PreprocessSpec,
    WeightsRecord,
    read_manifest,
    to_json,
)
from visionad_runtime.scoring.spec import PAPER, ScoringSpec

from visionad_ref import Backbone, MethodError, Reference, Spec, method

from .graph.fold import folded, slice_after_sum
from .graph.fuse_onnxruntime import Fused, write_fused
from .graph.precision import Probes, lower_file, realised, save_onnx

OPSET = 20
"""The first with GELU as one operator: fewer roundings in half precision, and TensorRT fuses it with the product before it."""

TOLERANCE = 1e-4
"""Largest difference of a unit token's element between torch and ONNX Runtime that an export may show."""

EXTERNAL_DATA_LIMIT = 1_500_000_000
"""Bytes of weights from which they get a file of their own: one protobuf file must stay below 2 GiB."""

_DOCS = {
    "images": "RGB images (x / 255 - mean) / std, resized and cropped as the manifest says; float32 (batch, 3, H, W)",
    "patch_tokens": "unit patch tokens, row-major from the top left; float32 (batch, grid * grid, dim)",
    "class_token": "unit class tokens; float32 (batch, class_token_dim)",
}


def export_model(
    backbone: str,
    out: Path,
    *,
    weights: str | Path | None = None,
    resize: int | None = None,
    crop: int | None = None,
    layers: Sequence[int] | None = None,
    scoring: ScoringSpec = PAPER,
    class_token: str = "fused",
    precision: str = "fp32",
    external_data_limit: int = EXTERNAL_DATA_LIMIT,
) -> dict[str, Any]:
    """Write the model folder ``out``; an older model folder there is replaced, after all checks have passed.

    ``None`` leaves a setting at the backbone's default.

    Args:
        scoring: how the model scores where it is opened without a preset.
        precision: of the products; ``precision.py`` says what stays in float32 whatever it is.

    Returns:
        A JSON-ready summary: settings; sizes; ``max_error``, the largest difference between ONNX Runtime and torch in fp32;
        ``types``, operator → type → how often; ``fused``, what was fused in ``backbone.cuda.onnx`` (``None``: no such
        file); ``accuracy``, what the precision costs (``None`` for fp32).

    Raises:
        ModelError: settings, weights or target that do not fit, an ONNX graph that does not give torch's tokens, or a precision
            that this backbone does not bear. Then nothing has been written.
    """
    if precision not in get_args(Precision):
        raise ModelError(f"unknown precision {precision!r}; known: {', '.join(get_args(Precision))}")
    out = out.resolve()  # a link to a model folder stays one: what it names is replaced
    _check_target(out)
    try:
        reference = Reference.load(
            backbone,
            weights,
            resize=resize,
            crop=crop,
            layers=layers,
            **scoring.fields(),
            class_token=class_token,  # type: ignore[arg-type]  # the reference refuses others
        )
        preprocess = _preprocess(reference.spec)  # what a manifest cannot say is not worth minutes of export
    except MethodError as exc:
        raise ModelError(str(exc)) from None

    try:
        with _folder_in_the_making(out) as folder:
            golden = _golden(reference)
            _check_that_it_sees(reference, golden)
            graph = _write_graph(reference, folder, cast(Precision, precision), golden["image"], external_data_limit)
            (folder / GOLDEN_FILE).write_bytes(save(golden))  # `save_file` would make it unreadable to others
            dims = golden["patch_tokens"].shape[1], len(golden["class_token"])
            manifest = _manifest(reference, preprocess, scoring, dims, graph, sorted(folder.iterdir()))
            (folder / MANIFEST).write_bytes(to_json(manifest))
            size = sum(path.stat().st_size for path in folder.iterdir())
    except OSError as exc:
        raise ModelError(f"cannot write {out}: {exc.strerror or exc}; nothing was changed") from None
    spec = manifest.identity.preprocess
    return {
        "model": str(out),
        **manifest.identity.model_dump(mode="json", exclude={"weights_sha256", "preprocess"}),
        "resize": spec.resize,
        "crop": spec.crop,
        **scoring.fields(),
        "views": list(scoring.views),
        "precision": manifest.precision,
        "opset": manifest.opset,
        "weights": manifest.weights.model_dump(),
        "identity": manifest.identity.digest(),
        "bytes": size,
        "onnx_bytes": graph.size,
        "onnx_bytes_fp32": graph.size_fp32,
        "max_error": graph.max_error,
        "types": graph.types,
        "fused": None if graph.fused is None else graph.fused._asdict(),
        "accuracy": None if graph.accuracy is None else graph.accuracy.model_dump(),
        "dropped_area": 1 - (spec.crop / spec.resize) ** 2,
    }


def _golden(reference: Reference) -> dict[str, NDArray[Any]]:
    """What the runtime tests itself with: two cropped images, torch's tokens of them in the ``original`` view, and the second's
    score against a bank of the first, upright, alone. The second is the first with a blemish: a square of inverted colours."""
    image = np.array(out_of_distribution_image(reference.spec.crop))
    side = len(image)
    blemish = (slice(side // 3, side // 3 + side // 6),) * 2
    blemished = image.copy()
    blemished[blemish] = 255 - image[blemish]
    images = torch.stack([normalise(Image.fromarray(p), reference.spec) for p in (image, blemished)])
    patches, tokens = reference.encode(images)
    distances = method.distances(patches[1], patches[0]).view(reference.spec.grid, reference.spec.grid)
    score = method.image_score(method.upsample(method.fuse({"original": distances})))
    return {
        "image": image,
        "patch_tokens": patches[0].numpy().copy(),
        "class_token": tokens[0].numpy().copy(),
        "blemished": blemished,
        "blemished_patch_tokens": patches[1].numpy().copy(),
        "blemished_class_token": tokens[1].numpy().copy(),
        "blemished_score": np.array([score], np.float32),
    }


def _check_that_it_sees(reference: Reference, golden: Mapping[str, NDArray[Any]]) -> None:
    """Tensors may fit a network and be none of its weights: all zero, overflowing, or integers without their scales. Such a model
    would agree with torch and find every part the same.

    Raises:
        ModelError: tokens are no unit vectors, or the blemish moves none of them.
    """
    tokens, blemished = golden["patch_tokens"], golden["blemished_patch_tokens"]
    lengths = np.linalg.norm([*tokens, *blemished], axis=1)
    if not (np.abs(lengths - 1) < 1e-3).all() or np.array_equal(tokens, blemished):
        raise ModelError(
            f"{reference.spec.backbone} with the weights of {reference.weights_source}: expected unit tokens that differ where a "
            f"image has a blemish, got lengths from {lengths.min():.3g} to {lengths.max():.3g} and a largest difference of "
            f"{np.abs(tokens - blemished).max():.3g}; give the trained float weights; nothing was written"
        )


class _Graph(NamedTuple):
    """An ONNX graph as written: its precision, what that costs, its types, its size in bytes (and before it was lowered)."""

    precision: Precision
    accuracy: Accuracy | None
    types: dict[str, dict[str, int]]
    opset: int
    max_error: float
    size: int
    size_fp32: int
    fused: Fused | None


def _write_graph(
    reference: Reference, folder: Path, precision: Precision, golden: NDArray[np.uint8], external_data_limit: int
) -> _Graph:
    """Write the backbone's ONNX file(s): float32 first, proven against torch, then lowered and proven against float32."""
    path = folder / ONNX_FILE
    _write_onnx(reference.backbone, path, external_data_limit)
    probes = _probes(reference, golden)
    max_error = _check_against_torch(reference, path, probes)
    size_fp32 = _size(folder)
    accuracy = lower_file(path, precision, probes, external_data_limit)
    model = ir.load(path)
    opset = model.graph.opset_imports[""]
    size = _size(folder)
    # Nothing says which kernels ONNX Runtime's attention takes, and some use TF32: fp32 runs as it is.
    fused = None if precision == "fp32" else write_fused(path, folder / CUDA_ONNX_FILE)
    return _Graph(precision, accuracy, realised(model), opset, max_error, size, size_fp32, fused)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _probes(reference: Reference, golden: NDArray[np.uint8]) -> Probes:
    """What every graph is tried on: the golden image as it is and clamped, noise, and the ends of the range as flat
    images, on which ViTs grow their largest activations."""
    image = normalise(Image.fromarray(golden), reference.spec)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    flat = [normalise(Image.new("RGB", golden.shape[:2], colour), reference.spec) for colour in ("white", "black")]
    images = torch.stack([image, noise, VIEWS["clamp"](image), *flat])
    patch, cls = reference.encode(images)
    return Probes(("golden", "noise", "clamped", "white", "black"), images.numpy(), patch.numpy(), cls.numpy())


def _write_onnx(backbone: Backbone, path: Path, external_data_limit: int) -> None:
    """Export with a dynamic batch, without the exporter's record of this machine's source paths."""
    side = backbone.spec.crop
    with _silence(), _plain_attention(backbone), folded(backbone):
        program = torch.onnx.export(
            backbone,
            (torch.zeros(2, 3, side, side),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["patch_tokens", "class_token"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        assert program is not None  # dynamo=True always returns a program
        graph = program.model.graph
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
        for value in (*graph.inputs, *graph.outputs):
            value.doc_string = _DOCS[value.name or ""]
        slice_after_sum(program.model)
        save_onnx(program.model, path, external_data_limit)


@contextlib.contextmanager
def _plain_attention(backbone: Backbone) -> Iterator[None]:
    """Trace attention as timm writes it out, (scale · q) · kᵀ → softmax → · v, and not as torch's fused operator, which ONNX
    breaks up into twice the nodes, reshaping k by shapes computed at run time."""
    fused = [module for module in backbone.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


def _check_against_torch(reference: Reference, path: Path, probes: Probes) -> float:
    """Largest difference of any token element between ONNX Runtime and torch, for batches of 1 and 3.

    Raises:
        ModelError: it is larger than ``TOLERANCE``.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    error = 0.0
    for batch in (1, 3):
        found = session.run(["patch_tokens", "class_token"], {"images": probes.images[:batch]})
        for ours, theirs in zip(found, (probes.patch, probes.cls), strict=True):
            difference = np.abs(ours - theirs[:batch]).max()
            error = max(error, float(difference) if np.isfinite(difference) else float("inf"))
    if error > TOLERANCE:
        raise ModelError(
            f"the exported {reference.spec.backbone} differs from torch by {error:.2g} (allowed: {TOLERANCE:.0e}) under "
            f"ONNX Runtime {ort.__version__}; nothing was written"
        )
    return error


def _preprocess(spec: Spec) -> PreprocessSpec:
    """As the manifest has it.

    Raises:
        ModelError: a side that no manifest may have.
    """
    try:
        return PreprocessSpec(resize=spec.resize, crop=spec.crop, mean=spec.mean, std=spec.std)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"{where} {first['input']}: {first['msg']}; choose another --{where}") from None


def _manifest(
    reference: Reference,
    preprocess: PreprocessSpec,
    scoring: ScoringSpec,
    dims: tuple[int, int],
    graph: _Graph,
    files: list[Path],
) -> ModelManifest:
    spec = reference.spec
    return ModelManifest(
        identity=FeatureIdentity(
            backbone=spec.backbone,
            weights_sha256=reference.weights_sha256,
            kind=spec.kind,
            layers=spec.layers,
            patch=spec.patch,
            grid=spec.grid,
            dim=dims[0],
            class_token=spec.class_token,
            class_token_dim=dims[1],
            pos_embed=spec.pos_embed,
            preprocess=preprocess,
        ),
        weights=WeightsRecord(sha256=reference.weights_sha256, source=reference.weights_source),
        **scoring.fields(),
        precision=graph.precision,
        accuracy=graph.accuracy,
        opset=graph.opset,
        files={path.name: sha256_file(path) for path in files},
        tools={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    )


# --- all or nothing ------------------------------------------------------------------------------------------------


def _check_target(out: Path) -> None:
    """Refuse to replace anything but an empty folder or a model folder with nothing of the user's own in it."""
    if not (out.exists() or out.is_symlink()) or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        manifest = read_manifest(out, ModelManifest)
    except ModelError as exc:
        raise ModelError(f"{out} exists and is not a model folder ({exc}); choose another --out or remove it") from None
    foreign = sorted({path.name for path in out.iterdir()} - {MANIFEST, *manifest.files})
    if foreign:
        raise ModelError(
            f"model folder {out} also holds {', '.join(foreign[:4])}; move that away or choose another --out"
        )


@contextlib.contextmanager
def _folder_in_the_making(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when the block ends well, and vanishes when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stem = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fresh, old = stem.with_suffix(".tmp"), stem.with_suffix(".old")
    fresh.mkdir()
    try:
        yield fresh
        for path in fresh.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        _check_target(out)  # an export takes a while; somebody may have put something there
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """torch.onnx reports its progress on stdout, by warnings and by logging; an export that fails raises."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
