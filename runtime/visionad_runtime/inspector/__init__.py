"""Image → verdict as one object. All commands and the Python API use it."""

from .inspector import Inspector

__all__ = ["Inspector"]
