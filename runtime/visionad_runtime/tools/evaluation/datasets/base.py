"""What every data set layout is made of: classes, samples, and helpers that gather what is missing.

A benchmark number is only as good as the images that it was counted over, so a layout skips nothing in silence: every image and
mask that it promises must be there. What is missing is counted and named in one error before any work starts.
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
    """A data set is not where, or not what, its layout says."""


class Box(NamedTuple):
    """A defect's bounding box in pixels of the image; ``right`` and ``bottom`` are excluded."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Sample:
    """An image to test on. A defect without masks and boxes counts in image metrics only.

    Attributes:
        path: the image file.
        class_name: its class.
        label: 0 good, 1 defect.
        defect: type of the defect, ``good`` for none.
        split: part of the data set.
        masks: mask files, each of the image's size; their union is the defect.
        boxes: bounding boxes in place of masks.
    """

    path: Path
    class_name: str
    label: int
    defect: str = GOOD
    split: str = "test"
    masks: tuple[Path, ...] = ()
    boxes: tuple[Box, ...] = ()

    @property
    def has_mask(self) -> bool:
        """Is it known which pixels are defect? (Of a good image, always: none.)"""
        return self.label == 0 or bool(self.masks or self.boxes)


@dataclass(frozen=True)
class ClassData:
    """One class: good images to choose support from, sorted by file name; test images; more good ones, if set apart."""

    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    validation: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A checked data set. Every class has train and test images."""

    name: str
    root: Path
    by_class: Mapping[str, ClassData]

    @property
    def classes(self) -> list[str]:
        """Class names, sorted."""
        return sorted(self.by_class)

    def train(self, class_name: str) -> list[Path]:
        """Good images to choose support from, sorted by file name."""
        return list(self._of(class_name).train)

    def validation(self, class_name: str) -> list[Path]:
        """Further good images the layout sets apart (for a threshold); empty for most."""
        return list(self._of(class_name).validation)

    def test(self, class_name: str) -> list[Sample]:
        """Test images, by type of defect, then file name."""
        return list(self._of(class_name).test)

    def _of(self, class_name: str) -> ClassData:
        if class_name not in self.by_class:
            known = ", ".join(self.classes)
            raise DatasetError(f"{self.name} at {self.root} has no class {class_name!r}; it has {known}")
        return self.by_class[class_name]


@dataclass
class Faults:
    """Faults of a data set, by kind. Gather all of them, so that one error names them at once."""

    name: str
    root: Path
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: Path | str) -> None:
        """Note one fault of a kind, and where it is."""
        path = Path(where)
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        self.found.setdefault(kind, []).append(str(inside))

    def need_files(self, kind: str, paths: Iterable[Path]) -> None:
        """Each of ``paths`` must be a file with content."""
        for path in paths:
            if not path.is_file():
                self.add(f"{kind} missing", path)
            elif not path.stat().st_size:
                self.add(f"{kind} empty", path)

    def raise_if_any(self) -> None:
        """Raise one :class:`DatasetError` that counts all kinds and names the first few of each."""
        if self.found:
            lines = []
            for kind, where in self.found.items():
                first = ", ".join(where[:3]) + (", …" if len(where) > 3 else "")
                lines.append(f"{len(where)} x {kind} ({first})")
            raise DatasetError(f"{self.name} at {self.root}: {'; '.join(lines)}")


def image_files(folder: Path) -> list[Path]:
    """Images directly in a folder, sorted by file name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.suffix.lower() in discover.SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in found if p.is_file()), key=by_name)


def by_name(path: Path) -> tuple[str, str]:
    """Sorting key: file name, then path."""
    return path.name, str(path)


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in a folder, sorted by name, hidden ones left out."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def listed_classes(train: dict[str, list[Path]], test: dict[str, list[Sample]], faults: Faults) -> dict[str, ClassData]:
    """Classes from explicit lists of files: check that all exist, sort."""
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
    """Read a JSON file; a :class:`DatasetError` if it is none."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as exc:
        raise DatasetError(f"{path}: not readable as JSON: {exc}") from None


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file; a :class:`DatasetError` if it cannot be read or decoded."""
    try:
        return path.read_bytes().decode(encoding)
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise DatasetError(
            f"{path}: expected text in UTF-8, got {exc.reason} at byte {exc.start}; save it as UTF-8"
        ) from None
