"""Counts with their exact intervals, and how many more images a narrower interval takes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ...scoring.intervals import clopper_pearson

CONFIDENCE = 0.95
"""Confidence of all intervals in a report."""
MAX_SEARCH = 1 << 20
"""Images up to which :func:`images_to_halve` looks."""


@dataclass(frozen=True)
class Rate:
    """A rate with its interval.

    Attributes:
        events: how often it happened.
        trials: how often it could have happened.
        low: lower end of the interval at :data:`CONFIDENCE`.
        high: upper end.
        more_to_halve: further images that halve the width of the interval, if they show the same rate.
    """

    events: int
    trials: int
    low: float
    high: float
    more_to_halve: int

    @classmethod
    def of(cls, events: int, trials: int) -> Rate:
        """Return the rate of a count.

        Raises:
            VisionADError: ``events`` is negative or exceeds ``trials``.
        """
        low, high = clopper_pearson(events, trials, CONFIDENCE)
        return cls(events, trials, low, high, images_to_halve(events, trials))

    @property
    def value(self) -> float | None:
        """The share; ``None`` without a trial."""
        return self.events / self.trials if self.trials else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in JSON types, and ``rate``."""
        return {"rate": self.value, **asdict(self)}


def images_to_halve(events: int, trials: int) -> int:
    """Return the number of further images after which the interval is half as wide, at an unchanged rate.

    Args:
        events: how often it happened.
        trials: how often it could have happened; with 0, the interval is 0 to 1.
    """

    def width(count: int) -> float:
        seen = round(events / trials * count) if trials else 0
        low, high = clopper_pearson(seen, count, CONFIDENCE)
        return high - low

    goal = width(trials) / 2
    high = max(trials, 1)
    while width(high) > goal and high < MAX_SEARCH:
        high *= 2
    low = trials
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if width(middle) > goal else (low, middle)
    return high - trials


def binomial_tail(events: int, trials: int, rate: float) -> float:
    """Return the probability of ``events`` or more of ``trials`` at a rate between 0 and 1."""
    if events <= 0:
        return 1.0
    if rate <= 0:
        return 0.0
    if rate >= 1:
        return 1.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(rate)
        + (trials - k) * math.log1p(-rate)
        for k in range(events, trials + 1)
    ]
    largest = max(logs)
    return min(1.0, math.exp(largest) * sum(math.exp(term - largest) for term in logs))
