"""Probability of detection (POD) of defects by size and contrast, after MIL-HDBK-1823A, hit/miss analysis.

``logit POD = b0 + b1 log(size) + b2 log(contrast)``. The fit maximizes Firth's penalized likelihood (Biometrika 80, 1993). It is
finite also if all large defects are found and all small ones are missed, where the maximum likelihood does not exist. ``a90`` is
the size that is found with probability 0.9. ``a90/95`` is the size at which the lower confidence bound of the POD curve (Wald,
one-sided, 95 %) reaches 0.9. Both shrink as the contrast grows, and the POD grows with the size, if both slopes are positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import VisionADError

F64 = NDArray[np.float64]

Z95 = 1.6448536269514722
"""Quantile of the standard normal distribution for a one-sided bound at 95 %."""
TARGET = 0.9
MAX_STEPS = 200
MIN_DEFECTS = 12
"""Fewest defects that a fit takes."""
MIN_SHARE, MAX_SHARE = 1 / 32, 32.0
"""Sizes beyond these multiples of the smallest and largest painted one are not stated."""


@dataclass(frozen=True)
class PodFit:
    """A fitted POD curve.

    Attributes:
        coefficients: b0, b1 of log size, b2 of log contrast.
        covariance: float64 (3, 3), of the coefficients.
        smallest: smallest size of the data, pixels.
        largest: largest size of the data, pixels.
    """

    coefficients: tuple[float, float, float]
    covariance: F64
    smallest: float
    largest: float

    def pod(self, size: float, contrast: float) -> float:
        """Return the probability of detection.

        Args:
            size: longest extent in pixels, above 0.
            contrast: contrast as the data have it, above 0.
        """
        b0, b1, b2 = self.coefficients
        return _logistic(b0 + b1 * math.log(size) + b2 * math.log(contrast))

    def lower_pod(self, size: float, contrast: float) -> float:
        """Return the lower 95 % confidence bound of :meth:`pod` (Wald)."""
        row = np.array([1.0, math.log(size), math.log(contrast)])
        middle = float(row @ np.array(self.coefficients))
        return _logistic(middle - Z95 * math.sqrt(max(0.0, float(row @ self.covariance @ row))))

    def size_at(self, contrast: float, target: float = TARGET) -> float | None:
        """Return the size that is found with probability ``target``; ``None`` if the size has no effect or a negative one."""
        b0, b1, b2 = self.coefficients
        if b1 <= 0:
            return None
        exponent = (math.log(target / (1 - target)) - b0 - b2 * math.log(contrast)) / b1
        return self._in_range(exponent)

    def confident_size_at(self, contrast: float, target: float = TARGET) -> float | None:
        """Return the size at which the lower 95 % bound reaches ``target``, or ``None`` if it does so nowhere in range."""
        start = self.size_at(contrast, target)
        low = None if start is None else math.log(start)
        high = math.log(self.largest * MAX_SHARE)
        if low is None or low >= high or self.lower_pod(math.exp(high), contrast) < target:
            return None
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (low, middle) if self.lower_pod(math.exp(middle), contrast) >= target else (middle, high)
        return math.exp(high)

    def _in_range(self, exponent: float) -> float | None:
        low, high = math.log(self.smallest * MIN_SHARE), math.log(self.largest * MAX_SHARE)
        return math.exp(exponent) if low <= exponent <= high else (math.exp(low) if exponent < low else None)


def fit_pod(sizes: ArrayLike, contrasts: ArrayLike, hits: ArrayLike) -> PodFit:
    """Fit a POD curve.

    Args:
        sizes: (n,) longest extent of each defect in pixels, above 0.
        contrasts: (n,) its contrast, above 0. Equal ones for all leave its slope 0.
        hits: (n,) whether it was found.

    Raises:
        VisionADError: The lengths differ, there are fewer than :data:`MIN_DEFECTS`, or a value is out of range.
    """
    size, contrast = np.asarray(sizes, np.float64), np.asarray(contrasts, np.float64)
    hit = np.asarray(hits, np.float64)
    if size.ndim != 1 or not size.shape == contrast.shape == hit.shape or len(size) < MIN_DEFECTS:
        raise VisionADError(f"POD: expected {MIN_DEFECTS} or more sizes, contrasts and hits, got {len(size)}")
    if not (np.isfinite(size).all() and np.isfinite(contrast).all() and (size > 0).all() and (contrast > 0).all()):
        raise VisionADError("POD: expected sizes and contrasts above 0")
    columns = np.stack([np.ones(len(size)), np.log(size), np.log(contrast)], axis=1)
    used = [0, *(k for k in (1, 2) if np.ptp(columns[:, k]) > 1e-9)]
    coefficients, covariance = np.zeros(3), np.zeros((3, 3))
    coefficients[used], covariance[np.ix_(used, used)] = firth(columns[:, used], hit)
    b0, b1, b2 = (float(b) for b in coefficients)
    return PodFit((b0, b1, b2), covariance, float(size.min()), float(size.max()))


def firth(rows: F64, hits: F64) -> tuple[F64, F64]:
    """Fit a logistic regression with Firth's penalty.

    Args:
        rows: float64 (n, p), the first column all ones.
        hits: float64 (n,) 0 or 1.

    Returns:
        Coefficients (p,) and their covariance (p, p): the inverse of the Fisher information.
    """
    centers, scales = rows.mean(axis=0), rows.std(axis=0)
    centers[0], scales[0] = 0.0, 1.0
    columns = (rows - centers) / scales  # well conditioned; undone below, which the penalty is invariant to
    b = np.zeros(columns.shape[1])
    for _ in range(MAX_STEPS):
        p = 1 / (1 + np.exp(-np.clip(columns @ b, -30, 30)))
        weight = p * (1 - p)
        inverse = np.linalg.inv(columns.T @ (weight[:, None] * columns) + 1e-12 * np.eye(len(b)))
        leverage = weight * np.einsum("ij,jk,ik->i", columns, inverse, columns)
        step = inverse @ (columns.T @ (hits - p + leverage * (0.5 - p)))
        step *= min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))  # a full step may overshoot
        b = b + step
        if float(np.abs(step).max()) < 1e-10:
            break
    p = 1 / (1 + np.exp(-np.clip(columns @ b, -30, 30)))
    inverse = np.linalg.inv(columns.T @ ((p * (1 - p))[:, None] * columns) + 1e-12 * np.eye(len(b)))
    back = np.diag(1 / scales)
    back[0] = np.where(np.arange(len(b)) == 0, 1.0, -centers / scales)
    return back @ b, back @ inverse @ back.T


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, x))))
