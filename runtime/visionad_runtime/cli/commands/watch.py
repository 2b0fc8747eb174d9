"""``visionad watch``."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

import typer

from ...errors import VisionADError
from ..console import complain, say, until_stopped
from ..options import (
    BackendOption,
    BankArg,
    BitDepth,
    DeviceOption,
    EvidenceOption,
    ExcludeOption,
    JsonFlag,
    KeepAlive,
    MaybeClass,
    ModelArg,
    PrecisionOption,
    PresetOption,
    ThreadsOption,
    ViewsOption,
)
from ..results import ResultWriter, check_folder, require_bank


def watch(
    model: ModelArg,
    bank: BankArg,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder in which images arrive")],
    class_name: MaybeClass = None,
    as_json: JsonFlag = False,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="note every image here; a restart then inspects what arrived meanwhile"),
    ] = None,
    journal_days: Annotated[
        int | None,
        typer.Option(
            min=1, max=36500, metavar="N", help="begin a journal file each day (UTC), keep N days [default: one file]"
        ),
    ] = None,
    existing: Annotated[bool, typer.Option("--existing", help="also the images that lie there already")] = False,
    settle: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="a file is whole when it has not changed for so many seconds")
    ] = 0.2,
    maps: Annotated[Path | None, typer.Option(help="write raw anomaly maps (.npy, float32 256 x 256) here")] = None,
    overlays: Annotated[Path | None, typer.Option(help="write overlay images (.png) here")] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    preset: PresetOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    evidence: EvidenceOption = False,
    bit_depth: BitDepth = None,
    keep_alive: KeepAlive = None,
    exclude: ExcludeOption = None,
) -> None:
    """Inspect images as they arrive in a folder, until Ctrl-C or a service's stop. What is enrolled meanwhile counts."""
    from ...bank.supports import depth_warnings
    from ...inspector import Inspector
    from ...station.judging.judge import Judge
    from ...station.watch.arrivals import ArrivalLoop
    from ...station.watch.folder_source import FolderSource
    from ...station.watch.journal import Journal

    if journal is not None and existing:
        raise VisionADError("--existing and --journal: with a journal, what lies there and is not in it is inspected")
    if journal is None and journal_days is not None:
        raise VisionADError("--journal-days says how long a journal is kept; name one with --journal")
    if overlays is not None and Path(os.path.realpath(overlays)).is_relative_to(os.path.realpath(folder)):
        raise VisionADError(
            f"--overlays {overlays} lies in {folder} and would be inspected itself; choose another folder"
        )
    for target in (maps, overlays):
        if target is not None:
            check_folder(target)
    require_bank(bank)
    report = ResultWriter(as_json, maps, overlays, folder, bank if evidence else None)
    with (
        until_stopped() as stop,
        ExitStack() as stack,
        Inspector.open(
            model,
            bank,
            backend=backend,
            precision=precision,
            device=device,
            threads=threads,
            preset=preset,
            views=views,
            keep_alive=keep_alive,
        ) as inspector,
    ):
        classes = inspector.require_class(class_name).classes
        book = None if journal is None else stack.enter_context(closing(Journal(journal, folder, journal_days)))
        processed = (lambda there: () if existing else there) if book is None else book.processed
        source = FolderSource(folder, processed, settle, stop.wait, exclude=exclude or ())
        for line in (*inspector.calibration_warnings(), *depth_warnings(classes, class_name, bit_depth)):
            complain(line)
        passed = f", passing over {source.passed_over} of the {source.there} images there" if source.there else ""
        complain(f"watching {folder} with {inspector.engine.name}{passed}")
        judge = Judge(inspector, complain, evidence=evidence)
        ArrivalLoop(judge, source, report, book, class_name, bit_depth, complain).run(stop.is_set)
    if not as_json:
        say(report.summary())
