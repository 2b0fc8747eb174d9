"""Calibrate a class: an inspector scores good images, and ``scoring/conformal.py`` computes the threshold.

An image that the bank holds is scored leave-one-out. If all n images are supports that were drawn at random, the mean false-reject
rate is guaranteed too. Proof: if each support and the new part were scored against all others, the part's rank would be uniform
(full conformal prediction, Vovk et al. 2005). Scored without the part, a support scores no lower, because distances only shrink as
a bank grows. For supports that were selected, and for a mixture of supports and other images, nothing is proven. Use them if there
is nothing better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..bank.memory_bank import ClassBank
from ..bank.names import normalize_class_name
from ..bank.store import NO_LIMITS, same_supports
from ..bank.supports import check_not_defective
from ..errors import BankError, ImageError, VisionADError
from ..formats.files import sha256_file
from ..formats.manifest import Calibration, ClassEntry, ScoreOrigin
from ..images.pixels import RGB8, pixel_digest
from ..inspector.inspector import Inspector, doubts
from ..pipeline.calibration import (
    MAX_FALSE_REJECT,
    REVIEW_RATE,
    GoodScore,
    Rates,
    other_scores,
    recorded_scores,
    with_limits,
)
from ..pipeline.leave_one_out import leave_one_out
from ..result import FileResult, Result
from ..scoring.conformal import Limits, Threshold, conformal_limits, conformal_rank


@dataclass(frozen=True)
class CalibrationResult:
    """Result of :func:`calibrate_class`.

    Attributes:
        limits: the thresholds.
        record: their provenance, as the bank holds it.
        bank_version: version of the bank that holds it.
        skipped: images that were not scored.
        notes: a line for each image that is nearer to another class.
    """

    limits: Limits
    record: Calibration
    bank_version: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def threshold(self) -> Threshold:
        """Scores above its value are anomalous."""
        return self.limits.anomalous


def calibrate_class(
    inspector: Inspector,
    name: str,
    paths: Sequence[Path] = (),
    max_false_reject: float | None = None,
    bit_depth: int | None = None,
    step: Callable[[], None] = lambda: None,
    *,
    review_rate: float = REVIEW_RATE,
) -> CalibrationResult:
    """Set a class's thresholds from good images, and store them in the bank with their provenance.

    No image is compared with itself. An image that is a support (the same file, or the same pixels in another file) is scored
    leave-one-out. If it is the only support, it is skipped. Scores of confirmed parts count too, unless their images are given.

    Args:
        inspector: inspector with a bank that holds the class. The thresholds hold for its scoring and its engine's precision.
        name: the class.
        paths: good images; none for all supports, leave-one-out, and the held-out images of the calibration before.
        max_false_reject: tolerated rate of good parts that are anomalous, between 0 and 1, which must be reached. ``None`` asks for
            1 %, or the best that so few images can promise.
        bit_depth: bits that the camera fills in 16-bit files.
        step: called after each image.
        review_rate: tolerated rate of good parts that are not ok. At or below ``max_false_reject`` no part is for review.

    Raises:
        VisionADError: An image cannot be read or is given twice, there are too few images, or the class changed meanwhile. Nothing
            is stored.
        BankError: An image is enrolled in another class, or recorded as defective.
    """
    name = normalize_class_name(name)
    bank = inspector.require_class(name)
    held = bank.classes[name]
    entry = held.entry
    rates = Rates(MAX_FALSE_REJECT if max_false_reject is None else max_false_reject, review_rate)
    recorded = [score for score in recorded_scores(entry) if inspector.holds(entry)]
    if paths:
        images = _by_digest(paths)
        given = [GoodScore(0.0, str(path.absolute()), "held-out", digest) for digest, path in images.items()]
        recorded = other_scores([score for score in recorded if score.origin == "confirmed"], given)
        scored = _score_images(
            inspector, name, images, bit_depth, step, rates if max_false_reject else None, len(recorded)
        )
    else:
        recorded = [score for score in recorded if score.origin != "leave-one-out"]
        scored = _score_supports(inspector, held, step)
    scores = [*scored.scores, *other_scores(recorded, scored.scores)]
    if max_false_reject is not None:
        conformal_rank(
            len(scores), max_false_reject
        )  # the rate was asked for, so the best of a lower kind is not enough
    level = float(np.median(scored.levels)) if scored.levels else entry.map_scale[0] if entry.map_scale else 0.0
    changed = with_limits(
        entry, scores, rates, inspector.scoring, inspector.engine.precision, level, bit_depth=bit_depth
    )

    def store(current: ClassBank) -> ClassEntry:
        if not same_supports(current.entry, entry) or current.entry.defective != entry.defective:
            raise BankError(
                f"class {name!r} of bank {bank.folder} was changed while it was being calibrated; nothing was stored, "
                "calibrate again"
            )
        limits = {key: getattr(changed, key) for key in NO_LIMITS}
        return current.entry.model_copy(update=limits)

    version = bank.update(name, f"calibrate {name}: threshold {changed.threshold:.6g}", store)
    assert changed.calibration is not None
    limits = conformal_limits([score.score for score in scores], rates.max_false_reject, rates.review)
    return CalibrationResult(limits, changed.calibration, version, scored.skipped, scored.notes)


class _ScoredImages(NamedTuple):
    scores: list[GoodScore]
    levels: list[float]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _score_supports(inspector: Inspector, held: ClassBank, step: Callable[[], None]) -> _ScoredImages:
    """Score all supports of a class leave-one-out."""
    count = len(held.entry.images)
    scores, levels = [], []
    for k in range(count if count > 1 else 0):
        (one,) = leave_one_out(held, inspector.scoring, [k], inspector.threads)
        scores.append(GoodScore.of(one.score, held.entry.images[k], "leave-one-out"))
        levels.append(one.normal_level)
        step()
    return _ScoredImages(scores, levels)


def _score_images(
    inspector: Inspector,
    name: str,
    images: Mapping[str, Path],
    bit_depth: int | None,
    step: Callable[[], None],
    required: Rates | None,
    recorded: int,
) -> _ScoredImages:
    """Score good images, given by sha256; supports among them leave-one-out."""
    bank = inspector.require_class(name)
    supports = _Supports(bank.classes, name)
    known = {digest: k for digest in images if (k := supports.place(digest, images[digest])) is not None}
    skipped = [images[digest] for digest in known if len(supports) == 1]
    if required is not None:  # fail before minutes of scoring
        conformal_rank(len(images) - len(skipped) + recorded, required.max_false_reject)
    scored: dict[Path, GoodScore] = {}
    levels: list[float] = []
    notes: list[str] = []
    pixels: dict[str, Path] = {}
    held_out_results = inspector.inspect_files(
        [path for digest, path in images.items() if digest not in known], class_name=name, bit_depth=bit_depth
    )
    for digest, path in images.items():
        place, one = known.get(digest), None
        origin: ScoreOrigin = "held-out"
        if place is None:
            one = _read(next(held_out_results))
            place = supports.place(pixel_digest(one.rgb), path)  # a support in another file format
        if place is not None and len(supports) == 1:
            skipped += [path] if path not in skipped else []
        elif place is not None:
            origin = "leave-one-out"
            one = _read(next(inspector.inspect_files([path], class_name=name, bit_depth=bit_depth, leave_out=place)))
        if one is not None:
            of_pixels = pixel_digest(one.rgb)
            twin = pixels.setdefault(of_pixels, path)
            if twin != path:
                raise VisionADError(f"calibration: {path} and {twin} are the same image; give each once")
            if path not in skipped:
                scored[path] = GoodScore(one.result.score, str(path.absolute()), origin, digest, of_pixels)
                levels.append(float(np.median(one.result.anomaly_map)))
                notes += doubts(str(path), one.result)
        step()
    return _ScoredImages(list(scored.values()), levels, tuple(map(str, skipped)), tuple(notes))


class _Supports:
    """Where an image lies among the supports of a class, by the sha256 of its file or the digest of its pixels."""

    def __init__(self, classes: Mapping[str, ClassBank], name: str) -> None:
        self._name = name
        self._entry = classes[name].entry
        self._count = len(classes[name].entry.images)
        self._places: dict[str, tuple[str, int]] = {}
        for owner in (
            *(other for other in classes if other != name),
            name,
        ):  # the class itself comes last, and overrides
            for k, image in enumerate(classes[owner].entry.images):
                self._places |= {digest: (owner, k) for digest in (image.sha256, image.pixels) if digest is not None}

    def __len__(self) -> int:
        return self._count

    def place(self, digest: str, path: Path) -> int | None:
        """The support's number; ``None`` if it is none.

        Raises:
            BankError: it is one of another class, or recorded as defective.
        """
        check_not_defective(self._entry, self._name, str(path), digest)
        owner, k = self._places.get(digest, (self._name, None))
        if owner != self._name:
            raise BankError(
                f"calibration of {self._name!r}: {path} is enrolled already, as {owner}; give good images of this class"
            )
        return k


class _Scored(NamedTuple):
    rgb: RGB8
    result: Result


def _read(one: FileResult) -> _Scored:
    if one.result is None or one.rgb is None:
        raise VisionADError(f"calibration: {one.error}")
    return _Scored(one.rgb, one.result)


def _by_digest(paths: Sequence[Path]) -> dict[str, Path]:
    """Return images by sha256, in the order given.

    Raises:
        VisionADError: An image cannot be read, or two files are identical.
    """
    images: dict[str, Path] = {}
    for path in paths:
        try:
            digest = sha256_file(path)
        except OSError as exc:
            raise ImageError(f"{path}: cannot be read: {exc.strerror or exc}") from None
        if digest in images:
            raise VisionADError(f"calibration: {path} and {images[digest]} are the same image; give each once")
        images[digest] = path
    return images
