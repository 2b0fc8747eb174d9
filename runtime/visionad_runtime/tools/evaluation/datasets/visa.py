"""``visa``: the raw download with ``split_csv/1cls.csv``, or the data prepared in the layout ``mvtec``."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from .base import ClassData, DatasetError, Faults, Sample, listed_classes, read_text
from .mvtec import mvtec_like
from .registry import register


@register("visa")
def visa(root: Path, faults: Faults) -> dict[str, ClassData]:
    """Read VisA."""
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        return mvtec_like(root, faults)
    columns = ("object", "split", "label", "image", "mask")
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    rows = csv.DictReader(io.StringIO(read_text(table, "utf-8-sig"), newline=""))
    try:
        if missing := set(columns) - set(rows.fieldnames or ()):
            raise DatasetError(f"{table}: no column {', '.join(sorted(missing))}; expected {', '.join(columns)}")
        for row in rows:
            name, split, label, image, mask = (row[column] or "" for column in columns)
            line = f"{table.name} line {rows.line_num}"
            if not name or not image or split not in ("train", "test") or label not in ("normal", "anomaly"):
                faults.add("row not understood", line)
            elif split == "train" and label == "anomaly":
                faults.add("defect among train images", line)
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
        raise DatasetError(f"{table}: expected CSV, got an error after line {rows.line_num}: {exc}") from None
    return listed_classes(train, test, faults)
