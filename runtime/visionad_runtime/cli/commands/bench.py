"""``visionad bench``. Heavy modules are imported when it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import VisionADError
from ..options import DeviceOption, PrecisionOption

if TYPE_CHECKING:
    from ...bank.memory_bank import ClassBank
    from ...formats.manifest import ModelManifest
    from ...scoring.spec import ScoringSpec
    from ...tools.benchmark.measure import TorchBaseline
    from ...tools.benchmark.run import TorchBaselines

TORCH = ("eager", "compiled", "method")


def bench_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model folder, made by `visionad export`")],
    bank: Annotated[
        Path | None, typer.Argument(metavar="BANK", help="bank folder [default: a temporary one of one image]")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="PATH", help="image files or folders; repeatable [default: rendered parts]"),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="class of the parts; skips routing")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend", metavar="B", help="repeatable, or B,B [default: every backend of auto that runs here]"
        ),
    ] = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    batch: Annotated[str, typer.Option("--batch", metavar="N,N", help="images per call")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option(min=0.0, max=86400.0, help="approximate time of each measurement")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="rounds; the compared calls take turns in each")] = 7,
    starts: Annotated[int, typer.Option(min=0, help="fresh processes that measure the cold start")] = 3,
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
    """Measure latency per stage, throughput, cold start, memory and energy, side by side with the bare engine and other backends.

    `--precision` and `--device` apply to the backends that offer them.
    """
    from ...bank.names import normalize_class_name
    from ...engine.registry import backends
    from ...tools.benchmark.plots import draw, make_folder, require_matplotlib
    from ...tools.benchmark.report import format_report
    from ...tools.benchmark.run import Settings, run_bench
    from ..console import progress

    names = [name.strip() for option in backend or [] for name in option.split(",")]
    for name in names:
        if name not in backends():
            raise VisionADError(f"--backend {name}: expected one of {', '.join(backends())}")
    baselines = None if reference is None else _torch_baselines(reference, weights)
    if plots is not None:
        require_matplotlib()
        make_folder(plots)
    settings = Settings(
        bank=bank,
        images=tuple(images or ()),
        class_name=None if class_name is None else normalize_class_name(class_name),
        backends=tuple(dict.fromkeys(names)),
        precision=precision,
        device=device,
        batches=_batches(batch),
        seconds=seconds,
        rounds=rounds,
        starts=starts,
        threads=threads,
        views=None if views is None else tuple(v.strip() for v in views.split(",")),
    )
    report = run_bench(model, settings, torch_baselines=baselines, progress=progress)
    if plots is not None:
        report["plots"] = [str(path) for path in draw(report, plots)]
    typer.echo(json.dumps(report, ensure_ascii=False, indent=1) if as_json else format_report(report))


def _torch_baselines(text: str, weights: Path | None) -> TorchBaselines:
    """Return the function that opens the candidates of ``--reference``. Torch is imported when it is called."""
    kinds = [kind.strip() for kind in text.split(",")]
    unknown = [kind for kind in kinds if kind not in TORCH]
    if unknown:
        raise VisionADError(f"--reference {','.join(unknown)}: expected some of {', '.join(TORCH)}")

    def open_baselines(
        manifest: ModelManifest, stored: ClassBank, scoring: ScoringSpec, threads: int | None
    ) -> Mapping[str, TorchBaseline]:
        try:
            from visionad_export.reference.torch_baselines import torch_baselines
        except ModuleNotFoundError as exc:
            raise VisionADError(f"--reference needs {exc.name}: pip install 'visionad[export]'") from None
        return torch_baselines(manifest, stored, scoring, weights, threads, kinds)

    return open_baselines


def _batches(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or not all(1 <= n <= 256 for n in sizes):
        raise VisionADError(f"--batch {text}: expected numbers of images from 1 to 256, such as 1,2,4")
    return sizes
