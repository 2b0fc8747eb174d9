"""Audit: leave-one-out scores of supports, which find those that differ from the others of their class.

The score is that of an inspection, so it predicts false rejects of a line. Evidence:
``docs/guides/presets.md``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..bank.memory_bank import ClassBank
from ..formats.manifest import SupportImage
from ..pipeline.calibration import recorded_scores
from ..pipeline.leave_one_out import leave_one_out
from ..scoring.spec import ScoringSpec

OUTLIER_RATIO = 1.5
"""Ratio of a support's score to the median of the others, above which it is an outlier."""
MIN_SUPPORTS = 3
"""Minimum number of supports. Among fewer, no outlier can be identified."""


class LeaveOneOutScore(NamedTuple):
    """Score of a support against the other supports of its class.

    Attributes:
        image: the support.
        score: score of its inspection if it were not enrolled.
        ratio: ``score`` relative to the median of the other supports' scores.
        is_outlier: whether ``ratio`` exceeds :data:`OUTLIER_RATIO`.
    """

    image: SupportImage
    score: float
    ratio: float
    is_outlier: bool


def leave_one_out_scores(bank: ClassBank, spec: ScoringSpec, recorded: bool = False) -> list[LeaveOneOutScore]:
    """Score each support of a class against the others.

    A defect that was enrolled as good hides all similar defects. Among uniform parts it is an outlier. Among parts that vary, the
    most unusual good part is an outlier too. So an outlier is a reason to look at the image, not a verdict.

    Args:
        bank: the class.
        spec: how to score, in views that the bank holds.
        recorded: whether the scores that the calibration of the class has recorded will do, if it has all of them.

    Returns:
        One score per support, in the bank's order; empty for fewer than :data:`MIN_SUPPORTS` supports.

    Raises:
        VisionADError: The grid is too small for self-similarity.
    """
    images = bank.entry.images
    if len(images) < MIN_SUPPORTS:
        return []
    scores = _recorded(bank) if recorded else None
    if scores is None:
        scores = [one.score for one in leave_one_out(bank, spec)]
    rows = []
    for k, image in enumerate(images):
        median = float(np.median([score for i, score in enumerate(scores) if i != k]))
        ratio = scores[k] / median if median > 0 else 1.0
        rows.append(LeaveOneOutScore(image, scores[k], ratio, ratio > OUTLIER_RATIO))
    return rows


def _recorded(bank: ClassBank) -> list[float] | None:
    """Return the recorded scores of all supports in the bank's order; ``None`` if one is missing."""
    known = {
        digest: s.score for s in recorded_scores(bank.entry) if s.origin == "leave-one-out" for digest in s.digests
    }
    found = [known.get(image.sha256, known.get(image.pixels or "")) for image in bank.entry.images]
    scores = [score for score in found if score is not None]
    return scores if len(scores) == len(found) else None
