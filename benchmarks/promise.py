"""Realised false-reject rates against the promised ones, over random splits of real good parts: `python benchmarks/promise.py`.

``n`` scores promise the best rate they allow, at a wanted rate of 5 %. Scores come from

* enrolled: ``n`` supports, each leave-one-out; other images are scored against all ``n``;
* held-out: ``n`` images beside 4 supports;
* confirmed: 4 supports leave-one-out, and ``n - 4`` images that were confirmed whatever their verdict;
* stream: 9 held-out images at a wanted rate of 10 %, then a stream of good images of which a person confirms the accepted ones.
  They are counted (wrong), or not counted; or all images of the stream are confirmed and counted.

A split's rate over a few fresh images is noisy, so it exceeds the bound of the true rate in more than 5 % of the splits.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import common
import good_parts
import numpy as np
from good_parts import GoodParts
from numpy.typing import NDArray
from visionad_runtime.scoring.conformal import Threshold, conformal_limits

RATE, STREAM_RATE, SPLITS = 0.05, 0.10, 1000
SIZES = (2, 4, 8, 19, 40)
SUPPORTS, STREAM_START = 4, 9
MAX_FRESH, MIN_FRESH = 4, 3
"""Images that test a split of enrolled parts: each takes a map."""
STREAM_FRESH = 8


class Split(NamedTuple):
    """One split: the threshold and the false-reject rate over fresh images."""

    threshold: Threshold
    realised: float


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/promise.json``."""
    with good_parts.arguments(__doc__.splitlines()[0]) as (work, processes):
        results = good_parts.of_each_class(measure, work, processes)
    rows = [row for result in results for row in result["rows"]]
    for row in rows:
        print(
            f"{row['set']:24} {row['scores from']:28} n={row['n']:<5.3g} promised {row['promised']:.3f} "
            f"realised {row['realised']:.4f} ({row['low']:.4f}–{row['high']:.4f}) beyond {row['beyond_bound']:.3f}"
        )
    facts = {
        "backbone": common.BACKBONE,
        "views": good_parts.SPEC.views,
        "rate": RATE,
        "stream_rate": STREAM_RATE,
        "splits": SPLITS,
        "supports": SUPPORTS,
        "rows": rows,
        "skipped": [line for result in results for line in result["skipped"]],
    }
    print(f"written to {common.write('promise', facts).relative_to(common.ROOT)}")


def measure(parts: GoodParts, _: Path) -> dict[str, Any]:
    """Measure one class."""
    splits: dict[tuple[str, int], list[Split]] = defaultdict(list)
    total, rng = len(parts.paths), np.random.default_rng(0)
    skipped = [f"{parts.name}: enrolled, n = {n}: {total} good images" for n in SIZES if total - n < MIN_FRESH]
    skipped += [
        f"{parts.name}: held-out, n = {n}: {total} good images" for n in SIZES if total - SUPPORTS - n < MIN_FRESH
    ]
    for _split in range(SPLITS):
        order = rng.permutation(total)
        for n in SIZES:
            if total - n >= MIN_FRESH:
                bank, fresh = order[:n], order[n : n + MAX_FRESH]
                calibration = parts.left_out(bank)
                splits["enrolled", n].append(split(calibration, np.array([parts.score(i, bank) for i in fresh])))
        bank = order[:SUPPORTS]
        scores = np.array([parts.score(i, bank) for i in order[SUPPORTS:]])
        left_out = parts.left_out(bank)
        for n in SIZES:
            if len(scores) - n >= MIN_FRESH:
                splits["held-out", n].append(split(scores[:n].tolist(), scores[n:]))
            confirmed = n - SUPPORTS
            if confirmed > 0 and len(scores) - confirmed >= MIN_FRESH:
                splits["confirmed", n].append(split(left_out + scores[:confirmed].tolist(), scores[confirmed:]))
        for name, one in streams(scores).items():
            splits[name, 0].append(one)
    rows = [row(parts, name, of) for (name, _n), of in sorted(splits.items())]
    return {"rows": rows, "skipped": skipped}


def split(calibration: list[float], fresh: NDArray[np.float64], rate: float = RATE) -> Split:
    """Return the threshold of these scores and the rate at which it rejects the fresh ones."""
    threshold = conformal_limits(calibration, rate, 0).anomalous
    return Split(threshold, float((fresh > threshold.value).mean()))


def streams(scores: NDArray[np.float64]) -> dict[str, Split]:
    """Return what the three ways to treat confirmations of a stream lead to."""
    start, stream, fresh = np.split(scores, [STREAM_START, len(scores) - STREAM_FRESH])
    at_rate = partial(split, fresh=fresh, rate=STREAM_RATE)
    counted = start.tolist()
    for score in stream.tolist():
        if score <= at_rate(counted).threshold.value:
            counted.append(score)
    return {
        "stream, accepted counted": at_rate(counted),
        "stream, accepted not counted": at_rate(start.tolist()),
        "stream, all counted": at_rate([*start.tolist(), *stream.tolist()]),
    }


def row(parts: GoodParts, name: str, splits: list[Split]) -> dict[str, Any]:
    """Summarise splits: means, a 95 % interval of the realised mean over splits, and how often a split exceeds its own bound."""
    realised = np.array([one.realised for one in splits])
    error = 1.96 * float(realised.std(ddof=1)) / len(splits) ** 0.5
    mean = float(realised.mean())
    return {
        "set": parts.name,
        "images": len(parts.paths),
        "scores from": name,
        "n": float(np.mean([one.threshold.normals for one in splits])),
        "promised": float(np.mean([one.threshold.mean_bound for one in splits])),
        "realised": mean,
        "low": mean - error,
        "high": mean + error,
        "upper_bound": float(np.mean([one.threshold.upper_bound for one in splits])),
        "beyond_bound": float(np.mean([one.realised > one.threshold.upper_bound for one in splits])),
    }


if __name__ == "__main__":
    main()
