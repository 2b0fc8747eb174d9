"""False alarms and detection delays of the exchangeability alarm on real good parts: `python benchmarks/exchangeability.py`.

Streams draw good images at random with replacement, so they are as long as a line's. The calibration's images are drawn alike.
Without drift the alarm may be raised in a fraction ``alpha`` of the streams (Ville's bound). With drift, brightness, blur, noise or
shift grow in steps from a known part on. The delay is the number of good parts from there to the alarm, rejected ones included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import good_parts
import image_changes
import numpy as np
from good_parts import GoodParts
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from visionad_runtime.images.decode import load
from visionad_runtime.preprocess import prepare, query_views
from visionad_runtime.scoring.conformal import conformal_limits
from visionad_runtime.station.judging.exchangeability import ExchangeabilityMonitor

RATES = 0.01, 0.05
"""Wanted rates of ``anomalous`` and of ``review`` or worse, the defaults."""
ALPHAS = (0.1, 0.01)
SUPPORTS, QUIET_PARTS, QUIET_RUNS = 4, 300, 1000
ENROLLED, BANKS = 19, 50
DRIFTED, LEVELS, LEVEL_PARTS, ONSET, AFTER, DRIFT_RUNS = 16, 3, 30, 100, 400, 300
"""Drift: images, steps, parts a step, parts before and at most after its beginning, streams. The last step stays."""
DRIFT_SETS = ("mvtec_bottle", "adfi_hazelnut", "magnetic_tile")
SIZES = (19, 99)

RGB = NDArray[np.uint8]
Scores = NDArray[np.float64]


def brightness(rgb: RGB, level: int) -> RGB:
    """Brighten by 10 % a step."""
    return (rgb * (1 + 0.1 * level)).clip(0, 255).astype(np.uint8)


def blur(rgb: RGB, level: int) -> RGB:
    """Blur by a Gaussian of 0.15 % of the width a step."""
    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(0.0015 * level * rgb.shape[1])))


def noise(rgb: RGB, level: int) -> RGB:
    """Add noise of 5 gray levels a step."""
    drawn = np.random.default_rng(level).normal(0, 5 * level, rgb.shape)
    return (rgb + drawn).round().clip(0, 255).astype(np.uint8)


def shift(rgb: RGB, level: int) -> RGB:
    """Shift to the right by 1 % of the width a step. The border is repeated."""
    return image_changes.shift(rgb, 0.01 * level)


DRIFTS: tuple[Callable[[RGB, int], RGB], ...] = (brightness, blur, noise, shift)


def main() -> None:
    """Measure, print tables, write ``benchmarks/results/exchangeability.json``."""
    with good_parts.arguments(__doc__.splitlines()[0]) as (work, processes):
        results = good_parts.of_each_class(measure, work, processes)
    quiet = [row for result in results for row in result["quiet"]]
    drift = [row for result in results for row in result["drift"]]
    for row in [*quiet, *drift]:
        print(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    facts = {
        "backbone": common.BACKBONE,
        "views": good_parts.SPEC.views,
        "supports": SUPPORTS,
        "rates": RATES,
        "quiet": {"parts": QUIET_PARTS, "streams": QUIET_RUNS, "rows": quiet},
        "drift": {
            "images": DRIFTED,
            "steps": LEVELS,
            "parts a step": LEVEL_PARTS,
            "parts before": ONSET,
            "parts after": AFTER,
            "streams": DRIFT_RUNS,
            "alpha": ALPHAS[-1],
            "kinds": {drift.__name__: drift.__doc__ for drift in DRIFTS},
            "rows": drift,
        },
    }
    print(f"written to {common.write('exchangeability', facts).relative_to(common.ROOT)}")


def measure(parts: GoodParts, work: Path) -> dict[str, Any]:
    """Measure one class."""
    drift = drift_rows(parts, work) if parts.name in DRIFT_SETS else []
    return {"quiet": quiet_rows(parts), "drift": drift}


def new_monitor(calibration: Sequence[float], name: str) -> ExchangeabilityMonitor:
    """Return the monitor of a class with these calibration scores."""
    limit = conformal_limits(calibration, *RATES).ok.value
    return ExchangeabilityMonitor(calibration, limit, ALPHAS[-1], name)


def highest_value(calibration: Sequence[float], stream: Scores, name: str) -> float:
    """Return the highest value that the martingale takes over a stream of good parts."""
    monitor, highest = new_monitor(calibration, name), 1.0
    limit = conformal_limits(calibration, *RATES).ok.value
    for score in stream.tolist():
        if score <= limit:
            monitor.observe(score)
            highest = max(highest, monitor.value)
    return highest


def quiet_rows(parts: GoodParts) -> list[dict[str, Any]]:
    """Count alarms in streams without drift."""
    rng, total = np.random.default_rng(1), len(parts.paths)
    highest: dict[tuple[str, int], list[float]] = {("held-out", n): [] for n in SIZES}
    for bank_number in range(BANKS):
        order = rng.permutation(total)
        scores = np.array([parts.score(i, order[:SUPPORTS]) for i in order[SUPPORTS:]])
        for n in SIZES:
            for run in range(QUIET_RUNS // BANKS):
                drawn = rng.choice(scores, n + QUIET_PARTS)
                name = f"{parts.name}, {bank_number}, {run}"
                highest["held-out", n].append(highest_value(drawn[:n].tolist(), drawn[n:], name))
    highest["enrolled", ENROLLED] = []
    for bank_number in range(BANKS):
        order = rng.permutation(total)
        calibration = parts.left_out(order[:ENROLLED])
        scores = np.array([parts.score(i, order[:ENROLLED]) for i in order[ENROLLED:]])
        for run in range(QUIET_RUNS // BANKS):
            drawn = rng.choice(scores, QUIET_PARTS)
            name = f"{parts.name}, {bank_number}, {run}"
            highest["enrolled", ENROLLED].append(highest_value(calibration, drawn, name))
    return [
        {
            "set": parts.name,
            "scores from": source,
            "n": n,
            "alarms": {str(alpha): float(np.mean(np.array(values) >= 1 / alpha)) for alpha in ALPHAS},
        }
        for (source, n), values in highest.items()
    ]


def drift_rows(parts: GoodParts, work: Path) -> list[dict[str, Any]]:
    """Measure the delay after each kind of drift."""
    rng = np.random.default_rng(2)
    chosen = rng.permutation(len(parts.paths))[: SUPPORTS + DRIFTED]
    bank, images = chosen[:SUPPORTS], chosen[SUPPORTS:]
    scores = drifted_scores(parts, bank, images, work)
    rows = []
    for drift in DRIFTS:
        by_level = scores[drift.__name__]
        for n in SIZES:
            runs = [one_drift(by_level, n, rng, f"{parts.name}, {run}") for run in range(DRIFT_RUNS)]
            delays = np.array([delay for delay, _, _ in runs if delay is not None])
            rows.append(
                {
                    "set": parts.name,
                    "drift": drift.__name__,
                    "n": n,
                    "score ratio, last step": float(np.median(by_level[-1]) / np.median(by_level[0])),
                    "false alarms before": float(np.mean([early for _, _, early in runs])),
                    "found": len(delays) / max(1, sum(not early for _, _, early in runs)),
                    "median delay": float(np.median(delays)) if len(delays) else None,
                    "rejected before the alarm": float(np.mean([rejected for _, rejected, _ in runs])),
                }
            )
    return rows


def one_drift(by_level: Scores, n: int, rng: np.random.Generator, name: str) -> tuple[int | None, int, bool]:
    """Run one stream: delay of the alarm, good parts rejected from the drift's beginning to the alarm, and an alarm before it."""
    calibration = rng.choice(by_level[0], n).tolist()
    limit = conformal_limits(calibration, *RATES).ok.value
    monitor = new_monitor(calibration, name)
    for score in rng.choice(by_level[0], ONSET).tolist():
        if score <= limit and monitor.observe(score):
            return None, 0, True
    rejected = 0
    for part in range(AFTER):
        score = float(rng.choice(by_level[min(1 + part // LEVEL_PARTS, LEVELS)]))
        if score > limit:
            rejected += 1
        elif monitor.observe(score):
            return part + 1, rejected, False
    return None, rejected, False


def drifted_scores(
    parts: GoodParts, bank: NDArray[np.int64], images: NDArray[np.int64], work: Path
) -> dict[str, Scores]:
    """Score each image at each step of each drift: kind → float64 (steps + 1, images), the first row without drift."""
    from visionad_runtime import Inspector

    plain = [parts.score(i, bank) for i in images]
    with Inspector.open(work / "model", threads=1) as inspector:
        supports = [good_parts.encode(inspector, load(parts.paths[i])) for i in bank]

        def score(rgb: RGB) -> float:
            views = query_views(prepare(rgb, inspector.manifest.identity.preprocess), good_parts.SPEC.views)
            tokens = dict(zip(good_parts.SPEC.views, inspector.encode(views).patch, strict=True))
            nearest = np.min([good_parts.distances(tokens, support) for support in supports], axis=0)
            return good_parts.fast_score(nearest)

        rgbs = [load(parts.paths[i]) for i in images]
        return {
            drift.__name__: np.array(
                [plain, *([score(drift(rgb, level)) for rgb in rgbs] for level in range(1, LEVELS + 1))]
            )
            for drift in DRIFTS
        }


if __name__ == "__main__":
    main()
