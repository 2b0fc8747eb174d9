"""The one protocol all methods are measured by: the whole image, 256 × 256, on raw scores and raw maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionad_runtime.preprocess import crop_offset
from visionad_runtime.scoring.anomaly_map import MAP_SIZE
from visionad_runtime.tools.evaluation.datasets.base import Sample
from visionad_runtime.tools.evaluation.datasets.masks import load_mask
from visionad_runtime.tools.evaluation.metrics import PixelMetrics, image_metrics

F32 = NDArray[np.float32]

MASK_SIDE = 448
"""Masks are those of ``visionad eval`` for a model without a crop: resized to this side, then to the map's."""
METRICS = ("image_auroc", "pixel_auroc", "pixel_aupro")


def full_frame(anomaly_map: F32, resize: int, crop: int) -> F32:
    """A map of the central ``crop`` of an image resized to ``resize`` → one of the whole image, 256 × 256.

    Bilinear, pixel centres on pixel centres. Outside the crop, where the method is blind, stands 0: no distance is
    smaller, so a defect there is missed, and a good pixel there raises no false alarm, as in use.

    Args:
        anomaly_map: float32 (H, W) of distances, >= 0; ``crop == resize`` says that it shows the whole image.
    """
    offset = crop_offset(resize, crop)
    share = ((np.arange(MAP_SIZE) + 0.5) / MAP_SIZE * resize - offset) / crop  # 0..1 from edge to edge of the crop
    inside = (share >= 0) & (share <= 1)
    down, across = (_weights(share, size) for size in anomaly_map.shape)
    whole = down @ anomaly_map.astype(np.float64) @ across.T
    return np.where(np.outer(inside, inside), whole, 0).astype(np.float32)


def _weights(share: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(256, size): how much of each of ``size`` pixels goes into the sample at each of the places ``share``."""
    at = np.clip(share * size - 0.5, 0, size - 1)
    low = np.minimum(at.astype(np.intp), max(size - 2, 0))
    weights = np.zeros((len(share), size))
    rows = np.arange(len(share))
    weights[rows, low] = 1 - (at - low)
    weights[rows, np.minimum(low + 1, size - 1)] += at - low
    return weights


def masks_of(samples: Sequence[Sample]) -> list[NDArray[np.bool_]] | None:
    """The masks of a class, or None where its defects have none."""
    if not all(sample.has_mask for sample in samples):
        return None
    return [load_mask(sample, MASK_SIDE, MASK_SIDE, MAP_SIZE) for sample in samples]


def measure(
    scores: Sequence[float],
    maps: Iterable[F32],
    samples: Sequence[Sample],
    masks: Sequence[NDArray[np.bool_]] | None,
    resize: int,
    crop: int,
) -> dict[str, Any]:
    """:data:`METRICS` of one class; the pixel metrics are None where there are no masks."""
    metrics = image_metrics(scores, [sample.label for sample in samples]).values
    if masks is not None:
        pixels = PixelMetrics()
        for anomaly_map, mask in zip(maps, masks, strict=True):
            pixels.add(full_frame(anomaly_map, resize, crop), mask)
        metrics |= pixels.compute().values
    return {name: metrics.get(name) for name in METRICS}
