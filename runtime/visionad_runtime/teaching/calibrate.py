"""Calibrate a class: an inspector scores good images, and ``scoring/conformal.py`` computes the threshold.

An image that the bank holds is scored leave-one-out. If all n images are supports that were drawn at random, the mean false-reject
rate is guaranteed too. Proof: if each support and the new part were scored against all others, the part's rank would be uniform
(full conformal prediction, Vovk et al. 2005). Scored without the part, a support scores no lower, because distances only shrink as
a bank grows. For supports that were selected, and for a mixture of supports and other images, nothing is proven. Use them if there
is nothing better.
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
    """Result of :func:`calibrate_class`.

    Attributes:
        threshold: the threshold.
        record: its provenance, as the bank holds it.
        bank_version: version of the bank that holds it.
        skipped: images that were not scored.
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
    """Set a class's threshold from good images, and store it in the bank with its provenance.

    No image is compared with itself. An image that is a support (same file digest) is scored leave-one-out. If it is the only
    support, it is skipped.

    Args:
        inspector: inspector with a bank that holds the class. The threshold holds for its scoring and its engine's precision.
        name: the class.
        paths: good images.
        max_false_reject: tolerated false-reject rate, between 0 and 1.
        bit_depth: bits that the camera fills in 16-bit files.
        step: called after each image.

    Raises:
        VisionADError: An image cannot be read or is given twice, there are too few images, or the class changed meanwhile. Nothing
            is stored.
    """
    name = normalize_class_name(name)
    bank = inspector.require_class(name)
    entry = bank.classes[name].entry
    support_index = {image.sha256: k for k, image in enumerate(entry.images)}
    images = _by_digest(paths)
    skipped = [path for digest, path in images.items() if digest in support_index and len(support_index) == 1]
    held_out = [path for digest, path in images.items() if digest not in support_index]
    conformal_rank(len(images) - len(skipped), max_false_reject)  # fail before minutes of scoring
    scores: list[float] = []
    medians: list[float] = []
    held_out_results = inspector.inspect_files(held_out, class_name=name, bit_depth=bit_depth)
    for digest, path in images.items():
        if path not in skipped:
            outcome = next(
                held_out_results
                if digest not in support_index
                else inspector.inspect_files(
                    [path], class_name=name, bit_depth=bit_depth, leave_out=support_index[digest]
                )
            )
            if outcome.result is None:
                raise VisionADError(f"calibration: {outcome.error}")
            scores.append(outcome.result.score)
            medians.append(float(np.median(outcome.result.anomaly_map)))
        step()
    threshold = conformal_threshold(scores, max_false_reject)
    supports_scored = len(scores) - len(held_out)
    method: Method = (
        "held-out" if not supports_scored else "leave-one-out" if not held_out else "leave-one-out+held-out"
    )
    record = Calibration(
        method=method,
        max_false_reject=max_false_reject,
        confidence=CONFIDENCE,
        guaranteed_false_reject=threshold.mean_bound,
        bound_false_reject=threshold.upper_bound,
        normals=len(scores),
        scores=tuple(scores),
        sources=tuple(str(path.absolute()) for path in images.values() if path not in skipped),
        **inspector.scoring.fields(),
        precision=inspector.engine.precision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    scale = heatmap_range(float(np.median(medians)), threshold.value)
    version = bank.calibrate(name, threshold.value, scale, record, entry)
    return CalibrationResult(threshold, record, version, tuple(map(str, skipped)))


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
