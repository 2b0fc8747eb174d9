"""``visionad export``: registered by the runtime's command line; torch is imported only when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from visionad_runtime.errors import VisionADError


def export_command(
    out: Annotated[Path, typer.Option("--out", metavar="MODEL", help="model folder to write")],
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="NAME", help="e.g. dinov2_vitl14_reg, or timm:<model>")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME", help="paper, sharp or keen (docs/presets.md) [default: paper]"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="weights file [default: download or package]")
    ] = None,
    resize: Annotated[int | None, typer.Option("--resize", min=8, help="side of the resized picture")] = None,
    crop: Annotated[
        int | None, typer.Option("--crop", min=8, help="side of the centre crop, a multiple of the patch")
    ] = None,
    layers: Annotated[str | None, typer.Option("--layers", metavar="A-B", help="blocks to average, from 0")] = None,
    views: Annotated[
        str | None,
        typer.Option("--views", metavar="original,flip,clamp", help="views of a picture [default: all three]"),
    ] = None,
    top_share: Annotated[
        float | None,
        typer.Option(
            "--top-share", metavar="SHARE", help="of the map's largest pixels whose mean is the score [default: 0.01]"
        ),
    ] = None,
    rarity: Annotated[
        bool | None,
        typer.Option("--rarity/--no-rarity", help="weigh patches by how unlike the rest of the picture they are"),
    ] = None,
    class_token: Annotated[
        str | None, typer.Option("--class-token", metavar="fused|final", help="token that finds the class")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="of the products: fp32, tf32, bf16 or fp16")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML with these options; the command line wins")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Export a backbone to a model folder: ONNX, manifest and golden tensors, checked against PyTorch."""
    try:
        from .config import ExportConfig, load_config, parse_layers, parse_views
        from .exporter import export_model
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
        top_share=top_share,
        rarity=rarity,
        class_token=class_token,
        precision=precision,
    )
    settings = settings.resolved()
    given: dict[str, Any] = settings.model_dump(exclude={"backbone", "preset", "layers"}, exclude_none=True)
    if settings.layers is not None:
        given["layers"] = parse_layers(settings.layers)
    summary = export_model(str(settings.backbone), out, **given)
    typer.echo(json.dumps(summary) if as_json else describe(summary))


def describe(summary: dict[str, Any]) -> str:
    """The summary of :func:`~visionad_export.exporter.export_model` in a few lines for a person."""
    layers, grid = summary["layers"], summary["grid"]
    lines = [
        f"model      {summary['model']} ({summary['bytes'] / 1e6:.1f} MB)",
        f"backbone   {summary['backbone']}, layers {layers[0]}-{layers[-1]}, weights {summary['weights']['sha256'][:8]} "
        f"from {summary['weights']['source']}",
        f"tokens     {grid} x {grid} patches of {summary['dim']}, {summary['class_token']} class token of "
        f"{summary['class_token_dim']}",
        f"score      views {', '.join(summary['views'])}; mean of the largest {summary['top_share']:.2%} of the map"
        + (", distances weighed by rarity" if summary["rarity"] else ""),
        f"check      ONNX Runtime against PyTorch: largest difference {summary['max_error']:.1e}",
        *_describe_precision(summary),
    ]
    if summary["dropped_area"]:
        resize, patch = summary["resize"], summary["patch"]
        whole = resize // patch * patch
        lines.append(
            f"note       the centre crop {summary['crop']} of {resize} leaves the outer {summary['dropped_area']:.1%} of "
            f"the picture uninspected; --resize {whole} --crop {whole} inspects all of it"
        )
    return "\n".join(lines)


def _describe_precision(summary: dict[str, Any]) -> list[str]:
    precision, accuracy, types = summary["precision"], summary["accuracy"], summary["types"]
    if accuracy is None:
        return []
    lines = [f"precision  {precision}"]
    if precision != "tf32":  # which is a word to the backend; the graph is fp32
        lowered, kept = (
            ", ".join(f"{of[kind]} {op}" for op, of in sorted(types.items()) if of.get(kind) and op not in _MOVED)
            for kind in (precision, "fp32")
        )
        lines = [
            f"precision  {precision}: {lowered}",
            f"           fp32: {kept}; {sum(types['Cast'].values())} casts between the two",
            f"           ONNX file {summary['onnx_bytes'] / 1e6:.1f} MB, {summary['onnx_bytes_fp32'] / 1e6:.1f} MB in fp32",
        ]
    lines.append(
        f"accuracy   smallest cosine to fp32 {accuracy['min_cosine']:.5f}, largest difference {accuracy['max_abs']:.1e} "
        "(emulated, on pictures made to be hard)"
    )
    return lines


_MOVED = frozenset(
    {"Cast", "Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that compute nothing: of no interest to a person who asks about precision."""


def parity_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model folder")],
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="bank folder")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="picture files or folders")],
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="weights file [default: where export found it]")
    ] = None,
    class_name: Annotated[str | None, typer.Option("--class", metavar="NAME", help="class; skips routing")] = None,
    backend: Annotated[str, typer.Option("--backend", help="runtime backend to compare")] = "auto",
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="P", help="compute in fp32, bf16 or fp16, by a backend that offers it"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="D", help="compute on cpu, gpu or npu, by a backend that offers it (openvino)"
        ),
    ] = None,
    views: Annotated[
        str | None, typer.Option("--views", metavar="original,flip,clamp", help="[default: all of the bank's]")
    ] = None,
    bit_depth: Annotated[
        int | None, typer.Option("--bit-depth", min=9, max=16, help="bits the camera fills in 16-bit files, grey ones")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads [default: all cores]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> int:
    """Compare the runtime with the PyTorch reference, stage by stage. Exit status 1 when they differ."""
    try:
        from .config import parse_views
        from .parity import check_parity
        from .parity import describe as describe_parity
    except ModuleNotFoundError as exc:
        raise VisionADError(f"`visionad parity` needs {exc.name}: pip install 'visionad[export]'") from None
    from visionad_runtime.artefacts import parse_precision
    from visionad_runtime.cli import as_stored, progress
    from visionad_runtime.inspector import Inspector
    from visionad_runtime.picture import find_pictures

    pictures = [found.path for found in find_pictures(paths)]
    chosen = None if views is None else parse_views(views)
    with (
        Inspector.open(
            model,
            bank,
            backend=backend,
            precision=parse_precision(precision),
            device=device,
            threads=threads,
            views=chosen,
        ) as inspector,
        progress("comparing", len(pictures)) as step,
    ):
        name = as_stored(class_name)
        report = check_parity(
            inspector, pictures, weights=weights, class_name=name, bit_depth=bit_depth, threads=threads, step=step
        )
    typer.echo(json.dumps(report, ensure_ascii=False) if as_json else describe_parity(report))
    return 0 if report["pass"] else 1
