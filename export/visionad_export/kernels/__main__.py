"""``python -m visionad_export.kernels``: report on the compiled kernels, build them, or check them against the source."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated

import typer
from visionad_runtime._threads import available_cpus
from visionad_runtime.errors import VisionADError


def main(
    build: Annotated[
        bool, typer.Option("--build", help="compile for all targets and replace the committed binaries")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="compile and compare with the committed binaries")] = False,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="check only this target; may be repeated")
    ] = None,
) -> None:
    """Print registers, shared memory and spills of every kernel and GPU, and the CPU builds of the search."""
    try:
        from . import build as builder
        from . import cpu
    except ModuleNotFoundError as exc:
        raise VisionADError(f"the kernels' build needs {exc.name}: pip install 'visionad[export]'") from None

    if build or check:
        targets = target or list(builder.TARGETS)
        unknown = [t for t in targets if t not in builder.TARGETS]
        if unknown or (build and target):
            raise VisionADError(
                f"--target: expected some of {', '.join(builder.TARGETS)}, with --check, got {', '.join(targets)}"
            )
        built: dict[str, dict[str, builder.Built]] = {}
        # One process per target: the compiler uses one core.
        with (
            ProcessPoolExecutor(min(available_cpus(), len(targets)), get_context("spawn")) as pool,
            typer.progressbar(length=len(targets), label="compiling", file=sys.stderr) as bar,
        ):
            for name, product in zip(targets, pool.map(builder.build, targets), strict=True):
                built[name] = product
                bar.update(1)
        # --target names GPU targets only.
        for_cpus = {} if target else cpu.build()
        if build:
            builder.write(built)
            cpu.write(for_cpus)
        wrong = builder.check(built) + (cpu.check(for_cpus) if for_cpus else [])
        if wrong:
            raise VisionADError(f"{'; '.join(wrong)}; run `python -m visionad_export.kernels --build`")
        if (here := builder.manifest(built)["triton"]) != (there := builder.committed()["triton"]):
            typer.echo(f"compiled with Triton {here}, committed with {there}: bytes were not compared")
        if for_cpus and (here := cpu.compiler()) != (there := cpu.committed()["compiler"]):
            typer.echo(f"search compiled with {here}, committed with {there}: bytes were not compared")
    typer.echo(f"{builder.report(builder.committed())}\n\n{cpu.report(cpu.committed())}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    try:
        app()
    except VisionADError as exc:
        typer.echo(f"visionad_export.kernels: {exc}", err=True)
        raise SystemExit(2) from None
