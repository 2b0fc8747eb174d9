"""``visionad bench``: registered by ``cli.py``; everything heavy is imported when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import VisionADError


def bench_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model folder, made by `visionad export`")],
    bank: Annotated[
        Path | None, typer.Argument(metavar="BANK", help="bank folder [default: a temporary one of one picture]")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="PATH", help="picture files or folders; repeatable [default: rendered parts]"),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="class of the parts; skips routing")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="B", help="repeatable, or B,B [default: all of auto's that run here]"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="P",
            help="fp32, bf16 or fp16, for those of the backends that offer it; the others compute in the model's",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="D", help="cpu, gpu or npu, for those of the backends that offer it (openvino)"
        ),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", metavar="N,N", help="pictures a call")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option(min=0.0, max=86400.0, help="each measurement takes about this long")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="turns in which the compared are timed")] = 7,
    starts: Annotated[int, typer.Option(min=0, help="fresh processes for the cold start")] = 3,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of the engine [default, and at most: all cores]")
    ] = None,
    views: Annotated[
        str | None, typer.Option("--views", metavar="original,flip,clamp", help="[default: all of the bank's]")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="eager,compiled,method", help="also time PyTorch: its backbone, or the whole method"
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="for --reference [default: where export found it]")
    ] = None,
    plots: Annotated[Path | None, typer.Option("--plots", metavar="DIR", help="write diagrams (.png) here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Latency per stage, percentiles, throughput, cold start, memory and energy, beside the bare engine and other backends."""
    from ..artefacts import parse_precision
    from ..engine.registry import backends
    from .plots import draw, make_folder, require_matplotlib
    from .report import format_report
    from .run import Settings, run_bench

    wanted = [name.strip() for one in backend or [] for name in one.split(",")]
    for name in wanted:
        if name not in backends():
            raise VisionADError(f"--backend {name}: not known; choose of {', '.join(backends())}")
    from ..cli import as_stored  # which imports this module

    if plots is not None:
        require_matplotlib()
        make_folder(plots)
    settings = Settings(
        bank=bank,
        images=tuple(images or ()),
        class_name=as_stored(class_name),
        backends=tuple(dict.fromkeys(wanted)),
        precision=parse_precision(precision),
        device=device,
        batches=_batches(batch),
        seconds=seconds,
        rounds=rounds,
        starts=starts,
        threads=threads,
        views=None if views is None else tuple(v.strip() for v in views.split(",")),
        reference=() if reference is None else tuple(r.strip() for r in reference.split(",")),
        weights=weights,
    )
    report = run_bench(model, settings)
    if plots is not None:
        report["plots"] = [str(path) for path in draw(report, plots)]
    typer.echo(json.dumps(report, ensure_ascii=False, indent=1) if as_json else format_report(report))


def _batches(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(1 <= n <= 256 for n in found):
        raise VisionADError(f"--batch {text}: wanted numbers of pictures from 1 to 256, such as 1,2,4")
    return found
