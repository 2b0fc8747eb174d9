"""The alarm's bound, checked where it is proven: on exchangeable scores, censored at an order statistic, over many runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionad_runtime.errors import VisionADError
from visionad_runtime.scoring.conformal import conformal_limits
from visionad_runtime.station.judging import exchangeability
from visionad_runtime.station.judging.exchangeability import CELLS, EXPONENTS, ExchangeabilityMonitor


def draw(rng: np.random.Generator, kind: str, size: int) -> NDArray[np.float64]:
    return {
        "normal": lambda: np.abs(rng.normal(5, 1, size)),
        "heavy tail": lambda: np.exp(rng.standard_cauchy(size).clip(-30, 30)),
        "many ties": lambda: rng.integers(0, 12, size).astype(float),
    }[kind]()


def monitor_of(calibration: NDArray[np.float64], alpha: float = 0.01, name: str = "") -> ExchangeabilityMonitor:
    limit = conformal_limits(calibration.tolist(), 0.01, 0.05).ok.value
    return ExchangeabilityMonitor(calibration.tolist(), limit, alpha, name)


def accepted(scores: NDArray[np.float64], monitor: ExchangeabilityMonitor) -> list[float]:
    """What a line gives the monitor: scores of parts that were ok."""
    return [s for s in scores.tolist() if s <= monitor.state()["limit"]]


@pytest.mark.parametrize("kind", ["normal", "heavy tail", "many ties"])
@pytest.mark.parametrize("n", [4, 40])
def test_false_alarms_stay_below_alpha(kind: str, n: int) -> None:
    rng, runs, alpha = np.random.default_rng(n), 600, 0.1
    alarms = 0
    for run in range(runs):
        monitor = monitor_of(draw(rng, kind, n), alpha, f"class {run}")
        for score in accepted(draw(rng, kind, 120), monitor):
            monitor.observe(score)
        alarms += monitor.alarmed
    assert alarms / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize("kind", ["normal", "many ties"])
def test_the_mean_of_the_martingale_is_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only bets of finite variance, so that a mean of simulated values says something."""
    monkeypatch.setattr(exchangeability, "EXPONENTS", (0.7, 0.9))
    rng, runs, times = np.random.default_rng(7), 3000, (1, 3, 10)
    values: dict[int, list[float]] = {time: [] for time in times}
    for run in range(runs):
        monitor = monitor_of(draw(rng, kind, 12), name=f"class {run}")
        while monitor.count < times[-1]:
            before = monitor.count
            monitor.observe(float(draw(rng, kind, 1)[0]))
            if monitor.count > before and monitor.count in values:
                values[monitor.count].append(monitor.value)
    for at_time in values.values():
        error = float(np.std(at_time)) / math.sqrt(runs)
        assert error < 0.04
        assert abs(np.mean(at_time) - 1) <= 3 * error


def test_every_step_is_a_fair_bet() -> None:
    """The expectation over a uniform p, integrated, at any state: no simulation."""
    monitor = monitor_of(draw(np.random.default_rng(1), "normal", 30))
    rng = np.random.default_rng(2)
    for score in draw(rng, "normal", 50):
        monitor.observe(float(score))
    before, t = monitor.value, monitor.count + 1
    stake = 1 / math.log2(t + 1) - 1 / math.log2(t + 2)
    stakes = [math.exp(s) + stake for s in monitor.state()["log_stakes"]]
    # E[f_e(p)] = 1, so the expected next value is the mean of the stakes and what has not begun
    assert np.mean(stakes) + 1 / math.log2(t + 2) == pytest.approx(before, rel=1e-12)
    p = (np.arange(4_000_000) + 0.5) / 4_000_000
    for e in EXPONENTS[2:]:  # the midpoint rule meets the pole at 0 too slowly for the others
        assert float(np.mean(e * p ** (e - 1))) == pytest.approx(1, abs=0.01)


def test_p_values_are_those_of_the_definition() -> None:
    """M after each score, from the definition with plain lists, on scores that lie in cells of their own."""
    rng = np.random.default_rng(5)
    calibration = rng.choice(np.arange(1, CELLS), 30, replace=False) / CELLS
    monitor = ExchangeabilityMonitor([*calibration, 1.0, 1.5], 1.0, name="bolt")
    seen, stakes = calibration.tolist(), np.zeros(len(EXPONENTS))
    exponents = np.array(EXPONENTS)
    for t, score in enumerate((rng.integers(1, CELLS, 200) / CELLS).tolist(), 1):
        seen.append(score)
        monitor.observe(score)
        p = (sum(s > score for s in seen) + monitor._tie() * seen.count(score)) / len(seen)
        stakes = (stakes + 1 / math.log2(t + 1) - 1 / math.log2(t + 2)) * exponents * p ** (exponents - 1)
        assert monitor.value == pytest.approx(stakes.mean() + 1 / math.log2(t + 2), rel=1e-9)
    assert monitor.count == 200


@pytest.mark.parametrize("quiet", [0, 100, 2000])
def test_a_change_is_found_soon_also_after_a_long_quiet_time(quiet: int) -> None:
    rng = np.random.default_rng(3)
    monitor = monitor_of(draw(rng, "normal", 99))
    for score in accepted(draw(rng, "normal", quiet), monitor):
        assert not monitor.observe(score)
    delays = 0
    while not monitor.observe(float(rng.uniform(6.2, 6.6))):  # below the limit, which is about 6.9
        delays += 1
        assert delays < 30
    assert monitor.alarmed
    for score in accepted(draw(rng, "normal", 500), monitor):
        assert monitor.observe(score)  # latched
    monitor.reset()
    assert (monitor.alarmed, monitor.count) == (False, 0)
    assert monitor.value == pytest.approx(1)


def test_a_slow_drift_is_found() -> None:
    rng = np.random.default_rng(4)
    monitor = monitor_of(np.abs(rng.normal(5, 1, 200)))
    alarms = [monitor.observe(float(s)) for s in accepted(rng.normal(5 + np.arange(400) / 200, 1), monitor)]
    assert alarms[-1]
    assert 10 < alarms.index(True) < 300


def test_smaller_scores_raise_no_alarm() -> None:
    monitor = monitor_of(draw(np.random.default_rng(1), "normal", 50))
    assert not any(monitor.observe(0.5) for _ in range(500))
    assert monitor.value < 1


def test_without_the_censoring_the_test_would_lose_its_power() -> None:
    """References at the limit and above would rank above every accepted part."""
    rng = np.random.default_rng(6)
    calibration = draw(rng, "normal", 400)
    limit = float(np.sort(calibration)[320])
    right = ExchangeabilityMonitor(calibration.tolist(), limit)
    wrong = ExchangeabilityMonitor(np.minimum(calibration, limit * (1 - 1e-9)).tolist(), limit)
    for score in rng.normal(5.9, 1, 400):
        if score < limit:
            right.observe(float(score))
            wrong.observe(float(score))
    assert right.alarmed
    assert not wrong.alarmed


def test_scores_at_or_above_the_limit_are_not_tested() -> None:
    monitor = ExchangeabilityMonitor([1.0, 2.0, 3.0], 3.0)
    assert not monitor.observe(3.0)
    assert not monitor.observe(1e300)
    assert monitor.count == 0
    assert monitor.state()["calibration"] == [[CELLS // 3, 1], [2 * CELLS // 3, 1]]


@given(
    scores=st.lists(st.floats(-1, 2), max_size=40),
    more=st.lists(st.floats(-1, 2), max_size=40),
    limit=st.sampled_from([0.0, 0.3, 1.0, 1e-300, 1e300]),
)
def test_a_saved_state_continues_bit_for_bit(scores: list[float], more: list[float], limit: float) -> None:
    one = ExchangeabilityMonitor(scores, limit, 0.05, "ö\n")
    observe(one, more[::2])
    if len(more) % 3 == 0:
        one.reset()
        observe(one, scores)
    text = json.dumps(one.state(), allow_nan=False)
    other = ExchangeabilityMonitor.from_state(json.loads(text))
    assert json.dumps(other.state()) == text
    assert observe(one, more) == observe(other, more)
    assert (one.value, one.count, one.alarmed) == (other.value, other.count, other.alarmed)
    assert math.isfinite(one.value)


def observe(monitor: ExchangeabilityMonitor, scores: Iterable[float]) -> list[float]:
    values = []
    for score in scores:
        monitor.observe(score)
        values.append(monitor.value)
    return values


def test_the_order_of_the_calibration_does_not_matter_and_the_name_does() -> None:
    scores = draw(np.random.default_rng(0), "many ties", 30).tolist()
    later = [2.0, 7.0, 3.0, 3.0, 9.0] * 4
    first = observe(ExchangeabilityMonitor(scores, 11.0, name="a"), later)
    assert observe(ExchangeabilityMonitor(scores[::-1], 11.0, name="a"), later) == first
    assert observe(ExchangeabilityMonitor(scores, 11.0, name="b"), later) != first


def test_the_state_stays_small_and_the_value_finite() -> None:
    rng = np.random.default_rng(8)
    monitor = monitor_of(draw(rng, "normal", 99))
    for i in range(6000):
        monitor.observe(float(6 + 0.0001 * i))
    assert monitor.alarmed
    assert 1 / 0.01 < monitor.value < math.inf
    assert len(json.dumps(monitor.state())) < 64_000


@pytest.mark.parametrize("alpha", [0, 1, -1, float("nan")])
def test_an_alpha_that_is_none(alpha: float) -> None:
    with pytest.raises(VisionADError, match="between 0 and 1"):
        ExchangeabilityMonitor([1.0], 1.0, alpha)


def test_a_score_that_is_no_number_is_refused_and_changes_nothing() -> None:
    for scores, limit in (([math.nan], 1.0), ([1.0], math.inf)):
        with pytest.raises(VisionADError, match="finite score"):
            ExchangeabilityMonitor(scores, limit)
    monitor = ExchangeabilityMonitor([1.0], 2.0)
    before = monitor.state()
    with pytest.raises(VisionADError, match="finite score"):
        monitor.observe(math.nan)
    assert monitor.state() == before


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"log_stakes": [0.0]},
        {"log_stakes": [math.nan] * len(EXPONENTS)},
        {"accepted": [[CELLS, 1]]},
        {"accepted": [[0, -1]]},
        {"accepted": 3},
        {"limit": "x"},
        {"alpha": 2},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, object]) -> None:
    state = ExchangeabilityMonitor([1.0, 2.0], 2.0).state()
    with pytest.raises(VisionADError, match="expected a state of version 1"):
        ExchangeabilityMonitor.from_state({**state, **damage})
    with pytest.raises(VisionADError, match="begin a new monitor"):
        ExchangeabilityMonitor.from_state({})
