"""Results of an inspection: data only, and the function that makes the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bank.memory_bank import ClassBank
from .bank.routing import Route
from .engine.base import Engine, Tokens
from .errors import ImageError
from .formats.manifest import Precision, PreprocessSpec, ViewName
from .images import pixels
from .pipeline.base import PipelineOutput, StageTimer
from .scoring.regions import Geometry, Region, regions

F32 = NDArray[np.float32]
Verdict = Literal["ok", "anomalous", "unknown"]
ClassSource = Literal["given", "routed", "unknown"]


@dataclass(frozen=True)
class Result:
    """Result of one inspected image.

    Attributes:
        score: mean of the map's largest pixels. How many is the scoring's ``top_fraction`` (the paper: 1 %).
        verdict: ``unknown`` if the class has no valid threshold or the image belongs to no class; ``anomalous`` if the score
            exceeds the threshold; else ``ok``.
        class_name: class of the part, or ``None`` if the image belongs to no class.
        class_source: ``given`` by the caller, ``routed`` by class token, or ``unknown``.
        class_margin: distance to the second nearest class minus that to the nearest; ``None`` if the class was given, or with one
            class.
        threshold: of the class, or ``None`` if there is no valid one.
        bank_version: version of the bank that the image was compared with.
        regions: connected anomalous areas, highest score first.
        anomaly_map: float32 (256, 256) of the center crop, the sum of the views' cosine distances (0 to 2 per view).
        geometry: maps ``anomaly_map`` to the original image.
        map_scale: lowest and highest value of a heatmap, fixed per class at calibration.
        timings: milliseconds per stage, and their ``total``.
        backend: name of the engine that encoded the image.
        precision: precision that this engine computes in.
    """

    score: float
    verdict: Verdict
    class_name: str | None
    class_source: ClassSource
    class_margin: float | None
    threshold: float | None
    bank_version: int
    regions: tuple[Region, ...]
    anomaly_map: F32
    geometry: Geometry
    map_scale: tuple[float, float]
    timings: Mapping[str, float] = field(compare=False)
    backend: str = field(compare=False)
    precision: Precision = field(compare=False)

    def to_dict(self, image: str) -> dict[str, Any]:
        """Return the object that ``visionad predict --json`` prints.

        Args:
            image: value of the field ``image``, such as the file's path.
        """
        return {
            "image": image,
            "class": self.class_name,
            "class_source": self.class_source,
            "class_margin": self.class_margin,
            "score": self.score,
            "threshold": self.threshold,
            "verdict": self.verdict,
            "bank_version": self.bank_version,
            "regions": [
                {"bbox": list(r.bbox), "score": r.score, "polygon": [list(p) for p in r.polygon]} for r in self.regions
            ],
            "timings_ms": {k: round(v, 3) for k, v in self.timings.items()},
            "backend": self.backend,
            "precision": self.precision,
        }


@dataclass(frozen=True)
class Trace:
    """Intermediate results of an inspection, as ``visionad parity`` compares them.

    Attributes:
        views: float32 (V, 3, crop, crop), normalized input of the backbone.
        tokens: patch tokens (V, P, D) and class tokens of the views.
        distances: view → float32 (side, side), weighted if the scoring says so.
    """

    views: F32
    tokens: Tokens
    distances: Mapping[ViewName, F32]


class FileResult(NamedTuple):
    """Outcome of one file of :meth:`Inspector.inspect_files`: either ``error``, or the other fields.

    Attributes:
        path: the file.
        rgb: the decoded image.
        result: the result.
        trace: intermediate results, if they were asked for.
        error: why the file could not be read.
    """

    path: Path
    rgb: pixels.RGB8 | None
    result: Result | None
    trace: Trace | None
    error: ImageError | None


def make_result(
    bank: ClassBank,
    output: PipelineOutput,
    route: Route | None,
    shape: tuple[int, ...],
    spec: PreprocessSpec,
    threshold_holds: bool,
    bank_version: int,
    engine: Engine,
) -> Result:
    """Make the result of one image from the pipeline's output: verdict, regions, timings.

    Args:
        bank: the class that the image was compared with.
        output: output of the pipeline.
        route: how the class was found, or ``None`` if it was given.
        shape: shape of the image, height and width first.
        spec: how the image was preprocessed.
        threshold_holds: whether the class's threshold was calibrated with this scoring and precision.
        bank_version: version of the bank.
        engine: engine that encoded the image.
    """
    timer = StageTimer()
    is_known = route is None or route.is_known
    threshold = bank.entry.threshold if is_known and threshold_holds else None
    verdict: Verdict = "unknown" if threshold is None else "anomalous" if output.score > threshold else "ok"
    geometry = Geometry.of(shape[1], shape[0], spec)
    level, inclusive = (output.cutoff, True) if threshold is None else (threshold, False)
    areas = () if verdict == "ok" else regions(output.anomaly_map, geometry, level, inclusive=inclusive)
    timer.mark("verdict")
    timings = {**output.timings, **timer.milliseconds}
    return Result(
        score=output.score,
        verdict=verdict,
        class_name=bank.name if is_known else None,
        class_source="given" if route is None else "routed" if route.is_known else "unknown",
        class_margin=route.margin if route is not None else None,
        threshold=threshold,
        bank_version=bank_version,
        regions=areas,
        anomaly_map=output.anomaly_map,
        geometry=geometry,
        map_scale=bank.entry.map_scale or (0.0, 0.4 * len(output.distances)),
        timings={**timings, "total": sum(timings.values())},
        backend=engine.name,
        precision=engine.precision,
    )
