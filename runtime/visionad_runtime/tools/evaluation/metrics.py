"""Image and pixel metrics of the method (section 6): AUROC, AP, F1-max, AUPRO. Equal to scikit-learn, with bounded memory.

Pixels are counted, not stored: one sorted table from value to count for the good pixels, and one for the defect pixels. Up to 2**24
distinct values each, every metric is exact, ties included. Beyond that, a table halves its resolution until it fits: it drops the
lowest mantissa bit of every float32, and values that then share a bin count as tied. ``MetricReport.error_bounds`` bounds the
effect on each metric, computed from the table.

AUPRO needs no list of regions. The mean over R regions of the fraction of a region above a threshold is the sum over the defect
pixels above it of 1 / (R * area of the pixel's region). This is one more column in the table of defect pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import VisionADError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U32 = NDArray[np.uint32]

MAX_VALUES = 1 << 24
"""Distinct values that a table holds before it is coarsened: at most 200 MB for good pixels and 340 MB for defect pixels."""
PENDING = 1 << 23
"""Pixels collected before they are sorted into a table: 128 maps of 256 x 256."""
PRO_THRESHOLDS = 200
PRO_MAX_FPR = 0.3
CURVE_POINTS = 500


@dataclass(frozen=True)
class MetricReport:
    """Metrics of one class.

    Attributes:
        values: metrics by name, in [0, 1]; ``None`` if not defined.
        reasons: reason for each ``None``, by name.
        error_bounds: largest possible difference to the exact value, by name; 0 unless a table was coarsened. A coarsened AUPRO has
            none: its curve is cut at a false positive rate, and a point within one bin of the cut may fall on either side.
    """

    values: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    error_bounds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """Points of curves, float64 (n, 2) with n <= ``CURVE_POINTS``; n is 0 if a curve is not defined.

    Attributes:
        roc: false and true positive rate.
        pr: recall and precision.
        pro: false positive rate (below 0.3, before the division by the largest) and mean region overlap.
    """

    roc: F64
    pr: F64
    pro: F64


def image_metrics(scores: ArrayLike, labels: ArrayLike) -> MetricReport:
    """Compute ``image_auroc``, ``image_ap`` and ``image_f1max`` of one class.

    Args:
        scores: (n,) finite numbers; larger is more anomalous.
        labels: (n,) 0 (good) or 1 (defect), or bool.

    Raises:
        VisionADError: the shapes differ, a score is NaN or infinite, or a label has another value.
    """
    score, label = np.asarray(scores, np.float64), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape:
        raise VisionADError(f"image metrics: expected a label for each score, got {label.shape} for {score.shape}")
    if bad := np.count_nonzero(~np.isfinite(score)):
        raise VisionADError(f"image metrics: {bad} of {score.size} scores are NaN or infinite")
    if not np.isin(label, (0, 1)).all():
        raise VisionADError("image metrics: labels must be 0 (good) or 1 (defect)")
    defect, good = (Ranking.of(score[label == side]) for side in (1, 0))
    return _rank_metrics("image", "images", defect, good, exact=True)


class PixelMetrics:
    """Pixel AUROC, AP, F1-max and AUPRO of one class over a stream of maps, in any order."""

    def __init__(self, max_values: int = MAX_VALUES) -> None:
        """Start from zero.

        Args:
            max_values: distinct values to distinguish, for good and for defect pixels each: resolution against memory.
        """
        self._defect = CountTable(columns=2, max_values=max_values)  # pixels; 1 / area of their region
        self._good = CountTable(columns=1, max_values=max_values)  # pixels
        self._regions = 0
        self._lowest, self._highest = np.float32(np.inf), np.float32(-np.inf)

    def add(self, anomaly_map: F32, mask: NDArray[np.bool_]) -> None:
        """Count one image.

        Args:
            anomaly_map: raw map, float32 (H, W), finite.
            mask: bool (H, W), True where defect.

        Raises:
            VisionADError: wrong shape or dtype, no pixels, NaN or infinity in the map. Nothing is counted then.
        """
        _check(anomaly_map, mask)
        self._lowest = min(self._lowest, anomaly_map.min())
        self._highest = max(self._highest, anomaly_map.max())
        keys = to_keys(anomaly_map)
        self._good.add(keys[~mask])
        if mask.any():
            count, region, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
            self._regions += count - 1  # number 0 is the background
            self._defect.add(keys[mask], 1.0 / stats[region[mask], cv2.CC_STAT_AREA])

    def merge(self, other: PixelMetrics) -> None:
        """Add the counts of another instance, which keeps its own."""
        self._defect.merge(other._defect)
        self._good.merge(other._good)
        self._regions += other._regions
        self._lowest, self._highest = min(self._lowest, other._lowest), max(self._highest, other._highest)

    def compute(self) -> MetricReport:
        """Compute ``pixel_auroc``, ``pixel_ap``, ``pixel_f1max`` and ``pixel_aupro`` of the images so far. More may follow."""
        defect, good, exact = self._rankings()
        report = _rank_metrics("pixel", "pixels", defect, good, exact)
        value, reason = self._aupro(defect, good)
        report.values["pixel_aupro"] = value
        if reason:
            report.reasons["pixel_aupro"] = reason
        elif exact:
            report.error_bounds["pixel_aupro"] = 0.0
        return report

    def curves(self) -> Curves:
        """Return points of the pixel ROC, precision-recall and PRO curves."""
        defect, good, _ = self._rankings()
        if not defect.total or not good.total:
            return Curves(*(np.empty((0, 2)) for _ in range(3)))
        # Even steps through both kinds of pixels, so that the steep and the flat part of a curve have enough points.
        steps = CURVE_POINTS // 2 - 1
        keys = np.union1d(defect.quantiles(steps), good.quantiles(steps))[::-1]
        tp, fp = defect.at_least(keys), good.at_least(keys)
        recall = tp / defect.total
        roc = np.stack([fp / good.total, recall], axis=1)
        pr = np.stack([recall, tp / (tp + fp)], axis=1)
        return Curves(np.concatenate([[[0.0, 0.0]], roc, [[1.0, 1.0]]]), pr, self._pro_curve(defect, good))

    def _rankings(self) -> tuple[Ranking, Ranking, bool]:
        """Return defect and good pixels at one resolution, and whether it is the full one."""
        tables = self._defect, self._good
        for table in tables:
            table.flush()
        shift = max(table.shift for table in tables)
        for table in tables:
            table.coarsen(shift)
        return Ranking(self._defect.keys, self._defect.sums), Ranking(self._good.keys, self._good.sums), shift == 0

    def _pro_curve(self, defect: Ranking, good: Ranking) -> F64:
        """Return (n, 2): false positive rate below 0.3, rising, and mean region overlap at the method's thresholds."""
        step = (self._highest - self._lowest) / np.float32(PRO_THRESHOLDS)
        if not 0 < step < np.inf:
            return np.empty((0, 2))
        # In float32, as the maps are: rounding decides whether there are 200 thresholds or 201, and which.
        thresholds = np.arange(self._lowest, self._highest, step, dtype=np.float32)
        keys = _coarse(to_keys(thresholds), self._good.shift)
        fpr = good.above(keys) / good.total
        overlap = defect.above(keys, column=1) / self._regions
        return np.stack([fpr, overlap], axis=1)[fpr < PRO_MAX_FPR][::-1]

    def _aupro(self, defect: Ranking, good: Ranking) -> tuple[float | None, str]:
        """Return the area under the PRO curve, or ``None`` and the reason."""
        if not defect.total:
            return None, "no defect pixels, so no region to overlap"
        if not good.total:
            return None, "no good pixels, so no false positive rate"
        if self._lowest == self._highest:
            return None, "all pixels of the maps have the same value, so there are no thresholds"
        curve = self._pro_curve(defect, good)
        if len(curve) < 2 or curve[-1, 0] == 0:
            return None, f"no thresholds with a false positive rate above 0 and below {PRO_MAX_FPR}"
        fpr, overlap = curve[:, 0] / curve[-1, 0], curve[:, 1]
        return float(np.sum(np.diff(fpr) * (overlap[1:] + overlap[:-1]) / 2)), ""


class CountTable:
    """Distinct float32 values, ascending, with sums over their pixels.

    Attributes:
        keys: uint32 (n,), from :func:`to_keys`, without their lowest ``shift`` bits.
        sums: float64 (columns, n). Row 0 counts the pixels (exact below 2**53); row 1, if any, sums their weights.
        shift: number of dropped bits.
    """

    def __init__(self, columns: int, max_values: int) -> None:
        self.keys: U32 = np.empty(0, np.uint32)
        self.sums: F64 = np.empty((columns, 0))
        self.shift = 0
        self._max_values = max_values
        self._pending: list[tuple[U32, F64 | None]] = []
        self._pending_size = 0

    def add(self, keys: U32, weights: F64 | None = None) -> None:
        """Count pixels.

        Args:
            keys: uint32 (n,).
            weights: float64 (n,), if the table has a row for them.
        """
        self._pending.append((keys, weights))
        self._pending_size += keys.size
        if self._pending_size >= PENDING:
            self.flush()

    def flush(self) -> None:
        """Sort the pending pixels into the table."""
        if not self._pending_size:
            return
        keys = _coarse(np.concatenate([k for k, _ in self._pending]), self.shift)
        weights = [w for _, w in self._pending if w is not None]
        self._pending, self._pending_size = [], 0
        if weights:
            order = np.argsort(keys)
            self._insert(*_fold(keys[order], np.stack([np.ones(keys.size), np.concatenate(weights)[order]])))
        else:
            distinct, counts = np.unique(keys, return_counts=True)
            self._insert(distinct, counts[None].astype(np.float64))

    def merge(self, other: CountTable) -> None:
        """Add the pixels of another table."""
        self.flush()
        other.flush()
        self.coarsen(other.shift)
        if other.keys.size:
            self._insert(*_fold(_coarse(other.keys, self.shift - other.shift), other.sums))

    def coarsen(self, shift: int) -> None:
        """Keep only the upper 32 - ``shift`` bits of every key."""
        if shift > self.shift:
            if self.keys.size:
                self.keys, self.sums = _fold(_coarse(self.keys, shift - self.shift), self.sums)
            self.shift = shift

    def _insert(self, keys: U32, sums: F64) -> None:
        at = np.searchsorted(self.keys, keys)
        known = at < self.keys.size
        known[known] = self.keys[at[known]] == keys[known]
        self.sums[:, at[known]] += sums[:, known]
        new = ~known
        self.keys = np.insert(self.keys, at[new], keys[new])
        self.sums = np.insert(self.sums, at[new], sums[:, new], axis=1)
        while self.keys.size > self._max_values:
            self.coarsen(self.shift + 1)


class Ranking:
    """Counts of pixels or images above a value.

    Args:
        keys: (n,) distinct, ascending.
        sums: (columns, n) float64.
    """

    def __init__(self, keys: NDArray[np.generic], sums: F64) -> None:
        self.keys = keys
        self.counts = sums[0]
        self._above = np.zeros((len(sums), keys.size + 1))  # [:, i]: of keys[i] and all after it
        np.cumsum(sums[:, ::-1], axis=1, out=self._above[:, -2::-1])
        self.total = float(self._above[0, 0])

    @classmethod
    def of(cls, values: F64) -> Ranking:
        """Make a ranking of single values (n,)."""
        keys, counts = np.unique(values, return_counts=True)
        return cls(keys, counts[None].astype(np.float64))

    def at_least(self, keys: NDArray[np.generic], column: int = 0) -> F64:
        """Count the values at or above each of ``keys``, or sum another column over them."""
        sums: F64 = self._above[column, np.searchsorted(self.keys, keys, side="left")]
        return sums

    def above(self, keys: NDArray[np.generic], column: int = 0) -> F64:
        """Count the values above each of ``keys``, or sum another column over them."""
        sums: F64 = self._above[column, np.searchsorted(self.keys, keys, side="right")]
        return sums

    def quantiles(self, steps: int) -> NDArray[np.generic]:
        """Return all keys, or at most ``steps`` of them, evenly spaced in rank, with the extremes."""
        if self.keys.size <= steps:
            return self.keys
        rank = np.linspace(self.total, 1, steps)
        return self.keys[np.unique(np.searchsorted(-self._above[0, :-1], -rank, side="right") - 1)]


def _rank_metrics(prefix: str, things: str, defect: Ranking, good: Ranking, exact: bool) -> MetricReport:
    """Compute AUROC, AP and F1-max. Only thresholds at a defect's value matter: between them, only false alarms grow."""
    names = {name: f"{prefix}_{name}" for name in ("auroc", "ap", "f1max")}
    if not defect.total:
        return MetricReport(dict.fromkeys(names.values()), dict.fromkeys(names.values(), f"no defect {things}"))
    tp, fp, fp_above = defect.at_least(defect.keys), good.at_least(defect.keys), good.above(defect.keys)
    share = defect.counts / defect.total
    ap = float(share @ (tp / (tp + fp)))
    f1 = float(np.max(2 * tp / (defect.total + tp + fp)))
    values: dict[str, float | None] = {names["auroc"]: None, names["ap"]: ap, names["f1max"]: f1}
    # The order within a bin is unknown. At best all defects come first, at worst all good ones.
    best_ap = share @ (tp / (tp + fp_above))
    first = tp - defect.counts + 1
    worst_ap = share @ (first / (first + fp))
    best_f1 = np.max(2 * tp / (defect.total + tp + fp_above))
    bounds = {names["ap"]: max(best_ap - ap, ap - worst_ap), names["f1max"]: best_f1 - f1}
    reasons = {}
    if good.total:
        values[names["auroc"]] = float(share @ (1 - (fp + fp_above) / (2 * good.total)))
        bounds[names["auroc"]] = share @ (fp - fp_above) / (2 * good.total)
    else:
        reasons[names["auroc"]] = f"no good {things}"
    return MetricReport(values, reasons, {name: 0.0 if exact else float(bound) for name, bound in bounds.items()})


def _fold(keys: U32, sums: F64) -> tuple[U32, F64]:
    """Merge repeated keys.

    Args:
        keys: (n,) ascending, n > 0.
        sums: (columns, n).

    Returns:
        Distinct keys, and the sums over the repeats.
    """
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(sums, first, axis=1)


def to_keys(values: F32) -> U32:
    """Map finite float32 to uint32 of the same shape and order. Equal numbers have equal keys."""
    bits = (values + np.float32(0)).view(np.uint32)  # the sum turns -0.0 into 0.0
    sign = np.uint32(1 << 31)
    return np.where(bits & sign, ~bits, bits | sign)


def _coarse(keys: U32, bits: int) -> U32:
    """Drop the lowest ``bits`` bits of keys. The order stays."""
    return keys >> np.uint32(bits)


def _check(anomaly_map: F32, mask: NDArray[np.bool_]) -> None:
    if anomaly_map.dtype != np.float32 or mask.dtype != np.bool_:
        dtypes = f"{anomaly_map.dtype} and {mask.dtype}"
        raise VisionADError(f"pixel metrics: expected a float32 map and a bool mask, got {dtypes}")
    if anomaly_map.ndim != 2 or anomaly_map.shape != mask.shape or not anomaly_map.size:
        raise VisionADError(
            f"pixel metrics: map {anomaly_map.shape} and mask {mask.shape}; expected one (H, W) for both"
        )
    if bad := np.count_nonzero(~np.isfinite(anomaly_map)):
        raise VisionADError(f"pixel metrics: {bad} of {anomaly_map.size} pixels of the map are NaN or infinite")
