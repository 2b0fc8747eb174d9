"""``loco``: as ``mvtec``, with several masks per image, ``validation/good`` and ``defects_config.json``.

The masks of an image lie in ``ground_truth/TYPE/STEM/*.png``. The pixel value of a mask names its kind of defect, and
``CLASS/defects_config.json`` says for each kind how much of a region has to be found.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .base import ClassData, DatasetError, Faults, Saturation, read_json
from .mvtec import class_folders, mvtec_like
from .registry import register

CONFIG = "defects_config.json"


@register("loco", metrics=("spro",))
def loco(root: Path, faults: Faults) -> dict[str, ClassData]:
    """Read MVTec LOCO. A class without ``defects_config.json`` has no sPRO."""
    files = {folder.name: folder / CONFIG for folder in class_folders(root)}
    return {
        name: replace(data, saturations=_saturations(files[name])) if files[name].is_file() else data
        for name, data in mvtec_like(root, faults).items()
    }


def _saturations(path: Path) -> dict[int, Saturation]:
    """Read the saturation of each kind of defect by the pixel value of its masks.

    Raises:
        DatasetError: the file is no such list.
    """
    kinds = {}
    try:
        for entry in read_json(path):
            value, relative = entry["pixel_value"], entry["relative_saturation"]
            threshold = float(entry["saturation_threshold"])
            if not (type(value) is int and 0 < value < 256 and type(relative) is bool and 0 < threshold < float("inf")):
                raise ValueError(f"entry {entry}")
            if relative and threshold > 1:
                raise ValueError(f"relative saturation of {threshold:g} in {entry}")
            kinds[value] = Saturation(threshold, relative)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise DatasetError(
            f"{path}: expected a list of objects with pixel_value, saturation_threshold and relative_saturation "
            f"({type(exc).__name__}: {exc})"
        ) from None
    return kinds
