"""Entry point of the console script. It reports errors of the first imports, before the command line itself is loaded."""

from __future__ import annotations

import sys

from ..errors import import_error_message, is_own_module


def main() -> None:
    """Run ``visionad``.

    Exit status 130 if it is interrupted while it is imported, and 2 with one line on stderr if a required package is missing.
    """
    try:
        from .main import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as exc:
        if is_own_module(exc):
            raise
        print(f"visionad: {import_error_message(exc)}", file=sys.stderr)  # noqa: T201 - console.complain needs typer
        sys.exit(2)
    command()
