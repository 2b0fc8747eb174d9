"""Checks beside the verdict: light and focus, position, codes, rejects in a row, and whether the promise still holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ...bank.names import normalize_class_name
from ...errors import VisionADError
from ...images import decode
from ...inspector.inspection import Inspection
from ...result import Result
from ..front.cycle import OK
from ..settings import Checks, Recipe
from .alignment import Finding, Reference, first_reference, unalignable

ALARMS = {
    "light": (
        "the light or the focus is not that of the enrolled images",
        "look at lamp, lens and cover glass; clean them",
    ),
    "light-fault": ("light or focus was out of limits several times in a row", "mend the light, then clear the fault"),
    "rejects": ("several parts in a row were not ok", "look at the parts, the light and the fixture"),
    "exchangeability": (
        "today's good parts are not like those of the calibration: the promise is void",
        "find what changed (light, lens, material); then confirm consecutive parts, or calibrate again",
    ),
    "camera": ("a camera gave no image", "look at its cable, power and trigger"),
    "stale": ("an image was older than its trigger", "look at the stream's latency and the camera's trigger"),
    "position": (
        "the part does not lie as in the enrolled image",
        "look at the fixture, the camera's mount and the part",
    ),
    "code": ("the code in the image is not the part's", "look at the label, and at the part number that the PLC sends"),
    "mix-up": ("the part looks like another class", "look at the recipe and the part"),
    "internal": ("the part could not be judged", "look at the log"),
    "golden": (
        "a golden part was judged wrongly",
        "look at the image that is named, at bank, recipe and threshold; then run the golden parts again",
    ),
    "disk": ("records or images cannot be written", "free space on the disk"),
    "clock": ("the clock is not synchronized", "look at the time server; shifts and records carry this clock"),
    "sink": ("a sink does not deliver", "look at its health"),
    "page": ("the page process was replaced", "look at the log; the line is not concerned"),
    "panel": ("a panel does not answer", "look at the panel; restart its browser"),
}
"""Alarm code → what it means, and what mends it."""
_SIDE = 256
"""Longest side of the image that statistics are taken of."""
_FLOORS = (12.0, 12.0, 20.0, 0.02, 0.35)
"""Smallest distances that are out of limits: mean, 1 % and 99 % in gray levels, saturated share, relative gradient energy."""
_SPREAD = 6.0
"""Half width of the limits, in standard deviations of the enrolled images."""


class ImageStatistics(NamedTuple):
    """Light and focus of an image.

    Attributes:
        mean: mean gray level.
        dark: gray level that 1 % of the pixels are below.
        bright: gray level that 1 % of the pixels are above.
        saturated: share of pixels at 255.
        sharpness: logarithm of the mean squared gradient.
    """

    mean: float
    dark: float
    bright: float
    saturated: float
    sharpness: float


def image_statistics(rgb: NDArray[np.uint8]) -> ImageStatistics:
    """Return the statistics of an image, uint8 (H, W, 3) or (H, W)."""
    scale = max(1, -(-max(rgb.shape[:2]) // _SIDE))
    small = np.ascontiguousarray(rgb[::scale, ::scale])
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY) if small.ndim == 3 else small
    counts = np.bincount(gray.ravel(), minlength=256)
    across = cv2.norm(gray[:, 1:], gray[:, :-1], cv2.NORM_L2SQR) / max(1, gray[:, 1:].size)
    down = cv2.norm(gray[1:], gray[:-1], cv2.NORM_L2SQR) / max(1, gray[1:].size)
    return ImageStatistics(
        mean=float(counts @ np.arange(256)) / gray.size,
        dark=_level(counts, 0.01),
        bright=_level(counts, 0.99),
        saturated=float(counts[255]) / gray.size,
        sharpness=float(np.log(across + down + 1.0)),
    )


def _level(counts: NDArray[np.int64], share: float) -> float:
    """Return the gray level that a share of the pixels are below, from the pixels of each level, as ``np.quantile`` does."""
    ends = np.cumsum(counts)
    place = share * float(ends[-1] - 1)
    low, high = np.searchsorted(ends, (int(place), min(int(place) + 1, int(ends[-1]) - 1)), side="right")
    return float(low + (high - low) * (place - int(place)))


class LightLimits:
    """Limits of light and focus, from the enrolled images of a class.

    Args:
        enrolled: statistics of one enrolled image or more.
    """

    def __init__(self, enrolled: Sequence[ImageStatistics]) -> None:
        values = np.asarray(enrolled, np.float64)
        self._middle = values.mean(axis=0)
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(_FLOORS))
        self._half = np.maximum(_FLOORS, _SPREAD * spread)

    def problem(self, statistics: ImageStatistics) -> str | None:
        """Return what is out of limits, in words that begin with its name; ``None`` if nothing is."""
        values = np.asarray(statistics)
        for name, value, middle, half in zip(ImageStatistics._fields, values, self._middle, self._half, strict=True):
            if abs(value - middle) > half:
                return f"{name} is {value:.3g}, expected {middle - half:.3g} to {middle + half:.3g}"
        return None


class ImageChecks:
    """Looks at each image that one version of the bank has judged.

    Args:
        checks: what the station file says.
        inspection: what judges.
    """

    def __init__(self, checks: Checks, inspection: Inspection) -> None:
        self._checks, self._inspection = checks, inspection
        self._limits: dict[str, tuple[object, LightLimits | None]] = {}
        self._references: dict[str, tuple[object, Reference | None]] = {}
        self._dark_in_a_row = 0

    @property
    def light_decides(self) -> bool:
        """Whether an image out of limits is not decidable."""
        return self._checks.light.startswith("fault_after_")

    def look(self, rgb: NDArray[np.uint8], result: Result) -> tuple[str, ...]:
        """Return the codes of alarms that an image and its result raise.

        Args:
            rgb: uint8 pixels.
            result: result of the inspection.
        """
        codes: list[str] = []
        if result.class_mismatch is not None:
            codes.append("mix-up")
        if self._checks.light != "off" and result.class_name is not None:
            limits = self._limits_of(result.class_name)
            out = limits is not None and limits.problem(image_statistics(rgb)) is not None
            self._dark_in_a_row = self._dark_in_a_row + 1 if out else 0
            if out:
                codes.append("light")
            if self.light_decides and self._dark_in_a_row >= int(self._checks.light.rpartition("_")[2]):
                codes.append("light-fault")
        if result.promise is not None and result.promise.void:
            codes.append("exchangeability")
        return tuple(codes)

    def known_limits(self, class_name: str) -> LightLimits | None:
        """Return the limits of a class if they were computed already. Any thread may ask: nothing is read from the disk."""
        cached = self._limits.get(class_name)
        return None if cached is None else cached[1]

    def code_problem(self, recipe: Recipe, camera: str, rgb: NDArray[np.uint8], part: str) -> str | None:
        """Return why the code in an image is not the part's; ``None`` if it is, or none is asked for."""
        reading = recipe.code
        if reading is None or reading.camera not in (None, camera):
            return None
        codes = read_codes(rgb, reading.kind)
        if not codes:
            return f"no {reading.kind} code was read"
        if reading.must == "match" and part not in codes:
            return f"the code reads {codes[0]!r}, the part is {part!r}"
        return None

    def position(self, recipe: Recipe, rgb: NDArray[np.uint8], result: Result) -> Finding | None:
        """Return where the part lies, and what is wrong with that; ``None`` if nobody asks, or the class is not known.

        Args:
            recipe: of the part.
            rgb: uint8 pixels.
            result: result of the inspection, which names the class.
        """
        limits = recipe.alignment or self._checks.alignment
        if limits is None or result.class_name is None:
            return None
        reference = self._reference_of(result.class_name)
        return Finding(None, unalignable(result.class_name, None)) if reference is None else reference.look(rgb, limits)

    def prepare(self, recipe: Recipe, class_name: str | None) -> None:
        """Read the enrolled images of a class, or of all, so that no part has to wait for them.

        Raises:
            VisionADError: Parts of the recipe are to be aligned, and those of a class cannot be.
        """
        bank = self._inspection.bank
        for name in () if bank is None else bank.classes if class_name is None else [class_name]:
            if self._checks.light != "off":
                self._limits_of(name)
            if recipe.alignment or self._checks.alignment:
                problem = unalignable(name, self._reference_of(name))
                if problem is not None:
                    raise VisionADError(problem)

    def _limits_of(self, class_name: str) -> LightLimits | None:
        bank = self._inspection.bank
        held = None if bank is None else bank.classes.get(class_name)
        if bank is None or held is None:
            return None
        images = held.entry.images
        cached = self._limits.get(class_name)
        if cached is None or cached[0] is not images:
            statistics = []
            for image in images[:64]:
                if image.kept is not None:
                    try:
                        rgb = decode.load(bank.folder / "images" / image.kept, image.bit_depth)
                    except VisionADError:
                        continue
                    statistics.append(image_statistics(rgb))
            cached = self._limits[class_name] = images, LightLimits(statistics) if statistics else None
        return cached[1]

    def _reference_of(self, class_name: str) -> Reference | None:
        bank = self._inspection.bank
        held = None if bank is None else bank.classes.get(normalize_class_name(class_name))
        if bank is None or held is None:
            return None
        cached = self._references.get(class_name)
        if cached is None or cached[0] is not held.entry:
            layout = held.layout if held.entry.roi is not None else None
            cached = self._references[class_name] = held.entry, first_reference(bank.folder, held.entry.images, layout)
        return cached[1]


class RejectsInARow:
    """Counts parts in a row that were not ok.

    Args:
        limit: from so many on an alarm is raised; 0 for never.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._count = limit, 0

    def count(self, evaluation: int) -> tuple[str, ...]:
        """Count a part. Return the code of the alarm, or nothing."""
        self._count = 0 if evaluation == OK else self._count + 1
        return ("rejects",) if self._limit and self._count >= self._limit else ()


def read_codes(rgb: NDArray[np.uint8], kind: str) -> list[str]:
    """Return the texts of the codes in an image.

    Args:
        rgb: uint8 pixels.
        kind: ``datamatrix``, ``qr``, ``code128``, ``ean13`` or ``any``.

    Raises:
        VisionADError: zxing-cpp is not installed.
    """
    try:
        import zxingcpp
    except ImportError:
        raise VisionADError("code reading needs zxing-cpp: pip install 'visionad[codes]'") from None
    formats = {
        "datamatrix": zxingcpp.BarcodeFormat.DataMatrix,
        "qr": zxingcpp.BarcodeFormat.QRCode,
        "code128": zxingcpp.BarcodeFormat.Code128,
        "ean13": zxingcpp.BarcodeFormat.EAN13,
    }
    image = np.ascontiguousarray(rgb)
    found = (
        zxingcpp.read_barcodes(image, zxingcpp.BarcodeFormats(formats[kind]))
        if kind in formats
        else zxingcpp.read_barcodes(image)
    )
    return [code.text for code in found]
