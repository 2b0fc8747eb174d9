"""``visionad eval``: registered by ``cli.py``; everything heavy is imported when it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import VisionADError

if TYPE_CHECKING:
    from .datasets import Dataset
    from .evaluate import EngineName, Mode


def eval_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model folder, made by `visionad export`")],
    dataset: Annotated[
        str, typer.Option("--dataset", metavar="NAME", help="mvtec, visa, real-iad, folder, loco, mvtec-ad2 or deeppcb")
    ],
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="the data set's folder")],
    shots: Annotated[int, typer.Option("--shots", min=1, help="support pictures a class")],
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="1,2,3", help="of the published choice [default: the first by name]"),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="separate: a bank a class; multi: one bank for all, each picture routed")
    ] = "separate",
    engine: Annotated[str, typer.Option("--engine", help="runtime, or reference (PyTorch, slow)")] = "runtime",
    calibrate: Annotated[
        float | None,
        typer.Option(
            "--calibrate",
            metavar="RATE",
            help="also set thresholds for this false-reject rate from the unused good pictures",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write all numbers here")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="write the table here")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="write a page with curves and the worst mistakes here")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option("--work", metavar="DIR", help="keep finished parts here, to go on later [default: beside --json]"),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="pass over pictures and masks that cannot be read, and list them")
    ] = False,
    backend: Annotated[
        str, typer.Option("--backend", help="of the runtime: auto, or one that `visionad doctor` lists")
    ] = "auto",
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
        str | None, typer.Option("--views", metavar="original,flip,clamp", help="[default: all of the model's]")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="of the reference [default: where export found them]"),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads [default: all cores]")] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=256, help="pictures an engine call; never changes a result")
    ] = 1,
    bit_depth: Annotated[
        int | None, typer.Option("--bit-depth", min=9, max=16, help="bits the camera fills in 16-bit files")
    ] = None,
) -> None:
    """Measure a model on a data set: the seven metrics, per class, mean and spread over seeds. Resumes where it stopped."""
    from ..artefacts import atomic_write, parse_precision
    from ..cli import progress
    from .datasets import open_dataset
    from .evaluate import evaluate
    from .report import html_page, markdown, plain, remarks

    chosen_mode, chosen_engine = _mode(mode), _engine(engine)
    chosen_seeds = None if seeds is None else _seeds(seeds)
    files = [file for file in (json_file, markdown_file, html_file) if file is not None]
    data = open_dataset(dataset, root)
    _check_targets(files, data)
    for file in files:  # found out now, not after a day's work
        _check_place(file)
    if work is None and json_file is not None:
        work = json_file.with_name(f"{json_file.name}.work")
    found = evaluate(
        model,
        data,
        shots,
        seeds=chosen_seeds,
        mode=chosen_mode,
        engine=chosen_engine,
        backend=backend,
        precision=parse_precision(precision),
        device=device,
        threads=threads,
        views=None if views is None else [view.strip() for view in views.split(",")],
        weights=weights,
        batch=batch,
        bit_depth=bit_depth,
        calibrate=calibrate,
        skip_unreadable=skip_unreadable,
        work=work,
        progress=progress,
    )
    if json_file is not None:
        text = json.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write(json_file, (text + "\n").encode())
    if markdown_file is not None:
        atomic_write(markdown_file, markdown(found).encode())
    if html_file is not None:
        atomic_write(html_file, html_page(found).encode())
    if found.resumed:
        typer.echo(f"{found.resumed} of {len(found.units)} units were finished already (in {work})")
    typer.echo(plain(found))
    for remark in remarks(found):
        typer.echo(remark)


def _mode(value: str) -> Mode:
    if value == "separate":
        return "separate"
    if value == "multi":
        return "multi"
    raise VisionADError(f"--mode {value}: wanted separate or multi")


def _engine(value: str) -> EngineName:
    if value == "runtime":
        return "runtime"
    if value == "reference":
        return "reference"
    raise VisionADError(f"--engine {value}: wanted runtime or reference")


def _seeds(value: str) -> list[int]:
    try:
        return [int(seed) for seed in value.split(",")]
    except ValueError:
        raise VisionADError(f"--seeds {value}: wanted whole numbers with commas between, e.g. 1,2,3") from None


def _check_targets(files: Sequence[Path], data: Dataset) -> None:
    """No result may be written over another, or over a picture or mask that is measured on."""
    targets = [os.path.realpath(file) for file in files]
    if len(set(targets)) < len(targets):
        raise VisionADError("--json, --markdown and --html name the same file; give each a name of its own")
    inputs: set[Path] = set()
    for name in data.classes:
        inputs.update(data.train(name), data.validation(name))
        for sample in data.test(name):
            inputs.update((sample.path, *sample.masks))
    for file, taken in zip(files, targets, strict=True):
        if file.exists() and taken in {os.path.realpath(path) for path in inputs}:
            raise VisionADError(f"{file} belongs to the data set and would be written over; choose another name")


def _check_place(file: Path) -> None:
    if file.is_dir():
        raise VisionADError(f"{file} is a folder; wanted the name of a file to write")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise VisionADError(f"cannot make the folder {file.parent}: {exc.strerror}; choose another place") from None
