"""Metrics of single data sets, beside those that all have: SegF1 of MVTec AD 2, sPRO of MVTec LOCO.

Both are measured at the size of the image, as their authors do, because a saturation counts pixels of the image, and the smallest
defects of MVTec AD 2 vanish on a map of 256 × 256. The map is upsampled bilinearly. Pixels outside of a center crop are not
inspected: they count, and are never marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ...formats.manifest import PreprocessSpec
from ...scoring.anomaly_map import MAP_SIZE
from ...scoring.regions import Geometry
from .datasets.base import DatasetError, Saturation
from .datasets.masks import Truth
from .metrics import CountTable, Ranking, to_keys

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIGMAS = 3
"""Standard deviations above the mean of the validation pixels at which SegF1 marks a pixel."""
SPRO_LIMITS = {"pixel_spro_005": 0.05, "pixel_spro_030": 0.3}
"""False positive rates up to which the sPRO curve is integrated, by name of the metric."""
SPRO_VALUES = 1 << 21
"""Distinct values that a table of sPRO holds before it is coarsened."""


class OwnMetric(Protocol):
    """A metric of one class over a stream of images.

    Attributes:
        names: names of its values.
        needs_validation: whether it has to see the validation images first.
    """

    names: ClassVar[tuple[str, ...]]
    needs_validation: ClassVar[bool]

    def learn(self, height: int, width: int, anomaly_map: F32) -> None:
        """Count a validation image of ``height`` × ``width`` pixels by its map, float32 (256, 256)."""

    def check(self, truth: Truth) -> None:
        """Check that an image can be counted.

        Raises:
            DatasetError: it cannot.
        """

    def add(self, truth: Truth, anomaly_map: F32) -> None:
        """Count a test image by its map, float32 (256, 256), after :meth:`check`."""

    def compute(self) -> tuple[dict[str, float | None], dict[str, str]]:
        """Return the values by name, ``None`` if not defined, and the reason for each ``None``."""


class SegF1:
    """Pixel F1 at one threshold, which the validation images fix: mean + 3 standard deviations of all their pixels.

    Metric and threshold are those of Heckler-Kram et al., "The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised Anomaly
    Detection", 2025 (arXiv 2503.21622). Pixels of all test images of the class are counted together, and one above the threshold is
    marked. ``F1 = 2 TP / (2 TP + FP + FN)``.
    """

    names: ClassVar[tuple[str, ...]] = ("pixel_segf1",)
    needs_validation: ClassVar[bool] = True

    def __init__(self, spec: PreprocessSpec, _saturations: Mapping[int, Saturation] | None = None) -> None:
        """Start from zero.

        Args:
            spec: sizes of the model's preprocessing.
        """
        self._spec = spec
        self._pixels, self._mean, self._squares = 0, 0.0, 0.0
        self._true, self._false, self._missed = 0, 0, 0

    @property
    def threshold(self) -> float | None:
        """Mean + 3 population standard deviations of the validation pixels; ``None`` without validation images."""
        return self._mean + SIGMAS * math.sqrt(self._squares / self._pixels) if self._pixels else None

    def learn(self, height: int, width: int, anomaly_map: F32) -> None:
        """See :class:`OwnMetric`."""
        values, inside = to_image(anomaly_map, height, width, self._spec)
        new = values[inside].astype(np.float64)
        mean, total = float(new.mean()), self._pixels + new.size
        step = mean - self._mean  # Chan et al. 1979: no sum of squares that loses digits
        self._squares += float(((new - mean) ** 2).sum()) + step**2 * self._pixels * new.size / total
        self._mean += step * new.size / total
        self._pixels = total

    def check(self, truth: Truth) -> None:
        """See :class:`OwnMetric`."""

    def add(self, truth: Truth, anomaly_map: F32) -> None:
        """See :class:`OwnMetric`."""
        if self.threshold is None:
            return
        values, inside = to_image(anomaly_map, truth.height, truth.width, self._spec)
        marked, defect = inside & (values > self.threshold), truth.union()
        self._true += int(np.count_nonzero(marked & defect))
        self._false += int(np.count_nonzero(marked & ~defect))
        self._missed += int(np.count_nonzero(defect & ~marked))

    def compute(self) -> tuple[dict[str, float | None], dict[str, str]]:
        """See :class:`OwnMetric`."""
        (name,) = self.names
        if self.threshold is None:
            return {name: None}, {name: "no validation images, so no threshold"}
        if not self._true + self._missed:
            return {name: None}, {name: "no defect pixels"}
        return {name: 2 * self._true / (2 * self._true + self._false + self._missed)}, {}


class Spro:
    """Area under the curve of the saturated overlap with the regions, over false positive rates up to a limit, divided by it.

    Metric of Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and Localization",
    IJCV 130, 2022. Each mask file of an image is one region, whatever its parts. The saturated overlap of a region is
    ``min(marked pixels / saturation, 1)``, and a point of the curve is its mean over all regions of the class against the share of
    marked pixels among those in no mask. Every value of the maps is a threshold.

    The overlap needs no list of regions: the ``saturation`` largest values of a region add ``1 / saturation`` each, the others
    nothing, so one more column in a table of values holds the whole curve. At most :data:`SPRO_VALUES` distinct values are told
    apart; beyond, values that differ in the last of their bits count as tied.
    """

    names: ClassVar[tuple[str, ...]] = tuple(SPRO_LIMITS)
    needs_validation: ClassVar[bool] = False

    def __init__(self, spec: PreprocessSpec, saturations: Mapping[int, Saturation] | None) -> None:
        """Start from zero.

        Args:
            spec: sizes of the model's preprocessing.
            saturations: saturation by pixel value of the mask; ``None`` if the data set has none.
        """
        self._spec, self._saturations = spec, saturations
        self._overlap = CountTable(
            columns=2, max_values=SPRO_VALUES
        )  # pixels that saturate a region; their share of it
        self._good = CountTable(columns=1, max_values=SPRO_VALUES)
        self._regions = self._never_marked = 0

    def learn(self, height: int, width: int, anomaly_map: F32) -> None:
        """See :class:`OwnMetric`."""

    def check(self, truth: Truth) -> None:
        """See :class:`OwnMetric`."""
        known = self._saturations
        if known is not None and (strange := [region for region in truth.regions if region.value not in known]):
            files = ", ".join(str(region.source) for region in strange)
            values = sorted({region.value for region in strange})
            raise DatasetError(
                f"{files}: masks with the pixel values {values}: expected those of defects_config.json, {sorted(known)}"
            )

    def add(self, truth: Truth, anomaly_map: F32) -> None:
        """See :class:`OwnMetric`."""
        if self._saturations is None:
            return
        values, inside = to_image(anomaly_map, truth.height, truth.width, self._spec)
        keys, good = to_keys(values), ~truth.union()
        self._good.add(keys[good & inside])
        self._never_marked += int(np.count_nonzero(good & ~inside))
        for region in truth.regions:
            saturation = self._saturations[region.value].pixels(int(np.count_nonzero(region.mask)))
            largest = np.sort(keys[region.mask & inside])[::-1][: math.ceil(saturation)]
            self._overlap.add(largest, np.minimum(saturation - np.arange(largest.size), 1) / saturation)
            self._regions += 1

    def compute(self) -> tuple[dict[str, float | None], dict[str, str]]:
        """See :class:`OwnMetric`."""
        reason = ""
        if self._saturations is None:
            reason = "no defects_config.json, so no saturation"
        elif not self._regions:
            reason = "no defect, so no region to overlap"
        else:
            curve = self._curve()
            if curve is None:
                reason = "no good pixels, so no false positive rate"
            else:
                return {name: area_up_to(curve, limit) for name, limit in SPRO_LIMITS.items()}, {}
        return dict.fromkeys(self.names), dict.fromkeys(self.names, reason)

    def _curve(self) -> F64 | None:
        """Return false positive rate and mean saturated overlap, float64 (n, 2), rising from (0, 0) to (1, 1)."""
        for table in (self._overlap, self._good):
            table.flush()
        shift = max(self._overlap.shift, self._good.shift)
        for table in (self._overlap, self._good):
            table.coarsen(shift)
        overlap, good = Ranking(self._overlap.keys, self._overlap.sums), Ranking(self._good.keys, self._good.sums)
        count = good.total + self._never_marked
        if not count:
            return None
        keys = np.union1d(overlap.keys, good.keys)[::-1]
        points = np.stack([good.at_least(keys) / count, overlap.at_least(keys, column=1) / self._regions], axis=1)
        return np.concatenate([[[0.0, 0.0]], points, [[1.0, 1.0]]])


OWN: Mapping[str, Callable[[PreprocessSpec, Mapping[int, Saturation] | None], OwnMetric]] = {
    "segf1": SegF1,
    "spro": Spro,
}
"""Metrics that a layout may name when it registers."""
OWN_NAMES = (*SegF1.names, *Spro.names)
"""Names of all their values."""


def area_up_to(curve: F64, limit: float) -> float:
    """Return the area under a curve between 0 and ``limit``, divided by ``limit``.

    Args:
        curve: float64 (n, 2), x and y, x rising from 0 to ``limit`` or beyond. Between points it is straight.
        limit: largest x, above 0.
    """
    x: F64 = curve[:, 0]
    y: F64 = curve[:, 1]
    last = int(np.searchsorted(x, limit, side="right"))  # the first point beyond the limit
    if last < len(x):
        share = (limit - x[last - 1]) / (x[last] - x[last - 1])
        at_limit = y[last - 1] + share * (y[last] - y[last - 1])
        x, y = np.append(x[:last], limit), np.append(y[:last], at_limit)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)


def to_image(anomaly_map: F32, height: int, width: int, spec: PreprocessSpec) -> tuple[F32, Mask]:
    """Upsample a map to the image that it was made of, bilinearly.

    Args:
        anomaly_map: float32 (256, 256).
        height: of the image.
        width: of the image.
        spec: sizes of the model's preprocessing.

    Returns:
        float32 (height, width), and bool (height, width): True where the pixel's center lies in the crop that the map covers.
    """
    geometry = Geometry.of(width, height, spec)
    left, top = geometry.to_original(0, 0)
    right, bottom = geometry.to_original(MAP_SIZE, MAP_SIZE)
    (low_x, high_x, weight_x, inside_x), (low_y, high_y, weight_y, inside_y) = (
        _along(width, left, right),
        _along(height, top, bottom),
    )
    across = anomaly_map[:, low_x] * (1 - weight_x) + anomaly_map[:, high_x] * weight_x
    values = across[low_y] * (1 - weight_y)[:, None] + across[high_y] * weight_y[:, None]
    return np.asarray(values, np.float32), inside_y[:, None] & inside_x


def _along(size: int, first: float, last: float) -> tuple[NDArray[np.intp], NDArray[np.intp], F32, Mask]:
    """Return, for the pixels along one axis: both map pixels to mix, the weight of the second, and whether the crop holds them."""
    place = (np.arange(size) + 0.5 - first) / (last - first) * MAP_SIZE
    position = np.clip(place - 0.5, 0, MAP_SIZE - 1)
    low = position.astype(np.intp)
    high = np.minimum(low + 1, MAP_SIZE - 1)
    return low, high, (position - low).astype(np.float32), (place >= 0) & (place <= MAP_SIZE)
