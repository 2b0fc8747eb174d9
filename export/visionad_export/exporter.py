"""Export the reference to a model folder: trace to ONNX, compare with torch, lower the precision, write golden tensors and
manifest.

The folder appears complete or not at all.
"""

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
    checked_json,
    read_manifest,
)
from visionad_runtime.scoring.spec import PAPER, ScoringSpec

from visionad_ref import Backbone, MethodError, Reference, Spec, method

from .graph.fold import folded, slice_after_sum
from .graph.fuse_onnxruntime import Fused, write_fused
from .graph.precision import Probes, lower_file, realised, save_onnx

OPSET = 20
"""The first opset with GELU as one operator. It rounds less in half precision, and TensorRT fuses it with the product before it."""

TOLERANCE = 1e-4
"""Allowed difference of an element of a unit token between torch and ONNX Runtime."""

EXTERNAL_DATA_LIMIT = 1_500_000_000
"""Bytes of weights above which they get a separate file. A protobuf file must be smaller than 2 GiB."""

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
    """Write a model folder. An older model folder at the same place is replaced after all checks have passed.

    ``None`` leaves a setting at the backbone's default.

    Args:
        backbone: A backbone's name, or ``timm:<model>``.
        out: The model folder.
        weights: Weights file.
        resize: Side in pixels after the resize.
        crop: Side in pixels of the centre crop.
        layers: 0-based blocks of a ViT or stages of a CNN.
        scoring: The scoring of the model if it is opened without a preset.
        class_token: ``fused`` or ``final``.
        precision: Precision of the products. ``graph/precision.py`` says what always stays in float32.
        external_data_limit: Bytes of weights above which they get a separate file.

    Returns:
        A JSON-ready summary: settings; sizes; ``max_error``, the largest difference between ONNX Runtime and torch in fp32;
        ``types``, operator -> type -> count; ``fused``, what was fused in ``backbone.cuda.onnx`` (``None``: no such file);
        ``accuracy``, the cost of the precision (``None`` for fp32).

    Raises:
        ModelError: The settings, weights or target do not fit, the ONNX graph does not give torch's tokens, or the backbone loses
        too
            much accuracy in this precision. Then nothing has been written.
    """
    if precision not in get_args(Precision):
        raise ModelError(f"precision: expected one of {', '.join(get_args(Precision))}, got {precision!r}")
    out = out.resolve()  # keeps a link to a model folder and replaces its target
    _check_target(out)
    try:
        reference = Reference.load(
            backbone,
            weights,
            resize=resize,
            crop=crop,
            layers=layers,
            views=scoring.views,
            top_fraction=scoring.top_fraction,
            self_similarity=scoring.self_similarity,
            class_token=class_token,  # type: ignore[arg-type]  # the reference checks it
        )
        preprocess = _preprocess(reference.spec)  # fails before minutes of export
    except MethodError as exc:
        raise ModelError(str(exc)) from None

    try:
        with _atomic_folder(out) as folder:
            golden = _golden(reference)
            _check_tokens(reference, golden)
            graph = _write_graph(reference, folder, cast(Precision, precision), golden["image"], external_data_limit)
            (folder / GOLDEN_FILE).write_bytes(save(golden))  # `save_file` would make it unreadable for other users
            dims = golden["patch_tokens"].shape[1], len(golden["class_token"])
            manifest = _manifest(reference, preprocess, scoring, dims, graph, sorted(folder.iterdir()))
            (folder / MANIFEST).write_bytes(checked_json(manifest))
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
    """Return the golden tensors of the runtime's self-test.

    They are two cropped images, torch's tokens of them in the ``original`` view, and the score of the second against a bank of the
    first, unrotated. The second image is the first with a defect: a square of inverted colours.
    """
    image = np.array(out_of_distribution_image(reference.spec.crop))
    side = len(image)
    square = (slice(side // 3, side // 3 + side // 6),) * 2
    defect = image.copy()
    defect[square] = 255 - image[square]
    images = torch.stack([normalise(Image.fromarray(pixels), reference.spec) for pixels in (image, defect)])
    patches, tokens = reference.encode(images)
    distances = method.distances(patches[1], patches[0]).view(reference.spec.grid, reference.spec.grid)
    score = method.image_score(method.upsample(method.fuse({"original": distances})))
    return {
        "image": image,
        "patch_tokens": patches[0].numpy().copy(),
        "class_token": tokens[0].numpy().copy(),
        "blemished": defect,
        "blemished_patch_tokens": patches[1].numpy().copy(),
        "blemished_class_token": tokens[1].numpy().copy(),
        "blemished_score": np.array([score], np.float32),
    }


def _check_tokens(reference: Reference, golden: Mapping[str, NDArray[Any]]) -> None:
    """Check that the weights give meaningful tokens.

    Tensors may have the network's shapes and not be its weights: all zero, overflowing, or integers without their scales. Such a
    model would agree with torch and score every part the same.

    Raises:
        ModelError: The tokens are not unit vectors, or the defect changes none of them.
    """
    tokens, defect = golden["patch_tokens"], golden["blemished_patch_tokens"]
    lengths = np.linalg.norm([*tokens, *defect], axis=1)
    if not (np.abs(lengths - 1) < 1e-3).all() or np.array_equal(tokens, defect):
        raise ModelError(
            f"{reference.spec.backbone} with the weights of {reference.weights_source}: expected unit tokens that differ where an "
            f"image has a defect, got lengths from {lengths.min():.3g} to {lengths.max():.3g} and a largest difference of "
            f"{np.abs(tokens - defect).max():.3g}; give the trained float weights; nothing was written"
        )


class _Graph(NamedTuple):
    """An exported ONNX graph.

    Attributes:
        precision: Its precision.
        accuracy: The cost of the precision; ``None`` for fp32.
        types: Operator -> type -> count.
        opset: ONNX opset.
        max_error: Largest difference between ONNX Runtime and torch in fp32.
        size: Bytes.
        size_fp32: Bytes in fp32.
        fused: What was fused for ONNX Runtime on GPUs, if that file was written.
    """

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
    """Write the backbone's ONNX files: in float32, compared with torch, then lowered and compared with float32."""
    path = folder / ONNX_FILE
    _write_onnx(reference.backbone, path, external_data_limit)
    probes = _probes(reference, golden)
    max_error = _check_against_torch(reference, path, probes)
    size_fp32 = _size(folder)
    accuracy = lower_file(path, precision, probes, external_data_limit)
    model = ir.load(path)
    opset = model.graph.opset_imports[""]
    size = _size(folder)
    # ONNX Runtime's attention may use TF32 kernels and does not report them, so fp32 stays unfused.
    fused = None if precision == "fp32" else write_fused(path, folder / CUDA_ONNX_FILE)
    return _Graph(precision, accuracy, realised(model), opset, max_error, size, size_fp32, fused)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _probes(reference: Reference, golden: NDArray[np.uint8]) -> Probes:
    """Return the images that every graph is tested on.

    They are the golden image, also clamped, noise, and a white and a black image, which cause the largest activations in ViTs.
    """
    image = normalise(Image.fromarray(golden), reference.spec)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    flat = [normalise(Image.new("RGB", golden.shape[:2], colour), reference.spec) for colour in ("white", "black")]
    images = torch.stack([image, noise, VIEWS["clamp"](image), *flat])
    patch, cls = reference.encode(images)
    return Probes(("golden", "noise", "clamped", "white", "black"), images.numpy(), patch.numpy(), cls.numpy())


def _write_onnx(backbone: Backbone, path: Path, external_data_limit: int) -> None:
    """Export with a dynamic batch, and without the exporter's records of source paths of this machine."""
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
    """Make timm trace attention as (scale · q) · kᵀ -> softmax -> · v instead of torch's fused operator.

    The exporter decomposes the fused operator into twice the nodes, with shapes of k computed at run time.
    """
    fused = [module for module in backbone.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


def _check_against_torch(reference: Reference, path: Path, probes: Probes) -> float:
    """Compare ONNX Runtime with torch, in batches of 1 and 3.

    Returns:
        The largest difference of a token's element.

    Raises:
        ModelError: It is larger than ``TOLERANCE``.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    error = 0.0
    for batch in (1, 3):
        tokens = session.run(["patch_tokens", "class_token"], {"images": probes.images[:batch]})
        for got, expected in zip(tokens, (probes.patch, probes.cls), strict=True):
            difference = np.abs(got - expected[:batch]).max()
            error = max(error, float(difference) if np.isfinite(difference) else float("inf"))
    if error > TOLERANCE:
        raise ModelError(
            f"the exported {reference.spec.backbone} differs from torch by {error:.2g} (allowed: {TOLERANCE:.0e}) under "
            f"ONNX Runtime {ort.__version__}; nothing was written"
        )
    return error


def _preprocess(spec: Spec) -> PreprocessSpec:
    """Return the preprocessing as the manifest's record.

    Raises:
        ModelError: The manifest does not allow a size.
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
    """Reject a target unless it is missing, an empty folder, or a model folder without other files.

    Raises:
        ModelError: The target holds anything else.
    """
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
def _atomic_folder(out: Path) -> Iterator[Path]:
    """Provide a temporary folder beside ``out``. It replaces ``out`` after the block, or is removed if the block fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stem = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fresh, old = stem.with_suffix(".tmp"), stem.with_suffix(".old")
    fresh.mkdir()
    try:
        yield fresh
        for path in fresh.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        _check_target(out)  # again: an export takes minutes
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
    """Silence the progress that torch.onnx prints, warns and logs. A failed export raises."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
