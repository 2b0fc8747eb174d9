"""``mvtec``: ``CLASS/{train/good,test/TYPE,ground_truth/TYPE/STEM_mask.png}``; every defect has a mask.

It also has the helper of similar layouts. All of them accept the folder of one class as root.
"""

from __future__ import annotations

from pathlib import Path

from .base import GOOD, ClassData, DatasetError, Faults, Sample, image_files, subfolders
from .registry import register


@register("mvtec")
def mvtec(root: Path, faults: Faults) -> dict[str, ClassData]:
    """Read MVTec-AD."""
    return mvtec_like(root, faults)


def class_folders(root: Path) -> list[Path]:
    """Return ``root`` if it is the folder of one class, else each folder in it that has ``train/good``.

    Raises:
        DatasetError: there is none.
    """
    if (root / "train" / GOOD).is_dir():
        return [root.resolve()]  # resolved, so that "." has a name
    folders = [p for p in subfolders(root) if (p / "train" / GOOD).is_dir()]
    if not folders:
        raise DatasetError(f"{root}: expected train/{GOOD} in it or in a folder of it")
    return folders


def mvtec_like(root: Path, faults: Faults, test: str = "test", masks_optional: bool = False) -> dict[str, ClassData]:
    """Read ``CLASS/{train/good,TEST/TYPE,ground_truth/TYPE}``; ``root`` may be the folder of one class.

    Args:
        root: folder of the classes, or one class.
        faults: record of missing files.
        test: name of the folder of test images.
        masks_optional: whether the data set may have no ``ground_truth`` at all.
    """
    classes = {}
    for folder in class_folders(root):
        name, tests = folder.name, folder / test
        truths = [p for p in (tests / "ground_truth", folder / "ground_truth") if p.is_dir()]
        if not truths and not masks_optional:
            faults.add("folder ground_truth missing", folder)
        kinds = [kind for kind in subfolders(tests) if kind.name != "ground_truth"]
        if GOOD not in [kind.name for kind in kinds]:
            faults.add(f"folder {test}/{GOOD} missing", folder)
        samples = []
        for kind in kinds:
            masks = _mask_files(truths[0] / kind.name) if truths and kind.name != GOOD else {}
            images = image_files(kind)
            if not images:
                faults.add("test folder without images", kind)
            for path in images:
                own = masks.get(path.stem, ())
                if truths and kind.name != GOOD and not own:
                    faults.add("mask missing", path)
                samples.append(Sample(path, name, int(kind.name != GOOD), kind.name, masks=own))
        train, validation = image_files(folder / "train" / GOOD), image_files(folder / "validation" / GOOD)
        faults.need_files("image", [*train, *validation, *(s.path for s in samples)])
        faults.need_files("mask", [m for s in samples for m in s.masks])
        classes[name] = ClassData(tuple(train), tuple(samples), tuple(validation))
    return classes


def _mask_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the masks of one type of defect by the stem of their image: ``STEM_mask.png``, ``STEM.png``, or all in ``STEM/``."""
    masks = {path.stem.removesuffix("_mask"): (path,) for path in image_files(folder)}
    return masks | {path.name: tuple(image_files(path)) for path in subfolders(folder)}
