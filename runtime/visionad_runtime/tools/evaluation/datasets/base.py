"""Building blocks of data set layouts: classes, samples, and helpers that collect faults.

A benchmark number is only as good as the images that it counts, so a layout skips nothing silently: every image and mask that it
promises must exist. Missing files are counted and named in one error before any work starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ....errors import VisionADError
from ....images import discover

GOOD = "good"


class DatasetError(VisionADError):
    """A data set is missing, or does not have its layout."""


class Box(NamedTuple):
    """Bounding box of a defect in pixels of the image. ``right`` and ``bottom`` are excluded."""

    left: int
    top: int
    right: int
    bottom: int


class Saturation(NamedTuple):
    """Overlap with a region from which on it counts as found (Bergmann et al. 2022).

    Attributes:
        threshold: pixels of the region, or a share of its area.
        relative: whether ``threshold`` is a share.
    """

    threshold: float
    relative: bool

    def pixels(self, area: int) -> float:
        """Return the overlap in pixels, above 0 and at most ``area``."""
        wanted = int(self.threshold * area) if self.relative else self.threshold
        return float(min(max(wanted, 1), area))


@dataclass(frozen=True)
class Sample:
    """A test image. A defect without masks and boxes counts in image metrics only.

    Attributes:
        path: image file.
        class_name: class of the image.
        label: 0 for good, 1 for a defect.
        defect: type of the defect, or ``good``.
        split: part of the data set.
        masks: mask files, each of the image's size; their union is the defect.
        boxes: bounding boxes instead of masks.
        condition: light, day or camera under which the image was taken, if the data set says so.
    """

    path: Path
    class_name: str
    label: int
    defect: str = GOOD
    split: str = "test"
    masks: tuple[Path, ...] = ()
    boxes: tuple[Box, ...] = ()
    condition: str = ""

    @property
    def has_mask(self) -> bool:
        """Whether the defective pixels are known. In a good image there are none."""
        return self.label == 0 or bool(self.masks or self.boxes)


@dataclass(frozen=True)
class ClassData:
    """Images of one class.

    Attributes:
        train: good images to select supports from, sorted by file name.
        test: test images.
        validation: further good images that the data set sets apart.
        saturations: saturation of a mask's region by the mask's pixel value; ``None`` if the data set has none.
    """

    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    validation: tuple[Path, ...] = ()
    saturations: Mapping[int, Saturation] | None = None


class Copy(NamedTuple):
    """An image whose content is also that of another one of its class.

    Attributes:
        image: the image.
        other: the other one, which comes first.
        kind: what both are, for a message.
    """

    image: Path
    other: Path
    kind: str


@dataclass(frozen=True)
class Dataset:
    """A checked data set. Every class has train and test images.

    Attributes:
        name: name of its layout.
        root: its folder.
        by_class: images by class.
        metrics: names of the data set's own metrics, beside those that all have.
        copies: copies by class, if they were looked for; only classes that have any.
    """

    name: str
    root: Path
    by_class: Mapping[str, ClassData]
    metrics: tuple[str, ...] = ()
    copies: Mapping[str, tuple[Copy, ...]] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted."""
        return sorted(self.by_class)

    def train(self, class_name: str) -> list[Path]:
        """Return good images to select supports from, sorted by file name."""
        return list(self._of(class_name).train)

    def validation(self, class_name: str) -> list[Path]:
        """Return further good images that the layout sets apart for a threshold; most have none."""
        return list(self._of(class_name).validation)

    def test(self, class_name: str) -> list[Sample]:
        """Return test images by type of defect, then by file name."""
        return list(self._of(class_name).test)

    def saturations(self, class_name: str) -> Mapping[int, Saturation] | None:
        """Return the saturation of a mask's region by the mask's pixel value; ``None`` if the data set has none."""
        return self._of(class_name).saturations

    def _of(self, class_name: str) -> ClassData:
        if class_name not in self.by_class:
            known = ", ".join(self.classes)
            raise DatasetError(f"{self.name} at {self.root} has no class {class_name!r}; expected one of {known}")
        return self.by_class[class_name]


@dataclass
class Faults:
    """Faults of a data set, by kind, so that one error can name all of them.

    Attributes:
        name: name of the layout.
        root: folder of the data set.
        found: files by kind of fault.
    """

    name: str
    root: Path
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: Path | str) -> None:
        """Record a fault.

        Args:
            kind: kind of the fault.
            where: file, folder or text that locates it.
        """
        path = Path(where)
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        self.found.setdefault(kind, []).append(str(inside))

    def need_files(self, kind: str, paths: Iterable[Path]) -> None:
        """Record each path that is not a file with content.

        Args:
            kind: what the files are.
            paths: files to check.
        """
        for path in paths:
            if not path.is_file():
                self.add(f"{kind} missing", path)
            elif not path.stat().st_size:
                self.add(f"{kind} empty", path)

    def raise_if_any(self) -> None:
        """Raise one error for all faults.

        Raises:
            DatasetError: there are faults. The message counts each kind and names its first files.
        """
        if self.found:
            lines = []
            for kind, where in self.found.items():
                first = ", ".join(where[:3]) + (", …" if len(where) > 3 else "")
                lines.append(f"{len(where)} x {kind} ({first})")
            raise DatasetError(f"{self.name} at {self.root}: {'; '.join(lines)}")


def image_files(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by file name; none if the folder does not exist."""
    if not folder.is_dir():
        return []
    images = (p for p in folder.iterdir() if p.suffix.lower() in discover.SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in images if p.is_file()), key=by_name)


def by_name(path: Path) -> tuple[str, str]:
    """Return a sorting key: file name, then path."""
    return path.name, str(path)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted by name, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def listed_classes(train: dict[str, list[Path]], test: dict[str, list[Sample]], faults: Faults) -> dict[str, ClassData]:
    """Make classes from lists of files. Missing files are recorded as faults.

    Args:
        train: good images by class.
        test: test images by class.
        faults: record of missing files.

    Returns:
        Classes by name, images sorted.
    """
    for images in train.values():
        faults.need_files("image", images)
    for samples in test.values():
        faults.need_files("image", (s.path for s in samples))
        faults.need_files("mask", (m for s in samples for m in s.masks))
    return {
        name: ClassData(
            tuple(sorted(train.get(name, ()), key=by_name)),
            tuple(sorted(test.get(name, ()), key=lambda s: (s.defect, *by_name(s.path)))),
        )
        for name in sorted({*train, *test})
    }


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: the file cannot be read or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as exc:
        raise DatasetError(f"{path}: expected JSON: {exc}") from None


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file.

    Raises:
        DatasetError: the file cannot be read or decoded.
    """
    try:
        return path.read_bytes().decode(encoding)
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise DatasetError(
            f"{path}: expected text in UTF-8, got {exc.reason} at byte {exc.start}; save it as UTF-8"
        ) from None
