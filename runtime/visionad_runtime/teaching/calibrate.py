"""Calibration of a class from good images: their scores by an inspector, the threshold by ``scoring/conformal.py``.

An image that the bank holds is scored with itself left out. Where all n are such supports, drawn at random, the mean rate is
guaranteed too: were each of them and the further part scored against all others, the part's rank would be uniform (full conformal
prediction, Vovk et al. 2005), and a support that is scored without the part scores no lower, because distances only shrink as a
bank grows. For supports that were chosen, and for a mixture of both kinds, nothing is proven: they are the next best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from ..bank.names import normalize_class_name
from ..errors import ImageError, VisionADError
from ..formats.files import sha256_file
from ..formats.manifest import Calibration
from ..inspector import Inspector
from ..scoring.conformal import CONFIDENCE, Threshold, conformal_rank, conformal_threshold
from ..scoring.regions import heatmap_range

Method = Literal["leave-one-out", "held-out", "leave-one-out+held-out"]


@dataclass(frozen=True)
class CalibrationResult:
    """What :func:`calibrate_class` did.

    Attributes:
        threshold: the threshold that was set.
        record: its provenance, as the bank holds it.
        bank_version: of the bank that holds it.
        skipped: images that were passed over.
    """

    threshold: Threshold
    record: Calibration
    bank_version: int
    skipped: tuple[str, ...]


def calibrate_class(
    inspector: Inspector,
    name: str,
    paths: Sequence[Path],
    max_false_reject: float = 0.01,
    bit_depth: int | None = None,
    step: Callable[[], None] = lambda: None,
) -> CalibrationResult:
    """Set a class's threshold from good images and store it in the bank, with its provenance.

    No image is ever compared with itself: one that is a support (same file digest) is scored with that support left out, or, when
    it is the only one, passed over and named in ``skipped``.

    Args:
        inspector: with a bank that holds the class. The threshold holds for its scoring and its engine's precision.
        name: of the class.
        paths: good images.
        max_false_reject: tolerated false-reject rate, between 0 and 1.
        bit_depth: bits that the camera fills in 16-bit files.
        step: called after each image.

    Raises:
        VisionADError: unreadable image, the same image twice, too few images, class changed meanwhile. Nothing changes then.
    """
    name = normalize_class_name(name)
    bank = inspector.require_class(name)
    matched = bank.classes[name]
    places = {image.sha256: k for k, image in enumerate(matched.entry.images)}
    seen = _by_digest(paths)
    alone = [path for digest, path in seen.items() if digest in places and len(places) == 1]
    held_out = [path for digest, path in seen.items() if digest not in places]
    conformal_rank(len(seen) - len(alone), max_false_reject)  # said before minutes of scoring
    scores: list[float] = []
    medians: list[float] = []
    others = inspector.inspect_files(held_out, class_name=name, bit_depth=bit_depth)
    for digest, path in seen.items():
        if path not in alone:
            one = next(
                others
                if digest not in places
                else inspector.inspect_files([path], class_name=name, bit_depth=bit_depth, leave_out=places[digest])
            )
            if one.result is None:
                raise VisionADError(f"calibration: {one.error}")
            scores.append(one.result.score)
            medians.append(float(np.median(one.result.anomaly_map)))
        step()
    threshold = conformal_threshold(scores, max_false_reject)
    left_out = len(scores) - len(held_out)
    method: Method = "held-out" if not left_out else "leave-one-out" if not held_out else "leave-one-out+held-out"
    record = Calibration(
        method=method,
        max_false_reject=max_false_reject,
        confidence=CONFIDENCE,
        guaranteed_false_reject=threshold.mean_bound,
        bound_false_reject=threshold.upper_bound,
        normals=len(scores),
        scores=tuple(scores),
        sources=tuple(str(path.absolute()) for path in seen.values() if path not in alone),
        **inspector.scoring.fields(),
        precision=inspector.engine.precision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    scale = heatmap_range(float(np.median(medians)), threshold.value)
    version = bank.calibrate(name, threshold.value, scale, record, matched.entry)
    return CalibrationResult(threshold, record, version, tuple(map(str, alone)))


def _by_digest(paths: Sequence[Path]) -> dict[str, Path]:
    """Return images by their sha256, in the order given.

    Raises:
        VisionADError: one cannot be read, or was given twice, under whatever names.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        try:
            digest = sha256_file(path)
        except OSError as exc:
            raise ImageError(f"{path}: cannot be read: {exc.strerror or exc}") from None
        if digest in seen:
            raise VisionADError(f"calibration: {path} and {seen[digest]} are the same image; give each once")
        seen[digest] = path
    return seen
