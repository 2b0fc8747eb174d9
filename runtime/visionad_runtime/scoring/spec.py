"""Scoring specification: how patch distances become an anomaly map and a score, in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, get_args

from ..errors import VisionADError
from ..formats.manifest import ViewName

if TYPE_CHECKING:
    from ..formats.manifest import Calibration, Precision

TOP_FRACTION = 0.01
"""The paper's fraction of the map's pixels whose mean is the score: the 655 largest."""
ALL_VIEWS: tuple[ViewName, ...] = get_args(ViewName)


class ScoringRecord(Protocol):
    """Fields of a :class:`ScoringSpec` in a model manifest or a calibration record, under their names on disk."""

    @property
    def views(self) -> tuple[ViewName, ...]: ...
    @property
    def top_share(self) -> float: ...
    @property
    def rarity(self) -> bool: ...


@dataclass(frozen=True)
class ScoringSpec:
    """Settings that decide the score of given patch tokens against a given bank. The defaults are the paper's.

    They are not part of a model's identity: a bank serves every specification whose views it holds. A threshold holds for one
    specification only (:meth:`holds_for`).

    Attributes:
        views: views of an image, in order, each once. The map is the sum of their distance maps.
        top_fraction: fraction of the map's largest pixels whose mean is the score, above 0 and up to 1.
        self_similarity: whether a patch's distance is multiplied by its self-similarity weight (``self_similarity.py``).

    Raises:
        VisionADError: A view is unknown or given twice, no view is given, or the fraction is out of range.
    """

    views: tuple[ViewName, ...] = ALL_VIEWS
    top_fraction: float = TOP_FRACTION
    self_similarity: bool = False

    def __post_init__(self) -> None:
        check_views(self.views, ALL_VIEWS)
        if not 0 < self.top_fraction <= 1:
            raise VisionADError(
                f"scoring: expected a top fraction above 0 and up to 1 (the paper: {TOP_FRACTION:g}), got {self.top_fraction}"
            )

    @classmethod
    def of(cls, record: ScoringRecord) -> ScoringSpec:
        """Return the specification in a model manifest or a calibration record."""
        return cls(record.views, record.top_share, record.rarity)

    def fields(self) -> dict[str, Any]:
        """Return the specification under its names on disk and in JSON: ``views``, ``top_share``, ``rarity``."""
        return {"views": self.views, "top_share": self.top_fraction, "rarity": self.self_similarity}

    def describe(self) -> str:
        """Return a phrase for messages, such as ``views original,flip over 0.01 of the map``."""
        weighted = " of weighted distances" if self.self_similarity else ""
        return f"views {','.join(self.views)} over {self.top_fraction:g} of the map{weighted}"

    def holds_for(self, record: Calibration, precision: Precision) -> bool:
        """Return whether a threshold that was calibrated with ``record`` holds for this specification and ``precision``.

        All three settings change scores, so they must be equal. Precisions with at least 11 significant bits (fp32, tf32, fp16) are
        interchangeable: on real images they moved scores by at most 0.3 %, a thirtieth of the spread of good parts. bf16, with 8
        bits, moved them by up to 1.7 % and holds for itself only.

        Args:
            record: calibration of a class.
            precision: precision that the engine computes in.
        """
        same_precision = record.precision == precision or "bf16" not in (record.precision, precision)
        return same_precision and (record.views, record.top_share, record.rarity) == tuple(self.fields().values())


def check_views(views: Sequence[str], available: tuple[ViewName, ...]) -> None:
    """Check that there is at least one view, and that each is available and occurs once.

    Raises:
        VisionADError: They are not valid.
    """
    if not views or len(set(views)) != len(views) or not set(views) <= set(available):
        raise VisionADError(f"views {','.join(views) or '(none)'}: expected some of {','.join(available)}, each once")


def choose_views(views: Sequence[str] | None, available: tuple[ViewName, ...]) -> tuple[ViewName, ...]:
    """Return the chosen views in the order of ``available``.

    Args:
        views: names, or one text of names separated by commas, as on the command line. ``None`` chooses all.
        available: views that the bank or the model holds.

    Raises:
        VisionADError: No view is given, a view is given twice, or a view is not available.
    """
    if views is None:
        return available
    names = [view.strip() for view in views.split(",")] if isinstance(views, str) else list(views)
    check_views(names, available)
    return tuple(view for view in available if view in names)


PAPER = ScoringSpec()
"""As published: three views, mean of the largest 1 % of the map, unweighted distances."""
