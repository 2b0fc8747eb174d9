"""Counts of one unit: scores, pixel metrics, routing, verdicts, and the hardest images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ...formats.manifest import ModelManifest
from ...images import decode
from ...scoring.anomaly_map import MAP_SIZE, top_k_mean
from ...scoring.regions import Geometry, heatmap_range, regions
from ...scoring.spec import ScoringSpec
from ...visualization.overlay import draw_overlay
from ...visualization.thumbnails import draw_ground_truth, jpeg
from .aggregate import Mode
from .datasets.base import Sample
from .datasets.masks import Truth
from .metrics import PixelMetrics, image_metrics
from .own_metrics import OwnMetric
from .predictor import Prediction
from .published import METRICS
from .store import Arrays, EvaluationUnit, relative
from .verdicts import ScoredImage, verdict_rates

HARDEST_PER_LABEL = 6
"""Images kept for the page: this many of the lowest-scored defects and of the highest-scored good images."""
THUMBNAIL_SIDE = 256


class UnreadableFile(NamedTuple):
    """An image or mask that cannot be read.

    Attributes:
        path: the file.
        role: ``support``, ``normal`` (for calibration), ``validation`` or ``test``.
        class_name: its class.
        reason: the error.
    """

    path: Path
    role: str
    class_name: str
    reason: str


class _Hard(NamedTuple):
    hardness: float
    sample: Sample
    prediction: Prediction
    mask: NDArray[np.bool_] | None


class Tally:
    """Counts over the images of a unit."""

    def __init__(
        self,
        root: Path,
        mode: Mode,
        manifest: ModelManifest,
        scoring: ScoringSpec,
        bit_depth: int | None,
        own: Sequence[OwnMetric] = (),
    ) -> None:
        """Start from zero.

        Args:
            root: folder of the data set; results name images relative to it.
            mode: ``separate`` or ``multi``.
            manifest: the model.
            scoring: how it scores.
            bit_depth: bits that the camera fills in files with 16 bits per channel.
            own: the data set's own metrics.
        """
        self.own, self.normals = tuple(own), list[float]()
        self.conditions: list[str] = []
        self.root, self.mode, self.manifest, self.scoring, self.bit_depth = root, mode, manifest, scoring, bit_depth
        self.scores: list[float] = []
        self.own_scores: list[float] = []
        self.labels: list[int] = []
        # Pixels of images that were routed to their own class; of the others, as routed, and with their own class given.
        self.pixels, self.misrouted, self.corrected = PixelMetrics(), PixelMetrics(), PixelMetrics()
        self.taken_for: Counter[str | None] = Counter()
        self.verdicts: Counter[tuple[int, str]] = Counter()
        self.without_mask = self.outside_crop = 0
        self.good_levels: list[float] = []
        self.worst: dict[int, list[_Hard]] = {0: [], 1: []}

    def add_validation(self, prediction: Prediction, width: int, height: int) -> None:
        """Count one good validation image, with its own class given."""
        self.normals.append(prediction.score)
        for metric in self.own:
            metric.learn(height, width, prediction.anomaly_map)

    def add(
        self,
        sample: Sample,
        routed: Prediction,
        own: Prediction,
        mask: NDArray[np.bool_] | None,
        truth: Truth | None = None,
    ) -> None:
        """Count one image.

        Args:
            sample: the image.
            routed: its prediction as it was routed.
            own: its prediction with its own class given; the same object if it was routed to it.
            mask: bool (256, 256), True where defect; ``None`` if unknown.
            truth: the same at the size of the image, if there are own metrics and the defect is known.
        """
        label = sample.label
        self.conditions.append(sample.condition)
        self.labels.append(label)
        self.scores.append(routed.score)
        self.own_scores.append(own.score)
        self.verdicts[label, routed.verdict] += 1
        if routed is not own:
            self.taken_for[routed.class_name] += 1
        if mask is None:
            self.without_mask += 1
        else:
            self.outside_crop += bool(label) and not mask.any()
            if routed is own:
                self.pixels.add(routed.anomaly_map, mask)
            else:
                self.misrouted.add(routed.anomaly_map, mask)
                self.corrected.add(own.anomaly_map, mask)
        if truth is not None:
            for metric in self.own:
                metric.add(truth, routed.anomaly_map)
        if not label:
            self.good_levels.append(float(np.median(routed.anomaly_map)))
        worst = self.worst[label]
        worst.append(_Hard(routed.score if label else -routed.score, sample, routed, mask))
        worst.sort(key=lambda w: (w.hardness, str(w.sample.path)))
        del worst[HARDEST_PER_LABEL:]

    def unit(
        self,
        seed: int | None,
        name: str,
        supports: Sequence[Path],
        faults: Sequence[UnreadableFile],
        calibration: Mapping[str, Any] | None,
    ) -> EvaluationUnit:
        """Return the finished unit. Call it once, because it merges the counts of misrouted images into the others."""
        own_pixels = self.pixels
        if self.taken_for:
            own_pixels = self.corrected
            own_pixels.merge(self.pixels)
            self.pixels.merge(self.misrouted)
        values, reasons, bounds = self._metrics(self.scores, self.pixels)
        for metric in self.own:
            own_values, own_reasons = metric.compute()
            values |= own_values
            reasons |= own_reasons
        defects = sum(self.labels)
        result: dict[str, Any] = {
            "seed": seed,
            "class": name,
            "images": len(self.labels),
            "good": len(self.labels) - defects,
            "defects": defects,
            "without_mask": self.without_mask,
            "outside_crop": self.outside_crop,
            "supports": [relative(self.root, path) for path in supports],
            **values,
            "reasons": reasons,
            "error_bounds": bounds,
        }
        if self.mode == "multi":
            separate, _, _ = self._metrics(self.own_scores, own_pixels)
            result |= self._routing() | {f"separate_{metric}": value for metric, value in separate.items()}
        if calibration is not None:
            result["calibration"] = self._realized(calibration)
        tests = [ScoredImage(*row) for row in zip(self.scores, self.labels, self.conditions, strict=True)]
        result["verdicts"] = verdict_rates(tests, self.normals, calibration)
        worst = [*self.worst[1], *self.worst[0]]
        result["worst"] = [
            {
                "image": relative(self.root, w.sample.path),
                "label": w.sample.label,
                "defect": w.sample.defect,
                "score": w.prediction.score,
                "class": w.prediction.class_name,
            }
            for w in worst
        ]
        result["skipped"] = [
            {"image": relative(self.root, f.path), "role": f.role, "class": f.class_name, "reason": f.reason}
            for f in faults
        ]
        return EvaluationUnit(result, self._arrays(worst))

    def _routing(self) -> dict[str, Any]:
        """Return where the images were routed."""
        wrong, images = sum(self.taken_for.values()), len(self.labels)
        return {
            "routing_accuracy": 1 - wrong / images if images else None,
            "unknown_rate": self.taken_for[None] / images if images else None,
            "taken_for": {c: n for c, n in sorted(self.taken_for.items(), key=str) if c is not None},
        }

    def _arrays(self, worst: Sequence[_Hard]) -> Arrays:
        """Return the data of the page's plots and images."""
        curves = self.pixels.curves()
        arrays: Arrays = {
            "scores": np.asarray(self.scores, np.float64),
            "labels": np.asarray(self.labels, np.uint8),
            "roc": curves.roc,
            "pr": curves.pr,
            "pro": curves.pro,
        }
        scale = self._scale()
        for index, hard in enumerate(worst):
            original, overlay = _render(hard, self.manifest, self.scoring, self.bit_depth, scale)
            arrays[f"picture_{index}"] = np.frombuffer(original, np.uint8)
            arrays[f"overlay_{index}"] = np.frombuffer(overlay, np.uint8)
        return arrays

    def _metrics(
        self, scores: Sequence[float], pixels: PixelMetrics
    ) -> tuple[dict[str, float | None], dict[str, str], dict[str, float]]:
        image, pixel = image_metrics(scores, self.labels), pixels.compute()
        values = {**image.values, **pixel.values}
        reasons = {**image.reasons, **pixel.reasons}
        if self.without_mask and self.without_mask == sum(self.labels):
            reasons |= dict.fromkeys(pixel.reasons, f"none of the {self.without_mask} defects has a mask")
        bounds = {name: bound for name, bound in pixel.error_bounds.items() if bound > 0}
        return {metric: values[metric] for metric in METRICS}, reasons, bounds

    def _realized(self, calibration: Mapping[str, Any]) -> dict[str, Any]:
        """Return the false rejects and misses of a threshold on the test images."""
        if "threshold" not in calibration:
            return {"threshold": None, "reason": calibration.get("reason", "")}
        record, count = calibration["record"], self.verdicts
        good, bad = (sum(n for (kind, _), n in count.items() if kind == label) for label in (0, 1))
        return {
            "threshold": calibration["threshold"],
            "normals": record["normals"],
            "guaranteed_false_reject": record["guaranteed_false_reject"],
            "bound_false_reject": record["bound_false_reject"],
            "false_rejects": count[0, "anomalous"],
            "false_reject_rate": count[0, "anomalous"] / good if good else None,
            "misses": count[1, "ok"],
            "miss_rate": count[1, "ok"] / bad if bad else None,
            "without_verdict": sum(count[label, verdict] for label in (0, 1) for verdict in ("unknown", "review")),
        }

    def _scale(self) -> tuple[float, float]:
        """Return one color scale for the unit's heat maps: low at a good image's median level, the middle at the best F1."""
        low = float(np.median(self.good_levels)) if self.good_levels else 0.0
        middle = best_threshold(np.asarray(self.scores), np.asarray(self.labels))
        return heatmap_range(low, middle)


def _render(
    hard: _Hard, manifest: ModelManifest, scoring: ScoringSpec, bit_depth: int | None, scale: tuple[float, float]
) -> tuple[bytes, bytes]:
    """Return an image with its true defect outlined, and with its heat map, as JPEG."""
    rgb = decode.load(hard.sample.path, bit_depth)
    height, width = rgb.shape[:2]
    geometry = Geometry.of(width, height, manifest.identity.preprocess)
    mask = None
    if hard.mask is not None and hard.mask.any():
        left, top = geometry.to_original(0, 0)
        right, bottom = geometry.to_original(MAP_SIZE, MAP_SIZE)
        to_x, to_y = THUMBNAIL_SIDE / width, THUMBNAIL_SIDE / height
        transform = np.array(
            [[(right - left) * to_x / MAP_SIZE, 0, left * to_x], [0, (bottom - top) * to_y / MAP_SIZE, top * to_y]]
        )
        warped = cv2.warpAffine(
            hard.mask.astype(np.uint8), transform, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), flags=cv2.INTER_NEAREST
        )
        mask = np.asarray(warped) > 0
    prediction = hard.prediction
    _, cutoff = top_k_mean(prediction.anomaly_map, scoring.top_fraction)
    hot = regions(prediction.anomaly_map, geometry, cutoff, inclusive=True)
    drawn = draw_overlay(
        rgb, prediction.anomaly_map, geometry, hot, prediction.verdict, prediction.score, None,
        prediction.class_name, scale, caption=False,
    )  # fmt: skip
    return jpeg(draw_ground_truth(rgb, mask, THUMBNAIL_SIDE), THUMBNAIL_SIDE), jpeg(drawn, THUMBNAIL_SIDE)


def best_threshold(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the lowest score to reject for the best F1; the largest score if there are no defects."""
    if not scores.size:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ranked, detected = scores[order], np.cumsum(labels[order])
    f1 = 2 * detected / (np.arange(1, ranked.size + 1) + max(int(labels.sum()), 1))
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores fall on the same side
    return float(ranked[int(np.argmax(f1))]) if labels.any() else float(ranked[0])
