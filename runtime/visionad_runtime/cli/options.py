"""Arguments and options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..scoring.catalog import preset_help

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="model folder, made by `visionad export`")]
BankArg = Annotated[Path, typer.Argument(metavar="BANK", help="bank folder")]
# readable=False: one unreadable file must not stop the run; reading it reports the error for that file
PathsArg = Annotated[list[Path], typer.Argument(metavar="PATH...", help="image files or folders", readable=False)]
MaybePaths = Annotated[
    list[Path] | None, typer.Argument(metavar="[PATH]...", help="image files or folders", readable=False)
]
JsonFlag = Annotated[bool, typer.Option("--json", help="machine-readable output")]


def as_stored(name: str | None) -> str | None:
    """Return a class name in the form that banks store, whatever Unicode form the terminal uses."""
    if name is None:
        return None
    from ..bank.names import normalize_class_name

    return normalize_class_name(name)


def checked_precision(name: str | None) -> str | None:
    """Check a precision before anything is opened.

    Raises:
        VisionADError: there is no such precision.
    """
    from ..formats.manifest import parse_precision

    return parse_precision(name)


ClassOption = Annotated[str, typer.Option("--class", metavar="NAME", callback=as_stored, help="class of the parts")]
MaybeClass = Annotated[
    str | None,
    typer.Option("--class", metavar="NAME", callback=as_stored, help="class of the parts; skips routing"),
]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, or a backend that `visionad doctor` lists")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="P",
        callback=checked_precision,
        help="compute in fp32, bf16 or fp16, if the backend offers the choice [default: the model's]",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="D", help="compute on cpu, gpu or npu, if the backend offers the choice (openvino)"
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of the engine [default, and at most: all cores]")
]
EvidenceOption = Annotated[
    bool,
    typer.Option("--evidence", help="name the nearest good patch of each region, and show it beside the overlay"),
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
        help="rerun the last image after this many idle seconds, to keep the GPU's clocks up [default: never]",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help=f"scoring: {preset_help()} [default: the model's]"),
]
ViewsOption = Annotated[
    str | None,
    typer.Option("--views", metavar="original,flip,clamp", help="[default: the preset's, else all of the bank's]"),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="do the I-th of N parts of the work; auto/N takes I from an Indexed Job or a job array [default: all of it]",
    ),
]
