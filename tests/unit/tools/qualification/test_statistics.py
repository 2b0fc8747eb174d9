"""Statistics of reports: intervals, POD curves, agreement, variance components, the rank test. Each against independent lines."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.scoring.intervals import clopper_pearson
from visionad_runtime.tools.qualification.agreement import fleiss_kappa, variance_components
from visionad_runtime.tools.qualification.daily import rank_test
from visionad_runtime.tools.qualification.detection import fit_pod
from visionad_runtime.tools.qualification.rates import Rate, binomial_tail, images_to_halve


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_intervals_cover_over_simulations(rate: float) -> None:
    seen = np.random.default_rng(1).binomial(40, rate, 4000)
    ends = {int(k): clopper_pearson(int(k), 40) for k in np.unique(seen)}
    covered = np.mean([ends[int(k)][0] <= rate <= ends[int(k)][1] for k in seen])
    assert covered >= 0.95 - 0.007  # two standard errors of 4000 draws


def test_more_images_halve_the_interval_and_one_fewer_does_not() -> None:
    def width(k: int, n: int) -> float:
        low, high = clopper_pearson(k, n)
        return high - low

    for events, trials in ((0, 20), (1, 21), (5, 63)):
        goal, more = width(events, trials) / 2, images_to_halve(events, trials)
        assert width(round(events / trials * (trials + more)), trials + more) <= goal
        assert width(round(events / trials * (trials + more - 1)), trials + more - 1) > goal


def test_a_rate_without_trials_says_nothing() -> None:
    none = Rate.of(0, 0)
    assert (none.value, none.low, none.high) == (None, 0.0, 1.0)


def test_binomial_tail_is_a_sum_of_terms() -> None:
    expected = sum(math.comb(12, k) * 0.2**k * 0.8 ** (12 - k) for k in range(4, 13))
    assert binomial_tail(4, 12, 0.2) == pytest.approx(expected, rel=1e-12)
    assert binomial_tail(0, 12, 0.2) == 1


def simulated(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes, contrasts = np.exp(rng.uniform(1, 5, n)), rng.choice([0.1, 0.2, 0.4], n)
    logit = -4 + 2.0 * np.log(sizes) + 1.5 * np.log(contrasts)
    return sizes, contrasts, rng.random(n) < 1 / (1 + np.exp(-logit))


def true_a90(contrast: float) -> float:
    return math.exp((math.log(9) + 4 - 1.5 * math.log(contrast)) / 2)


def test_pod_fit_finds_the_true_limit_and_its_bound_covers_it() -> None:
    fits = [fit_pod(*simulated(seed)) for seed in range(150)]
    found = [fit.size_at(0.2) for fit in fits]
    assert np.median([f for f in found if f is not None]) == pytest.approx(true_a90(0.2), rel=0.05)
    bounds = [fit.confident_size_at(0.2) for fit in fits]
    covered = np.mean([bound is None or bound >= true_a90(0.2) for bound in bounds])
    assert 0.90 <= covered <= 0.99  # one-sided 95 %


def test_pod_is_the_penalized_maximum() -> None:
    """The penalized likelihood, written out, is not higher anywhere nearby."""
    sizes, contrasts, hits = simulated(3, 60)
    fit = fit_pod(sizes, contrasts, hits)
    rows = np.stack([np.ones(60), np.log(sizes), np.log(contrasts)], axis=1)

    def penalized(b: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-rows @ b))
        information = rows.T @ (rows * (p * (1 - p))[:, None])
        return float(np.log(np.where(hits, p, 1 - p)).sum() + 0.5 * np.linalg.slogdet(information)[1])

    best = np.array(fit.coefficients)
    for k, delta in itertools.product(range(3), (-0.02, 0.02)):
        assert penalized(best + delta * np.eye(3)[k]) < penalized(best)


def test_limits_shrink_with_contrast_and_pod_grows_with_size() -> None:
    fit = fit_pod(*simulated(5))
    limits = [fit.size_at(c) for c in (0.1, 0.2, 0.4)]
    bounds = [fit.confident_size_at(c) for c in (0.1, 0.2, 0.4)]
    assert limits == sorted(limits, reverse=True)
    assert bounds == sorted(bounds, reverse=True)
    assert all(a < b for a, b in zip(limits, bounds, strict=True))
    pods = [fit.pod(s, 0.2) for s in (3, 10, 30, 100)]
    assert pods == sorted(pods)


def test_separated_data_have_finite_limits() -> None:
    sizes = np.array([5.0] * 10 + [50.0] * 10)
    fit = fit_pod(sizes, np.full(20, 0.2), sizes > 20)
    a90 = fit.size_at(0.2)
    assert a90 is not None
    assert 5 < a90 < 50
    assert fit.coefficients[2] == 0


def test_nothing_found_is_said_and_not_extrapolated() -> None:
    fit = fit_pod(np.geomspace(5, 50, 30), np.full(30, 0.2), np.zeros(30))
    assert fit.confident_size_at(0.2) is None
    with pytest.raises(VisionADError, match="expected 12 or more"):
        fit_pod([1.0], [1.0], [1.0])


def test_kappa_against_pairs() -> None:
    """Fleiss' kappa from all pairs of repeats, counted one by one."""
    parts = [["ok", "ok", "bad"], ["bad", "bad", "bad"], ["ok", "ok", "ok"], ["ok", "bad", "bad"]]
    pairs = [[a == b for a, b in itertools.combinations(p, 2)] for p in parts]
    observed = np.mean([np.mean(p) for p in pairs])
    everything = Counter(v for p in parts for v in p)
    chance = sum((c / 12) ** 2 for c in everything.values())
    assert fleiss_kappa(parts) == pytest.approx((observed - chance) / (1 - chance))
    assert fleiss_kappa([["ok", "ok"], ["ok", "ok"]]) is None
    with pytest.raises(VisionADError, match="two verdicts"):
        fleiss_kappa([["ok"]])


def test_variance_components_are_those_that_were_drawn() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        part, station = rng.normal(0, 3, 12), rng.normal(0, 1, 6)
        scores = {
            f"s{o}": {f"p{p}": list(10 + part[p] + station[o] + rng.normal(0, 0.5, 4)) for p in range(12)}
            for o in range(6)
        }
        found.append(variance_components(scores))
    assert np.mean([f.repeatability for f in found]) == pytest.approx(0.25, rel=0.1)
    assert np.mean([f.reproducibility for f in found]) == pytest.approx(1, rel=0.3)
    assert np.mean([f.parts for f in found]) == pytest.approx(9, rel=0.3)


def test_one_station_has_no_reproducibility() -> None:
    found = variance_components({"all": {"a": [1.0, 1.2], "b": [3.0, 3.2], "c": [5.0, 4.8]}})
    assert found.repeatability == pytest.approx(0.02)  # the mean of three variances of pairs
    assert found.reproducibility == 0
    with pytest.raises(VisionADError, match="is not at all of"):
        variance_components({"x": {"a": [1.0, 2.0], "b": [1.0, 2.0]}, "y": {"a": [1.0, 2.0], "c": [1.0, 2.0]}})


def test_rank_test_against_all_permutations() -> None:
    today, before = [5.0, 7.0, 8.0, 9.0], [1.0, 2.0, 3.0, 4.0, 6.0]
    joined = np.array(today + before)
    ranks = joined.argsort().argsort() + 1
    sums = [ranks[list(c)].sum() for c in itertools.combinations(range(9), 4)]
    exact = np.mean([s >= ranks[:4].sum() for s in sums])
    assert rank_test(today, before) == pytest.approx(exact, abs=0.01)
    assert rank_test([1.0] * 5, [1.0] * 5) == 1
    assert rank_test([1.0], before) is None
