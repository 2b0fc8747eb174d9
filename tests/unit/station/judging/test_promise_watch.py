"""A promise is void once accepted parts are not like the calibration's, for watch and serve alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.result import Result
from visionad_runtime.station.judging.promise_watch import PromiseWatch

from tests.data import part


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Inspector:
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll("disc", [part(number) for number in range(4)])
    inspector.confirm("disc", [part(number) for number in range(10, 45)])
    return inspector


def parts(inspector: Inspector, low: float, high: float, count: int) -> list[Result]:
    """Accepted parts with scores between two shares of the limit."""
    one = inspector.inspect(part(50), class_name="disc")
    assert inspector.bank is not None
    limit = inspector.bank.classes["disc"].entry.review_threshold
    assert limit is not None
    scores = np.random.default_rng(0).uniform(low * limit, high * limit, count)
    return [replace(one, score=float(score), verdict="ok") for score in scores]


def test_parts_near_the_limit_void_the_promise_once(inspector: Inspector) -> None:
    said: list[str] = []
    watch = PromiseWatch(inspector, said.append)
    results = [watch.follow(one) for one in parts(inspector, 0.97, 0.999, 200)]
    assert results[0].promise is not None and not results[0].promise.void
    assert results[-1].promise is not None and results[-1].promise.void
    assert len(said) == 1 and "its promise is void" in said[0] and "bank confirm" in said[0]
    assert watch.void() == {"disc"} and watch.evidence()["disc"] >= 100
    bad = replace(results[-1], verdict="anomalous", score=9.0, promise=replace(results[-1].promise, void=False))
    followed = watch.follow(bad)
    assert followed.promise is not None and followed.promise.void  # it stands for every part


def test_a_new_calibration_starts_anew(inspector: Inspector) -> None:
    watch = PromiseWatch(inspector)
    for one in parts(inspector, 0.97, 0.999, 200):
        watch.follow(one)
    inspector.confirm("disc", [part(60)])
    (one,) = parts(inspector, 0.5, 0.6, 1)
    followed = watch.follow(one)
    assert followed.promise is not None and not followed.promise.void


def test_defects_are_no_evidence(inspector: Inspector) -> None:
    watch = PromiseWatch(inspector)
    for one in parts(inspector, 0.97, 0.999, 200):
        watch.follow(replace(one, verdict="anomalous", score=9.0))
    assert not watch.void()


def test_a_class_without_a_promise_is_left_alone(inspector: Inspector) -> None:
    inspector.enroll("grid", [part(0, kind="grid")])
    result = inspector.inspect(part(1, kind="grid"), class_name="grid")
    assert PromiseWatch(inspector).follow(result) is result
