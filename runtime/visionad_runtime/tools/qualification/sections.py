"""Sections of an acceptance report that come from the user's images: false rejects, misses, repeatability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ...errors import VisionADError
from ...formats.manifest import ClassEntry
from .agreement import fleiss_kappa, variance_components
from .inputs import Labeled
from .rates import CONFIDENCE, Rate
from .scorer import Scored

Outcomes = Mapping[str, Scored]
"""sha256 of an image → its outcome."""


def promise(entry: ClassEntry) -> dict[str, Any]:
    """Return what the thresholds of a class promise, and from what.

    Args:
        entry: a calibrated class.
    """
    record = entry.calibration
    assert record is not None and entry.threshold is not None
    return {
        "threshold": entry.threshold,
        "review_threshold": entry.review_threshold,
        "asked_false_reject": record.max_false_reject,
        "guaranteed_false_reject": record.guaranteed_false_reject,
        "bound_false_reject": record.bound_false_reject,
        "confidence": record.confidence,
        "review_rate": record.review_rate,
        "guaranteed_review": record.guaranteed_review,
        "normals": record.normals,
        "method": record.method,
        "created": record.created,
        "automatic": record.automatic,
    }


def false_rejects(good: Sequence[Labeled], outcomes: Outcomes, bound: float) -> dict[str, Any]:
    """Return the realized false rejects of fresh good images, of all and by group.

    Args:
        good: good images that neither are enrolled nor set the thresholds.
        outcomes: their outcomes.
        bound: upper bound of the promised false-reject rate, at 95 %.

    Returns:
        ``all`` and ``groups``: counts and exact intervals of ``anomalous`` and of ``not_ok`` (review included), median score, and
        whether the promise is ``broken``: the whole interval lies above the bound. Groups are tested at 95 % all together (the
        interval of each is wider by Bonferroni's correction), so that many groups do not make a false alarm likely.
    """

    def row(images: Sequence[Labeled], tests: int) -> dict[str, Any]:
        scored = [outcomes[one.sha256] for one in images]
        rejects = sum(s.verdict == "anomalous" for s in scored)
        return {
            "images": len(images),
            "anomalous": Rate.of(rejects, len(images)).to_dict(),
            "not_ok": Rate.of(sum(s.verdict != "ok" for s in scored), len(images)).to_dict(),
            "median_score": float(np.median([s.score for s in scored])),
            "highest_score": max(s.score for s in scored),
            "broken": _lower_end(rejects, len(images), tests) > bound,
        }

    ordered = sorted(good, key=lambda one: one.group)
    groups = {name: list(images) for name, images in groupby(ordered, key=lambda one: one.group)}
    return {
        "all": row(good, 1),
        "groups": {name: row(images, len(groups)) for name, images in groups.items()} if len(groups) > 1 else {},
        "rejected": [
            {"image": one.name, "group": one.group, "score": outcomes[one.sha256].score}
            for one in sorted(good, key=lambda one: -outcomes[one.sha256].score)
            if outcomes[one.sha256].verdict == "anomalous"
        ],
    }


def _lower_end(events: int, trials: int, tests: int) -> float:
    from ...scoring.intervals import clopper_pearson

    return clopper_pearson(events, trials, 1 - (1 - CONFIDENCE) / tests)[0]


def misses(bad: Sequence[Labeled], outcomes: Outcomes) -> dict[str, Any]:
    """Return the missed defects, of all and by type.

    Args:
        bad: images with a defect, their type as the group.
        outcomes: their outcomes.

    Returns:
        ``all`` and ``types``: ``missed`` counts verdict ok, ``not_rejected`` also review; exact intervals; ``missed_images`` lists
        the missed ones.
    """

    def row(images: Sequence[Labeled]) -> dict[str, Any]:
        scored = [outcomes[one.sha256] for one in images]
        return {
            "images": len(images),
            "missed": Rate.of(sum(s.verdict == "ok" for s in scored), len(images)).to_dict(),
            "not_rejected": Rate.of(sum(s.verdict != "anomalous" for s in scored), len(images)).to_dict(),
            "lowest_score": min(s.score for s in scored),
            "median_score": float(np.median([s.score for s in scored])),
        }

    ordered = sorted(bad, key=lambda one: one.group)
    return {
        "all": row(bad),
        "types": {name: row(list(images)) for name, images in groupby(ordered, key=lambda one: one.group)},
        "missed_images": [
            {"image": one.name, "type": one.group, "score": outcomes[one.sha256].score}
            for one in ordered
            if outcomes[one.sha256].verdict == "ok"
        ],
    }


def repeatability(
    repeats: Mapping[str, Mapping[str, Sequence[Labeled]]], outcomes: Outcomes, threshold: float
) -> dict[str, Any]:
    """Return how far repeats of the same part agree.

    Args:
        repeats: station or day → part → its images.
        outcomes: their outcomes.
        threshold: of the class.

    Returns:
        Spread of scores and verdicts by part, agreement with its exact interval, kappa, and variance components (AIAG).

    Raises:
        VisionADError: A part has a single image, or stations have different parts.
    """
    scores = {o: {p: [outcomes[f.sha256].score for f in files] for p, files in ps.items()} for o, ps in repeats.items()}
    verdicts: dict[str, list[str]] = {}
    for parts in repeats.values():
        for part, files in parts.items():
            verdicts.setdefault(part, []).extend(outcomes[f.sha256].verdict for f in files)
    single = [part for part, seen in verdicts.items() if len(seen) < 2]
    if single:
        raise VisionADError(
            f"--repeat: expected two images or more of each part, but {', '.join(sorted(single)[:5])} has one; add images or take "
            "the part away"
        )
    agree = sum(len(set(seen)) == 1 for seen in verdicts.values())
    rows = []
    for part in sorted(verdicts):
        own = [s for parts in scores.values() for s in parts.get(part, [])]
        rows.append(
            {
                "part": part,
                "images": len(own),
                "mean_score": float(np.mean(own)),
                "deviation": float(np.std(own, ddof=1)),
                "lowest_score": min(own),
                "highest_score": max(own),
                "verdicts": dict(sorted(Counter(verdicts[part]).items())),
            }
        )
    report: dict[str, Any] = {
        "operators": sorted(repeats),
        "parts": rows,
        "agreement": Rate.of(agree, len(verdicts)).to_dict(),
        "kappa": fleiss_kappa(list(verdicts.values())),
        "components": None,
        "why_no_components": None,
    }
    try:
        found = variance_components(scores)
    except VisionADError as exc:
        if len(scores) > 1:
            raise
        return report | {"why_no_components": str(exc)}
    deviation = found.repeatability**0.5
    return report | {
        "components": {
            "repeatability": deviation,
            "reproducibility": found.reproducibility**0.5 if found.operators > 1 else None,
            "parts": found.parts**0.5,
            "grr": found.grr,
            "grr_share": found.grr_share,
            "categories": found.categories,
            "repeats": found.repeats,
        },
        # Scores this close to the threshold may get another verdict when the part is inspected again.
        "uncertain_band": [threshold - 2 * found.grr, threshold + 2 * found.grr],
    }
