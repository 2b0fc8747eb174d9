"""Tiles of a class's ROIs: the class of an image, its crops through the pipeline, and one output for the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._threads import parallel_for
from ..bank.layout import Layout
from ..bank.memory_bank import ClassBank, MemoryBank, Snapshot
from ..bank.routing import Route, Router
from ..engine.base import Tokens
from ..errors import ImageError
from ..formats.manifest import PreprocessSpec
from ..images.pixels import RGB8
from ..pipeline.base import Pipeline, PipelineOutput, StageTimer
from ..result import Trace
from ..scoring.areas import Area, worst_area
from ..scoring.regions import Geometry
from ..scoring.score import ignore_cells
from ..scoring.spec import ScoringSpec

F32 = NDArray[np.float32]


class Request(NamedTuple):
    """What is asked of an inspection.

    Attributes:
        class_name: class of all parts; ``None`` to find it.
        leave_out: index of a support to score without.
        trace: whether to return the intermediate results.
        evidence: whether to look up the nearest good patch of each region.
    """

    class_name: str | None
    leave_out: int | None = None
    trace: bool = False
    evidence: bool = False

    @property
    def needs_tokens(self) -> bool:
        """Whether the pipeline must return patch tokens, which on a GPU must be copied to the host."""
        return self.trace or self.evidence

    def stages(self, output: PipelineOutput) -> Trace | None:
        """Return the intermediate results of an output, if they were asked for."""
        return stages_of(output) if self.trace else None


def route_whole(
    rgb: RGB8, bank: Snapshot, router: Router, class_token: Callable[[RGB8], F32]
) -> tuple[Route, Mapping[str, float]]:
    """Find the class of an image of a bank with ROIs, from the class token of the whole image.

    If areas of that class are ignored, they are filled and the image is routed again. So nothing that is painted there has a part
    in the result, once the class is found.

    Args:
        rgb: uint8 (H, W, 3) RGB or (H, W) gray.
        bank: classes.
        router: of these classes.
        class_token: image → float32 (Dc,), its class token in the first view.

    Returns:
        The route, and the milliseconds of the stage ``route``.
    """
    timer, names = StageTimer(), list(bank.classes)
    first = None if len(names) == 1 else router.route(class_token(rgb))
    layout = bank.classes[names[0] if first is None else first.nearest].layout
    if layout is not None and layout.ignored is not None and layout.fits(rgb):
        first = router.route(class_token(layout.whole(rgb)))
    route = router.route(class_token(rgb)) if first is None else first
    timer.mark("route")
    return route, timer.milliseconds


def cut_tiles(rgb: RGB8, layout: Layout | None) -> list[RGB8] | ImageError:
    """Return the pixels of each tile, or the image itself without a layout; an error for an image of another size."""
    try:
        return [rgb] if layout is None else layout.cut(rgb)
    except ImageError as exc:
        return exc


def tile_banks(bank: ClassBank) -> list[MemoryBank]:
    """Return the rows that each tile of a class is compared with, in the order of ``Layout.tiles``."""
    return [rows for rows in bank.rois for _ in range(rows.tiles)]


def run_crops(
    pipeline: Pipeline, cuts: Sequence[list[RGB8] | ImageError], banks: Sequence[MemoryBank], trace: bool
) -> list[PipelineOutput]:
    """Run the crops of images against their banks.

    Args:
        pipeline: the pipeline. If it takes any number of crops in a call, it gets as many as there are images, which bounds the
            memory. It never changes a result.
        cuts: crops of each image, or its error.
        banks: one for each crop.
        trace: whether to return intermediate results.
    """
    crops = [crop for cut in cuts if not isinstance(cut, ImageError) for crop in cut]
    batch_size = pipeline.max_batch_size() or len(cuts)
    outputs: dict[int, list[PipelineOutput]] = {}

    def run_batch(start: int) -> None:
        some = slice(start, start + batch_size)
        outputs[start] = pipeline.run(crops[some], lambda _: banks[some], class_token=trace, trace=trace)

    starts = range(0, len(crops), batch_size)
    parallel_for(run_batch, starts, min(len(starts), pipeline.slots))
    return [output for start in starts for output in outputs[start]]


def stages_of(output: PipelineOutput) -> Trace | None:
    """Return the intermediate results of an output, if they were asked for."""
    if output.images is None or output.patch is None:
        return None
    return Trace(output.images, Tokens(output.patch, output.cls), output.distances)


def tile_outputs(outputs: Sequence[PipelineOutput], layout: Layout, scoring: ScoringSpec) -> list[PipelineOutput]:
    """Return the outputs of an image's tiles with distances of ignored patches at 0, whichever pipeline made them.

    Args:
        outputs: one per tile, in the order of ``layout.tiles``.
        layout: of the class.
        scoring: how distances become scores.
    """
    scored = []
    for output, tile in zip(outputs, layout.tiles, strict=True):
        if tile.cells is not None:
            new = ignore_cells(output.distances, tile.cells, scoring)
            output = replace(
                output,
                distances=new.distances,
                anomaly_map=new.anomaly_map,
                score=new.score,
                cutoff=new.cutoff,
            )
        scored.append(output)
    return scored


def tile_areas(outputs: Sequence[PipelineOutput], layout: Layout, spec: PreprocessSpec) -> tuple[Area, ...]:
    """Return the areas of an image.

    Args:
        outputs: of :func:`tile_outputs`.
        layout: of the class.
        spec: how tiles are preprocessed.
    """
    return tuple(
        Area(
            tile.roi,
            tile.name,
            tile.box,
            output.anomaly_map,
            output.score,
            output.cutoff,
            Geometry.of(tile.box[2], tile.box[3], spec, tile.box[0], tile.box[1]),
            tile.ignored,
        )
        for output, tile in zip(outputs, layout.tiles, strict=True)
    )


def combined(
    outputs: Sequence[PipelineOutput],
    layout: Layout | None,
    scoring: ScoringSpec,
    spec: PreprocessSpec,
    timings: Mapping[str, float],
) -> tuple[PipelineOutput, tuple[Area, ...], Trace | None]:
    """Put the outputs of an image's tiles together.

    Args:
        outputs: one per tile, or the only one without a layout.
        layout: of the class.
        scoring: how distances become scores.
        spec: how tiles are preprocessed.
        timings: milliseconds of the stages before.

    Returns:
        Output of the worst tile with the times of all, areas (none without a layout), and the stages, if they were asked for.
    """
    if layout is None:
        return replace(outputs[0], timings={**timings, **outputs[0].timings}), (), stages_of(outputs[0])
    timer = StageTimer()
    outputs = tile_outputs(outputs, layout, scoring)
    areas = tile_areas(outputs, layout, spec)
    timer.mark("tiles")
    total = {**timings, **timer.milliseconds}
    for output in outputs:
        for name, ms in output.timings.items():
            total[name] = total.get(name, 0.0) + ms
    worst = worst_area(areas)
    stages = [stage for output in outputs if (stage := stages_of(output)) is not None]
    trace = replace(stages[worst], tiles=tuple(stages)) if stages else None
    return replace(outputs[worst], timings=total), areas, trace
