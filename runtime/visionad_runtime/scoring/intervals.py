"""Exact confidence intervals of a rate, from a count (Clopper and Pearson 1934). The runtime does not depend on scipy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..errors import VisionADError


def clopper_pearson(events: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a rate.

    It covers the true rate with at least the stated confidence, whatever the rate: the lower end is the rate at which ``events``
    or more have the probability ``(1 - confidence) / 2``, the upper end that for ``events`` or fewer.

    Args:
        events: how often it happened, from 0 to ``trials``.
        trials: how often it could have happened; with 0, the interval is 0 to 1.
        confidence: between 0 and 1.

    Raises:
        VisionADError: A number is out of range.
    """
    if not 0 <= events <= trials or not 0 < confidence < 1:
        raise VisionADError(
            f"interval: expected 0 <= events <= trials and 0 < confidence < 1, got {events}, {trials} and {confidence}"
        )
    tail = (1 - confidence) / 2
    low = 0.0 if events == 0 else 1 - _upper(trials - events, trials, tail)
    high = 1.0 if events == trials else _upper(events, trials, tail)
    return low, high


def _upper(events: int, trials: int, tail: float) -> float:
    """Return the rate at which ``events`` or fewer of ``trials`` have the probability ``tail``, by bisection."""
    counts = np.arange(events + 1, dtype=np.float64)
    log_choices = _log_choices(trials, events)
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        terms = log_choices + counts * math.log(rate) + (trials - counts) * math.log1p(-rate)
        largest = float(terms.max())
        probability = math.exp(largest) * float(np.exp(terms - largest).sum())
        low, high = (rate, high) if probability > tail else (low, rate)
    return high


def _log_choices(trials: int, events: int) -> NDArray[np.float64]:
    """Return ``log(trials choose j)`` for j = 0 .. ``events``, float64 (events + 1,)."""
    steps = np.arange(1, events + 1, dtype=np.float64)
    return np.concatenate(([0.0], np.cumsum(np.log(trials + 1 - steps) - np.log(steps))))
