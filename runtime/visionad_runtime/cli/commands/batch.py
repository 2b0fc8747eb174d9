"""``visionad batch`` and ``visionad compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import VisionADError
from ...shards import parse_shard
from ..console import complain, progress, say
from ..options import (
    BackendOption,
    BankArg,
    BitDepth,
    DeviceOption,
    ExcludeOption,
    JsonFlag,
    MaybeClass,
    ModelArg,
    PrecisionOption,
    PresetOption,
    ShardOption,
    ViewsOption,
)
from ..results import require_bank

if TYPE_CHECKING:
    from ...fleet.batch.compare import Comparison

RAY = "ray"


def batch(
    model: ModelArg,
    bank: BankArg,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="folder, list of files, or Parquet with a column `image`")
    ],
    out: Annotated[str, typer.Option("--out", metavar="URL", help="folder or URL for the results, as Parquet")],
    class_name: MaybeClass = None,
    shard: ShardOption = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="ray[://ADDRESS]", help="ray: this machine alone; ray://ADDRESS: a running cluster"
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            "--block", min=1, max=10_000_000, metavar="N", help="images a part file [default: about a minute of work]"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="processes [default: one a CPU]")
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    preset: PresetOption = None,
    views: ViewsOption = None,
    bit_depth: BitDepth = None,
    exclude: ExcludeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Inspect an archive in blocks, into Parquet. A stopped run goes on where it was; shards share one folder."""
    part, ray = parse_shard(shard), _ray_address(on)
    require_bank(bank)
    _require_pyarrow()
    from ...fleet.batch.run import run_batch
    from ...fleet.batch.source import read_source
    from ...fleet.batch.worker import Settings

    index = read_source(source, block, exclude or ())
    # Nodes of a cluster have working folders of their own.
    settings = Settings(
        str(model.absolute()), str(bank.absolute()), class_name, backend, precision, device, preset,
        None if views is None else tuple(views.split(",")), bit_depth=bit_depth, folder=_working_folder(),
    )  # fmt: skip
    target = out if "://" in out else str(Path(out).absolute())
    summary = run_batch(settings, index, target, shard=part, workers=workers, ray=ray, progress=progress)
    if as_json:
        say(json.dumps({k: getattr(summary, k) for k in ("url", "digest", "images", "blocks", "kept", "counts")}))
    else:
        counts = "  ".join(f"{n} {name}" for name, n in summary.counts.items() if name != "error") or "nothing new"
        kept = f", {summary.kept} of them finished before" if summary.kept else ""
        say(f"{summary.url}: {summary.images} images in {summary.blocks} blocks{kept}: {counts}")
    if unread := summary.counts.get("error"):
        complain(f"{unread} images could not be read; the column `error` says why")


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="folder or URL of a run of `visionad batch`")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="the same, with another bank, model or setting")],
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="differences of scores up to this are none")
    ] = 1e-5,
    worst: Annotated[int, typer.Option("--worst", min=0, metavar="N", help="images to list of each kind")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Say what changes between two runs: verdicts by class, and the images whose scores move most."""
    _require_pyarrow()
    from ...fleet.batch.compare import compare as compare_runs

    found = compare_runs(run_a, run_b, tolerance, max(worst, 100))
    if as_json:
        say(json.dumps(found.to_dict(worst), ensure_ascii=False))
    else:
        _print(found, worst)


def _print(found: Comparison, worst: int) -> None:
    say(f"{found.images} images in both runs; {found.only[0]} only in the first, {found.only[1]} only in the second")
    say(f"{len(found.flipped)} verdicts differ; {found.moved} scores moved")
    for name, kinds in sorted(found.flips.items()):
        for (before, after), count in sorted(kinds.items()):
            say(f"  {name or '(no class)'}: {before} -> {after}: {count}")
    for title, changes in (("verdicts that differ", found.flipped), ("largest moves", found.largest)):
        if changes[:worst]:
            say(f"{title}:")
        for change in changes[:worst]:
            scores = [
                "none" if row.score is None else f"{row.score:.4f} {row.verdict}"
                for row in (change.before, change.after)
            ]
            say(f"  {change.image}: {scores[0]} -> {scores[1]}")


def _working_folder() -> str:
    """Return the working folder; empty if it was deleted, when relative paths name nothing."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""


def _ray_address(on: str | None) -> str | None:
    if on is None:
        return None
    engine, separator, address = on.partition("://")
    if engine != RAY or (separator and not address):
        raise VisionADError(
            f"--on {on}: expected ray, or ray://ADDRESS of a running cluster, such as ray://10.0.0.5:6379"
        )
    return address


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        raise VisionADError("batch runs take pyarrow: pip install 'visionad[batch]'") from None
