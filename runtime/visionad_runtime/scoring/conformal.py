"""Split conformal prediction: a threshold with a guaranteed false-reject rate, from scores of good images only.

Let ``s_1 <= … <= s_n`` be the sorted scores of good images that the bank does not hold, and ``a`` the tolerated false-reject rate.
The threshold is ``s_k`` with ``k = ceil((n + 1) (1 - a))``. Another good part from the same process exceeds it with probability at
most ``a``, whatever the distribution of scores (Vovk et al. 2005; Lei et al. 2018, theorem 2.2). This holds on average over
calibration sets. For one calibration set the rate follows Beta(n + 1 - k, k), which gives an upper bound at 95 % confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import VisionADError

CONFIDENCE = 0.95
"""Confidence of :attr:`Threshold.upper_bound`."""


@dataclass(frozen=True)
class Threshold:
    """A conformal threshold and what it guarantees.

    Attributes:
        value: scores above it are rejected.
        rank: rank of ``value`` among the sorted scores, from 1.
        normals: number of scores.
        mean_bound: upper bound of the false-reject rate, on average over calibration sets.
        upper_bound: upper bound of this threshold's false-reject rate, at :data:`CONFIDENCE`.
    """

    value: float
    rank: int
    normals: int
    mean_bound: float
    upper_bound: float


def conformal_threshold(scores: Sequence[float], max_false_reject: float) -> Threshold:
    """Return the threshold that the module's docstring defines.

    Args:
        scores: scores of good images that the bank does not hold, in any order.
        max_false_reject: tolerated false-reject rate, between 0 and 1.

    Raises:
        VisionADError: The rate is out of range, a score is not finite, or there are too few scores (the message says how many are
            needed).
    """
    n = len(scores)
    rank = conformal_rank(n, max_false_reject)
    if not np.isfinite(scores).all():
        raise VisionADError("calibration: a score is NaN or Inf; run `visionad doctor`")
    value = float(np.sort(np.asarray(scores, np.float64))[rank - 1])
    return Threshold(value, rank, n, (n + 1 - rank) / (n + 1), false_reject_bound(n, rank))


def conformal_rank(n: int, max_false_reject: float) -> int:
    """Return the rank, from 1, of the threshold among sorted scores.

    Args:
        n: number of scores.
        max_false_reject: tolerated false-reject rate, between 0 and 1.

    Raises:
        VisionADError: The rate is out of range, or there are too few scores (the message says how many are needed).
    """
    if not 0 < max_false_reject < 1:
        raise VisionADError(f"--max-false-reject {max_false_reject}: expected a rate between 0 and 1, e.g. 0.01")
    rank = max(1, math.ceil((n + 1) * (1 - max_false_reject) - 1e-9))  # a rate near 1 would give rank 0
    if rank > n:
        needed = np.ceil(1 / max_false_reject - 1 - 1e-9)
        best = f"; with these, the lowest rate that can be guaranteed is {1 / (n + 1):.4f}" if n else ""
        raise VisionADError(
            f"calibration: a false-reject rate of {max_false_reject:g} takes at least {needed:.9g} good images to score (the "
            f"only image of a class is not one of them), got {n}{best}: give more images, or a larger --max-false-reject"
        )
    return rank


def false_reject_bound(n: int, rank: int) -> float:
    """Return the upper bound, at :data:`CONFIDENCE`, of the false-reject rate of a threshold.

    The rate follows Beta(n + 1 - rank, rank). Its tail is a binomial sum, which bisection solves (the runtime does not depend on
    scipy).

    Args:
        n: number of scores.
        rank: rank of the threshold among them, from 1.
    """

    def tail(rate: float) -> float:  # P(true rate > rate) = P(Binomial(n, rate) <= n - rank)
        log_terms = [
            math.lgamma(n + 1)
            - math.lgamma(j + 1)
            - math.lgamma(n - j + 1)
            + j * math.log(rate)
            + (n - j) * math.log1p(-rate)
            for j in range(n - rank + 1)
        ]
        largest = max(log_terms)
        return math.exp(largest) * sum(math.exp(term - largest) for term in log_terms)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > 1 - CONFIDENCE else (low, middle)
    return high
