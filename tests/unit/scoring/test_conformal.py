"""The threshold's promise, checked where it is exact: on exchangeable scores, over many splits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.errors import VisionADError
from visionad_runtime.scoring.conformal import conformal_threshold, false_reject_bound


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("draw", ["normal", "heavy tail", "many ties"])
def test_realised_false_rejects_over_random_splits(rate: float, draw: str) -> None:
    rng = np.random.default_rng(3)
    n, fresh, splits = 40, 60, 1000
    rejected, beyond_bound = [], 0
    for _ in range(splits):
        scores = {
            "normal": rng.normal(size=n + fresh),
            "heavy tail": rng.standard_cauchy(size=n + fresh),
            "many ties": rng.integers(0, 12, n + fresh).astype(float),
        }[draw]
        threshold = conformal_threshold(scores[:n].tolist(), rate)
        rejected.append(float((scores[n:] > threshold.value).mean()))
        true_rate = {"normal": 0.5 * math.erfc(threshold.value / math.sqrt(2))}.get(draw)
        if true_rate is not None:
            beyond_bound += true_rate > threshold.upper_bound
    error = np.std(rejected) / math.sqrt(splits)
    assert np.mean(rejected) <= rate + 3 * error  # the guarantee, on average over calibrations
    if draw == "normal":
        assert np.mean(rejected) >= threshold.mean_bound - 1 / (n + 1) - 3 * error  # and it is not idle
        assert 0.02 <= beyond_bound / splits <= 0.08  # the 95 % bound fails in 5 % of calibrations


@given(n=st.integers(1, 400), data=st.data())
def test_bound_is_the_beta_quantile(n: int, data: st.DataObject) -> None:
    beta = pytest.importorskip("scipy.stats").beta
    rank = data.draw(st.integers(1, n))
    assert false_reject_bound(n, rank) == pytest.approx(float(beta.ppf(0.95, n + 1 - rank, rank)), abs=1e-9)


@given(
    scores=st.lists(st.floats(0, 6), min_size=1, max_size=200),
    rate=st.floats(0.001, 0.999),
)
def test_threshold_is_the_conformal_rank(scores: list[float], rate: float) -> None:
    try:
        found = conformal_threshold(scores, rate)
    except VisionADError as exc:
        assert len(scores) < 1 / rate - 1 + 1e-6
        assert "at least" in str(exc)
        return
    assert found.value in scores
    above = sum(s > found.value for s in scores)
    assert above <= rate * (len(scores) + 1) + 1e-6  # no more of its own normals rejected than the rate allows
    assert found.mean_bound <= rate + 1e-9
    assert conformal_threshold(scores[::-1], rate) == found


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999)])
def test_how_many_images_are_needed(rate: float, needed: int) -> None:
    assert conformal_threshold([1.0] * needed, rate).normals == needed
    with pytest.raises(VisionADError, match=f"at least {needed} good images"):
        conformal_threshold([1.0] * (needed - 1), rate)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 2, float("nan")])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(VisionADError, match="between 0 and 1"):
        conformal_threshold([1.0] * 100, rate)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers(bad: float) -> None:
    with pytest.raises(VisionADError, match="NaN or Inf"):
        conformal_threshold([1.0] * 100 + [bad], 0.1)


@pytest.mark.parametrize("rate", [1 - 1e-16, 1 - 1e-12])
def test_a_rate_of_nearly_one_takes_the_lowest_score(rate: float) -> None:
    found = conformal_threshold([3.0, 1.0, 2.0], rate)
    assert (found.value, found.rank, found.mean_bound) == (1.0, 1, 0.75)


@pytest.mark.parametrize("rate", [1e-9, 1e-300, 5e-324])
def test_a_rate_of_nearly_zero_is_refused_in_a_short_line(rate: float) -> None:
    with pytest.raises(VisionADError, match="takes at least") as refused:
        conformal_threshold([1.0, 2.0], rate)
    assert len(str(refused.value)) < 300
