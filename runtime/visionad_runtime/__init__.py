"""VisionAD's lean runtime: few-shot visual inspection, from a folder of good images to a verdict. It does not use torch.

>>> from visionad_runtime import Inspector
>>> inspector = Inspector.open("model", "bank")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import _release
from ._release import __version__
from .errors import BankError, ImageError, ModelError, VisionADError

if TYPE_CHECKING:
    from .inspector import Inspector
    from .result import Result

# By default ONNX Runtime (1.32) records what it runs, with an identifier, below the user's home, and sends the records. An
# inspection line must not send data.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["BankError", "ImageError", "Inspector", "ModelError", "Result", "VisionADError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import ``Inspector`` and ``Result`` on first use, so that importing the package is fast; resolve deprecated names."""
    if name == "Inspector":
        from .inspector import Inspector

        return Inspector
    if name == "Result":
        from .result import Result

        return Result
    if name in _release.API:
        import warnings

        renamed = _release.API[name]
        warnings.warn(_release.notice(f"{__name__}.{name}", renamed), DeprecationWarning, stacklevel=2)
        return globals()[renamed.name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
