"""``real-iad``: ``realiad_jsons/CLASS.json`` and images in ``realiad_1024`` (or ``_512``, ``_256``, ``_raw``)."""

from __future__ import annotations

from pathlib import Path

from .base import ClassData, DatasetError, Faults, Sample, listed_classes, read_json
from .registry import register


@register("real-iad")
def real_iad(root: Path, faults: Faults) -> dict[str, ClassData]:
    """Read Real-IAD."""
    folders = (root / "realiad_jsons", root / "realiad_jsons" / "realiad_jsons")  # the archive may add a folder
    lists = sorted(path for folder in folders for path in folder.glob("*.json"))
    if not lists:
        raise DatasetError(f"{root}: expected realiad_jsons/CLASS.json in it")
    images = [folder for kind in ("1024", "512", "256", "raw") if (folder := root / f"realiad_{kind}").is_dir()]
    if not images:
        raise DatasetError(
            f"{root}: expected one of the folders realiad_1024, realiad_512, realiad_256, realiad_raw in it"
        )
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    for path in lists:
        content = read_json(path)
        try:
            normal, base = content["meta"]["normal_class"], images[0] / content["meta"]["prefix"]
            for split in ("train", "test"):
                for entry in content[split]:
                    name, kind, mask = entry["category"], entry["anomaly_class"], entry["mask_path"]
                    if not (isinstance(name, str) and isinstance(kind, str)):
                        raise TypeError(f"category {name!r} and anomaly_class {kind!r} must be text")
                    image = base / entry["image_path"]
                    if split == "train":
                        if kind != normal:
                            faults.add("defect among train images", image)
                        train.setdefault(name, []).append(image)
                    elif kind == normal:
                        test.setdefault(name, []).append(Sample(image, name, 0))
                    else:
                        if not mask:
                            faults.add("entry without its mask", image)
                        masks = (base / mask,) if mask else ()
                        test.setdefault(name, []).append(Sample(image, name, 1, kind, masks=masks))
        except (KeyError, TypeError, AttributeError) as exc:
            raise DatasetError(f"{path}: expected a list of Real-IAD ({type(exc).__name__}: {exc})") from None
    return listed_classes(train, test, faults)
