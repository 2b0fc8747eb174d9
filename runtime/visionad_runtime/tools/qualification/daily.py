"""The short daily check: golden images again, compared with the accepted report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...bank.names import normalize_class_name
from ...errors import VisionADError
from ...inspector import Inspector
from ...scoring.intervals import clopper_pearson
from .inputs import Inputs
from .performance import latency
from .qualify import (
    FORMAT,
    Progress,
    Settings,
    calibrated_entry,
    check_labels,
    fresh_images,
    header,
    no_progress,
    score_all,
)
from .rates import binomial_tail
from .scorer import Scorer

ALARM_RATE = 0.01
"""Probability at which each statistical check raises a false alarm."""
SCORE_TOLERANCE = 1e-3
"""Relative difference of the score of the same image. The same backend gives the same bits; another one rounds differently."""
SLOWER = 3.0
"""Ratio of median latencies from which on the machine counts as slower."""
CALLS = 20


def read_report(path: Path) -> dict[str, Any]:
    """Read an accepted report.

    Raises:
        VisionADError: It is missing, no JSON, or of another format.
    """
    try:
        report = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise VisionADError(
            f"--daily: expected the accepted report at {path}; run `visionad qualify` without --daily first, or name its folder "
            "with --out"
        ) from None
    except (OSError, ValueError) as exc:
        raise VisionADError(f"{path}: expected the JSON of `visionad qualify`: {exc}; run it again") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise VisionADError(f"{path}: expected a report of format {FORMAT}; run `visionad qualify` again")
    return report


def daily_check(
    inspector: Inspector,
    settings: Settings,
    inputs: Inputs,
    accepted: Mapping[str, Any],
    work: Path,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Inspect golden images and compare with the accepted report.

    Images of the accepted report must have their scores. New images of the golden parts must be rejected no more often than the
    promise allows, must not score higher than the accepted good ones, and must be found if they are bad.

    Args:
        inspector: opened as for the report.
        settings: as for the report.
        inputs: golden images.
        accepted: the accepted report.
        work: file of outcomes. Without one of its own, a check would read what it is to measure.
        progress: shows a bar.

    Returns:
        ``drift``: a line for each finding; ``checks``: what was compared. No finding means that the station is as accepted.

    Raises:
        VisionADError: The class has no valid threshold, the bank knows an image otherwise, or an image cannot be read.
    """
    name = normalize_class_name(settings.class_name)
    entry = calibrated_entry(inspector, name)
    check_labels(entry, inputs)
    fresh, left_out = fresh_images(entry, inputs.good)
    work.unlink(missing_ok=True)
    with closing(Scorer(inspector, name, work, settings.bit_depth)) as scorer:
        outcomes = score_all(scorer, inputs, fresh, progress)
    now = header(inspector, settings, entry)
    drift = changed_parts(now, accepted)
    known: dict[str, dict[str, Any]] = accepted["images"]
    checks: dict[str, Any] = {"same_images": 0, "new_good": 0, "new_bad": 0, "largest_difference": 0.0}
    for one in (*fresh, *inputs.bad):
        before, scored = known.get(one.sha256), outcomes[one.sha256]
        if before is None:
            continue
        checks["same_images"] += 1
        difference = abs(scored.score - before["score"]) / max(abs(before["score"]), 1e-9)
        checks["largest_difference"] = max(checks["largest_difference"], difference)
        if difference > SCORE_TOLERANCE:
            drift.append(f"{one.name}: score {scored.score:.6g}, accepted with {before['score']:.6g}")
        elif scored.verdict != before["verdict"]:
            drift.append(f"{one.name}: verdict {scored.verdict}, accepted as {before['verdict']}")
    new_good = [outcomes[one.sha256] for one in fresh if one.sha256 not in known]
    new_bad = [outcomes[one.sha256] for one in inputs.bad if one.sha256 not in known]
    checks |= {"new_good": len(new_good), "new_bad": len(new_bad)}
    if new_good:
        drift += _good_drift(
            [s.score for s in new_good], sum(s.verdict == "anomalous" for s in new_good), accepted, checks
        )
    if new_bad:
        missed = sum(s.verdict == "ok" for s in new_bad)
        high = accepted["misses"]["all"]["missed"]["high"] if accepted["misses"] else 0.0
        checks["missed"] = missed
        if missed and (not accepted["misses"] or binomial_tail(missed, len(new_bad), high) < ALARM_RATE):
            drift.append(
                f"{missed} of {len(new_bad)} defects were missed; the report allows a rate of at most {high:.3f}"
            )
    with progress("timing", CALLS) as step:
        times = latency(
            inspector, name, [one.path for one in fresh], calls=CALLS, streams=settings.streams, bit_depth=settings.bit_depth,
            step=step,
        )  # fmt: skip
    checks["latency_p50"], before_p50 = times["p50"], accepted["latency"]["p50"]
    if times["p50"] > SLOWER * before_p50:
        drift.append(f"median latency {times['p50']:.0f} ms, accepted with {before_p50:.0f} ms")
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "accepted": accepted["created"],
        "class": name,
        "left_out": left_out,
        "checks": checks,
        "drift": drift,
    }


def _good_drift(scores: list[float], rejects: int, accepted: Mapping[str, Any], checks: dict[str, Any]) -> list[str]:
    """Return what is wrong with new images of good parts."""
    lines, bound = [], accepted["promise"]["bound_false_reject"]
    checks["rejected"] = rejects
    if rejects and binomial_tail(rejects, len(scores), bound) < ALARM_RATE:
        low = clopper_pearson(rejects, len(scores))[0]
        lines.append(
            f"{rejects} of {len(scores)} good parts were rejected (a rate of {low:.3f} or more); the promise allows {bound:.3f}"
        )
    before = [one["score"] for one in accepted["images"].values() if one["verdict"] != "anomalous"]
    p_higher = rank_test(scores, before)
    checks["p_higher"] = p_higher
    if p_higher is not None and p_higher < ALARM_RATE:
        lines.append(
            f"good parts score higher than in the report (median {np.median(scores):.4f}, accepted {np.median(before):.4f}, "
            f"p = {p_higher:.2g}): look at light, lens, position and material"
        )
    return lines


def rank_test(scores: list[float], before: list[float]) -> float | None:
    """Return the one-sided p-value of the Mann-Whitney test that ``scores`` are not higher than ``before``.

    Args:
        scores: (n,) scores of today.
        before: (m,) accepted scores.

    Returns:
        The p-value by the normal approximation with continuity and tie corrections; ``None`` if n or m is below 4.
    """
    n, m = len(scores), len(before)
    if min(n, m) < 4:
        return None
    joined = np.concatenate([scores, before])
    _, inverse, counts = np.unique(joined, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    ties = float((counts**3 - counts).sum()) / ((n + m) * (n + m - 1))
    deviation = (n * m / 12 * (n + m + 1 - ties)) ** 0.5
    if deviation == 0:
        return 1.0
    return 0.5 * math.erfc((u - n * m / 2 - 0.5) / deviation / 2**0.5)


def changed_parts(now: Mapping[str, Any], accepted: Mapping[str, Any]) -> list[str]:
    """Return a line for each part of the station that is not the accepted one."""
    pairs = (
        ("model", now["model"]["sha256"], accepted["model"]["sha256"]),
        ("bank", now["bank"]["sha256"], accepted["bank"]["sha256"]),
        ("scoring", {**now["scoring"], "preset": None}, {**accepted["scoring"], "preset": None}),
        ("ROI", now["roi"], accepted["roi"]),
        ("class", now["class"], accepted["class"]),
        ("backend", now["backend"]["name"], accepted["backend"]["name"]),
        ("precision", now["backend"]["precision"], accepted["backend"]["precision"]),
        ("software", now["environment"]["visionad"], accepted["environment"]["visionad"]),
    )
    lines = []
    for what, new, old in pairs:
        if json.loads(json.dumps(new)) != old:
            shown = [f"{v[:12]}" if isinstance(v, str) else json.dumps(v) for v in (new, old)]
            lines.append(f"another {what}: {shown[0]}, accepted {shown[1]}; qualify again")
    return lines
