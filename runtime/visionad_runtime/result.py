"""What an inspection gives: results, regions' geometry, traces."""

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
    """What inspecting one image gave.

    ``anomaly_map`` is float32 (256, 256), the sum of the views' cosine distances (0..2 a view), of the centre crop;
    ``geometry`` maps it to the original image. ``score`` is the mean of its largest pixels: 1 % of them, or the
    scoring's ``top_fraction``. ``verdict`` is ``unknown`` when the class has no threshold yet, or when the image is like no
    class. ``timings`` are milliseconds. ``backend`` is the engine that encoded it, ``precision`` the one it
    computes in.
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
        """The JSON object ``visionad predict --json`` prints for an image."""
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
    """The stages between image and map, for ``visionad parity`` and for curious users."""

    views: F32
    tokens: Tokens
    distances: Mapping[ViewName, F32]


class FileResult(NamedTuple):
    """One file of :meth:`Inspector.inspect_files`: image (RGB), result and trace, or the error that stopped it."""

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
    """Judge what the pipeline gave for one image: verdict, regions, timings.

    Args:
        bank: the class that the image was compared with.
        output: of the pipeline.
        route: how the class was found; ``None`` if it was given.
        shape: of the image, height and width first.
        spec: how the image was preprocessed.
        threshold_holds: whether the class's threshold was calibrated with this scoring and precision.
        bank_version: version of the bank in force.
        engine: that encoded it.
    """
    timer = StageTimer()
    known = route is None or route.known
    threshold = bank.entry.threshold if known and threshold_holds else None
    verdict: Verdict = "unknown" if threshold is None else "anomalous" if output.score > threshold else "ok"
    geometry = Geometry.of(shape[1], shape[0], spec)
    level, reached = (output.cutoff, True) if threshold is None else (threshold, False)
    found = () if verdict == "ok" else regions(output.anomaly_map, geometry, level, reached=reached)
    timer.mark("verdict")
    timings = {**output.timings, **timer.milliseconds}
    return Result(
        score=output.score,
        verdict=verdict,
        class_name=bank.name if known else None,
        class_source="given" if route is None else "routed" if route.known else "unknown",
        class_margin=route.margin if route is not None else None,
        threshold=threshold,
        bank_version=bank_version,
        regions=found,
        anomaly_map=output.anomaly_map,
        geometry=geometry,
        map_scale=bank.entry.map_scale or (0.0, 0.4 * len(output.distances)),
        timings={**timings, "total": sum(timings.values())},
        backend=engine.name,
        precision=engine.precision,
    )
