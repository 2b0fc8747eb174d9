"""What a line would see: good parts rejected and defects caught at a threshold that knows good images only.

An AUROC is the same whether the scores of all parts shift or not. A verdict is not: a threshold from one day may reject half of the
good parts under another light. So these two rates stand beside the AUROC, also for each condition that a data set tells apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...scoring.conformal import conformal_limits

MAX_FALSE_REJECT = 0.01
"""Wanted false-reject rate. With fewer than 99 good scores it is the best that they can promise, 1 / (n + 1)."""
RATE_NAMES = ("false_reject_rate", "caught_rate")


class ScoredImage(NamedTuple):
    """Score of one test image.

    Attributes:
        score: its score.
        label: 0 for good, 1 for a defect.
        condition: light, day or camera; empty if the data set does not say.
    """

    score: float
    label: int
    condition: str = ""


def verdict_rates(
    tests: Sequence[ScoredImage], normals: Sequence[float] = (), calibration: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return false rejects and caught defects, of all test images and of each condition.

    The threshold is that of the calibration, if it has one; else the conformal threshold of ``normals``; else, without either, each
    half of the good test images sets the threshold of the other half, and a defect that one of both thresholds catches counts half.

    Args:
        tests: scores of the test images in a fixed order.
        normals: scores of good images that are neither enrolled nor test images.
        calibration: that of :meth:`~visionad_runtime.tools.evaluation.predictor.Predictor.calibrate`, if any.

    Returns:
        ``threshold_from`` (``calibration``, ``validation``, ``test_halves``, or ``None`` with a ``reason``), ``normals`` (of
        halves, the larger one), ``promised_false_reject``, ``false_reject_rate``, ``caught_rate``; ``None`` where there is no image
        to count. With two conditions or more also ``by_condition``: the number of images of each, and its two rates.
    """
    good = [index for index, test in enumerate(tests) if not test.label]
    source, used = "calibration", len(normals)
    promised: float | None = None
    if calibration and "threshold" in calibration:
        record = calibration["record"]
        limits, used, promised = [calibration["threshold"]], record["normals"], record["guaranteed_false_reject"]
    elif normals:
        source, limit = "validation", conformal_limits(normals, MAX_FALSE_REJECT, 0).anomalous
        limits, promised = [limit.value], limit.mean_bound
    elif len(good) > 1:
        source, halves = "test_halves", (good[::2], good[1::2])
        both = [
            conformal_limits([tests[i].score for i in half], MAX_FALSE_REJECT, 0).anomalous for half in reversed(halves)
        ]
        limits, used = [limit.value for limit in both], len(halves[0])
        # The halves differ by one image if the number is odd: each promise counts for the images that it is made to.
        promised = sum(limit.mean_bound * len(half) for limit, half in zip(both, halves, strict=True)) / len(good)
    else:
        nothing: dict[str, Any] = dict.fromkeys(("threshold_from", "promised_false_reject", *RATE_NAMES))
        return {
            **nothing,
            "normals": 0,
            "reason": f"{len(good)} good test images, too few to set a threshold for others",
        }
    own_half = {index: number % len(limits) for number, index in enumerate(good)}
    over = [
        float(test.score > limits[own_half[index]]) if index in own_half
        else sum(test.score > limit for limit in limits) / len(limits)
        for index, test in enumerate(tests)
    ]  # fmt: skip
    rates: dict[str, Any] = {"threshold_from": source, "normals": used, "promised_false_reject": promised}
    rates |= _rates(tests, over, range(len(tests)))
    conditions = sorted({test.condition for test in tests})
    if len(conditions) > 1:
        rates["by_condition"] = {}
        for condition in conditions:
            chosen = [index for index, test in enumerate(tests) if test.condition == condition]
            defects = sum(tests[index].label for index in chosen)
            counts = {"good": len(chosen) - defects, "defects": defects}
            rates["by_condition"][condition] = {**counts, **_rates(tests, over, chosen)}
    return rates


def _rates(tests: Sequence[ScoredImage], over: Sequence[float], chosen: Sequence[int]) -> dict[str, float | None]:
    by_label = [[over[index] for index in chosen if tests[index].label == label] for label in (0, 1)]
    return {
        name: sum(values) / len(values) if values else None for name, values in zip(RATE_NAMES, by_label, strict=True)
    }
