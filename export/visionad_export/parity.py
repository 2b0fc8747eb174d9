"""Compare the runtime with the reference, stage by stage, on the user's own images, before it goes live.

Both sides start from the image file and share no code. The reference (PyTorch) loads the weights that the model was exported from.
If the enrolled images still exist, the reference encodes them itself, so the comparison includes the bank. Remembered defects are
compared with as stored, because a bank keeps no mask of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from visionad_runtime.bank.memory_bank import ClassBank as StoredClass
from visionad_runtime.bank.names import normalize_class_name
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.files import sha256_file
from visionad_runtime.formats.manifest import FeatureIdentity, ModelManifest, Precision, WeightsRecord
from visionad_runtime.inspector import Inspector
from visionad_runtime.result import Result, Trace
from visionad_runtime.scoring.areas import Area
from visionad_runtime.scoring.spec import ScoringSpec

from visionad_ref import VIEWS, ClassBank, ImageError, ImageSource, MethodError, Reference

from .parity_tiles import Piece, ReferenceClass, enroll_tiles, inspect_piece, pieces_of, route_image

STAGES = ("bank features", "preprocess", "patch features", "class token", "distances", "map", "score")

# Precision -> (tokens, distances and map, score): allowed difference to the fp32 reference, relative to the largest value of the
# image's output.
#
# fp32: engines sum hundreds of products in another order, which makes about 1e-5. A wrong layer, weight, resize or layout makes 0.1
# and more.
#
# tf32, fp16: unit roundoff 2⁻¹¹ in about six consecutive results per block makes √(6 · 8 blocks) · 2⁻¹¹ = 3e-3 for a typical
# token, and several times that for the worst of 50 000. A distance sums the errors of D elements, which mostly cancel, and a score
# averages 655 pixels. Worst on 83 real images, DeiT-Tiny and EfficientNet-Lite0, emulated: 2.4e-2, 1.0e-2, 2.8e-3. Allowed: twice
# that.
#
# bf16: unit roundoff 2⁻⁸. The same two backbones fail export's accuracy gate, at 0.17, 6.2e-2, 1.7e-2. A backbone that passes must
# not be worse than they are.
_TOLERANCES: dict[Precision, tuple[float, float, float]] = {
    "fp32": (1e-4, 1e-4, 1e-4),
    "tf32": (5e-2, 2e-2, 6e-3),
    "fp16": (5e-2, 2e-2, 6e-3),
    "bf16": (1.7e-1, 6e-2, 1.7e-2),
}


def tolerances(precision: Precision) -> dict[str, float]:
    """Return the allowed relative difference by stage. Preprocessing gives the same bytes in every precision."""
    tokens, distance, score = _TOLERANCES[precision]
    return dict(zip(STAGES, (tokens, 0.0, tokens, tokens, distance, distance, score), strict=True))


AUROC_TOLERANCE = 1e-3
"""A tenth of a point; with few images, one swapped pair of images if that is more."""

ENCODED = "encoded by the reference"

MIN_SCALE = 0.1
"""Smallest value that differences are relative to.

Otherwise they are relative to the reference's output. An enrolled image has distances of about 0, for which that is meaningless.
"""

# View -> names of the runtime's encodings for the reference's six poses, in the reference's order. A vertical flip and a rotation
# by 180 degrees are a horizontal flip, and so on.
_POSE_BLOCKS = {
    "original": ("e", "r90", "r180", "r270", "fv", "fh"),
    "flip": ("fv", "r90fv", "fh", "r270fv", "e", "r180"),
    "clamp": ("clamp/e", "clamp/r90", "clamp/r180", "clamp/r270", "clamp/fv", "clamp/fh"),
}


@dataclass
class Stage:
    """Largest differences of a stage.

    Attributes:
        tolerance: Allowed relative difference.
        absolute: Largest absolute difference.
        absolute_image: Its image.
        relative: Largest difference relative to the largest magnitude of the reference's output, at least ``MIN_SCALE``.
        relative_image: Its image.
        passed: Whether all images are within the tolerance.
    """

    tolerance: float
    absolute: float = 0.0
    absolute_image: str | None = None
    relative: float = 0.0
    relative_image: str | None = None
    passed: bool = True

    def add(self, image: str, got: NDArray[Any], expected: NDArray[Any]) -> None:
        """Compare one image's output.

        Args:
            image: The image, for the report.
            got: The runtime's output.
            expected: The reference's output, of the same shape.
        """
        if got.shape != expected.shape:
            raise AssertionError(
                f"{image}: expected the reference's shape {expected.shape}, got {got.shape} of the runtime"
            )
        absolute = float(np.abs(got.astype(np.float64) - expected).max())
        if not np.isfinite(absolute):
            absolute = float("inf")
        relative = absolute / max(float(np.abs(expected).max()), MIN_SCALE)
        if self.absolute_image is None or absolute > self.absolute:
            self.absolute, self.absolute_image = absolute, image
        if self.relative_image is None or relative > self.relative:
            self.relative, self.relative_image = relative, image
        self.passed &= relative <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return the stage as JSON types."""
        return {
            "max_abs": self.absolute,
            "max_abs_image": self.absolute_image,
            "max_rel": self.relative,
            "max_rel_image": self.relative_image,
            "tolerance": self.tolerance,
            "pass": self.passed,
        }


@dataclass
class _Report:
    tolerances: dict[str, float]
    stages: dict[str, Stage] = field(default_factory=dict)
    scores: list[tuple[float, float, str]] = field(default_factory=list)
    routing: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    on_threshold: list[str] = field(default_factory=list)
    min_cosine: float = 1.0

    def stage(self, name: str) -> Stage:
        return self.stages.setdefault(name, Stage(self.tolerances[name]))


def check_parity(
    inspector: Inspector,
    paths: Sequence[Path],
    *,
    weights: Path | None = None,
    class_name: str | None = None,
    bit_depth: int | None = None,
    threads: int | None = None,
    step: Any = lambda: None,
) -> dict[str, Any]:
    """Compare runtime and reference. The tolerances are those of the engine's precision.

    If images are in a folder ``good`` and in others, as in MVTec-AD, the image AUROC is compared too.

    Args:
        inspector: The runtime.
        paths: The images.
        weights: The backbone's weights. Default: the path recorded at export.
        class_name: The class of all images. Default: routing.
        bit_depth: Bits that the camera fills in files of 16 bits a channel, 9..16. The reference takes grey images of 16 bits only.
        threads: CPU threads of the reference. Default: torch's.
        step: Called after each image.

    Returns:
        A JSON-ready report with ``pass``.

    Raises:
        VisionADError: The weights are missing or not the model's, an image cannot be read, or nothing is enrolled.
    """
    bank = inspector.require_class(class_name)
    reference = load_reference(inspector.manifest, inspector.scoring, weights, threads)
    report = _Report(tolerances(inspector.engine.precision))
    banks: dict[str, ReferenceClass] = {}
    origins: dict[str, str] = {}
    class_name = None if class_name is None else normalize_class_name(class_name)
    for name in bank.classes if class_name is None else [class_name]:
        stage = report.stage("bank features")
        banks[name], origins[name] = _reference_bank(reference, bank.classes[name], bit_depth, stage)
    for inspected in inspector.inspect_files(paths, class_name=class_name, bit_depth=bit_depth, trace=True):
        if inspected.result is None or inspected.trace is None:
            raise VisionADError(f"parity: {inspected.error}")
        source = inspected.path if bit_depth is None else _eight_bits(inspected.path, bit_depth)
        _compare(reference, banks, inspected.path, source, inspected.result, inspected.trace, class_name, report)
        step()
    order = _order(report.scores, report.tolerances["score"])
    auroc = _auroc_difference(report.scores)
    if not any(origin.startswith(ENCODED) for origin in origins.values()):
        del report.stages["bank features"]
    return {
        "model": inspector.manifest.identity.describe(),
        "backend": inspector.engine.name,
        "precision": inspector.engine.precision,
        "views": list(inspector.views),
        "images": len(report.scores),
        "bank_features": origins,
        "stages": {name: stage.to_dict() for name, stage in report.stages.items()},
        "patch_min_cosine": report.min_cosine,
        "class_disagreements": report.routing,
        "verdict_disagreements": report.verdicts,
        "verdicts_on_threshold": report.on_threshold,
        "order_disagreements": order.faults,
        "order": {"pairs": order.pairs, "swapped": order.swapped, "kendall_tau": order.tau},
        "auroc": auroc,
        "pass": all(s.passed for s in report.stages.values())
        and not (report.routing or report.verdicts or order.faults)
        and (auroc is None or auroc["pass"]),
    }


def _compare(
    reference: Reference,
    banks: dict[str, ReferenceClass],
    path: Path,
    source: ImageSource,
    result: Result,
    trace: Trace,
    class_name: str | None,
    report: _Report,
) -> None:
    image = str(path)
    matched = class_name
    if matched is None:
        route = route_image(reference, source, banks)
        matched = route.nearest
        if result.class_name != (None if route.unknown else matched):
            report.routing.append(f"{image}: runtime {result.class_name}, reference {route}")
    held = banks[matched]
    score = max(
        _compare_piece(reference, piece, held.rois[piece.roi], stages, area, report)
        for piece, stages, area in zip(
            pieces_of(image, source, held.layout), trace.tiles or (trace,), result.areas, strict=True
        )
    )
    report.stage("score").add(image, np.array([result.score]), np.array([score]))
    report.scores.append((result.score, score, image))
    if result.threshold is not None and (result.score > result.threshold) != (score > result.threshold):
        # A calibrated threshold is the score of a good part. If that part is inspected again, rounding decides the verdict.
        tolerance = report.tolerances["score"] * max(score, MIN_SCALE)
        verdicts = report.verdicts if abs(score - result.threshold) > tolerance else report.on_threshold
        verdicts.append(f"{image}: runtime {result.score:.6f}, reference {score:.6f}, threshold {result.threshold:.6f}")


def _compare_piece(
    reference: Reference, piece: Piece, bank: ClassBank, trace: Trace, area: Area, report: _Report
) -> float:
    """Compare an image, or one of its tiles. Return the reference's score of it."""
    views = tuple(trace.distances)
    prepared = reference.preprocess(piece.image)
    label = piece.label
    report.stage("preprocess").add(label, trace.views, torch.stack([VIEWS[v](prepared) for v in views]).numpy())
    token = reference.encode(VIEWS[views[0]](prepared)[None])[1][0]
    expected = inspect_piece(reference, piece, bank)
    features = np.stack([expected.patch_tokens[v] for v in views])
    report.stage("patch features").add(label, trace.tokens.patch, features)
    cosine = float((trace.tokens.patch.astype(np.float64) * features).sum(axis=-1).min())  # unit rows
    report.min_cosine = min(report.min_cosine, cosine if np.isfinite(cosine) else -1.0)
    if trace.tokens.cls is not None:
        report.stage("class token").add(label, trace.tokens.cls[0], token.numpy())
    grids = (np.stack([d[v] for v in views]) for d in (trace.distances, expected.distances))
    report.stage("distances").add(label, *grids)
    report.stage("map").add(label, area.anomaly_map, expected.anomaly_map)
    return expected.score


class _Order(NamedTuple):
    """The order of images by score.

    Attributes:
        pairs: Pairs of images that the reference scores differently.
        swapped: Pairs that the runtime puts in the other order.
        tau: The resulting rank correlation (Kendall).
        faults: Swapped pairs that the tolerance does not explain.
    """

    pairs: int
    swapped: int
    tau: float
    faults: list[str]


def _order(scores: list[tuple[float, float, str]], tolerance: float) -> _Order:
    got, expected = (np.array([row[i] for row in scores], np.float64) for i in (0, 1))
    gap = expected[None, :] - expected[:, None]  # above 0: the reference scores the column's image higher
    swapped = (gap > 0) & (got[None, :] < got[:, None])
    pairs = int((gap > 0).sum())
    beyond = swapped & (gap > 2 * tolerance * np.maximum(expected[None, :], MIN_SCALE))
    faults = sorted(zip(*np.nonzero(beyond), strict=True), key=lambda ij: -gap[ij])
    names = [f"{scores[j][2]} before {scores[i][2]}" for i, j in faults]
    return _Order(pairs, int(swapped.sum()), 1 - 2 * int(swapped.sum()) / pairs if pairs else 1.0, names)


def _auroc_difference(scores: list[tuple[float, float, str]]) -> dict[str, Any] | None:
    """Compare the image AUROC, if folders tell which images are good; else return ``None``."""
    good = np.array([Path(name).parent.name == "good" for _, _, name in scores], bool)
    if good.all() or not good.any():
        return None
    runtime, reference = (_auroc(np.array([row[i] for row in scores]), good) for i in (0, 1))
    pairs = int(good.sum()) * int((~good).sum())
    tolerance = max(AUROC_TOLERANCE, 1 / pairs)
    difference = abs(runtime - reference)
    return {
        "runtime": runtime,
        "reference": reference,
        "difference": difference,
        "good": int(good.sum()),
        "anomalous": int((~good).sum()),
        "tolerance": tolerance,
        "pass": difference <= tolerance * (1 + 1e-9),
    }


def _auroc(scores: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """Return the probability that an anomalous image scores above a good one; ties count half."""
    gap = scores[~good][:, None] - scores[good][None, :]
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())


def load_reference(
    manifest: ModelManifest, scoring: ScoringSpec, weights: Path | None = None, threads: int | None = None
) -> Reference:
    """Load the reference that a model was exported from, with the same weights.

    Args:
        manifest: The model's manifest.
        scoring: Views, and how distances become scores.
        weights: The backbone's weights. Default: the path recorded at export.
        threads: CPU threads. Default: torch's.

    Raises:
        VisionADError: The weights are missing, or not the model's.
    """
    identity, record = manifest.identity, manifest.weights
    try:
        reference = Reference.load(
            identity.backbone,
            weights if weights is not None else _recorded_weights(record, identity),
            resize=identity.preprocess.resize,
            crop=identity.preprocess.crop,
            layers=identity.layers,
            class_token=identity.class_token,
            views=scoring.views,
            top_fraction=scoring.top_fraction,
            self_similarity=scoring.self_similarity,
            threads=threads,
        )
    except MethodError as exc:
        raise VisionADError(f"reference: {exc}") from None
    if reference.weights_sha256 != identity.weights_sha256:
        raise VisionADError(
            f"reference: expected the weights the model was exported from (sha256 {identity.weights_sha256[:12]}), got "
            f"{reference.weights_sha256[:12]} in {reference.weights_source}; give the right file with --weights"
        )
    return reference


def _recorded_weights(record: WeightsRecord, identity: FeatureIdentity) -> Path | None:
    if record.source.startswith(("pypi:", "hub:")):
        return None
    if not Path(record.source).is_file():
        raise VisionADError(
            f"reference: expected the weights of {identity.backbone} at {record.source}, got no file; "
            f"give a file with sha256 {record.sha256[:12]} with --weights"
        )
    return Path(record.source)


def _eight_bits(path: Path, bit_depth: int) -> Image.Image:
    """Read the top 8 of the bits that the camera fills, with Pillow, while the runtime uses OpenCV.

    Raises:
        VisionADError: Pillow cannot read the image, or it is not grey with 16 bits a pixel.
    """
    try:
        with Image.open(path) as opened:
            mode, pixels = opened.mode, np.asarray(opened)
    except (OSError, Image.DecompressionBombError) as exc:
        raise VisionADError(f"parity: {path}: the reference cannot read it ({exc}); save it as 16-bit PNG") from None
    if not mode.startswith("I"):
        raise VisionADError(
            f"parity: {path}: with a bit depth, expected a grey image of 16 bits a pixel, got Pillow's mode {mode}; the "
            "reference takes colour images of 8 bits only: save some of the images so"
        )
    return Image.fromarray((pixels.astype(np.int64) >> (bit_depth - 8)).astype(np.uint8))


def _reference_bank(
    reference: Reference, stored: StoredClass, bit_depth: int | None, stage: Stage
) -> tuple[ReferenceClass, str]:
    """Return the reference's bank and its origin: encoded from the enrolled images if they are unchanged, else the stored one."""
    paths = [Path(image.source) for image in stored.entry.images]
    if not all(p.is_file() and sha256_file(p) == i.sha256 for p, i in zip(paths, stored.entry.images, strict=True)):
        return _stored_class(reference, stored), "as stored (the enrolled images are no longer at their place)"
    sources: list[ImageSource] = list(paths)
    try:
        if bit_depth is not None:
            sources = [_eight_bits(path, bit_depth) for path in paths]
        if stored.layout is not None:
            held = enroll_tiles(reference, sources, stored.layout)
        else:
            bank = reference.enroll(sources)
            held = ReferenceClass((replace(bank, defects=_stored_defects(reference, stored)),), bank)
    except (ImageError, VisionADError):
        return _stored_class(
            reference, stored
        ), "as stored (the reference cannot read the enrolled images, with the bit depth that is stated)"
    for roi, bank in enumerate(held.rois):
        for view in reference.views:
            label = f"support of {stored.name}, {stored.rois[roi].roi}, view {view}"
            stage.add(label, _in_reference_order(stored, view, roi), bank.rows[view].numpy())
    known = len(stored.entry.defects or ())
    return held, ENCODED + (f"; remembered defects as stored ({known})" if known else "")


def _stored_class(reference: Reference, stored: StoredClass) -> ReferenceClass:
    rois = tuple(stored_bank(reference, stored, roi) for roi in range(len(stored.rois)))
    return ReferenceClass(rois, rois[0], stored.layout)


def stored_bank(reference: Reference, stored: StoredClass, roi: int = 0) -> ClassBank:
    """Convert a ROI of the runtime's class to the reference's form."""
    rows = {view: torch.from_numpy(_in_reference_order(stored, view, roi)) for view in reference.views}
    first: Any = reference.views[0]
    return ClassBank(rows, torch.from_numpy(stored.tokens(first).copy()), _stored_defects(reference, stored))


def _stored_defects(reference: Reference, stored: StoredClass) -> dict[str, torch.Tensor] | None:
    """Return the remembered defects by view, (6 · R, D), or ``None``."""
    held: Any = stored.defects
    if held is None:
        return None
    return {
        view: torch.from_numpy(np.concatenate([held[stored.blocks.index(name)] for name in _POSE_BLOCKS[view]]))
        for view in reference.views
    }


def _in_reference_order(stored: StoredClass, view: Any, roi: int = 0) -> NDArray[np.float32]:
    """Reorder encodings (B, K·T, P, D) to the reference's rows (K · T · 6 · P, D): tile by tile of each support, pose by pose."""
    poses = np.stack([stored.rois[roi].features[stored.blocks.index(name)] for name in _POSE_BLOCKS[view]], axis=1)
    return poses.reshape(-1, poses.shape[-1])


def describe(report: dict[str, Any]) -> str:
    """Return the report as text."""
    lines = [f"{'stage':<16} {'max abs':>10} {'max rel':>10} {'allowed':>10}   worst image"]
    for name, stage in report["stages"].items():
        mark = "ok  " if stage["pass"] else "FAIL"
        lines.append(
            f"{name:<16} {stage['max_abs']:>10.2e} {stage['max_rel']:>10.2e} {stage['tolerance']:>10.1e}   "
            f"{mark} {stage['max_rel_image']}"
        )
    for what in ("class", "verdict", "order"):
        faults = report[f"{what}_disagreements"]
        lines.append(f"{what:<16} {len(faults)} disagreements" + (f", first: {faults[0]}" if faults else ""))
    if report["verdicts_on_threshold"]:
        lines.append(
            f"{'on threshold':<16} {len(report['verdicts_on_threshold'])} images, too close to compare verdicts"
        )
    order, auroc = report["order"], report["auroc"]
    lines.append(
        f"{'rank':<16} {order['swapped']} of {order['pairs']} pairs swapped, Kendall's tau {order['kendall_tau']:.4f}"
    )
    if auroc is not None:
        lines.append(
            f"{'image AUROC':<16} {auroc['runtime']:.4f}, reference {auroc['reference']:.4f}, {'ok' if auroc['pass'] else 'FAIL'} "
            f"({auroc['good']} good, {auroc['anomalous']} others)"
        )
    for name, origin in report["bank_features"].items():
        lines.append(f"bank of {name}: {origin}")
    verdict = "PARITY" if report["pass"] else "NO PARITY"
    lines.append(
        f"{verdict} on {report['images']} images: {report['backend']} in {report['precision']} against PyTorch in fp32, "
        f"{report['model']}"
    )
    return "\n".join(lines)
