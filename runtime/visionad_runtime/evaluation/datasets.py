"""Data sets on disk → lists of pictures with labels and masks. One small function per layout, all strict.

A benchmark number is only as good as the pictures it was counted over, so nothing is passed over in silence: every
picture and mask a layout promises must be there, and what is not is counted and named in one error before any work starts.

Layouts (``open_dataset``):

========== ==============================================================================================
mvtec      ``CLASS/{train/good,test/TYPE,ground_truth/TYPE/STEM_mask.png}``; every defect has a mask
folder     the same with or without masks; other folders of ``train`` are not looked at
visa       the raw download with ``split_csv/1cls.csv``, or the same prepared as ``mvtec``
real-iad   ``realiad_jsons/CLASS.json`` and pictures in ``realiad_1024`` (or ``_512``, ``_256``, ``_raw``)
loco       as ``mvtec``, with several masks a picture (``ground_truth/TYPE/STEM/*.png``) and ``validation/good``
mvtec-ad2  ``CLASS/{train/good,validation/good,test_public/{good,bad}}``, masks in ``[test_public/]ground_truth``
deeppcb    ``groupN/{ID/*_temp.jpg,ID/*_test.jpg,ID_not/*.txt}``; a group is a class, a template a good picture
========== ==============================================================================================

``mvtec`` and the layouts like it (``folder``, ``loco``, ``mvtec-ad2``, prepared ``visa``) also take one class's folder as root.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import picture
from ..errors import PictureError, VisionADError
from ..preprocess import crop_offset, resize_square

Mask = NDArray[np.bool_]

GOOD = "good"


class DatasetError(VisionADError):
    """A data set is not where, or not what, its layout says."""


class Box(NamedTuple):
    """A defect's bounding box in pixels of the picture; ``right`` and ``bottom`` are excluded."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Sample:
    """A picture to test on.

    ``label``: 0 good, 1 defect. ``masks``: files to be OR-ed, each of the picture's size. ``boxes``: instead of masks.
    A defect with neither counts in image metrics only.
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
        """Is it known which pixels are defect? (Of a good picture, always: none.)"""
        return self.label == 0 or bool(self.masks or self.boxes)


@dataclass(frozen=True)
class ClassData:
    """One class: good pictures to choose support from, sorted by file name; test pictures; more good ones, if set apart."""

    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    validation: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A checked data set. Every class has train and test pictures."""

    name: str
    root: Path
    by_class: Mapping[str, ClassData]

    @property
    def classes(self) -> list[str]:
        """Class names, sorted."""
        return sorted(self.by_class)

    def train(self, class_name: str) -> list[Path]:
        """Good pictures to choose support from, sorted by file name."""
        return list(self._of(class_name).train)

    def validation(self, class_name: str) -> list[Path]:
        """Further good pictures the layout sets apart (for a threshold); empty for most."""
        return list(self._of(class_name).validation)

    def test(self, class_name: str) -> list[Sample]:
        """Test pictures, by type of defect, then file name."""
        return list(self._of(class_name).test)

    def _of(self, class_name: str) -> ClassData:
        if class_name not in self.by_class:
            known = ", ".join(self.classes)
            raise DatasetError(f"{self.name} at {self.root} has no class {class_name!r}; it has {known}")
        return self.by_class[class_name]


def open_dataset(name: str, root: Path) -> Dataset:
    """Find and check all pictures of a data set; none is decoded.

    Args:
        name: one of :data:`LAYOUTS`.
        root: its folder.

    Raises:
        DatasetError: unknown name, no such folder, another layout, or files missing (how many, and the first few).
    """
    if name not in LAYOUTS:
        raise DatasetError(f"unknown data set {name!r}; known are {', '.join(LAYOUTS)}")
    if not root.is_dir():
        raise DatasetError(f"{name}: {root} is not a folder")
    faults = _Faults(name, root)
    by_class = LAYOUTS[name](root, faults)
    for class_name, data in by_class.items():
        for part, pictures in (("train", data.train), ("test", data.test)):
            if not pictures:
                faults.add(f"class without {part} pictures", class_name)
    faults.raise_if_any()
    return Dataset(name, root, dict(sorted(by_class.items())))


def load_mask(sample: Sample, resize: int, crop: int, size: int = 256) -> Mask:
    """The mask a map is measured against (method, section 6): bool (size, size), True where defect.

    The union of the sample's masks or boxes at full size, as 0 or 255, resized to ``resize`` with Pillow's antialiased
    bilinear filter, cropped to the central ``crop``, brought to ``size`` by nearest neighbour; not 0 is defect.

    Raises:
        DatasetError: the sample is a defect without a mask, mask and picture differ in size, or ``crop > resize``.
        PictureError: the picture or a mask cannot be read.
    """
    if not 0 < crop <= resize:
        raise DatasetError(f"cannot crop {crop} out of {resize} pixels")
    if sample.label == 0:
        return np.zeros((size, size), np.bool_)
    if not sample.has_mask:
        raise DatasetError(f"{sample.path}: a defect ({sample.defect}) without a mask; it has image metrics only")
    full = Image.fromarray(full_mask(sample).astype(np.uint8) * np.uint8(255))
    resized = resize_square(full, resize)
    # torch's nearest: floor(i * crop / size), in float32
    source = (np.arange(size, dtype=np.float32) * np.float32(crop / size)).astype(np.intp)
    pick = crop_offset(resize, crop) + np.minimum(source, crop - 1)
    return np.asarray(resized[np.ix_(pick, pick)] > 0)


def full_mask(sample: Sample) -> Mask:
    """The union of a sample's masks or boxes, bool (H, W) of its picture.

    Raises:
        DatasetError: mask and picture differ in size, or a box reaches out of it. PictureError: one cannot be read.
    """
    try:
        with Image.open(sample.path) as image:  # reads the header only
            width, height = image.size
    except OSError as exc:
        raise PictureError(f"{sample.path}: cannot be read: {exc}") from None
    full = np.zeros((height, width), np.bool_)
    for path in sample.masks:
        raw = picture.load(path).max(axis=2)
        if raw.shape != full.shape:
            raise DatasetError(f"{path}: mask of {raw.shape[::-1]} pixels for a picture of {(width, height)}")
        # Drawn masks are 255 on 0, some with soft edges (compression, scaling) that are not defect. In a label map
        # (VisA: 1, 2, …) nothing reaches half way, and every number but 0 is a kind of defect.
        full |= raw > (127 if raw.max() > 127 else 0)
    for box in sample.boxes:
        if box.right > width or box.bottom > height:
            raise DatasetError(f"{sample.path}: {box} reaches out of a picture of {(width, height)} pixels")
        full[box.top : box.bottom, box.left : box.right] = True
    return full


@dataclass
class _Faults:
    """What is wrong with a data set, by kind, to be told at once."""

    name: str
    root: Path
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: Path | str) -> None:
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
        if self.found:
            lines = []
            for kind, where in self.found.items():
                first = ", ".join(where[:3]) + (", …" if len(where) > 3 else "")
                lines.append(f"{len(where)} x {kind} ({first})")
            raise DatasetError(f"{self.name} at {self.root}: {'; '.join(lines)}")


def _pictures(folder: Path) -> list[Path]:
    """Pictures directly in a folder, sorted by file name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.suffix.lower() in picture.SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in found if p.is_file()), key=_by_name)


def _by_name(path: Path) -> tuple[str, str]:
    return path.name, str(path)


def _folders(folder: Path) -> list[Path]:
    """Folders directly in a folder, sorted by name, hidden ones left out."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_folders(root: Path) -> list[Path]:
    """``root`` itself if it is one class, else every folder below it with ``train/good``."""
    if (root / "train" / GOOD).is_dir():
        return [root.resolve()]  # resolved, so that "." has a name
    found = [p for p in _folders(root) if (p / "train" / GOOD).is_dir()]
    if not found:
        raise DatasetError(f"{root}: neither it nor a folder in it has train/{GOOD}")
    return found


def _mvtec_like(root: Path, faults: _Faults, test: str = "test", masks_optional: bool = False) -> dict[str, ClassData]:
    classes = {}
    for folder in _class_folders(root):
        name, tests = folder.name, folder / test
        truths = [p for p in (tests / "ground_truth", folder / "ground_truth") if p.is_dir()]
        if not truths and not masks_optional:
            faults.add("folder ground_truth missing", folder)
        kinds = [kind for kind in _folders(tests) if kind.name != "ground_truth"]
        if GOOD not in [kind.name for kind in kinds]:
            faults.add(f"folder {test}/{GOOD} missing", folder)
        samples = []
        for kind in kinds:
            masks = _mask_files(truths[0] / kind.name) if truths and kind.name != GOOD else {}
            pictures = _pictures(kind)
            if not pictures:
                faults.add("test folder without pictures", kind)
            for path in pictures:
                mine = masks.get(path.stem, ())
                if truths and kind.name != GOOD and not mine:
                    faults.add("mask missing", path)
                samples.append(Sample(path, name, int(kind.name != GOOD), kind.name, masks=mine))
        train, validation = _pictures(folder / "train" / GOOD), _pictures(folder / "validation" / GOOD)
        faults.need_files("picture", [*train, *validation, *(s.path for s in samples)])
        faults.need_files("mask", [m for s in samples for m in s.masks])
        classes[name] = ClassData(tuple(train), tuple(samples), tuple(validation))
    return classes


def _mask_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Masks of one type of defect by the stem of their picture: ``STEM_mask.png``, ``STEM.png``, or all in ``STEM/``."""
    masks = {path.stem.removesuffix("_mask"): (path,) for path in _pictures(folder)}
    return masks | {path.name: tuple(_pictures(path)) for path in _folders(folder)}


def _mvtec(root: Path, faults: _Faults) -> dict[str, ClassData]:
    return _mvtec_like(root, faults)


def _folder(root: Path, faults: _Faults) -> dict[str, ClassData]:
    return _mvtec_like(root, faults, masks_optional=True)


def _mvtec_ad2(root: Path, faults: _Faults) -> dict[str, ClassData]:
    return _mvtec_like(root, faults, test="test_public")


def _visa(root: Path, faults: _Faults) -> dict[str, ClassData]:
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        return _mvtec_like(root, faults)
    columns = ("object", "split", "label", "image", "mask")
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    rows = csv.DictReader(io.StringIO(_read_text(table, "utf-8-sig"), newline=""))
    try:
        if missing := set(columns) - set(rows.fieldnames or ()):
            raise DatasetError(f"{table}: no column {', '.join(sorted(missing))}; wanted {', '.join(columns)}")
        for row in rows:
            name, split, label, image, mask = (row[column] or "" for column in columns)
            line = f"{table.name} line {rows.line_num}"
            if not name or not image or split not in ("train", "test") or label not in ("normal", "anomaly"):
                faults.add("row not understood", line)
            elif split == "train" and label == "anomaly":
                faults.add("defect among train pictures", line)
            elif split == "train":
                train.setdefault(name, []).append(root / image)
            elif label == "normal":
                test.setdefault(name, []).append(Sample(root / image, name, 0))
            else:
                if not mask:
                    faults.add("row without its mask", line)
                masks = (root / mask,) if mask else ()
                test.setdefault(name, []).append(Sample(root / image, name, 1, label, masks=masks))
    except csv.Error as exc:
        raise DatasetError(f"{table}: not readable as CSV after line {rows.line_num}: {exc}") from None
    return _listed(train, test, faults)


def _real_iad(root: Path, faults: _Faults) -> dict[str, ClassData]:
    folders = (root / "realiad_jsons", root / "realiad_jsons" / "realiad_jsons")  # as unpacked in one place or another
    lists = sorted(path for folder in folders for path in folder.glob("*.json"))
    if not lists:
        raise DatasetError(f"{root}: no realiad_jsons/CLASS.json in it")
    images = [folder for kind in ("1024", "512", "256", "raw") if (folder := root / f"realiad_{kind}").is_dir()]
    if not images:
        raise DatasetError(f"{root}: none of the folders realiad_1024, realiad_512, realiad_256, realiad_raw in it")
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    for path in lists:
        content = _read_json(path)
        try:
            normal, base = content["meta"]["normal_class"], images[0] / content["meta"]["prefix"]
            for split in ("train", "test"):
                for entry in content[split]:
                    name, kind, mask = entry["category"], entry["anomaly_class"], entry["mask_path"]
                    if not (isinstance(name, str) and isinstance(kind, str)):
                        raise TypeError(f"category {name!r} and anomaly_class {kind!r} are to be text")
                    image = base / entry["image_path"]
                    if split == "train":
                        if kind != normal:
                            faults.add("defect among train pictures", image)
                        train.setdefault(name, []).append(image)
                    elif kind == normal:
                        test.setdefault(name, []).append(Sample(image, name, 0))
                    else:
                        if not mask:
                            faults.add("entry without its mask", image)
                        masks = (base / mask,) if mask else ()
                        test.setdefault(name, []).append(Sample(image, name, 1, kind, masks=masks))
        except (KeyError, TypeError, AttributeError) as exc:
            raise DatasetError(f"{path}: not a list of Real-IAD ({type(exc).__name__}: {exc})") from None
    return _listed(train, test, faults)


def _deeppcb(root: Path, faults: _Faults) -> dict[str, ClassData]:
    base = root / "PCBData" if (root / "PCBData").is_dir() else root
    listed = {split: _read_pcb_list(base / f"{split}.txt") for split in ("trainval", "test")}
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    groups = [p for p in _folders(base) if p.name.startswith("group")]
    if not groups:
        raise DatasetError(f"{root}: no folder group… in it (nor in its PCBData)")
    for group in groups:
        number = group.name.removeprefix("group")
        tests = sorted((group / number).glob("*_test.jpg"), key=_by_name)
        for position, path in enumerate(tests):
            stem = path.name.removesuffix("_test.jpg")
            if listed["trainval"] or listed["test"]:
                split = next((s for s, stems in listed.items() if stem in stems), None)
            else:
                split = "test" if position % 2 else "trainval"  # no lists (a part of the set): every second pair
            template = path.with_name(f"{stem}_temp.jpg")
            if split == "trainval":
                train.setdefault(group.name, []).append(template)
            elif split == "test":
                boxes = _read_boxes(group / f"{number}_not" / f"{stem}.txt", faults)
                test.setdefault(group.name, []).extend(
                    [Sample(template, group.name, 0), Sample(path, group.name, 1, "bad", boxes=boxes)]
                )
            else:
                faults.add("pair in neither trainval.txt nor test.txt", path)
    return _listed(train, test, faults)


def _read_pcb_list(path: Path) -> frozenset[str]:
    """Stems of the pairs in ``trainval.txt`` or ``test.txt`` (lines ``groupN/ID/STEM.jpg groupN/ID_not/STEM.txt``)."""
    if not path.is_file():
        return frozenset()
    return frozenset(Path(line.split()[0]).stem for line in _read_text(path).splitlines() if line.strip())


def _read_boxes(path: Path, faults: _Faults) -> tuple[Box, ...]:
    """Lines ``x1 y1 x2 y2 type``, with blanks or commas between."""
    if not path.is_file():
        faults.add("boxes missing", path)
        return ()
    boxes = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not (fields := line.replace(",", " ").split()):
            continue
        try:
            left, top, right, bottom = (int(value) for value in fields[:4])
        except ValueError:
            left = right = top = bottom = -1
        if not (0 <= left < right and 0 <= top < bottom):
            faults.add("box not understood", f"{path.name} line {number}")
            continue
        boxes.append(Box(left, top, right, bottom))
    if not boxes:
        faults.add("defect without boxes", path)
    return tuple(boxes)


def _listed(train: dict[str, list[Path]], test: dict[str, list[Sample]], faults: _Faults) -> dict[str, ClassData]:
    """Classes from explicit lists of files: check that all exist, sort."""
    for pictures in train.values():
        faults.need_files("picture", pictures)
    for samples in test.values():
        faults.need_files("picture", (s.path for s in samples))
        faults.need_files("mask", (m for s in samples for m in s.masks))
    return {
        name: ClassData(
            tuple(sorted(train.get(name, ()), key=_by_name)),
            tuple(sorted(test.get(name, ()), key=lambda s: (s.defect, *_by_name(s.path)))),
        )
        for name in sorted({*train, *test})
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as exc:
        raise DatasetError(f"{path}: not readable as JSON: {exc}") from None


def _read_text(path: Path, encoding: str = "utf-8") -> str:
    try:
        return path.read_bytes().decode(encoding)
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise DatasetError(
            f"{path}: wanted text in UTF-8, found {exc.reason} at byte {exc.start}; save it as UTF-8"
        ) from None


LAYOUTS: Mapping[str, Callable[[Path, _Faults], dict[str, ClassData]]] = {
    "mvtec": _mvtec,
    "folder": _folder,
    "visa": _visa,
    "real-iad": _real_iad,
    "loco": _mvtec,
    "mvtec-ad2": _mvtec_ad2,
    "deeppcb": _deeppcb,
}
