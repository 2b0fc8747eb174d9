"""Split conformal prediction: a threshold with a guaranteed false-reject rate, from scores of good images only.

Let ``s_1 <= … <= s_n`` be the sorted scores of good images that the bank does not hold, and ``a`` the tolerated false-reject rate.
The threshold is ``s_k`` with ``k = ceil((n + 1) (1 - a))``. Another good part from the same process exceeds it with probability at
most ``a``, whatever the distribution of scores (Vovk et al. 2005; Lei et al. 2018, theorem 2.2). This holds on average over
calibration sets. For one calibration set the rate follows Beta(n + 1 - k, k), which gives an upper bound at 95 % confidence.

Few scores do not allow a low rate: the best that ``n`` scores can promise is ``1 / (n + 1)``, with their highest as the threshold.
:func:`conformal_limits` takes that rate where the wanted one is out of reach, and says which rate holds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import VisionADError

CONFIDENCE = 0.95
"""Confidence of :attr:`Threshold.upper_bound`."""
_RUNGS = (0.05, 0.01, 0.001)
"""Rates that :func:`promise_in_words` names on the way to the wanted one."""


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


@dataclass(frozen=True)
class Limits:
    """The limits of a verdict: ``anomalous`` above the first, ``review`` above the second, ``ok`` otherwise.

    Attributes:
        anomalous: scores above its value are anomalous.
        review: scores above its value and not above ``anomalous.value`` are for review. ``None`` if there is only one limit.
    """

    anomalous: Threshold
    review: Threshold | None

    @property
    def ok(self) -> Threshold:
        """The limit that no score of an ``ok`` part exceeds."""
        return self.review or self.anomalous


def conformal_threshold(scores: Sequence[float], max_false_reject: float) -> Threshold:
    """Return the threshold that the module's docstring defines.

    Args:
        scores: scores of good images that the bank does not hold, in any order.
        max_false_reject: tolerated false-reject rate, between 0 and 1.

    Raises:
        VisionADError: The rate is out of range, a score is not finite, or there are too few scores (the message says how many are
            needed).
    """
    rank = conformal_rank(len(scores), max_false_reject)
    return _threshold(_sorted(scores), rank)


def conformal_limits(scores: Sequence[float], max_false_reject: float, review_rate: float) -> Limits:
    """Return both limits at the wanted rates, or at the best rate that the number of scores allows.

    Args:
        scores: scores of good images that the bank does not hold, in any order, at least one.
        max_false_reject: tolerated rate of good parts that are anomalous, between 0 and 1.
        review_rate: tolerated rate of good parts that are not ``ok``, from 0 to 1. There is no review limit if it is at most
            ``max_false_reject``, or if the number of scores gives both limits the same rank.

    Raises:
        VisionADError: A rate is out of range, a score is not finite, or there is no score.
    """
    n = len(scores)
    if not 0 <= review_rate < 1:
        raise VisionADError(
            f"--review-rate {review_rate}: expected a rate from 0 to below 1, e.g. 0.05; 0 turns review off"
        )
    rank = best_rank(n, max_false_reject)
    ordered = _sorted(scores)
    review_rank = best_rank(n, review_rate) if review_rate > max_false_reject else rank
    review = _threshold(ordered, review_rank) if review_rank < rank else None
    return Limits(_threshold(ordered, rank), review)


def best_rank(n: int, max_false_reject: float) -> int:
    """Return the rank of the threshold at the wanted rate, or ``n`` if so few scores do not allow the rate.

    With rank ``n`` the threshold is the highest score and the promised rate is ``1 / (n + 1)``.

    Args:
        n: number of scores, at least 1.
        max_false_reject: wanted false-reject rate, between 0 and 1.

    Raises:
        VisionADError: The rate is out of range, or there is no score.
    """
    rank = _rank(n, max_false_reject)
    if n < 1:
        raise VisionADError(
            "calibration: expected the score of at least 1 good image, got 0: enroll a second good image with "
            "`visionad bank add`, or give `visionad calibrate` good images that are not enrolled"
        )
    return min(n, rank)


def p_value(score: float, scores: Sequence[float]) -> float:
    """Return the conformal p-value ``(1 + number of scores >= score) / (n + 1)``.

    For another good part it is at most ``a`` with probability at most ``a``, for every ``a``.

    Args:
        score: score of the inspected image.
        scores: scores of good images that the bank does not hold, sorted ascending.
    """
    return (1 + len(scores) - bisect_left(scores, score)) / (len(scores) + 1)


def promise_in_words(n: int, max_false_reject: float) -> str:
    """Say which false-reject rate ``n`` scores promise, and how many good parts lower rates take.

    A rate that is not exact in three digits is rounded up, so that the text never promises more than holds. With one enrolled part
    there is no score. Two enrolled parts give two scores, each leave-one-out.

    Args:
        n: number of scores of good parts.
        max_false_reject: wanted false-reject rate, between 0 and 1.

    Raises:
        VisionADError: The rate is out of range.
    """
    rank = min(n, _rank(n, max_false_reject))
    ahead = [rate for rate in _RUNGS if rate > max_false_reject] + [max_false_reject]
    rungs = [(needed, _percent(rate)) for rate in ahead if (needed := _needed(rate)) > max(n, 2)]
    if n:
        parts = f"{n} good parts" if n > 1 else "1 scored good part"
        words = [f"{parts}: at most {_percent((n + 1 - rank) / (n + 1))} false rejects"]
    else:
        words = ["1 good part: no promise", f"2 for {_percent(1 / 3)}"]
    return "; ".join(words + [f"{needed:.9g} for {rate}" for needed, rate in rungs])


def conformal_rank(n: int, max_false_reject: float) -> int:
    """Return the rank, from 1, of the threshold among sorted scores.

    Args:
        n: number of scores.
        max_false_reject: tolerated false-reject rate, between 0 and 1.

    Raises:
        VisionADError: The rate is out of range, or there are too few scores (the message says how many are needed).
    """
    rank, needed = _rank(n, max_false_reject), _needed(max_false_reject)
    if rank > n:
        best = f"; with these, the lowest rate that can be guaranteed is {1 / (n + 1):.4f}" if n else ""
        raise VisionADError(
            f"calibration: a false-reject rate of {max_false_reject:g} takes at least {needed:.9g} good images to score (the "
            f"only image of a class is not one of them), got {n}{best}: give more images, or a larger --max-false-reject"
        )
    return rank


def _rank(n: int, rate: float) -> int:
    """Return the rank that the rate takes, which may exceed ``n``."""
    if not 0 < rate < 1:
        raise VisionADError(f"--max-false-reject {rate}: expected a rate between 0 and 1, e.g. 0.01")
    return max(1, math.ceil((n + 1) * (1 - rate) - 1e-9))  # a rate near 1 would give rank 0


def _needed(rate: float) -> float:
    """Return the lowest number of scores that can promise the rate; Inf if it does not fit a float."""
    with np.errstate(over="ignore"):
        return float(np.ceil(np.float64(1) / rate - 1 - 1e-9))


def _percent(rate: float) -> str:
    """Format a rate as percent, rounded up to three digits."""
    scale = 10.0 ** (2 - math.floor(math.log10(100 * rate)))
    return f"{math.ceil(100 * rate * scale - 1e-6) / scale:g} %"


def _sorted(scores: Sequence[float]) -> list[float]:
    if not np.isfinite(scores).all():
        raise VisionADError("calibration: a score is NaN or Inf; run `visionad doctor`")
    return sorted(map(float, scores))


def _threshold(ordered: Sequence[float], rank: int) -> Threshold:
    n = len(ordered)
    return Threshold(ordered[rank - 1], rank, n, (n + 1 - rank) / (n + 1), false_reject_bound(n, rank))


@lru_cache(maxsize=1024)
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
