"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..scoring.catalog import preset_help

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="model folder, made by `visionad export`")]
BankArg = Annotated[Path, typer.Argument(metavar="BANK", help="bank folder")]
# readable=False: the parser must not refuse a whole run for one file; reading it says what is wrong, per file
PathsArg = Annotated[list[Path], typer.Argument(metavar="PATH...", help="image files or folders", readable=False)]
JsonFlag = Annotated[bool, typer.Option("--json", help="machine-readable output")]


def as_stored(name: str | None) -> str | None:
    """A class name in the form in which banks store it, however the terminal composes its letters."""
    if name is None:
        return None
    from ..bank.names import normalize_class_name

    return normalize_class_name(name)


def checked_precision(name: str | None) -> str | None:
    """A precision that exists, before anything is opened."""
    from ..formats.manifest import parse_precision

    return parse_precision(name)


ClassOption = Annotated[str, typer.Option("--class", metavar="NAME", callback=as_stored, help="class of the parts")]
MaybeClass = Annotated[
    str | None,
    typer.Option("--class", metavar="NAME", callback=as_stored, help="class of the parts; skips routing"),
]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, or one that `visionad doctor` lists")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="P",
        callback=checked_precision,
        help="compute in fp32, bf16 or fp16, by a backend that offers it [default: the model's]",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="D", help="compute on cpu, gpu or npu, by a backend that offers it (openvino)"),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of the engine [default, and at most: all cores]")
]
BitDepth = Annotated[
    int | None, typer.Option("--bit-depth", min=9, max=16, help="bits the camera fills in 16-bit files")
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="leave out files and folders of this name or path below DIR, such as done or *_raw.*",
    ),
]
KeepAlive = Annotated[
    float | None,
    typer.Option(
        "--keep-alive",
        metavar="SECONDS",
        help="a GPU runs its last image again when none came for so long, so that its clocks stay up [default: never]",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", help=f"how to score: {preset_help()} [default: as the model was exported]"
    ),
]
ViewsOption = Annotated[
    str | None,
    typer.Option("--views", metavar="original,flip,clamp", help="[default: the preset's, else all of the bank's]"),
]


def split_views(views: str | None) -> list[str] | None:
    return None if views is None else [v.strip() for v in views.split(",")]
