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
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..bank.memory_bank import ClassBank
from ..bank.names import normalize_class_name
from ..errors import BankError, ImageError, VisionADError
from ..formats.files import sha256_file
from ..formats.manifest import Calibration
from ..images.pixels import RGB8, pixel_digest
from ..inspector import Inspector
from ..result import FileResult, Result
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

    No image is compared with itself. An image that is a support (the same file, or the same pixels in another file) is scored
    leave-one-out. If it is the only support, it is skipped.

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
        BankError: An image is enrolled in another class.
    """
    name = normalize_class_name(name)
    bank = inspector.require_class(name)
    entry = bank.classes[name].entry
    supports = _Supports(bank.classes, name)
    images = _by_digest(paths)
    known = {digest: k for digest in images if (k := supports.place(digest, images[digest])) is not None}
    skipped = [images[digest] for digest in known if len(supports) == 1]
    conformal_rank(len(images) - len(skipped), max_false_reject)  # fail before minutes of scoring
    scored: dict[Path, tuple[float, float]] = {}
    pixels: dict[str, Path] = {}
    left_out = 0
    held_out_results = inspector.inspect_files(
        [path for digest, path in images.items() if digest not in known], class_name=name, bit_depth=bit_depth
    )
    for digest, path in images.items():
        place, one = known.get(digest), None
        if place is None:
            one = _read(next(held_out_results))
            place = supports.place(pixel_digest(one.rgb), path)  # a support in another file format
        if place is not None and len(supports) == 1:
            skipped += [path] if path not in skipped else []
        elif place is not None:
            left_out += 1
            one = _read(next(inspector.inspect_files([path], class_name=name, bit_depth=bit_depth, leave_out=place)))
        if one is not None:
            twin = pixels.setdefault(pixel_digest(one.rgb), path)
            if twin != path:
                raise VisionADError(f"calibration: {path} and {twin} are the same image; give each once")
            if path not in skipped:
                scored[path] = one.result.score, float(np.median(one.result.anomaly_map))
        step()
    scores, medians = [score for score, _ in scored.values()], [median for _, median in scored.values()]
    threshold = conformal_threshold(scores, max_false_reject)
    held_out = len(scores) - left_out
    method: Method = "held-out" if not left_out else "leave-one-out" if not held_out else "leave-one-out+held-out"
    record = Calibration(
        method=method,
        max_false_reject=max_false_reject,
        confidence=CONFIDENCE,
        guaranteed_false_reject=threshold.mean_bound,
        bound_false_reject=threshold.upper_bound,
        normals=len(scores),
        scores=tuple(scores),
        sources=tuple(str(path.absolute()) for path in scored),
        **inspector.scoring.fields(),
        precision=inspector.engine.precision,
        bit_depth=bit_depth,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    scale = heatmap_range(float(np.median(medians)), threshold.value)
    version = bank.calibrate(name, threshold.value, scale, record, entry)
    return CalibrationResult(threshold, record, version, tuple(map(str, skipped)))


class _Supports:
    """Where an image lies among the supports of a class, by the sha256 of its file or the digest of its pixels."""

    def __init__(self, classes: Mapping[str, ClassBank], name: str) -> None:
        self._name = name
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
            BankError: it is one of another class.
        """
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
