"""Exact intervals: equal to published ones, and they cover."""

from __future__ import annotations

import math

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.scoring.intervals import clopper_pearson


@pytest.mark.parametrize(
    ("events", "trials", "low", "high"),
    [  # closed forms: 0 of n gives 1 - (a/2)^(1/n); 4 of 20 and 10 of 100 are in any table of the intervals
        (0, 10, 0.0, 1 - 0.025 ** (1 / 10)),
        (10, 10, 0.025 ** (1 / 10), 1.0),
        (4, 20, 0.0573340, 0.4366140),
        (10, 100, 0.0490047, 0.1762226),
        (0, 0, 0.0, 1.0),
    ],
)
def test_published_intervals(events: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(events, trials) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.07, 0.3, 0.5, 0.92])
def test_it_covers_at_every_rate(rate: float) -> None:
    trials = 37
    covered = sum(
        math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k)
        for k in range(trials + 1)
        if clopper_pearson(k, trials)[0] <= rate <= clopper_pearson(k, trials)[1]
    )
    assert 0.95 <= covered <= 1


def test_many_trials() -> None:
    low, high = clopper_pearson(50_000, 100_000)
    assert low < 0.5 < high and high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(100_000), rel=0.01)


@pytest.mark.parametrize("wrong", [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_numbers_out_of_range(wrong: tuple[int, int, float]) -> None:
    with pytest.raises(VisionADError, match="interval: expected"):
        clopper_pearson(*wrong)
