"""``visionad export``. Torch is imported when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from visionad_export.describe import describe

from ...errors import VisionADError
from ...scoring.catalog import preset_help


def export_command(
    out: Annotated[Path, typer.Option("--out", metavar="MODEL", help="model folder to write")],
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="NAME", help="e.g. dinov2_vitl14_reg, or timm:<model>")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME", help=f"{preset_help()} [default: paper]"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="weights file [default: download or package]")
    ] = None,
    resize: Annotated[int | None, typer.Option("--resize", min=8, help="side of the resized image")] = None,
    crop: Annotated[
        int | None, typer.Option("--crop", min=8, help="side of the center crop, a multiple of the patch size")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="A-B", help="transformer blocks to average, counted from 0")
    ] = None,
    views: Annotated[
        str | None,
        typer.Option("--views", metavar="original,flip,clamp", help="views of an image [default: all three]"),
    ] = None,
    top_fraction: Annotated[
        float | None,
        typer.Option(
            "--top-fraction",
            "--top-share",
            metavar="FRACTION",
            help="fraction of the map's largest pixels whose mean is the score [default: 0.01]",
        ),
    ] = None,
    self_similarity: Annotated[
        bool | None,
        typer.Option(
            "--self-similarity/--no-self-similarity",
            "--rarity/--no-rarity",
            help="lower the score of patches that also occur elsewhere in the image [default: no]",
        ),
    ] = None,
    class_token: Annotated[
        str | None, typer.Option("--class-token", metavar="fused|final", help="token that routing compares")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="precision of the products: fp32, tf32, bf16 or fp16")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="YAML file with these options; the command line takes precedence"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Export a backbone to a model folder: ONNX, manifest and golden tensors, checked against PyTorch."""
    try:
        from visionad_export.config import ExportConfig, load_config, parse_views
        from visionad_export.exporter import export_model
    except ModuleNotFoundError as exc:
        raise VisionADError(f"`visionad export` needs {exc.name}: pip install 'visionad[export]'") from None

    settings = (load_config(config) if config else ExportConfig()).override(
        backbone=backbone,
        preset=preset,
        weights=weights,
        resize=resize,
        crop=crop,
        layers=layers,
        views=None if views is None else parse_views(views),
        top_fraction=top_fraction,
        self_similarity=self_similarity,
        class_token=class_token,
        precision=precision,
    )
    settings = settings.resolved()
    summary = export_model(str(settings.backbone), out, **settings.arguments())
    typer.echo(json.dumps(summary) if as_json else describe(summary))
