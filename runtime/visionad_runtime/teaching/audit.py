"""Leave-one-out scores of the enrolled images: which support looks like none of the others.

The score is the one that inspection uses, so it speaks of the very false rejects a line would see. Evidence:
``docs/guides/presets.md``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..bank.memory_bank import ClassBank
from ..formats.manifest import SupportImage
from ..scoring.score import score_tokens
from ..scoring.spec import ScoringSpec
from .selection import search_rows

OUTLIER_RATIO = 1.5
"""How many times the others' median a support's score must be to be named."""
MIN_SUPPORTS = 3
"""Of fewer, none can be told from the others."""


class LeaveOneOutScore(NamedTuple):
    """A support against the others of its class.

    Attributes:
        image: the support.
        score: as if it were inspected and not enrolled.
        ratio: of the score to the median of the other supports' scores.
        is_outlier: whether the ratio exceeds :data:`OUTLIER_RATIO`.
    """

    image: SupportImage
    score: float
    ratio: float
    is_outlier: bool


def leave_one_out_scores(matched: ClassBank, spec: ScoringSpec) -> list[LeaveOneOutScore]:
    """Score each support of a class against the others, in the bank's order; none for fewer than :data:`MIN_SUPPORTS`.

    A defect that was enrolled as good hides every defect like it. It is an outlier where good parts look alike. Where they vary,
    the most unusual good part is an outlier as well: a reason to look at the image, not a verdict.

    Args:
        matched: the class.
        spec: how to score, in views that the bank holds.

    Raises:
        VisionADError: the grid is too small for the specification's self-similarity.
    """
    images = matched.entry.images
    if len(images) < MIN_SUPPORTS:
        return []
    scores = [
        score_tokens(matched.unrotated(k, spec.views), search_rows(matched.leave_out(k)), spec).score
        for k in range(len(images))
    ]
    rows = []
    for k, image in enumerate(images):
        median = float(np.median([score for i, score in enumerate(scores) if i != k]))
        ratio = scores[k] / median if median > 0 else 1.0
        rows.append(LeaveOneOutScore(image, scores[k], ratio, ratio > OUTLIER_RATIO))
    return rows
