"""Where the console script begins: what can go wrong from the first import on, before anything is there that could say so."""

from __future__ import annotations

import sys


def main() -> None:
    """``visionad``. Interrupted while it is being imported it ends with status 130, without a package that it needs with 2 and
    one line, never with a traceback."""
    try:
        from .cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as exc:
        if is_own(exc):
            raise
        print(f"visionad: {does_not_import(exc)}", file=sys.stderr)  # noqa: T201 - the command's own way needs typer
        sys.exit(2)
    command()


def is_own(exc: ImportError) -> bool:
    """Whether it is a module of the runtime's that is missing: a fault of this program's."""
    return (exc.name or "").startswith("visionad")


def does_not_import(exc: ImportError) -> str:
    """Which package it is, why, and what mends that."""
    import traceback
    from importlib.metadata import packages_distributions

    importers = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(exc.__traceback__)]
    package = importers[-1].partition(".")[0]
    if package.startswith(("visionad", "importlib")):  # it is not there at all
        package = (exc.name or "visionad").partition(".")[0]
    owners = packages_distributions().get(package)
    way = f"--force-reinstall {owners[0]}" if owners else "visionad"
    return f"{package} does not import ({' '.join(str(exc).split())[:300]}): pip install {way}"
