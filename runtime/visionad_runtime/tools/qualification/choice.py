"""Which of several measured set-ups to take: accuracy, Pareto front, recommendation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from ...scoring.conformal import conformal_limits
from ..evaluation.metrics import image_metrics
from .rates import Rate

Status = Literal["measured", "over budget", "stopped early", "beaten"]
"""``stopped early``: clearly less accurate than another. ``beaten``: slower than one that no accuracy could beat."""
MIN_HALF = 25
"""Good images, and as many bad ones, of each half below which the images are not split: fewer are too few to choose on."""
MIN_EARLY = 4
"""Good images, and as many bad ones, before which no set-up is stopped early."""
SAME = 0.002
"""AUROC difference below which two set-ups count as equally accurate, and the faster one is taken."""
SAME_SPREAD = 0.02
"""The same for the relative spread of good scores."""
SAME_LATENCY = 1.15
"""Ratio of latencies up to which two set-ups count as equally fast: medians of a few calls on a machine that does other work."""
MAX_FALSE_REJECT = 0.01


@dataclass(frozen=True)
class Candidate:
    """A set-up to measure.

    Attributes:
        model: name of the model.
        folder: its folder.
        preset: scoring.
        backend: engine.
        precision: precision of the engine.
        shots: number of supports.
        grid: rows and columns of tiles; (1, 1) for whole images.
    """

    model: str
    folder: str
    preset: str
    backend: str
    precision: str
    shots: int
    grid: tuple[int, int] = (1, 1)

    def name(self) -> str:
        """Return the set-up in a phrase."""
        tiles = "" if self.grid == (1, 1) else f", {self.grid[0]} x {self.grid[1]} tiles"
        shots = "1 shot" if self.shots == 1 else f"{self.shots} shots"
        return f"{self.model}, {self.preset}, {shots}{tiles}, {self.backend} in {self.precision}"


@dataclass(frozen=True)
class Measured:
    """What was measured of a set-up.

    Attributes:
        candidate: the set-up.
        status: whether it was measured to the end.
        latency_ms: median, file to verdict; ``None`` if not measured.
        memory_mb: model file and bank rows.
        auroc: image AUROC of all bad against all good images; ``None`` without bad images.
        auroc_choose: AUROC of the half of the images that the recommendation rests on.
        auroc_report: AUROC of the other half, which no choice has seen; ``None`` if there are too few images to split.
        spread: standard deviation of good scores over their mean.
        promised: false-reject rate that the good images promise.
        normals: number of good scores.
        caught: share of bad images above the threshold of that promise, with its interval.
    """

    candidate: Candidate
    status: Status
    latency_ms: float | None = None
    memory_mb: float | None = None
    auroc: float | None = None
    auroc_choose: float | None = None
    auroc_report: float | None = None
    spread: float | None = None
    promised: float | None = None
    normals: int = 0
    caught: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in JSON types."""
        return {**asdict(self), "name": self.candidate.name()}


def accuracy(good: Sequence[float], bad: Sequence[float]) -> dict[str, Any]:
    """Return the figures of :class:`Measured` that come from scores.

    Args:
        good: scores of good images that are not enrolled, in a fixed order.
        bad: scores of images with defects, in a fixed order.
    """
    limits = conformal_limits(good, MAX_FALSE_REJECT, 0)
    figures: dict[str, Any] = {
        "spread": float(np.std(good, ddof=1) / np.mean(good)) if len(good) > 1 and np.mean(good) > 0 else None,
        "promised": limits.anomalous.mean_bound,
        "normals": len(good),
    }
    if not bad:
        return figures
    figures["auroc"] = figures["auroc_choose"] = auroc(good, bad)
    figures["caught"] = Rate.of(sum(s > limits.anomalous.value for s in bad), len(bad)).to_dict()
    if min(len(good), len(bad)) >= 2 * MIN_HALF:
        figures["auroc_choose"] = auroc(good[::2], bad[::2])
        figures["auroc_report"] = auroc(good[1::2], bad[1::2])
    return figures


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Return the image AUROC, 0 to 1. There must be an image of either kind."""
    value = image_metrics([*good, *bad], [0] * len(good) + [1] * len(bad)).values["image_auroc"]
    assert value is not None
    return value


def standard_error(value: float, good: int, bad: int) -> float:
    """Return the standard error of an AUROC (Hanley and McNeil, Radiology 143, 1982).

    Args:
        value: the AUROC.
        good: number of good images.
        bad: number of bad images.
    """
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (bad - 1) * (q1 - value**2) + (good - 1) * (q2 - value**2)
    return math.sqrt(max(0.0, variance) / (good * bad))


def is_hopeless(good: Sequence[float], bad: Sequence[float], best: float | None) -> bool:
    """Return whether the first images of a set-up lie clearly below the best AUROC so far: by more than three standard errors.

    Args:
        good: scores so far.
        bad: scores so far.
        best: highest AUROC of a finished set-up, ``None`` if there is none.
    """
    if best is None or min(len(good), len(bad)) < MIN_EARLY:
        return False
    value = auroc(good, bad)
    return value + 3 * max(standard_error(value, len(good), len(bad)), 0.02) < best


def is_beaten(latency_ms: float, rows: Sequence[Measured]) -> bool:
    """Return whether a set-up of this latency cannot be recommended, however accurate it is: a clearly faster one is perfect.

    Args:
        latency_ms: median latency of the set-up.
        rows: what was measured before.
    """
    return any(_is_perfect(row) and latency_ms > SAME_LATENCY * (row.latency_ms or 0.0) for row in _finished(rows))


def fewer_shots_suffice(candidate: Candidate, rows: Sequence[Measured]) -> bool:
    """Return whether the same set-up with fewer shots, which is no slower, is perfect or was beaten.

    Args:
        candidate: the set-up.
        rows: what was measured before.
    """
    return any(
        row.candidate.shots < candidate.shots
        and replace(row.candidate, shots=candidate.shots) == candidate
        and (row.status == "beaten" or _is_perfect(row))
        for row in rows
    )


def _is_perfect(row: Measured) -> bool:
    return row.auroc_choose is not None and row.auroc_choose >= 1 - SAME


def same_scores(first: Candidate, second: Candidate) -> bool:
    """Return whether two set-ups differ in the backend alone, so that their scores agree up to rounding."""
    return replace(first, backend=second.backend) == second


def pareto(rows: Sequence[Measured]) -> list[Measured]:
    """Return the set-ups that no other one beats in both latency and accuracy, fastest first."""
    front: list[Measured] = []
    for row in sorted(_finished(rows), key=lambda r: (r.latency_ms or 0.0, -_merit(r))):
        if not front or _merit(row) > _merit(front[-1]):
            front.append(row)
    return front


def recommend(rows: Sequence[Measured], budget_ms: float | None) -> Measured | None:
    """Return the most accurate set-up within the budget; of equally accurate ones a fast one, of equally fast ones fewest shots.

    Args:
        rows: what was measured.
        budget_ms: highest median latency; ``None`` for any.

    Returns:
        ``None`` if none is within the budget.
    """
    inside = [r for r in _finished(rows) if budget_ms is None or (r.latency_ms or 0.0) <= budget_ms]
    if not inside:
        return None
    best = max(map(_merit, inside))
    tolerance = SAME if inside[0].auroc_choose is not None else SAME_SPREAD * abs(best)
    equal = [r for r in inside if _merit(r) >= best - tolerance]
    fastest = min(r.latency_ms or 0.0 for r in equal)
    return min(
        (r for r in equal if (r.latency_ms or 0.0) <= SAME_LATENCY * fastest),
        key=lambda r: (r.candidate.shots, r.latency_ms or 0.0),
    )


def _finished(rows: Sequence[Measured]) -> list[Measured]:
    return [r for r in rows if r.status == "measured" and r.latency_ms is not None]


def _merit(row: Measured) -> float:
    """Return what is to be high: AUROC, or, without bad images, the negative spread of good scores."""
    if row.auroc_choose is not None:
        return row.auroc_choose
    return -math.inf if row.spread is None else -row.spread
