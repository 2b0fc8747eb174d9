"""``visionad demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import progress, say
from ..options import ThreadsOption


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder for everything the demo writes")] = Path(
        "visionad-demo"
    ),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="your own parts, laid out as MVTec-AD [default: rendered parts]"),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="good pictures to enrol of each class")] = 4,
    threads: ThreadsOption = None,
) -> None:
    """The main job end to end, offline: export, enrol, calibrate, inspect, and a report to look at."""
    from ...demo.run import run_demo

    summary = run_demo(out, data=data, shots=shots, threads=threads, say=say, progress=progress)
    say(summary)
