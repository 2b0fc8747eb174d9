"""The threshold's promise, checked where it is exact: on exchangeable scores, over many splits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.errors import VisionADError
from visionad_runtime.scoring.conformal import (
    best_rank,
    conformal_limits,
    conformal_threshold,
    false_reject_bound,
    p_value,
    promise_in_words,
)


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


@given(n=st.integers(1, 2000), rate=st.floats(0.0005, 0.999))
def test_the_best_rank_is_the_wanted_one_or_the_last(n: int, rate: float) -> None:
    rank = best_rank(n, rate)
    try:
        assert rank == conformal_threshold(list(range(n)), rate).rank
    except VisionADError:
        assert rank == n
        assert 1 / (n + 1) > rate  # even the highest score promises more than is wanted


@pytest.mark.parametrize(
    ("n", "anomalous", "review"),
    [(1, 1, None), (2, 2, None), (19, 19, None), (39, 39, 38), (40, 40, 39), (99, 99, 95), (199, 198, 190)],
)
def test_how_many_limits_there_are(n: int, anomalous: int, review: int | None) -> None:
    limits = conformal_limits([float(i) for i in range(n, 0, -1)], 0.01, 0.05)
    assert (limits.anomalous.rank, limits.anomalous.value) == (anomalous, float(anomalous))
    assert limits.anomalous.mean_bound == (n + 1 - anomalous) / (n + 1)
    assert (limits.review.rank if limits.review else None) == review
    assert limits.ok.rank == (review or anomalous)
    assert limits.anomalous.upper_bound == false_reject_bound(n, anomalous)


@pytest.mark.parametrize("review_rate", [0, 0.01, 0.1])
def test_a_review_rate_that_is_not_above_the_other_gives_no_review(review_rate: float) -> None:
    assert conformal_limits([float(i) for i in range(500)], 0.1, review_rate).review is None


@pytest.mark.parametrize("n", [1, 2, 4, 8, 19, 40, 120])
@pytest.mark.parametrize("draw", ["normal", "heavy tail", "many ties"])
def test_coverage_of_the_limits_over_random_splits(n: int, draw: str) -> None:
    rng = np.random.default_rng(n)
    fresh, splits = 40, 2000
    anomalous, not_ok = [], []
    for _ in range(splits):
        scores = {
            "normal": rng.normal(size=n + fresh),
            "heavy tail": rng.standard_cauchy(size=n + fresh),
            "many ties": rng.integers(0, 30, n + fresh).astype(float),
        }[draw]
        limits = conformal_limits(scores[:n].tolist(), 0.01, 0.05)
        anomalous.append(float((scores[n:] > limits.anomalous.value).mean()))
        not_ok.append(float((scores[n:] > limits.ok.value).mean()))
    assert limits.anomalous.mean_bound == pytest.approx(max(1 / (n + 1), (n + 1 - best_rank(n, 0.01)) / (n + 1)))
    for realised, limit in ((anomalous, limits.anomalous), (not_ok, limits.ok)):
        error = 3 * float(np.std(realised)) / math.sqrt(splits)
        assert np.mean(realised) <= limit.mean_bound + error
        if draw != "many ties":
            assert np.mean(realised) >= limit.mean_bound - error  # without ties the promise is exact


@given(scores=st.lists(st.integers(0, 9), max_size=60), score=st.integers(-1, 10))
def test_the_p_value_counts(scores: list[int], score: int) -> None:
    p = p_value(float(score), tuple(sorted(map(float, scores))))
    assert p == (1 + sum(s >= score for s in scores)) / (len(scores) + 1)


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=150), score=st.floats(0, 1), rate=st.floats(0.01, 0.5))
def test_the_p_value_agrees_with_the_limit(scores: list[float], score: float, rate: float) -> None:
    limit = conformal_limits(scores, rate, 0).anomalous
    if score > limit.value:
        assert p_value(score, tuple(sorted(scores))) <= limit.mean_bound + 1e-12


@pytest.mark.parametrize(
    ("n", "rate", "words"),
    [
        (0, 0.01, "1 good part: no promise; 2 for 33.4 %; 19 for 5 %; 99 for 1 %"),
        (0, 0.5, "1 good part: no promise; 2 for 33.4 %"),
        (1, 0.05, "1 scored good part: at most 50 % false rejects; 19 for 5 %"),
        (2, 0.1, "2 good parts: at most 33.4 % false rejects; 9 for 10 %"),
        (4, 0.01, "4 good parts: at most 20 % false rejects; 19 for 5 %; 99 for 1 %"),
        (18, 0.01, "18 good parts: at most 5.27 % false rejects; 19 for 5 %; 99 for 1 %"),
        (19, 0.01, "19 good parts: at most 5 % false rejects; 99 for 1 %"),
        (99, 0.01, "99 good parts: at most 1 % false rejects"),
        (300, 0.01, "300 good parts: at most 0.997 % false rejects"),
        (99, 0.0001, "99 good parts: at most 1 % false rejects; 999 for 0.1 %; 9999 for 0.01 %"),
    ],
)
def test_the_promise_in_words(n: int, rate: float, words: str) -> None:
    assert promise_in_words(n, rate) == words


@given(n=st.integers(1, 5000), rate=st.floats(0.0005, 0.6))
def test_the_words_never_promise_more_than_holds(n: int, rate: float) -> None:
    said = float(promise_in_words(n, rate).split("at most ")[1].split(" %")[0]) / 100
    holds = conformal_limits([0.0] * n, rate, 0).anomalous.mean_bound
    assert holds - 1e-9 <= said <= 1.01 * holds


def test_no_score_and_wrong_rates_are_refused() -> None:
    with pytest.raises(VisionADError, match="at least 1 good image, got 0"):
        conformal_limits([], 0.01, 0.05)
    for rate in (0, 1, float("nan")):
        with pytest.raises(VisionADError, match="between 0 and 1"):
            conformal_limits([1.0], rate, 0.05)
        with pytest.raises(VisionADError, match="between 0 and 1"):
            promise_in_words(0, rate)
    for rate in (-0.1, 1, float("nan")):
        with pytest.raises(VisionADError, match="review-rate"):
            conformal_limits([1.0], 0.01, rate)
    with pytest.raises(VisionADError, match="NaN or Inf"):
        conformal_limits([1.0, float("nan")], 0.01, 0.05)


def test_confirmations_of_accepted_parts_break_the_promise_if_they_are_counted() -> None:
    """Nine good scores promise 10 %. Forty more good parts come, and a person confirms them.

    Confirmations count if the parts were drawn whatever their verdict. Those of accepted parts alone are censored at the limit: the
    threshold falls with each, while the promise seems to hold.
    """
    rng, rate, splits = np.random.default_rng(11), 0.1, 1000
    realised: dict[str, list[float]] = {"all": [], "accepted": [], "not counted": []}
    for _ in range(splits):
        start, stream = rng.normal(size=9).tolist(), rng.normal(size=40).tolist()
        counted = {"all": start + stream, "accepted": list(start), "not counted": start}
        for score in stream:
            if score <= conformal_limits(counted["accepted"], rate, 0).anomalous.value:
                counted["accepted"].append(score)
        for name, scores in counted.items():
            threshold = conformal_limits(scores, rate, 0).anomalous
            assert threshold.mean_bound <= rate
            realised[name].append(0.5 * math.erfc(threshold.value / math.sqrt(2)))
    error = {name: 3 * float(np.std(rates)) / math.sqrt(splits) for name, rates in realised.items()}
    assert np.mean(realised["all"]) <= rate + error["all"]
    assert np.mean(realised["not counted"]) <= rate + error["not counted"]
    assert np.mean(realised["accepted"]) - error["accepted"] > 1.5 * rate
