"""Diagrams of a run by matplotlib, from the extra ``eval``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import VisionADError
from ...formats.files import atomic_file


def require_matplotlib() -> None:
    """Check that diagrams can be drawn, before minutes of measuring.

    Raises:
        VisionADError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise VisionADError("--plots needs matplotlib: pip install 'visionad[eval]'")


def make_folder(folder: Path) -> None:
    """Create the folder of the diagrams, before minutes of measuring.

    Raises:
        VisionADError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise VisionADError(
            f"--plots {folder}: expected a folder, which cannot be created: {exc.strerror}; choose another place"
        ) from None


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the diagrams. Existing files are replaced.

    ``stages.png`` has the median milliseconds of the stages, a bar for each backend, from the file and from pixels.
    ``throughput.png`` has images per second by batch size.

    Args:
        report: report of :func:`~visionad_runtime.tools.benchmark.run.run_bench`.
        folder: folder of the diagrams.

    Returns:
        The files.

    Raises:
        VisionADError: they cannot be written.
    """
    from matplotlib.figure import Figure

    make_folder(folder)
    backends = report["backends"]
    title = f"{report['model']['name']}, {report['model']['precision']}\n{report['environment']['cpu']}"
    title += "".join(f", {gpu}" for gpu in report["environment"]["gpus"])

    stages_by_bar = {
        f"{name}, {label}": entry["stages"][source]
        for name, entry in backends.items()
        for source, label in (("whole", "file"), ("pixels", "pixels"))
    }
    bars = Figure(figsize=(9, 2.0 + 0.6 * len(stages_by_bar)), layout="constrained")
    axes = bars.subplots()
    start = dict.fromkeys(stages_by_bar, 0.0)
    for stage in dict.fromkeys(s for stages in stages_by_bar.values() for s in stages if s != "total"):
        widths = {n: stages[stage]["p50"] if stage in stages else 0.0 for n, stages in stages_by_bar.items()}
        axes.barh(list(stages_by_bar), list(widths.values()), left=list(start.values()), label=stage)
        start = {name: start[name] + width for name, width in widths.items()}
    axes.set(xlabel=f"ms per image, median, batch {report['settings']['batches'][0]}")
    axes.set_title(title, fontsize=9)
    axes.invert_yaxis()
    bars.legend(fontsize=8, ncols=6, loc="outside lower center")

    curve = Figure(figsize=(6, 4), layout="constrained")
    axes = curve.subplots()
    for name, entry in backends.items():
        sizes = sorted(map(int, entry["batches"]))
        axes.plot(sizes, [entry["batches"][str(n)]["pictures_per_s"] for n in sizes], "o-", label=name)
    axes.set(xlabel="images per call", ylabel="images per second", ylim=(0, None))
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)

    paths = [folder / "stages.png", folder / "throughput.png"]
    for figure, path in zip((bars, curve), paths, strict=True):
        with atomic_file(path) as f:
            figure.savefig(f, format="png", dpi=130)
    return paths
