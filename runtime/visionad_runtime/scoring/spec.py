"""How an anomaly map and its score are made of patch distances: one value, carried whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, get_args

from ..errors import VisionADError
from ..formats.manifest import ViewName

if TYPE_CHECKING:
    from ..formats.manifest import Calibration, Precision

TOP_FRACTION = 0.01
"""Fraction of the map's pixels whose mean is the score in the paper: the 655 largest."""
ALL_VIEWS: tuple[ViewName, ...] = get_args(ViewName)


class ScoringRecord(Protocol):
    """What a model manifest and a calibration record hold of a :class:`ScoringSpec`, under the names they have on disk."""

    @property
    def views(self) -> tuple[ViewName, ...]: ...
    @property
    def top_share(self) -> float: ...
    @property
    def rarity(self) -> bool: ...


@dataclass(frozen=True)
class ScoringSpec:
    """What decides the score of given patch tokens against a given bank.

    It is no part of a model's identity: a bank serves every specification whose views it holds. A threshold holds for one
    specification only (:meth:`holds_for`). The defaults are the paper's.

    Attributes:
        views: views of an image, in order, each once; the map is the sum of their distance maps.
        top_fraction: fraction of the map's largest pixels whose mean is the score, above 0 and up to 1.
        self_similarity: whether a patch's distance is multiplied by its self-similarity weight (``self_similarity.py``).

    Raises:
        VisionADError: a view is unknown or given twice, none is given, or the fraction is out of range.
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
        """Read the specification that a model manifest or a calibration record holds."""
        return cls(record.views, record.top_share, record.rarity)

    def fields(self) -> dict[str, Any]:
        """Return the specification under the names that it has on disk and in JSON: ``views``, ``top_share``, ``rarity``."""
        return {"views": self.views, "top_share": self.top_fraction, "rarity": self.self_similarity}

    def describe(self) -> str:
        """Return one phrase for messages, such as ``views original,flip over 0.01 of the map``."""
        weighed = " of weighed distances" if self.self_similarity else ""
        return f"views {','.join(self.views)} over {self.top_fraction:g} of the map{weighed}"

    def holds_for(self, record: Calibration, precision: Precision) -> bool:
        """Return whether scores made so, in ``precision``, are the ones that were calibrated.

        The map is a sum over views of distances, weighed or not, and the score a mean over a fraction of it, so these must be
        equal. Precisions of 11 significant bits or more (fp32, tf32, fp16) stand in for each other: on real images they moved
        scores by at most 0.3 %, a thirtieth of the spread of good parts. bf16, of 8 bits (up to 1.7 %), stands for itself alone.
        """
        same_precision = record.precision == precision or "bf16" not in (record.precision, precision)
        return same_precision and (record.views, record.top_share, record.rarity) == tuple(self.fields().values())


def check_views(views: Sequence[str], available: tuple[ViewName, ...]) -> None:
    """Check that there are views, each once and each available.

    Raises:
        VisionADError: they are not.
    """
    if not views or len(set(views)) != len(views) or not set(views) <= set(available):
        raise VisionADError(f"views {','.join(views) or '(none)'}: expected some of {','.join(available)}, each once")


def choose_views(views: Sequence[str] | None, available: tuple[ViewName, ...]) -> tuple[ViewName, ...]:
    """Return the chosen views in the order of ``available``.

    Args:
        views: names, or names with commas between, as on the command line; ``None`` chooses all.
        available: what the bank or the model holds.

    Raises:
        VisionADError: none, one twice, or one that is not available.
    """
    if views is None:
        return available
    names = [view.strip() for view in views.split(",")] if isinstance(views, str) else list(views)
    check_views(names, available)
    return tuple(view for view in available if view in names)


PAPER = ScoringSpec()
"""As published: three views, mean of the largest 1 % of the map, plain distances."""
