"""Split conformal prediction: a threshold with a guaranteed false-reject rate, from scores of good images alone.

With ``n`` good images that the bank does not hold, sorted scores ``s_1 <= … <= s_n`` and a tolerated false-reject rate ``a``, the
threshold is ``s_k`` with ``k = ceil((n + 1) (1 - a))``. A further good part from the same process then exceeds it with
probability at most ``a`` (Vovk et al. 2005; Lei et al. 2018, theorem 2.2), whatever the scores' distribution. That is an average
over calibration sets; for the set at hand the rate follows Beta(n + 1 - k, k), which gives an upper bound at 95 % confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import VisionADError

CONFIDENCE = 0.95
"""Of :attr:`Threshold.upper_bound`."""


@dataclass(frozen=True)
class Threshold:
    """A conformal threshold and what it guarantees.

    Attributes:
        value: scores above it are rejected.
        rank: place of ``value`` among the sorted scores, from 1.
        normals: how many scores there were.
        mean_bound: largest false-reject rate, on average over calibrations.
        upper_bound: upper bound of this threshold's own rate, at :data:`CONFIDENCE`.
    """

    value: float
    rank: int
    normals: int
    mean_bound: float
    upper_bound: float


def conformal_threshold(scores: Sequence[float], max_false_reject: float) -> Threshold:
    """Return the threshold that the module's docstring defines.

    Args:
        scores: of good images, none of which the bank holds.
        max_false_reject: tolerated rate, between 0 and 1.

    Raises:
        VisionADError: rate outside 0..1, scores not finite, or too few of them (the message says how many are needed).
    """
    n = len(scores)
    rank = conformal_rank(n, max_false_reject)
    if not np.isfinite(scores).all():
        raise VisionADError("calibration: a score is NaN or Inf; run `visionad doctor`")
    value = float(np.sort(np.asarray(scores, np.float64))[rank - 1])
    return Threshold(value, rank, n, (n + 1 - rank) / (n + 1), false_reject_bound(n, rank))


def conformal_rank(n: int, max_false_reject: float) -> int:
    """Return which of ``n`` sorted scores is the threshold, from 1.

    Raises:
        VisionADError: rate outside 0..1, or too few scores (the message says how many are needed).
    """
    if not 0 < max_false_reject < 1:
        raise VisionADError(f"--max-false-reject {max_false_reject}: expected a rate between 0 and 1, e.g. 0.01")
    rank = max(1, math.ceil((n + 1) * (1 - max_false_reject) - 1e-9))  # a rate near 1 rounds to no score at all
    if rank > n:
        needed = np.ceil(1 / max_false_reject - 1 - 1e-9)
        best = f"; with these, the lowest rate that can be guaranteed is {1 / (n + 1):.4f}" if n else ""
        raise VisionADError(
            f"calibration: a false-reject rate of {max_false_reject:g} takes at least {needed:.9g} good images to score (the "
            f"only image of a class is not one of them), got {n}{best}: give more images, or a larger --max-false-reject"
        )
    return rank


def false_reject_bound(n: int, rank: int) -> float:
    """Return the upper bound, at :data:`CONFIDENCE`, of the false-reject rate of the threshold ``s_rank`` of ``n`` scores.

    The rate's distribution is Beta(n + 1 - rank, rank); its tail is a binomial sum, solved by bisection (no scipy here).
    """

    def above(rate: float) -> float:  # P(true rate > rate) = P(Binomial(n, rate) <= n - rank)
        logs = [
            math.lgamma(n + 1)
            - math.lgamma(j + 1)
            - math.lgamma(n - j + 1)
            + j * math.log(rate)
            + (n - j) * math.log1p(-rate)
            for j in range(n - rank + 1)
        ]
        top = max(logs)
        return math.exp(top) * sum(math.exp(v - top) for v in logs)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) > 1 - CONFIDENCE else (low, middle)
    return high
