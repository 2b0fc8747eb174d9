"""Results of an inspection: data only, and the function that makes the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bank.memory_bank import ClassBank
from .bank.routing import Route
from .engine.base import Tokens
from .errors import ImageError
from .formats.manifest import Calibration, ClassEntry, Precision, PreprocessSpec, ViewName
from .formats.roi import WHOLE_IMAGE
from .images import pixels
from .pipeline.base import PipelineOutput, StageTimer
from .pipeline.evidence import with_evidence
from .scoring.areas import Area, area_regions, worst_area
from .scoring.conformal import p_value
from .scoring.regions import Geometry, Region

F32 = NDArray[np.float32]
Verdict = Literal["ok", "review", "anomalous", "unknown"]
ClassSource = Literal["given", "routed", "unknown"]


@dataclass(frozen=True)
class Promise:
    """What the thresholds of a class promise about good parts.

    Attributes:
        max_false_reject: tolerated rate of good parts that are anomalous.
        review_rate: tolerated rate of good parts that are not ok.
        guaranteed: rate of good parts that are anomalous, at most, on average over calibrations: ``1 / (n + 1)`` or the tolerated
            one if ``n`` scores allow it.
        normals: number n of scores.
        void: whether the alarm says that today's good parts are not like those of the calibration.
    """

    max_false_reject: float
    review_rate: float
    guaranteed: float
    normals: int
    void: bool = False


class MadeBy(NamedTuple):
    """What made a result.

    Attributes:
        bank_version: version of the bank.
        bank: sha256 of its content.
        model: sha256 of the model's content.
        backend: name of the engine.
        precision: precision that the engine computes in.
    """

    bank_version: int
    bank: str
    model: str
    backend: str
    precision: Precision


@dataclass(frozen=True)
class Result:
    """Result of one inspected image.

    Attributes:
        score: mean of the map's largest pixels. How many is the scoring's ``top_fraction`` (the paper: 1 %). With several ROIs or
            tiles, the highest of their scores.
        verdict: ``unknown`` if the image belongs to no class, or the threshold was calibrated with another scoring or precision;
            ``review`` if the class has no threshold, as after its first image; ``anomalous`` if the score exceeds the threshold;
            ``review`` if it exceeds the review threshold; else ``ok``.
        class_name: class of the part, or ``None`` if the image belongs to no class.
        class_source: ``given`` by the caller, ``routed`` by class token, or ``unknown``.
        class_margin: distance to the second nearest class minus that to the nearest; ``None`` if the class was given, or with one
            class.
        threshold: of the class, or ``None`` if there is no valid one.
        p_value: share of good parts that score at least as high, ``(1 + number of good scores >= score) / (n + 1)``; ``None``
            without a valid threshold.
        promise: what the threshold promises; ``None`` without one, and for one that a person typed.
        class_mismatch: another class that the image is nearer to, if a class was given: a mix-up. It does not change the verdict.
            ``None`` if there is none, and where it is not looked for: with one class, and with models whose class token is not free
            (``class_token: final``) or classes with ROIs, for which it would have to be computed.
        bank_version: version of the bank that the image was compared with.
        regions: connected anomalous areas of all tiles, highest score first.
        anomaly_map: float32 (256, 256) of the center crop, the sum of the views' cosine distances (0 to 2 per view); of the tile
            with the highest score, if there are several.
        geometry: maps ``anomaly_map`` to the original image.
        areas: each inspected tile with its map and score; one for the whole image without ROIs.
        map_scale: lowest and highest value of a heatmap, fixed per class at calibration.
        timings: milliseconds per stage, and their ``total``.
        backend: name of the engine that encoded the image.
        precision: precision that this engine computes in.
        model: sha256 of the model's content.
        bank: sha256 of the content of the bank.
    """

    score: float
    verdict: Verdict
    class_name: str | None
    class_source: ClassSource
    class_margin: float | None
    threshold: float | None
    p_value: float | None
    promise: Promise | None
    class_mismatch: str | None
    bank_version: int
    bank: str
    model: str
    regions: tuple[Region, ...]
    anomaly_map: F32
    geometry: Geometry
    areas: tuple[Area, ...]
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
            "p_value": self.p_value,
            "promise": None if self.promise is None else asdict(self.promise),
            "class_mismatch": self.class_mismatch,
            "bank_version": self.bank_version,
            "bank": self.bank,
            "model": self.model,
            "regions": [
                {
                    "bbox": list(r.bbox),
                    "score": r.score,
                    "polygon": [list(p) for p in r.polygon],
                    "roi": r.roi,
                    "evidence": None if r.evidence is None else r.evidence.to_dict(),
                }
                for r in self.regions
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
        distances: view → float32 (side, side), weighted if the scoring says so, 0 for ignored patches.
        tiles: those of each tile, in the order of ``Result.areas``, for a class with ROIs; the other fields are then those of the
            tile with the highest score.
    """

    views: F32
    tokens: Tokens
    distances: Mapping[ViewName, F32]
    tiles: tuple[Trace, ...] = ()


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
    made_by: MadeBy,
    areas: tuple[Area, ...] = (),
    class_mismatch: str | None = None,
) -> Result:
    """Make the result of one image from the pipeline's output: verdict, regions, timings.

    Args:
        bank: the class that the image was compared with.
        output: output of the pipeline; that of the worst tile for a class with ROIs.
        route: how the class was found, or ``None`` if it was given.
        shape: shape of the image, height and width first.
        spec: how the image was preprocessed.
        threshold_holds: whether the class's threshold was calibrated with this scoring and precision.
        made_by: what makes the result.
        areas: tiles of the image, for a class with ROIs.
        class_mismatch: another class that the image is nearer to.
    """
    timer = StageTimer()
    is_known = route is None or route.is_known
    limits = bank.entry if is_known and threshold_holds else None
    threshold = None if limits is None else limits.threshold
    verdict = _verdict(output.score, limits)
    if not areas:
        box = (0, 0, shape[1], shape[0])
        geometry = Geometry.of(shape[1], shape[0], spec)
        areas = (Area(WHOLE_IMAGE, WHOLE_IMAGE, box, output.anomaly_map, output.score, output.cutoff, geometry),)
    geometry = areas[worst_area(areas)].geometry
    # The area that the verdict rests on: what exceeds the limit, or, without one, the pixels that are the score.
    limit = bank.entry.review_threshold if verdict == "review" and limits is not None else threshold
    level, inclusive = (output.cutoff, True) if limit is None else (limit, False)
    found = () if verdict == "ok" else area_regions(areas, level, inclusive=inclusive)
    timer.mark("verdict")
    timings = {**output.timings, **timer.milliseconds}
    return Result(
        score=output.score,
        verdict=verdict,
        class_name=bank.name if is_known else None,
        class_source="given" if route is None else "routed" if route.is_known else "unknown",
        class_margin=route.margin if route is not None else None,
        threshold=threshold,
        p_value=None if threshold is None else p_value(output.score, bank.good_scores),
        promise=None if threshold is None else _promise(bank.entry.promising),
        class_mismatch=class_mismatch,
        bank_version=made_by.bank_version,
        bank=made_by.bank,
        model=made_by.model,
        regions=found,
        anomaly_map=output.anomaly_map,
        geometry=geometry,
        areas=areas,
        map_scale=bank.entry.map_scale or (0.0, 0.4 * len(output.distances)),
        timings={**timings, "total": sum(timings.values())},
        backend=made_by.backend,
        precision=made_by.precision,
    )


def explain_result(
    result: Result,
    bank: ClassBank,
    outputs: Sequence[PipelineOutput],
    view: ViewName,
    spec: PreprocessSpec,
    threads: int | None = None,
) -> Result:
    """Return a result whose regions have their evidence: the nearest good patches.

    Args:
        result: result of the image.
        bank: the class that the image was compared with.
        outputs: output of each tile, with patch tokens, in the order of ``result.areas``.
        view: first view of the scoring.
        spec: how the image was preprocessed.
        threads: maximum number of threads (default: all CPUs).
    """
    timer = StageTimer()
    rows = [rois for rois in bank.rois for _ in range(rois.tiles)]
    explained = list(result.regions)
    for area, (output, tile_rows) in enumerate(zip(outputs, rows, strict=True)):
        mine = [i for i, region in enumerate(explained) if region.area == area]
        assert output.patch is not None
        found = with_evidence(
            [explained[i] for i in mine], output.patch[0], view, tile_rows, bank.entry, result.areas[area].geometry, spec,
            threads=threads,
        )  # fmt: skip
        for i, region in zip(mine, found, strict=True):
            explained[i] = region
    timer.mark("evidence")
    timings = {**result.timings, **timer.milliseconds}
    timings["total"] = result.timings["total"] + timer.milliseconds["evidence"]
    return replace(result, regions=tuple(explained), timings=timings)


def _verdict(score: float, limits: ClassEntry | None) -> Verdict:
    """Return the verdict of a score; ``limits`` is ``None`` if the class is unknown or its thresholds do not hold."""
    if limits is None:
        return "unknown"
    if limits.threshold is None:
        return "review"  # nothing can be promised, so nothing may pass
    if score > limits.threshold:
        return "anomalous"
    return "review" if limits.review_threshold is not None and score > limits.review_threshold else "ok"


def _promise(record: Calibration | None) -> Promise | None:
    if record is None:
        return None
    return Promise(record.max_false_reject, record.review_rate or 0.0, record.guaranteed_false_reject, record.normals)
