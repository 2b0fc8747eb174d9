"""``visionad demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import VisionADError
from ..console import progress, say
from ..options import ThreadsOption


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder for all output of the demo")] = Path(
        "visionad-demo"
    ),
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="your own parts in the layout of MVTec-AD [default: rendered parts]"
        ),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="good images to enroll in each class")] = 4,
    threads: ThreadsOption = None,
) -> None:
    """Run the main job offline: export, enroll, calibrate, inspect, and write a report."""
    from ...tools.demo.run import run_demo

    summary = run_demo(
        out, data=data, shots=shots, threads=threads, export_model=export_for_demo, say=say, progress=progress
    )
    say(summary)


def export_for_demo(backbone: str, model: Path) -> dict[str, Any]:
    """Export the demo's model.

    Raises:
        VisionADError: The exporter is not installed.
    """
    try:
        from visionad_export.exporter import export_model
    except ModuleNotFoundError as exc:
        raise VisionADError(
            f"the demo exports its own model, which needs {exc.name}: pip install 'visionad[export]' "
            f"(or copy a model folder to {model}; inspection needs no extra)"
        ) from None
    return export_model(backbone, model)
