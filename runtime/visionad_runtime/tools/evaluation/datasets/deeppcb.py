"""``deeppcb``: ``groupN/{ID/*_temp.jpg,ID/*_test.jpg,ID_not/*.txt}``; a group is a class, and a template a good image."""

from __future__ import annotations

from pathlib import Path

from .base import Box, ClassData, DatasetError, Faults, Sample, by_name, listed_classes, read_text, subfolders
from .registry import register


@register("deeppcb")
def deeppcb(root: Path, faults: Faults) -> dict[str, ClassData]:
    """Read DeepPCB."""
    base = root / "PCBData" if (root / "PCBData").is_dir() else root
    listed = {split: _read_pcb_list(base / f"{split}.txt") for split in ("trainval", "test")}
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    groups = [p for p in subfolders(base) if p.name.startswith("group")]
    if not groups:
        raise DatasetError(f"{root}: expected folders group… in it or in its PCBData")
    for group in groups:
        number = group.name.removeprefix("group")
        tests = sorted((group / number).glob("*_test.jpg"), key=by_name)
        for position, path in enumerate(tests):
            stem = path.name.removesuffix("_test.jpg")
            if listed["trainval"] or listed["test"]:
                split = next((s for s, stems in listed.items() if stem in stems), None)
            else:
                split = (
                    "test" if position % 2 else "trainval"
                )  # without lists (a part of the set), every second pair is a test pair
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
    return listed_classes(train, test, faults)


def _read_pcb_list(path: Path) -> frozenset[str]:
    """Return the stems of the pairs in ``trainval.txt`` or ``test.txt`` (lines ``groupN/ID/STEM.jpg groupN/ID_not/STEM.txt``)."""
    if not path.is_file():
        return frozenset()
    return frozenset(Path(line.split()[0]).stem for line in read_text(path).splitlines() if line.strip())


def _read_boxes(path: Path, faults: Faults) -> tuple[Box, ...]:
    """Read boxes from lines ``x1 y1 x2 y2 type``, separated by blanks or commas."""
    if not path.is_file():
        faults.add("boxes missing", path)
        return ()
    boxes = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
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
