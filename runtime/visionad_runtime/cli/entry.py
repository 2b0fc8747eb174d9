"""Where the console script begins: what can go wrong from the first import on, before anything is there that could say so."""

from __future__ import annotations

import sys

from ..errors import import_error_message, is_own_module


def main() -> None:
    """``visionad``. Interrupted while it is being imported it ends with status 130, without a package that it needs with 2 and
    one line, never with a traceback."""
    try:
        from .main import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as exc:
        if is_own_module(exc):
            raise
        print(f"visionad: {import_error_message(exc)}", file=sys.stderr)  # noqa: T201 - the command's own way needs typer
        sys.exit(2)
    command()
