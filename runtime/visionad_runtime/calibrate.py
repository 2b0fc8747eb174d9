"""A threshold that can be defended, from good parts only: split conformal prediction.

With ``n`` good pictures that the bank does not hold, sorted scores ``s_1 <= … <= s_n`` and a tolerated false-reject rate ``a``, the
threshold is ``s_k`` with ``k = ceil((n + 1) (1 - a))``. A further good part from the same process then exceeds it with
probability at most ``a`` (Vovk et al. 2005; Lei et al. 2018, theorem 2.2), whatever the scores' distribution. That is an average
over calibration sets; for the set at hand the rate follows Beta(n + 1 - k, k), which gives an upper bound at 95 % confidence.

A picture that the bank does hold is scored with itself left out. Where all n are such supports, drawn at random, the mean rate is
guaranteed too: were each of them and the further part scored against all others, the part's rank would be uniform (full conformal
prediction, Vovk et al. 2005), and a support that is scored without the part scores no lower, because distances only shrink as a
bank grows. For supports that were chosen, and for a mixture of both kinds, nothing is proven: they are the next best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from .artefacts import Calibration, sha256_file
from .bank import stored_name
from .errors import PictureError, VisionADError
from .inspector import Inspector
from .maps import colour_scale

CONFIDENCE = 0.95
Method = Literal["leave-one-out", "held-out", "leave-one-out+held-out"]


@dataclass(frozen=True)
class Threshold:
    """A conformal threshold: ``value``, its ``rank`` among ``normals`` scores, and what it guarantees.

    ``guaranteed`` is the largest mean false-reject rate, ``bound`` the upper bound of this threshold's own rate at ``CONFIDENCE``.
    """

    value: float
    rank: int
    normals: int
    guaranteed: float
    bound: float


def conformal_threshold(scores: Sequence[float], max_false_reject: float) -> Threshold:
    """The threshold of the module's head.

    Raises:
        VisionADError: rate outside 0..1, scores not finite, or too few of them (the message says how many are needed).
    """
    n = len(scores)
    rank = conformal_rank(n, max_false_reject)
    if not np.isfinite(scores).all():
        raise VisionADError("calibration: a score is NaN or Inf; run `visionad doctor`")
    value = float(np.sort(np.asarray(scores, np.float64))[rank - 1])
    return Threshold(value, rank, n, (n + 1 - rank) / (n + 1), false_reject_bound(n, rank))


def conformal_rank(n: int, max_false_reject: float) -> int:
    """Which of ``n`` sorted scores is the threshold, from 1.

    Raises:
        VisionADError: rate outside 0..1, or too few scores (the message says how many are needed).
    """
    if not 0 < max_false_reject < 1:
        raise VisionADError(f"--max-false-reject {max_false_reject}: wanted a rate between 0 and 1, e.g. 0.01")
    rank = max(1, math.ceil((n + 1) * (1 - max_false_reject) - 1e-9))  # a rate near 1 rounds to no score at all
    if rank > n:
        needed = np.ceil(1 / max_false_reject - 1 - 1e-9)
        best = f"; with these, the lowest rate that can be guaranteed is {1 / (n + 1):.4f}" if n else ""
        raise VisionADError(
            f"calibration: a false-reject rate of {max_false_reject:g} takes at least {needed:.9g} good pictures to score (the "
            f"only picture of a class is not one of them), found {n}{best}: give more pictures, or a larger --max-false-reject"
        )
    return rank


def false_reject_bound(n: int, rank: int) -> float:
    """Upper bound, at :data:`CONFIDENCE`, of the false-reject rate of the threshold ``s_rank`` of ``n`` scores.

    The rate's distribution is Beta(n + 1 - rank, rank); its tail is a binomial sum, solved by bisection (no scipy here).
    """

    def above(rate: float) -> float:  # P(true rate > rate) = P(Binomial(n, rate) <= n - rank)
        logs = [
            math.lgamma(n + 1)
            - math.lgamma(j + 1)
            - math.lgamma(n - j + 1)
            + j * math.log(rate)
            + (n - j) * math.log1p(-rate)
            for j in range(n - rank + 1)
        ]
        top = max(logs)
        return math.exp(top) * sum(math.exp(v - top) for v in logs)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) > 1 - CONFIDENCE else (low, middle)
    return high


@dataclass(frozen=True)
class Calibrated:
    """What :func:`calibrate_class` did."""

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
) -> Calibrated:
    """Set a class's threshold from good pictures and store it in the bank, with its provenance.

    No picture is ever compared with itself: one that is a support (same file digest) is scored with that support left out, or, when
    it is the only one, passed over and named in ``skipped``.

    Raises:
        VisionADError: unreadable picture, the same picture twice, too few pictures, class changed meanwhile. Nothing changes then.
    """
    name = stored_name(name)
    bank = inspector.enrolled(name)
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
        guaranteed_false_reject=threshold.guaranteed,
        bound_false_reject=threshold.bound,
        normals=len(scores),
        scores=tuple(scores),
        sources=tuple(str(path.absolute()) for path in seen.values() if path not in alone),
        views=inspector.views,
        top_share=inspector.manifest.top_share,
        rarity=inspector.manifest.rarity,
        precision=inspector.engine.precision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    scale = colour_scale(float(np.median(medians)), threshold.value)
    version = bank.calibrate(name, threshold.value, scale, record, matched.entry)
    return Calibrated(threshold, record, version, tuple(map(str, alone)))


def _by_digest(paths: Sequence[Path]) -> dict[str, Path]:
    """Pictures by their sha256, in the order given.

    Raises:
        VisionADError: one cannot be read, or was given twice, under whatever names.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        try:
            digest = sha256_file(path)
        except OSError as exc:
            raise PictureError(f"{path}: cannot be read: {exc.strerror or exc}") from None
        if digest in seen:
            raise VisionADError(f"calibration: {path} and {seen[digest]} are the same picture; give each once")
        seen[digest] = path
    return seen
