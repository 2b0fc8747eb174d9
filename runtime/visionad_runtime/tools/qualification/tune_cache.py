"""What a tuning keeps: measured set-ups in a file, decoded images in memory."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import VisionADError
from ...images.decode import load
from .choice import Candidate, Measured

MAX_DECODED = 256 << 20
"""Bytes of decoded images that are kept in memory for the next set-up."""


class Pixels:
    """Decoded images, which all set-ups share, as far as they fit into :data:`MAX_DECODED` bytes."""

    def __init__(self, bit_depth: int | None) -> None:
        """Keep nothing yet. ``bit_depth``: bits that the camera fills in 16-bit files."""
        self._bit_depth, self._size = bit_depth, 0
        self._kept: dict[Path, NDArray[np.uint8]] = {}

    def load(self, path: Path) -> NDArray[np.uint8]:
        """Return an image, uint8 (H, W, 3) RGB.

        Raises:
            ImageError: It cannot be read.
        """
        if path in self._kept:
            return self._kept[path]
        rgb = load(path, self._bit_depth)
        if self._size + rgb.nbytes <= MAX_DECODED:
            self._kept[path] = rgb
            self._size += rgb.nbytes
        return rgb


def append_result(file: Path, key: str, measured: Measured) -> None:
    """Add a measured set-up to a file of JSON lines.

    Raises:
        VisionADError: The file cannot be written.
    """
    try:
        with open(file, "a", encoding="utf-8") as f:
            f.write(json.dumps({"key": key, **asdict(measured)}) + "\n")
    except OSError as exc:
        raise VisionADError(f"{file}: {exc.strerror or exc}; free some space and run again") from None


def read_results(file: Path) -> dict[str, Measured]:
    """Read what an earlier run measured. A torn line is measured anew."""
    known: dict[str, Measured] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        try:
            fields = json.loads(line)
            key, candidate = fields.pop("key"), fields.pop("candidate")
            known[key] = Measured(Candidate(**{**candidate, "grid": tuple(candidate["grid"])}), **fields)
        except (ValueError, TypeError, KeyError):
            continue
    return known
