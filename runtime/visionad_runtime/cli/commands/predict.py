"""``visionad predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import VisionADError
from ..console import complain, progress, say
from ..options import (
    BackendOption,
    BankArg,
    BitDepth,
    DeviceOption,
    EvidenceOption,
    ExcludeOption,
    JsonFlag,
    MaybeClass,
    ModelArg,
    PathsArg,
    PrecisionOption,
    PresetOption,
    ThreadsOption,
    ViewsOption,
)

if TYPE_CHECKING:
    from ...images.discover import ImageFile
from ..results import ResultWriter, check_names, check_targets, require_bank


def predict(
    model: ModelArg,
    bank: BankArg,
    paths: PathsArg,
    class_name: MaybeClass = None,
    as_json: JsonFlag = False,
    maps: Annotated[Path | None, typer.Option(help="write raw anomaly maps (.npy, float32 256 x 256) here")] = None,
    overlays: Annotated[Path | None, typer.Option(help="write overlay images (.png) here")] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    preset: PresetOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    evidence: EvidenceOption = False,
    batch: Annotated[int, typer.Option(min=1, max=256, help="images an engine call; never changes a result")] = 1,
    bit_depth: BitDepth = None,
    exclude: ExcludeOption = None,
) -> int:
    """Inspect images: score, verdict and regions of each, in input order."""
    from ...bank.supports import depth_warnings
    from ...images.discover import ImageFile, find_images
    from ...inspector import Inspector

    notes: list[str] = []
    inputs: list[ImageFile | tuple[Path, VisionADError]] = []
    for path in paths:  # a folder without images is reported like an unreadable image: the rest goes on
        errors: list[VisionADError] = []
        try:
            inputs += find_images([path], exclude or (), errors, notes)
        except VisionADError as exc:
            errors.append(exc)
        inputs += [(path, exc) for exc in errors]
    images = [item for item in inputs if isinstance(item, ImageFile)]
    if maps or overlays:
        check_names([f.name for f in images])
        check_targets(images, [(maps, ".npy"), (overlays, ".png")])
    require_bank(bank)
    report = ResultWriter(as_json, maps, overlays, evidence_bank=bank if evidence else None)
    with (
        Inspector.open(
            model,
            bank,
            backend=backend,
            precision=precision,
            device=device,
            threads=threads,
            preset=preset,
            views=views,
        ) as inspector,
        progress("inspecting", len(images)) as step,
    ):
        classes = inspector.require_class(class_name).classes
        for line in (*notes, *inspector.calibration_warnings(), *depth_warnings(classes, class_name, bit_depth)):
            complain(line)
        results = inspector.inspect_files(
            [f.path for f in images], class_name=class_name, batch=batch, bit_depth=bit_depth, evidence=evidence
        )
        for item in inputs:
            if not isinstance(item, ImageFile):
                report.error(*item)
                continue
            report.add(next(results), item.name)
            step()
    if not as_json:
        say(report.summary())
    without = report.counts["unreadable"] + len(inputs) - len(images)
    if without and (as_json or without > 1):  # a single one was said by itself
        complain(f"{without} of {len(inputs)} inputs have no result: they could not be read")
    if report.failures:
        complain(f"{report.failures} maps or overlays could not be written")
    return 2 if without or report.failures else 0
