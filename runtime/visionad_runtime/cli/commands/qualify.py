"""``visionad qualify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ...errors import VisionADError
from ..console import complain, progress, say
from ..options import (
    BackendOption,
    BankArg,
    BitDepth,
    ClassOption,
    DeviceOption,
    JsonFlag,
    ModelArg,
    PrecisionOption,
    PresetOption,
    ThreadsOption,
    ViewsOption,
)
from ..results import require_bank


def qualify(
    model: ModelArg,
    bank: BankArg,
    class_name: ClassOption,
    good: Annotated[Path, typer.Option(metavar="DIR", help="images of good parts that are not enrolled")],
    bad: Annotated[
        Path | None, typer.Option(metavar="DIR", help="images of defects; subfolders are their types")
    ] = None,
    repeat: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="repeated images: PART/IMAGE, or STATION/PART/IMAGE for stations or days"),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="masks of --bad at the same paths: NAME.png or NAME_mask.png")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="folder", help="report good parts by subfolder too: day, shift, light, camera"),
    ] = None,
    daily: Annotated[
        bool, typer.Option("--daily", help="only compare golden images with the report in --out; exit 1 if they drift")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of the report [default: qualification-CLASS]")
    ] = None,
    defects: Annotated[
        int, typer.Option(min=0, max=20000, help="defects to paint on good images; 0 for no detection limit")
    ] = 600,
    seed: Annotated[int, typer.Option(min=0, help="seed of the painted defects")] = 0,
    streams: Annotated[int, typer.Option(min=1, max=64, help="inspections at a time while latency is measured")] = 1,
    as_json: JsonFlag = False,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    preset: PresetOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    bit_depth: BitDepth = None,
) -> int:
    """Write the acceptance report of a class: false rejects, misses, detection limit, repeatability, latency.

    The report is one HTML page and one JSON file in --out. A stopped run resumes.
    """
    from ...formats.files import atomic_write, atomic_write_together
    from ...inspector import Inspector
    from ...tools.qualification.daily import daily_check, read_report
    from ...tools.qualification.inputs import read_inputs
    from ...tools.qualification.qualify import Settings
    from ...tools.qualification.qualify import qualify as run
    from ...visualization.html import require_jinja

    if group_by not in (None, "folder"):
        raise VisionADError(f"--group-by {group_by}: expected folder")
    require_jinja()
    require_bank(bank)
    folder = out or Path(f"qualification-{class_name}")
    accepted = read_report(folder / REPORT) if daily else None
    if daily and (repeat is not None or masks is not None):
        raise VisionADError("--daily compares --good and --bad only; leave out --repeat and --masks")
    notes: list[str] = []
    inputs = read_inputs(
        good, bad, repeat, masks, group_by_folder=group_by is not None, bit_depth=bit_depth, note=notes.append
    )
    for line in notes:
        complain(line)
    settings = Settings(
        model, bank, class_name, preset, defects=defects, seed=seed, streams=streams, bit_depth=bit_depth
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise VisionADError(f"--out {folder}: {exc.strerror}; choose a folder that can be written") from None
    with Inspector.open(
        model, bank, backend=backend, precision=precision, device=device, threads=threads, preset=preset, views=views
    ) as inspector:
        if accepted is not None:
            outcome = daily_check(inspector, settings, inputs, accepted, folder / "daily.jsonl", progress)
            atomic_write(folder / "daily.json", encoded(outcome))
            if as_json:
                say(json.dumps(outcome, ensure_ascii=False))
            else:
                for line in outcome["drift"]:
                    say(f"drift: {line}")
                n = outcome["checks"]["same_images"] + outcome["checks"]["new_good"] + outcome["checks"]["new_bad"]
                say(f"{n} images: " + ("drifted" if outcome["drift"] else f"as accepted on {accepted['created'][:10]}"))
            return 1 if outcome["drift"] else 0
        report = run(inspector, settings, inputs, folder, progress)
    from ...tools.qualification.page import html_page, summary

    # --daily reads the report, so it comes last: it is never without its page.
    atomic_write_together({folder / PAGE: html_page(report).encode(), folder / REPORT: encoded(report)})
    if as_json:
        say(json.dumps(report, ensure_ascii=False))
        return 0
    for line in summary(report):
        say(line)
    say(f"written to {folder / PAGE} and {folder / REPORT}")
    return 0


REPORT = "qualification.json"
PAGE = "qualification.html"


def encoded(report: object) -> bytes:
    """Return a report as the bytes of a JSON file."""
    return (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
