"""Runtime against reference, stage by stage, on the user's own images: what must be shown before going live.

Both sides start from the image file and share no code. The reference (PyTorch) loads the weights the model was exported from and,
where the enrolled images can still be found, encodes them itself, so the whole chain is compared, bank included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from visionad_runtime.scoring.spec import ScoringSpec

from visionad_ref import VIEWS, ClassBank, ImageError, ImageSource, MethodError, Reference

STAGES = ("bank features", "preprocess", "patch features", "class token", "distances", "map", "score")

# (tokens, distances and map, score): allowed difference to the fp32 reference, relative to the largest value of the image's
# output.
#
# fp32: engines add hundreds of products in another order, about 1e-5. A wrong layer, weight, resize or layout is at 0.1 and above.
#
# tf32, fp16: unit roundoff 2⁻¹¹ in about six results in a row per block, √(6 · 8 blocks) · 2⁻¹¹ = 3e-3 for a usual token; the
# worst of 50 000 is some times that. A distance sums the errors of D elements, which mostly cancel, and a score averages 655
# pixels. Worst on 83 real images, DeiT-Tiny and EfficientNet-Lite0, emulated: 2.4e-2, 1.0e-2, 2.8e-3. Allowed: twice that.
#
# bf16: unit roundoff 2⁻⁸. The same two backbones do not pass export's accuracy gate in it, at 0.17, 6.2e-2, 1.7e-2; one that
# does must not be worse than they are.
_TOLERANCES: dict[Precision, tuple[float, float, float]] = {
    "fp32": (1e-4, 1e-4, 1e-4),
    "tf32": (5e-2, 2e-2, 6e-3),
    "fp16": (5e-2, 2e-2, 6e-3),
    "bf16": (1.7e-1, 6e-2, 1.7e-2),
}


def tolerances(precision: Precision) -> dict[str, float]:
    """Stage → allowed relative difference. Preprocessing is the same bytes whatever the backbone's precision."""
    tokens, distance, score = _TOLERANCES[precision]
    return dict(zip(STAGES, (tokens, 0.0, tokens, tokens, distance, distance, score), strict=True))


AUROC_TOLERANCE = 1e-3
"""A tenth of a point, or one pair of images in the other order where the images are so few that this is more."""

SMALLEST_SCALE = 0.1
"""Outputs below it are compared with it instead: an image that is enrolled itself has distances of about 0, where a relative
difference says nothing."""

# Each view's six poses, as the reference orders them, named as the runtime names the encodings that serve them: a flip
# followed by a half turn is a horizontal flip, and so on.
_POSE_BLOCKS = {
    "original": ("e", "r90", "r180", "r270", "fv", "fh"),
    "flip": ("fv", "r90fv", "fh", "r270fv", "e", "r180"),
    "clamp": ("clamp/e", "clamp/r90", "clamp/r180", "clamp/r270", "clamp/fv", "clamp/fh"),
}


@dataclass
class Stage:
    """Worst differences seen so far. ``relative`` is to the largest magnitude of the reference's output of the image, or to
    ``SMALLEST_SCALE``."""

    tolerance: float
    absolute: float = 0.0
    absolute_image: str | None = None
    relative: float = 0.0
    relative_image: str | None = None
    passed: bool = True

    def add(self, image: str, found: NDArray[Any], wanted: NDArray[Any]) -> None:
        """Compare one image's output."""
        if found.shape != wanted.shape:
            raise AssertionError(f"{image}: the runtime gives {found.shape}, the reference {wanted.shape}")
        absolute = float(np.abs(found.astype(np.float64) - wanted).max())
        if not np.isfinite(absolute):
            absolute = float("inf")
        relative = absolute / max(float(np.abs(wanted).max()), SMALLEST_SCALE)
        if self.absolute_image is None or absolute > self.absolute:
            self.absolute, self.absolute_image = absolute, image
        if self.relative_image is None or relative > self.relative:
            self.relative, self.relative_image = relative, image
        self.passed &= relative <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
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
    """Compare on ``paths``; JSON-ready report with ``pass``. Tolerances are those of the precision that the engine computes in.

    Where the images lie in a folder ``good`` and others, as in MVTec-AD, the image AUROC of both sides is compared too.

    Args:
        weights: the backbone's weights, where the path noted at export no longer holds them.
        bit_depth: of files with 16 bits a channel, how many the camera fills (9..16). The reference takes grey ones.

    Raises:
        VisionADError: weights missing or others, unreadable image, nothing enrolled.
    """
    bank = inspector.require_class(class_name)
    reference = load_reference(inspector.manifest, inspector.scoring, weights, threads)
    report = _Report(tolerances(inspector.engine.precision))
    banks: dict[str, ClassBank] = {}
    origins: dict[str, str] = {}
    class_name = None if class_name is None else normalize_class_name(class_name)
    for name in bank.classes if class_name is None else [class_name]:
        stage = report.stage("bank features")
        banks[name], origins[name] = _reference_bank(reference, bank.classes[name], bit_depth, stage)
    for one in inspector.inspect_files(paths, class_name=class_name, bit_depth=bit_depth, trace=True):
        if one.result is None or one.trace is None:
            raise VisionADError(f"parity: {one.error}")
        seen = one.path if bit_depth is None else _eight_bits(one.path, bit_depth)
        _compare(reference, banks, one.path, seen, one.result, one.trace, class_name, report)
        step()
    order = _order(report.scores, report.tolerances["score"])
    auroc = _auroc_difference(report.scores)
    if not any(origin == "encoded by the reference" for origin in origins.values()):
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
    banks: dict[str, ClassBank],
    path: Path,
    seen: ImageSource,
    result: Result,
    trace: Trace,
    class_name: str | None,
    report: _Report,
) -> None:
    image = str(path)
    views = tuple(trace.distances)
    prepared = reference.preprocess(seen)
    report.stage("preprocess").add(image, trace.views, torch.stack([VIEWS[v](prepared) for v in views]).numpy())
    token = reference.encode(VIEWS[views[0]](prepared)[None])[1][0]
    matched = class_name
    if matched is None:
        found = reference.route(seen, banks)
        matched = found.nearest
        if result.class_name != (None if found.unknown else matched):
            report.routing.append(f"{image}: runtime {result.class_name}, reference {found}")
    wanted = reference.inspect(seen, banks[matched])
    features = np.stack([wanted.patch_tokens[v] for v in views])
    report.stage("patch features").add(image, trace.tokens.patch, features)
    cosine = float((trace.tokens.patch.astype(np.float64) * features).sum(axis=-1).min())  # unit rows
    report.min_cosine = min(report.min_cosine, cosine if np.isfinite(cosine) else -1.0)
    if trace.tokens.cls is not None:
        report.stage("class token").add(image, trace.tokens.cls[0], token.numpy())
    grids = (np.stack([d[v] for v in views]) for d in (trace.distances, wanted.distances))
    report.stage("distances").add(image, *grids)
    report.stage("map").add(image, result.anomaly_map, wanted.anomaly_map)
    report.stage("score").add(image, np.array([result.score]), np.array([wanted.score]))
    report.scores.append((result.score, wanted.score, image))
    if result.threshold is not None and (result.score > result.threshold) != (wanted.score > result.threshold):
        # A calibrated threshold *is* a good part's score. Inspected again, that part lies on it, and rounding chooses the side.
        reach = report.tolerances["score"] * max(wanted.score, SMALLEST_SCALE)
        told = report.verdicts if abs(wanted.score - result.threshold) > reach else report.on_threshold
        told.append(
            f"{image}: runtime {result.score:.6f}, reference {wanted.score:.6f}, threshold {result.threshold:.6f}"
        )


class _Order(NamedTuple):
    """Pairs of images that the reference scores differently, how many of them the runtime puts the other way round, the rank
    correlation that follows, and those that are further apart than the tolerance explains."""

    pairs: int
    swapped: int
    tau: float
    faults: list[str]


def _order(scores: list[tuple[float, float, str]], tolerance: float) -> _Order:
    found, wanted = (np.array([row[i] for row in scores], np.float64) for i in (0, 1))
    gap = wanted[None, :] - wanted[:, None]  # above 0: the reference scores the column's image higher
    swapped = (gap > 0) & (found[None, :] < found[:, None])
    pairs = int((gap > 0).sum())
    beyond = swapped & (gap > 2 * tolerance * np.maximum(wanted[None, :], SMALLEST_SCALE))
    faults = sorted(zip(*np.nonzero(beyond), strict=True), key=lambda ij: -gap[ij])
    names = [f"{scores[j][2]} before {scores[i][2]}" for i, j in faults]
    return _Order(pairs, int(swapped.sum()), 1 - 2 * int(swapped.sum()) / pairs if pairs else 1.0, names)


def _auroc_difference(scores: list[tuple[float, float, str]]) -> dict[str, Any] | None:
    """Image AUROC of runtime and reference, where folders say which images are good; ``None`` where they do not."""
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
    """Probability that an anomalous image scores above a good one, ties counted half."""
    gap = scores[~good][:, None] - scores[good][None, :]
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())


def load_reference(
    manifest: ModelManifest, scoring: ScoringSpec, weights: Path | None = None, threads: int | None = None
) -> Reference:
    """The reference a model was exported from, with the very same weights.

    Args:
        manifest: of the model.
        scoring: how to score.
        weights: the backbone's weights, where the path noted at export no longer holds them.
        threads: CPU threads (default: torch's).

    Raises:
        VisionADError: weights missing or others.
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
            **scoring.fields(),
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
            f"reference: the weights of {identity.backbone} are no longer at {record.source}; "
            f"give a file with sha256 {record.sha256[:12]} with --weights"
        )
    return Path(record.source)


def _eight_bits(path: Path, bit_depth: int) -> Image.Image:
    """The top 8 of the bits that the camera fills, by Pillow, where the runtime has OpenCV.

    Raises:
        VisionADError: not a grey image of 16 bits a pixel, or none that Pillow reads.
    """
    try:
        with Image.open(path) as opened:
            mode, pixels = opened.mode, np.asarray(opened)
    except (OSError, Image.DecompressionBombError) as exc:
        raise VisionADError(f"parity: {path}: the reference cannot read it ({exc}); save it as 16-bit PNG") from None
    if not mode.startswith("I"):
        raise VisionADError(
            f"parity: {path}: with a bit depth, expected a grey image of 16 bits a pixel, got Pillow's mode {mode}; the "
            "reference takes colour of 8 bits only: save some of the images so"
        )
    return Image.fromarray((pixels.astype(np.int64) >> (bit_depth - 8)).astype(np.uint8))


def _reference_bank(
    reference: Reference, stored: StoredClass, bit_depth: int | None, stage: Stage
) -> tuple[ClassBank, str]:
    """The reference's own bank, from the enrolled images where they are still what they were; else what is stored."""
    paths = [Path(image.source) for image in stored.entry.images]
    if not all(p.is_file() and sha256_file(p) == i.sha256 for p, i in zip(paths, stored.entry.images, strict=True)):
        return stored_bank(reference, stored), "as stored (the enrolled images are no longer at their place)"
    try:
        own = reference.enroll(paths if bit_depth is None else [_eight_bits(path, bit_depth) for path in paths])
    except (ImageError, VisionADError):
        return stored_bank(
            reference, stored
        ), "as stored (the reference cannot read the enrolled images, with the bit depth that is stated)"
    for view in reference.views:
        stage.add(f"support of {stored.name}, view {view}", _in_reference_order(stored, view), own.rows[view].numpy())
    return own, "encoded by the reference"


def stored_bank(reference: Reference, stored: StoredClass) -> ClassBank:
    """The runtime's class as the reference holds one."""
    rows = {view: torch.from_numpy(_in_reference_order(stored, view)) for view in reference.views}
    first: Any = reference.views[0]
    return ClassBank(rows, torch.from_numpy(stored.tokens(first).copy()))


def _in_reference_order(stored: StoredClass, view: Any) -> NDArray[np.float32]:
    """(B, K, P, D) blocks → (K · 6 · P, D), support by support, pose by pose, as the reference lays its bank out."""
    poses = np.stack([stored.features[stored.blocks.index(name)] for name in _POSE_BLOCKS[view]], axis=1)
    return poses.reshape(-1, poses.shape[-1])


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
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
            f"{'on threshold':<16} {len(report['verdicts_on_threshold'])} images, too close to it for a verdict to be compared"
        )
    order, auroc = report["order"], report["auroc"]
    lines.append(
        f"{'rank':<16} {order['swapped']} of {order['pairs']} pairs the other way round, Kendall's tau {order['kendall_tau']:.4f}"
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
