"""``visionad eval``. Heavy modules are imported when it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ...errors import VisionADError
from ...scoring.catalog import preset_help
from ...shards import WHOLE, parse_shard
from ..options import DeviceOption, PrecisionOption, ShardOption
from ..outputs import check_output_folder, check_outputs
from ..rois import RoiOption, parse_rois

if TYPE_CHECKING:
    from ...tools.evaluation.aggregate import Mode
    from ...tools.evaluation.datasets.base import Dataset
    from ...tools.evaluation.predictor import Predictor


DATASET_HELP = "layout of the data set's folder"


class EvalCommand(TyperCommand):
    """Command whose help lists the data sets. Only the help asks the registry, because that imports every layout."""

    def get_help(self, ctx: Any) -> str:
        """See ``TyperCommand``."""
        from ...tools.evaluation.datasets.registry import layouts

        for parameter in self.params:
            if parameter.name == "dataset":
                parameter.help = f"{DATASET_HELP}: {', '.join(layouts())}"  # type: ignore[attr-defined, unused-ignore]
        return super().get_help(ctx)


def eval_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model folder, made by `visionad export`")],
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help=DATASET_HELP)],
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="the data set's folder")],
    shots: Annotated[int, typer.Option("--shots", min=1, help="supports per class")],
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="1,2,3",
            help="seeds of the published support selection [default: the first images by name]",
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="separate: one bank per class; multi: one bank for all, each image routed")
    ] = "separate",
    engine: Annotated[str, typer.Option("--engine", help="runtime, or reference (PyTorch, slow)")] = "runtime",
    calibrate: Annotated[
        float | None,
        typer.Option(
            "--calibrate",
            metavar="RATE",
            help="also compute thresholds for this false-reject rate from the unused good images",
        ),
    ] = None,
    roi: RoiOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write all numbers here")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="write the table here")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="write a page with curves and the hardest images here")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work", metavar="DIR", help="keep finished units here, to resume later [default: beside --json]"
        ),
    ] = None,
    shard: ShardOption = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="skip images and masks that cannot be read, and list them")
    ] = False,
    backend: Annotated[
        str, typer.Option("--backend", help="the runtime's: auto, or a backend that `visionad doctor` lists")
    ] = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME", help=f"scoring: {preset_help()} [default: the model's]"),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option("--views", metavar="original,flip,clamp", help="[default: the preset's, else all of the model's]"),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="the reference's [default: where export found them]"),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads [default: all cores]")] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=256, help="images per engine call; never changes a result")
    ] = 1,
    bit_depth: Annotated[
        int | None, typer.Option("--bit-depth", min=9, max=16, help="bits the camera fills in 16-bit files")
    ] = None,
) -> None:
    """Measure a model on a data set: metrics and verdicts per class, mean and spread over seeds. A stopped run resumes."""
    from ...formats.files import atomic_write
    from ...tools.evaluation.datasets.registry import open_dataset
    from ...tools.evaluation.protocol import evaluate
    from ...tools.evaluation.report import markdown, plain, remarks
    from ...visualization.html import require_jinja
    from ..console import progress

    chosen_mode, part = _mode(mode), parse_shard(shard)
    if part != WHOLE and (markdown_file or html_file):
        raise VisionADError(
            "--shard computes units only; leave out --markdown and --html, and run without --shard to gather them"
        )
    chosen_seeds = None if seeds is None else _seeds(seeds)
    rois = parse_rois(roi)
    open_predictor: Callable[[], Predictor] | None = None
    if _is_reference(engine):
        if bit_depth is not None:
            raise VisionADError("--bit-depth: the reference defines 8-bit images only; leave it out or convert them")
        if rois:
            raise VisionADError("--roi: the reference inspects whole images; leave it out or use --engine runtime")
        open_predictor = partial(_open_reference, model, weights, threads, preset, views)
    files = [file for file in (json_file, markdown_file, html_file) if file is not None]
    if html_file is not None:
        require_jinja()
    data = open_dataset(dataset, root)
    _check_targets(files, data)
    check_outputs((("--json", json_file), ("--markdown", markdown_file), ("--html", html_file)))
    if work is not None:
        check_output_folder("--work", work)
    if work is None and json_file is not None:
        work = json_file.with_name(f"{json_file.name}.work")
    evaluation = evaluate(
        model,
        data,
        shots,
        seeds=chosen_seeds,
        mode=chosen_mode,
        open_predictor=open_predictor,
        backend=backend,
        precision=precision,
        device=device,
        threads=threads,
        preset=preset,
        views=views,
        batch=batch,
        bit_depth=bit_depth,
        calibrate=calibrate,
        rois=rois,
        skip_unreadable=skip_unreadable,
        work=work,
        shard=part,
        progress=progress,
    )
    if part != WHOLE:
        total = len(evaluation.seeds) * len(data.classes)
        typer.echo(
            f"shard {part}: finished; {len(evaluation.units)} of {total} units are in {work}; when all are, run without --shard to "
            "gather them"
        )
        return
    if json_file is not None:
        text = json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write(json_file, (text + "\n").encode())
    if markdown_file is not None:
        atomic_write(markdown_file, markdown(evaluation).encode())
    if html_file is not None:
        from ...tools.evaluation.page import html_page

        atomic_write(html_file, html_page(evaluation).encode())
    if evaluation.resumed:
        typer.echo(f"{evaluation.resumed} of {len(evaluation.units)} units were finished already (in {work})")
    typer.echo(plain(evaluation))
    for remark in remarks(evaluation):
        typer.echo(remark)


def _mode(value: str) -> Mode:
    if value == "separate":
        return "separate"
    if value == "multi":
        return "multi"
    raise VisionADError(f"--mode {value}: expected separate or multi")


def _is_reference(engine: str) -> bool:
    if engine not in ("runtime", "reference"):
        raise VisionADError(f"--engine {engine}: expected runtime or reference")
    return engine == "reference"


def _open_reference(
    model: Path, weights: Path | None, threads: int | None, preset: str | None, views: Sequence[str] | None
) -> Predictor:
    try:
        from visionad_export.reference.predictor import ReferencePredictor
    except ModuleNotFoundError as exc:
        raise VisionADError(
            f"--engine reference needs the 'export' extra ({exc.name} is not installed): pip install 'visionad[export]'"
        ) from None
    return ReferencePredictor(model, weights=weights, threads=threads, preset=preset, views=views)


def _seeds(value: str) -> list[int]:
    try:
        return [int(seed) for seed in value.split(",")]
    except ValueError:
        raise VisionADError(f"--seeds {value}: expected whole numbers separated by commas, e.g. 1,2,3") from None


def _check_targets(files: Sequence[Path], data: Dataset) -> None:
    """Check that no result overwrites an image or mask of the data set.

    Raises:
        VisionADError: one would.
    """
    targets = [os.path.realpath(file) for file in files]
    inputs: set[Path] = set()
    for name in data.classes:
        inputs.update(data.train(name), data.validation(name))
        for sample in data.test(name):
            inputs.update((sample.path, *sample.masks))
    for file, target in zip(files, targets, strict=True):
        if file.exists() and target in {os.path.realpath(path) for path in inputs}:
            raise VisionADError(f"{file} belongs to the data set and would be overwritten; choose another name")
