"""VisionAD's lean runtime: few-shot visual inspection from a folder of good images to a verdict. No torch inside.

>>> from visionad_runtime import Inspector
>>> inspector = Inspector.open("model", "bank")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import BankError, ImageError, ModelError, VisionADError

if TYPE_CHECKING:
    from .inspector import Inspector
    from .result import Result

# Left to itself, ONNX Runtime (1.32) notes what it runs below the user's home, with an identifier, to send it. Not from a line.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["BankError", "ImageError", "Inspector", "ModelError", "Result", "VisionADError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the chain on first use, so that ``import visionad_runtime`` itself costs next to nothing."""
    if name == "Inspector":
        from .inspector import Inspector

        return Inspector
    if name == "Result":
        from .result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
