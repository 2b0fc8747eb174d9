"""Where the console script begins: a Ctrl-C counts from the first import on, before anything is there that could say so."""

from __future__ import annotations

import sys


def main() -> None:
    """``visionad``, which ends with status 130 and no traceback when it is interrupted while it is being imported."""
    try:
        from .cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()
