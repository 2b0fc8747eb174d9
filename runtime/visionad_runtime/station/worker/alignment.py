"""Where a part lies, compared with an enrolled image of its class: the ECC alignment of OpenCV, on a quarter of the size.

Shift and turn are those that bring both images together best; the correlation says how well that is. Brightness and contrast do not
matter. Nothing is moved: the inspection, with its ROIs and ignored areas, sees the image as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ...bank.layout import Layout
from ...bank.supports import read_kept
from ...formats.manifest import SupportImage
from ..settings import Alignment

_SHRINK = 4.0
_SIDES = (64, 512)
"""Shortest and longest side that an image is shrunk to, where :data:`_SHRINK` would leave that range."""
_COARSE = 4
"""A second, smaller size that large shifts are found on first."""
_COARSE_SIDE = 16
_MARGIN = 4
"""Share of what is inspected, of its width and height, that is looked at on each side of it too."""
_SURE = 0.9
"""Correlation from which the first start was the right one."""
_BLUR = 5
_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-4)
_FLAT = 2.0
"""Standard deviation of gray levels below which an image has no texture that could be aligned."""
_MIN_PIXELS = 64
"""Pixels that count, below which there is nothing to align."""


class Position(NamedTuple):
    """Where a part lies.

    Attributes:
        correlation: of both images once they are aligned, up to 1.
        shift_px: how far the middle of what is inspected has moved, in pixels of the image.
        rotation_deg: how far it is turned, in degrees, clockwise.
    """

    correlation: float
    shift_px: float
    rotation_deg: float


class Finding(NamedTuple):
    """What an alignment has found.

    Attributes:
        position: where the part lies; ``None`` if that could not be found.
        problem: what is out of limits, in words; ``None`` if nothing is.
    """

    position: Position | None
    problem: str | None

    @property
    def facts(self) -> dict[str, Any]:
        """What a result says of it: ``alignment``, and ``position`` if something is wrong."""
        facts: dict[str, Any] = {}
        if self.position is not None:
            digits = (4, 2, 2)
            named = zip(Position._fields, self.position, digits, strict=True)
            facts["alignment"] = {name: round(value, places) for name, value, places in named}
        if self.problem is not None:
            facts["position"] = self.problem
        return facts


class Reference:
    """An enrolled image that parts are aligned with.

    Args:
        rgb: uint8 (H, W, 3) or (H, W).
        counts: bool (H, W), pixels that are inspected and so aligned by; ``None`` for all.
    """

    def __init__(self, rgb: NDArray[np.uint8], counts: NDArray[np.bool_] | None = None) -> None:
        self._shape = rgb.shape[:2]
        mask = np.full(self._shape, 255, np.uint8) if counts is None else counts.astype(np.uint8) * 255
        x, y, width, height = cv2.boundingRect(mask)
        left, top = max(0, x - width // _MARGIN), max(0, y - height // _MARGIN)
        self._part = np.s_[top : y + height + height // _MARGIN, left : x + width + width // _MARGIN]
        self._middle = np.array([x + width / 2 - left, y + height / 2 - top])
        shown, mask = rgb[self._part], mask[self._part]
        shrink = min(_SHRINK, max(1.0, min(shown.shape[:2]) / _SIDES[0]))
        shrink = max(shrink, max(shown.shape[:2]) / _SIDES[1])
        self._fine = _Size(shown, mask, shrink)
        self._coarse = _Size(shown, mask, shrink * _COARSE)

    @property
    def is_flat(self) -> bool:
        """Whether the image has no texture that parts could be aligned by."""
        return self._fine.is_flat

    def look(self, rgb: NDArray[np.uint8], limits: Alignment) -> Finding:
        """Find a part, and compare its place with the limits.

        Args:
            rgb: uint8 (H, W, 3) or (H, W).
            limits: of correlation, shift and turn.
        """
        if rgb.shape[:2] != self._shape:
            sizes = "the image has {1}x{0} pixels, the enrolled one {3}x{2}".format(*rgb.shape[:2], *self._shape)
            return Finding(None, sizes)
        if self.is_flat:
            return Finding(None, "the enrolled image has no texture to align parts by")
        position = self.locate(rgb)
        if position is None:
            return Finding(None, "it could not be aligned with the enrolled image")
        if position.correlation < limits.min_correlation:
            text = f"correlation {position.correlation:.2f} with the enrolled image; limit {limits.min_correlation:g}"
            return Finding(position, text)
        if position.shift_px > limits.max_shift_px or abs(position.rotation_deg) > limits.max_rotation_deg:
            text = f"moved {position.shift_px:.1f} px, {abs(position.rotation_deg):.1f} deg"
            return Finding(position, f"{text}; limit {limits.max_shift_px:g} px, {limits.max_rotation_deg:g} deg")
        return Finding(position, None)

    def locate(self, rgb: NDArray[np.uint8]) -> Position | None:
        """Return where a part lies in an image of the same size; ``None`` if the alignment does not converge.

        Args:
            rgb: uint8 (H, W, 3) or (H, W).
        """
        shown = rgb[self._part]
        still = np.eye(2, 3, dtype=np.float32)  # of pixels of the image
        starts = [still]
        if not self._coarse.is_flat and min(self._coarse.gray.shape) >= _COARSE_SIDE:
            rough = self._coarse.align(shown, still)
            starts = starts if rough is None else [rough[1], still]
        best: tuple[float, NDArray[np.float32]] | None = None
        for start in starts:
            found = self._fine.align(shown, start)
            if found is not None and (best is None or found[0] > best[0]):
                best = found
            if best is not None and best[0] >= _SURE:
                break
        if best is None:
            return None
        correlation, warp = best
        moved = warp[:, :2].astype(np.float64) @ self._middle + warp[:, 2] - self._middle
        turn = math.degrees(math.atan2(float(warp[1, 0]), float(warp[0, 0])))
        return Position(correlation, float(np.hypot(*moved)), turn)


class _Size:
    """The enrolled image at one size."""

    def __init__(self, rgb: NDArray[np.uint8], mask: NDArray[np.uint8], shrink: float) -> None:
        height, width = rgb.shape[:2]
        self._to = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        self._shrink = shrink
        self._mask = cv2.resize(mask, self._to, interpolation=cv2.INTER_NEAREST)
        self.gray = self._shrunk(rgb)
        self.is_flat = self._is_flat(self.gray)

    def align(self, rgb: NDArray[np.uint8], start: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]] | None:
        """Return correlation and motion of an image, in its own pixels; ``None`` if the alignment does not converge."""
        seen = self._shrunk(rgb)
        if self._is_flat(seen):
            return None
        small = start.copy()
        small[:, 2] = start[:, 2] / self._shrink + _half_pixel(start)
        try:
            correlation, found = cv2.findTransformECC(
                self.gray, seen, small, cv2.MOTION_EUCLIDEAN, _CRITERIA, self._mask, _BLUR
            )
        except cv2.error:  # it does not converge, or nothing of the part is there
            return None
        warp = np.array(found, np.float32)
        warp[:, 2] = (warp[:, 2] - _half_pixel(warp)) * self._shrink
        return (float(correlation), warp) if math.isfinite(correlation) and np.isfinite(warp).all() else None

    def _shrunk(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        small = cv2.resize(np.ascontiguousarray(rgb), self._to, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY) if small.ndim == 3 else small, np.uint8)

    def _is_flat(self, gray: NDArray[np.uint8]) -> bool:
        counting = gray[self._mask > 0]
        return counting.size < _MIN_PIXELS or float(counting.std()) < _FLAT


def _half_pixel(warp: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a shift of pixel centers has beyond one of their upper left corners, float32 (2,)."""
    return np.asarray(0.5 * warp[:, :2].sum(axis=1) - 0.5, np.float32)


def first_reference(folder: Path, images: Sequence[SupportImage], layout: Layout | None) -> Reference | None:
    """Return the first enrolled image of a class that can be read; ``None`` if the bank keeps none.

    Args:
        folder: of the bank.
        images: enrolled images of the class.
        layout: what is inspected of them; ``None`` for all.
    """
    for image in images:
        rgb = read_kept(folder, image.kept, image.bit_depth)
        if rgb is not None:
            fits = layout is not None and layout.fits(rgb)
            return Reference(rgb, inspected_pixels(layout) if layout is not None and fits else None)
    return None


def unalignable(class_name: str, reference: Reference | None) -> str | None:
    """Return why parts of a class cannot be aligned, with what mends it; ``None`` if they can.

    Args:
        class_name: the class.
        reference: its first enrolled image.
    """
    remedy = "or take alignment out of the station file"
    if reference is None:
        return f"class {class_name!r}: the bank keeps no image to align parts with; enroll one without --no-images, {remedy}"
    if reference.is_flat:
        return (
            f"class {class_name!r}: its first enrolled image has no texture to align parts by; enroll another, {remedy}"
        )
    return None


def inspected_pixels(layout: Layout) -> NDArray[np.bool_]:
    """Return what is inspected of an image, bool (H, W)."""
    width, height = layout.spec.image_size
    counts = np.zeros((height, width), np.bool_)
    for tile in layout.tiles:
        x, y, wide, high = tile.box
        counts[y : y + high, x : x + wide] |= True if tile.ignored is None else ~tile.ignored
    return counts
