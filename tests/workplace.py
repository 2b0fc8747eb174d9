"""A folder with everything that the documentation and the examples name: a small model, a bank, images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
from visionad_runtime import Inspector

from tests.conftest import part

CLASS = "bolt"


def make_workplace(folder: Path, model: Path) -> Path:
    """Fill an empty folder.

    Args:
        folder: gets ``model``, ``bank`` (class ``bolt``, two supports), ``draft`` (a copy of it), ``records.jsonl``, ``good``,
            ``more_good``, ``new``, ``defect``, ``camera``, ``part.png`` and ``visionad-demo`` with parts of the class ``gear``.
        model: the model folder to copy.

    Returns:
        ``folder``.
    """
    shutil.copytree(model, folder / "model")
    write_images(folder / "good", range(4))
    write_images(folder / "more_good", range(10, 20))
    write_images(folder / "new", range(20, 22))
    write_images(folder / "defect", range(30, 32), defect=True)
    (folder / "camera").mkdir()
    cv2.imwrite(str(folder / "part.png"), part(40))
    demo = folder / "visionad-demo"
    (demo / "model").parent.mkdir()
    (demo / "model").symlink_to(folder / "model", target_is_directory=True)
    write_images(demo / "parts/gear/train/good", range(4), kind="grid")
    write_images(demo / "parts/gear/test/good", range(4, 6), kind="grid")
    write_images(demo / "parts/gear/test/broken_tooth", range(6, 8), kind="grid", defect=True)
    with Inspector.open(folder / "model", folder / "bank") as inspector:
        inspector.enroll(CLASS, [part(50), part(51)])
        results = inspector.inspect_files(sorted((folder / "new").iterdir()), class_name=CLASS)
        lines = [json.dumps(one.result.to_dict(f"new/{one.path.name}")) for one in results if one.result is not None]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copytree(folder / "bank", folder / "draft")
    return folder


def write_images(folder: Path, seeds: range, *, kind: str = "disc", defect: bool = False) -> None:
    """Write parts as ``000.png`` and so on."""
    folder.mkdir(parents=True)
    for number, seed in enumerate(seeds):
        cv2.imwrite(str(folder / f"{number:03d}.png"), part(seed, defect=defect, kind=kind))
