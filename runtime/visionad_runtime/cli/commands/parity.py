"""``visionad parity``. Torch is imported when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ...errors import VisionADError
from ..options import DeviceOption, PrecisionOption


def parity_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model folder")],
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="bank folder")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="image files or folders")],
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="weights file [default: where export found it]")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="class of the parts; skips routing")
    ] = None,
    backend: Annotated[str, typer.Option("--backend", help="runtime backend to compare")] = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    views: Annotated[
        str | None, typer.Option("--views", metavar="original,flip,clamp", help="[default: all of the bank's]")
    ] = None,
    bit_depth: Annotated[
        int | None, typer.Option("--bit-depth", min=9, max=16, help="bits the camera fills in 16-bit gray files")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads [default: all cores]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> int:
    """Compare the runtime with the PyTorch reference, stage by stage. Exit status 1 if they differ."""
    try:
        from visionad_export.config import parse_views
        from visionad_export.parity import check_parity
        from visionad_export.parity import describe as describe_parity
    except ModuleNotFoundError as exc:
        raise VisionADError(f"`visionad parity` needs {exc.name}: pip install 'visionad[export]'") from None
    from ...images.discover import find_images
    from ...inspector import Inspector
    from ..console import progress
    from ..options import as_stored

    images = [file.path for file in find_images(paths)]
    chosen_views = None if views is None else parse_views(views)
    with (
        Inspector.open(
            model, bank, backend=backend, precision=precision, device=device, threads=threads, views=chosen_views
        ) as inspector,
        progress("comparing", len(images)) as step,
    ):
        name = as_stored(class_name)
        report = check_parity(
            inspector, images, weights=weights, class_name=name, bit_depth=bit_depth, threads=threads, step=step
        )
    typer.echo(json.dumps(report, ensure_ascii=False) if as_json else describe_parity(report))
    return 0 if report["pass"] else 1
