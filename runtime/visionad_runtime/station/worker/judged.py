"""What became of one camera's image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...result import Result


class Judged(NamedTuple):
    """What became of one camera's image.

    Attributes:
        evaluation: 1, 2 or 3.
        reason: name of ``cycle.REASONS``.
        facts: object of ``predict --json``, or ``{"error": text}``.
        rgb: uint8 pixels, to be archived; ``None`` if there was no image.
        result: result of the inspection; ``None`` without one.
        alarms: codes.
    """

    evaluation: int
    reason: str
    facts: Mapping[str, Any]
    rgb: NDArray[np.uint8] | None = None
    result: Result | None = None
    alarms: tuple[str, ...] = ()
