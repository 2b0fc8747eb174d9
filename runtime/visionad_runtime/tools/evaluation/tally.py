"""One unit's counts: scores, pixel metrics, routing, verdicts, and the images that are hardest to tell apart."""

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
from .metrics import PixelMetrics, image_metrics
from .predictor import Prediction
from .published import METRICS
from .store import Arrays, EvaluationUnit, relative

HARDEST_PER_LABEL = 6
"""Images kept to look at, of a unit's lowest-scored defects and of its highest-scored good ones each."""
THUMB = 256


class UnreadableFile(NamedTuple):
    """An image or mask that cannot be read. ``role``: ``support``, ``normal`` (to calibrate) or ``test``."""

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
    """Everything counted over a unit's images.

    Args:
        root: folder of the data set, which the result names images below.
        mode: ``separate`` or ``multi``.
        manifest: the model that inspects.
        scoring: how it scores.
        bit_depth: of files with 16 bits a channel, how many the camera fills.
    """

    def __init__(
        self, root: Path, mode: Mode, manifest: ModelManifest, scoring: ScoringSpec, bit_depth: int | None
    ) -> None:
        self.root, self.mode, self.manifest, self.scoring, self.bit_depth = root, mode, manifest, scoring, bit_depth
        self.scores: list[float] = []
        self.given_scores: list[float] = []
        self.labels: list[int] = []
        # Pixels of images found to be of their own class; of the others, as routed, and with their class given.
        self.pixels, self.routed, self.given = PixelMetrics(), PixelMetrics(), PixelMetrics()
        self.taken_for: Counter[str | None] = Counter()
        self.verdicts: Counter[tuple[int, str]] = Counter()
        self.without_mask = self.outside_crop = 0
        self.good_levels: list[float] = []
        self.worst: dict[int, list[_Hard]] = {0: [], 1: []}

    def add(self, sample: Sample, seen: Prediction, given: Prediction, mask: NDArray[np.bool_] | None) -> None:
        """Count one image, as it was routed and with its class given (the same object, if it was routed well)."""
        label = sample.label
        self.labels.append(label)
        self.scores.append(seen.score)
        self.given_scores.append(given.score)
        self.verdicts[label, seen.verdict] += 1
        if seen is not given:
            self.taken_for[seen.class_name] += 1
        if mask is None:
            self.without_mask += 1
        else:
            self.outside_crop += bool(label) and not mask.any()
            if seen is given:
                self.pixels.add(seen.anomaly_map, mask)
            else:
                self.routed.add(seen.anomaly_map, mask)
                self.given.add(given.anomaly_map, mask)
        if not label:
            self.good_levels.append(float(np.median(seen.anomaly_map)))
        worst = self.worst[label]
        worst.append(_Hard(seen.score if label else -seen.score, sample, seen, mask))
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
        """Sum up, once: pixels that were counted apart are added to the others."""
        as_given = self.pixels
        if self.taken_for:
            as_given = self.given
            as_given.merge(self.pixels)
            self.pixels.merge(self.routed)
        values, reasons, bounds = self._metrics(self.scores, self.pixels)
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
            separate, _, _ = self._metrics(self.given_scores, as_given)
            result |= self._routing() | {f"separate_{metric}": value for metric, value in separate.items()}
        if calibration is not None:
            result["calibration"] = self._realised(calibration)
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
        """Where the images went that were to find their class themselves."""
        wrong, images = sum(self.taken_for.values()), len(self.labels)
        return {
            "routing_accuracy": 1 - wrong / images if images else None,
            "unknown_rate": self.taken_for[None] / images if images else None,
            "taken_for": {c: n for c, n in sorted(self.taken_for.items(), key=str) if c is not None},
        }

    def _arrays(self, worst: Sequence[_Hard]) -> Arrays:
        """What the report's plots and images are made of."""
        curves = self.pixels.curves()
        arrays: Arrays = {
            "scores": np.asarray(self.scores, np.float64),
            "labels": np.asarray(self.labels, np.uint8),
            "roc": curves.roc,
            "pr": curves.pr,
            "pro": curves.pro,
        }
        scale = self._scale()
        for place, one in enumerate(worst):
            taken, drawn = _render(one, self.manifest, self.scoring, self.bit_depth, scale)
            arrays[f"picture_{place}"] = np.frombuffer(taken, np.uint8)
            arrays[f"overlay_{place}"] = np.frombuffer(drawn, np.uint8)
        return arrays

    def _metrics(
        self, scores: Sequence[float], pixels: PixelMetrics
    ) -> tuple[dict[str, float | None], dict[str, str], dict[str, float]]:
        image, pixel = image_metrics(scores, self.labels), pixels.compute()
        found = {**image.values, **pixel.values}
        reasons = {**image.reasons, **pixel.reasons}
        if self.without_mask and self.without_mask == sum(self.labels):
            reasons |= dict.fromkeys(pixel.reasons, f"none of the {self.without_mask} defects has a mask")
        bounds = {name: bound for name, bound in pixel.error_bounds.items() if bound > 0}
        return {metric: found[metric] for metric in METRICS}, reasons, bounds

    def _realised(self, calibration: Mapping[str, Any]) -> dict[str, Any]:
        """What the threshold did on the test images."""
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
            "without_verdict": count[0, "unknown"] + count[1, "unknown"],
        }

    def _scale(self) -> tuple[float, float]:
        """One colour scale for the unit's heat maps: cold is a good image's usual level, the middle where F1 is best."""
        low = float(np.median(self.good_levels)) if self.good_levels else 0.0
        middle = best_threshold(np.asarray(self.scores), np.asarray(self.labels))
        return heatmap_range(low, middle)


def _render(
    one: _Hard, manifest: ModelManifest, scoring: ScoringSpec, bit_depth: int | None, scale: tuple[float, float]
) -> tuple[bytes, bytes]:
    """An image with its true defect outlined, and with its heat, as JPEG."""
    rgb = decode.load(one.sample.path, bit_depth)
    height, width = rgb.shape[:2]
    geometry = Geometry.of(width, height, manifest.identity.preprocess)
    mask = None
    if one.mask is not None and one.mask.any():
        left, top = geometry.to_original(0, 0)
        right, bottom = geometry.to_original(MAP_SIZE, MAP_SIZE)
        to_x, to_y = THUMB / width, THUMB / height
        place = np.array(
            [[(right - left) * to_x / MAP_SIZE, 0, left * to_x], [0, (bottom - top) * to_y / MAP_SIZE, top * to_y]]
        )
        laid = cv2.warpAffine(one.mask.astype(np.uint8), place, (THUMB, THUMB), flags=cv2.INTER_NEAREST)
        mask = np.asarray(laid) > 0
    prediction = one.prediction
    _, edge = top_k_mean(prediction.anomaly_map, scoring.top_fraction)
    hot = regions(prediction.anomaly_map, geometry, edge, inclusive=True)
    drawn = draw_overlay(
        rgb, prediction.anomaly_map, geometry, hot, prediction.verdict, prediction.score, None,
        prediction.class_name, scale, caption=False,
    )  # fmt: skip
    return jpeg(draw_ground_truth(rgb, mask, THUMB), THUMB), jpeg(drawn, THUMB)


def best_threshold(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """The score from which on to reject for the best F1; the largest score where there are no defects."""
    if not scores.size:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order], np.cumsum(labels[order])
    f1 = 2 * found / (np.arange(1, ranked.size + 1) + max(int(labels.sum()), 1))
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores fall on the same side
    return float(ranked[int(np.argmax(f1))]) if labels.any() else float(ranked[0])
