"""A complete evaluation: all units of a run, with means and spread over classes and seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...formats.manifest import ModelManifest
from ...scoring.spec import ScoringSpec
from .own_metrics import OWN_NAMES
from .published import METRICS
from .store import EvaluationUnit
from .verdicts import RATE_NAMES

Mode = Literal["separate", "multi"]

RATES = ("routing_accuracy", "unknown_rate", *RATE_NAMES, "miss_rate")


@dataclass(frozen=True)
class Evaluation:
    """All units of a run, and its settings.

    Attributes:
        manifest: the model.
        scoring: how it scores.
        dataset: name of the data set's layout.
        root: folder of the data set.
        shots: supports per class.
        mode: ``separate`` or ``multi``.
        engine: name of the predictor.
        seeds: seeds of the support selection; ``None`` for the first images by name.
        calibrate: target false-reject rate, ``None`` without calibration.
        units: one per seed and class.
        skipped: unreadable files that were skipped.
        resumed: number of units that an earlier run had finished.
        rois: what was inspected of each image, as on the command line; none for whole images.
        copies: number of images that a class holds twice, by class and kind.
    """

    manifest: ModelManifest
    scoring: ScoringSpec
    dataset: str
    root: Path
    shots: int
    mode: Mode
    engine: str
    seeds: tuple[int | None, ...]
    calibrate: float | None
    units: tuple[EvaluationUnit, ...]
    skipped: tuple[dict[str, Any], ...]
    resumed: int
    rois: tuple[str, ...] = ()
    copies: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def of_class(self, name: str) -> list[EvaluationUnit]:
        """Return the units of a class, by seed."""
        return [unit for unit in self.units if unit.result["class"] == name]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted."""
        return sorted({unit.result["class"] for unit in self.units})

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``visionad eval --json`` writes."""
        results = [unit.result for unit in self.units]
        per_seed = [
            {"seed": seed, **mean_over_classes([averageable(r) for r in results if r["seed"] == seed])}
            for seed in self.seeds
        ]
        by_class = {
            name: spread_over_seeds([averageable(r) for r in results if r["class"] == name]) for name in self.classes
        }
        return {
            "model": self.manifest.content_digest(),
            "model_name": self.manifest.identity.describe(),
            "dataset": self.dataset,
            "root": str(self.root),
            "shots": self.shots,
            "mode": self.mode,
            "engine": self.engine,
            **self.scoring.fields(),
            "views": list(self.scoring.views),
            "calibrate": self.calibrate,
            **({"roi": list(self.rois)} if self.rois else {}),
            "seeds": list(self.seeds),
            "results": results,
            "per_seed": per_seed,
            "mean": {"by_class": by_class, "all": spread_over_seeds(per_seed)},
            "skipped": list(self.skipped),
            "copies": {name: dict(kinds) for name, kinds in self.copies.items()},
        }


def averageable(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a result that can be averaged."""
    values = {**result, **result["verdicts"], **result.get("calibration", {})}
    names = (*METRICS, *OWN_NAMES, *(f"separate_{m}" for m in METRICS), *RATES)
    return {name: values[name] for name in names if name in values}


def mean_over_classes(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the means over the classes that have the number."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [v for row in rows if (v := row.get(name)) is not None] for name in names}
    return {name: math.fsum(values) / len(values) if values else None for name, values in columns.items()}


def spread_over_seeds(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return mean and sample standard deviation over seeds. The deviation is ``None`` for a single seed."""
    names = dict.fromkeys(name for row in rows for name in row if name != "seed")
    spread: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        mean = math.fsum(values) / len(values) if values else None
        spread[name] = {"mean": mean, "std": statistics.stdev(values) if len(values) > 1 else None}
    return spread
