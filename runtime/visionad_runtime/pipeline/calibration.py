"""Thresholds of a class from the scores of its good parts, and what becomes of them when the supports change.

Every support but the first gives a score: its own, leave-one-out. Held-out images and confirmed parts give further scores. The
thresholds are those of ``scoring/conformal.py`` at the wanted rates, or at the best rate that so many scores allow.

When a support is added, scores that were taken before stay valid: a new part's score only shrinks as the bank grows, so a
threshold that keeps its promise with fewer supports keeps it with more. When a support is removed, scores may grow, so only those
that are computed anew count.

A person may type a threshold instead. It promises nothing, holds while scores can only shrink, and is replaced by `calibrate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from ..bank.memory_bank import ClassBank
from ..bank.store import NO_LIMITS
from ..errors import BankError, VisionADError
from ..formats.manifest import (
    ByHand,
    Calibration,
    CalibrationMethod,
    ClassEntry,
    Confirmation,
    KnownDefect,
    Precision,
    ScoreOrigin,
    SupportImage,
)
from ..formats.plain_text import plain
from ..scoring.conformal import CONFIDENCE, Limits, conformal_limits
from ..scoring.regions import heatmap_range
from ..scoring.spec import ScoringSpec
from .leave_one_out import leave_one_out

MAX_FALSE_REJECT = 0.01
"""Default rate of good parts that may be anomalous."""
REVIEW_RATE = 0.05
"""Default rate of good parts that may be for review or anomalous."""
MAX_BY_HAND = 1e30
"""Largest threshold that a person may type. No score comes near it, and twice of it is a float32 number."""
MAX_AUTOMATIC = 16
"""Supports up to which a change scores all of them anew. It takes a search of each against all others: seconds here, minutes with
more. `visionad calibrate` without images does it for any number."""


class GoodScore(NamedTuple):
    """Score of a good image.

    Attributes:
        score: the score.
        source: where the image came from.
        origin: how the score came about.
        sha256: digest of the image's file; ``None`` if an earlier release did not record it.
        pixels: ``images.pixels.pixel_digest`` of the image; ``None`` likewise.
    """

    score: float
    source: str
    origin: ScoreOrigin
    sha256: str | None = None
    pixels: str | None = None

    @classmethod
    def of(cls, score: float, image: SupportImage | Confirmation | KnownDefect, origin: ScoreOrigin) -> GoodScore:
        """Return the score of a recorded image."""
        return cls(score, image.source, origin, image.sha256, None if isinstance(image, KnownDefect) else image.pixels)

    @property
    def digests(self) -> frozenset[str]:
        """What tells its image from others, wherever that lies; empty if unknown."""
        return frozenset({self.sha256, self.pixels} - {None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rates:
    """Tolerated rates.

    Attributes:
        max_false_reject: of good parts that are anomalous.
        review: of good parts that are not ok.
    """

    max_false_reject: float = MAX_FALSE_REJECT
    review: float = REVIEW_RATE

    @classmethod
    def of(cls, record: Calibration | None) -> Rates:
        """Return the rates of a calibration, or the defaults without one. Older records have no review rate: they had no review."""
        if record is None:
            return cls()
        return cls(record.max_false_reject, record.review_rate or 0.0)


@dataclass(frozen=True)
class AutomaticCalibration:
    """Calibrates a class when its supports change. It is a ``bank.store.Calibrate``.

    Attributes:
        spec: how supports are scored.
        precision: precision that the engine realized.
        threads: maximum number of threads (default: all CPUs).
        rates: tolerated rates of a class that has no calibration.
    """

    spec: ScoringSpec
    precision: Precision
    threads: int | None = None
    rates: Rates = Rates()

    def __call__(self, changed: ClassBank, old: ClassEntry | None) -> ClassEntry:
        """Return the entry of a changed class with its thresholds.

        Args:
            changed: class as it will be.
            old: its entry before the change.
        """
        entry, record = changed.entry, None if old is None else old.calibration
        holds = record is not None and self.spec.holds_for(record, self.precision)
        grown = (
            old is not None
            and {i.sha256 for i in old.images} <= {i.sha256 for i in entry.images}
            and (old.roi, old.defects) == (entry.roi, entry.defects)  # otherwise scores are others
        )
        kept = recorded_scores(old) if old is not None and holds and grown else []
        supports: Sequence[int] = range(len(entry.images))
        if len(supports) > MAX_AUTOMATIC:
            if holds and grown:
                return without_defective(entry)
            supports = [round(i) for i in np.linspace(0, len(supports) - 1, MAX_AUTOMATIC)]
        left_out = leave_one_out(changed, self.spec, supports, self.threads) if len(supports) > 1 else []
        scores = [GoodScore.of(s.score, entry.images[s.support], "leave-one-out") for s in left_out]
        scores += other_scores([s for s in kept if s.origin != "leave-one-out"], scores)
        if not scores:
            return entry.model_copy(update=NO_LIMITS)
        levels = [s.normal_level for s in left_out]
        normal_level = float(np.median(levels)) if levels else old.map_scale[0] if old and old.map_scale else 0.0
        depths = {image.bit_depth for image in entry.images}
        return with_limits(
            entry, scores, self.rates if record is None else Rates.of(record), self.spec, self.precision, normal_level,
            bit_depth=depths.pop() if len(depths) == 1 else None, automatic=True,
            by_hand=record.by_hand if record is not None and holds and grown else None,
        )  # fmt: skip


def recalibrate(changed: ClassBank, old: ClassEntry | None) -> ClassEntry:
    """Calibrate a class as it was calibrated before, without a model: the tokens of its supports are in the bank.

    It is a ``bank.store.Calibrate``. A class without thresholds gets none.

    Args:
        changed: class as it will be.
        old: its entry before the change.
    """
    record = None if old is None else old.calibration
    if record is None or len(changed.entry.images) > MAX_AUTOMATIC:
        return changed.entry
    return AutomaticCalibration(ScoringSpec.of(record), record.precision)(changed, old)


def recorded_scores(entry: ClassEntry) -> list[GoodScore]:
    """Return the scores that the thresholds of a class come from, without those of parts that were found defective since.

    A calibration of an earlier release records no digests. Those of supports and confirmed parts are then taken from their records.
    """
    return not_defective(_all_scores(entry), entry)


def not_defective(scores: Iterable[GoodScore], entry: ClassEntry) -> list[GoodScore]:
    """Return the scores of parts that a class does not record as defective."""
    return other_scores(scores, [GoodScore.of(0.0, one, "confirmed") for one in entry.defective])


def _all_scores(entry: ClassEntry) -> list[GoodScore]:
    record = entry.calibration
    if record is None:
        return []
    enrolled = {image.source for image in entry.images}
    origins = record.origins or tuple(
        "held-out" if record.method == "held-out" or source not in enrolled else "leave-one-out"
        for source in record.sources
    )
    unknown = (None,) * len(record.scores)
    rows = zip(record.scores, record.sources, origins, record.digests or unknown, record.pixels or unknown, strict=True)
    scores = [GoodScore(*row) for row in rows]
    return scores if record.digests is not None else _with_digests(entry, scores)


def without_defective(entry: ClassEntry) -> ClassEntry:
    """Return the entry with thresholds that no score of a part that was found defective counts for.

    It is the entry itself if there is no such score, and has no thresholds if there is no other score.
    """
    record, scores = entry.calibration, recorded_scores(entry)
    if record is None or len(scores) == len(record.scores):
        return entry
    if not scores:
        return entry.model_copy(update=NO_LIMITS)
    level = entry.map_scale[0] if entry.map_scale else 0.0
    return with_limits(
        entry, scores, Rates.of(record), ScoringSpec.of(record), record.precision, level,
        bit_depth=record.bit_depth, automatic=bool(record.automatic), by_hand=record.by_hand,
    )  # fmt: skip


def lost_scores(before: ClassEntry, after: ClassEntry) -> list[GoodScore]:
    """Return the scores of held-out and confirmed parts that counted before a change of a class, and do not count after it."""
    return other_scores([s for s in _all_scores(before) if s.origin != "leave-one-out"], _all_scores(after))


def _with_digests(entry: ClassEntry, scores: Sequence[GoodScore]) -> list[GoodScore]:
    sources = [image.source for image in entry.images]
    supports = {image.source: image for image in entry.images if sources.count(image.source) == 1}
    confirmed = list(entry.confirmations or ())
    found = []
    for one in scores:
        image: SupportImage | Confirmation | None = None
        if one.origin == "leave-one-out":
            image = supports.get(one.source)
        elif one.origin == "confirmed":
            image = next((c for c in confirmed if c.counted and (c.source, c.score) == (one.source, one.score)), None)
            if image is not None:
                confirmed.remove(image)
        found.append(one if image is None else GoodScore.of(one.score, image, one.origin))
    return found


def other_scores(scores: Iterable[GoodScore], given: Iterable[GoodScore]) -> list[GoodScore]:
    """Return those of ``scores`` whose images are none of ``given``, so that no image counts twice.

    Images are compared by content. A score whose image has no recorded digest is compared by source.
    """
    given = list(given)
    digests = {digest for one in given for digest in one.digests}
    sources = {plain(one.source) for one in given}
    return [s for s in scores if (digests.isdisjoint(s.digests) if s.digests else s.source not in sources)]


def with_limits(
    entry: ClassEntry,
    scores: Sequence[GoodScore],
    rates: Rates,
    spec: ScoringSpec,
    precision: Precision,
    normal_level: float,
    *,
    bit_depth: int | None = None,
    automatic: bool = False,
    by_hand: ByHand | None = None,
) -> ClassEntry:
    """Return the entry of a class with the thresholds of these scores.

    Args:
        entry: the class.
        scores: scores of good images, at least one.
        rates: tolerated rates.
        spec: how the images were scored.
        precision: precision that the engine realized.
        normal_level: usual value of a good image's anomaly map.
        bit_depth: as stated for the images.
        automatic: whether a change of the supports made it.
        by_hand: a threshold that a person typed, which stays in force.

    Raises:
        VisionADError: There is no score, a score is not finite, or a rate is out of range.
    """
    limits = conformal_limits([s.score for s in scores], rates.max_false_reject, rates.review)
    origins = tuple(s.origin for s in scores)
    digests, pixels = tuple(s.sha256 for s in scores), tuple(s.pixels for s in scores)
    record = Calibration(
        method=_method(origins),
        max_false_reject=rates.max_false_reject,
        confidence=CONFIDENCE,
        guaranteed_false_reject=limits.anomalous.mean_bound,
        bound_false_reject=limits.anomalous.upper_bound,
        normals=len(scores),
        scores=tuple(s.score for s in scores),
        sources=tuple(s.source for s in scores),
        origins=origins,
        digests=digests if any(digests) else None,
        pixels=pixels if any(pixels) else None,
        review_rate=rates.review,
        guaranteed_review=None if limits.review is None else limits.review.mean_bound,
        **spec.fields(),
        precision=precision,
        bit_depth=bit_depth,
        automatic=automatic,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    calibrated = entry.model_copy(update=limits_update(limits, record, normal_level))
    return calibrated if by_hand is None else _in_force(calibrated, by_hand)


def type_threshold(entry: ClassEntry, value: float, who: str, reason: str) -> ClassEntry:
    """Return the entry of a class with a threshold that a person typed. It has no review limit, and promises nothing.

    Args:
        entry: the class.
        value: scores above it are anomalous; positive, and at most :data:`MAX_BY_HAND`.
        who: the person.
        reason: why, in words.

    Raises:
        VisionADError: The value is not positive or too large, or there is no reason.
        BankError: No score of a good part is recorded.
    """
    if not 0 < value <= MAX_BY_HAND:
        raise VisionADError(f"threshold: expected a positive number of at most {MAX_BY_HAND:g}, got {value:g}")
    if not reason.strip():
        raise VisionADError("threshold by hand: expected a reason in words, got none")
    if entry.calibration is None:
        raise BankError(
            "the class has no score of a good part to compare a threshold with; enroll a second good part, or run "
            "`visionad calibrate` with good images"
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return _in_force(entry, ByHand(value=value, who=who, reason=reason.strip()[:500], created=now))


def calibrated_again(entry: ClassEntry) -> ClassEntry:
    """Return the entry of a class whose thresholds are those of its scores again, in place of one by hand.

    Raises:
        BankError: Its threshold is not by hand.
    """
    record = entry.calibration
    if record is None or record.by_hand is None:
        raise BankError("the class has no threshold by hand, so there is nothing to take back")
    level = entry.map_scale[0] if entry.map_scale else 0.0
    return with_limits(
        entry, recorded_scores(entry), Rates.of(record), ScoringSpec.of(record), record.precision, level,
        bit_depth=record.bit_depth, automatic=bool(record.automatic),
    )  # fmt: skip


def _in_force(entry: ClassEntry, by_hand: ByHand) -> ClassEntry:
    assert entry.calibration is not None
    level = entry.map_scale[0] if entry.map_scale else 0.0
    update = {
        "threshold": by_hand.value,
        "review_threshold": None,
        "map_scale": heatmap_range(level, by_hand.value),
        "calibration": entry.calibration.model_copy(update={"by_hand": by_hand}),
    }
    return entry.model_copy(update=update)


def limits_update(limits: Limits, record: Calibration, normal_level: float) -> dict[str, object]:
    """Return the update of an entry that stores limits and their provenance."""
    return {
        "threshold": limits.anomalous.value,
        "review_threshold": None if limits.review is None else limits.review.value,
        "map_scale": heatmap_range(normal_level, limits.anomalous.value),
        "calibration": record,
    }


def _method(origins: Sequence[ScoreOrigin]) -> CalibrationMethod:
    kinds = set(origins)
    if kinds == {"leave-one-out", "held-out"}:
        return "leave-one-out+held-out"
    return next(iter(kinds)) if len(kinds) == 1 else "mixed"
