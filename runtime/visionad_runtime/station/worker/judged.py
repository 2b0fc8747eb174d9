"""What became of one camera's image, and its pixels as they are judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...result import Result
from ..camera import Frame


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


def eight_bits(frame: Frame) -> NDArray[np.uint8]:
    """Return a frame's pixels as uint8: the top 8 of the bits that the camera fills."""
    if frame.pixels.dtype == np.uint8:
        return np.asarray(frame.pixels, np.uint8)
    return (frame.pixels >> ((frame.bit_depth or 16) - 8)).astype(np.uint8)
