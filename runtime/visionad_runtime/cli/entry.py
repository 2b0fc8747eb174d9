"""Entry point of the console script. It reports errors of the first imports, before the command line itself is loaded."""

from __future__ import annotations

import sys

from ..errors import does_not_import, is_own


def main() -> None:
    """Run ``visionad``.

    Exit status 130 if it is interrupted while it is imported, and 2 with one line on stderr if a required package is missing.
    """
    try:
        from .main import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as exc:
        if is_own(exc):
            raise
        print(f"visionad: {does_not_import(exc)}", file=sys.stderr)  # noqa: T201 - console.complain needs typer
        sys.exit(2)
    command()
