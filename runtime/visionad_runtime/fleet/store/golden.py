"""Known parts that a bank must judge right before it comes into force: ``--check GOLDEN_DIR``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ...errors import VisionADError
from ...formats.files import atomic_write
from ...formats.manifest import MANIFEST, BankManifest, ModelManifest, checked_json, read_manifest
from ...images.discover import ImageFile, find_images
from ...inspector import Inspector

EXPECTED = {"good": "ok", "bad": "anomalous"}
"""Folder of known parts → their verdict."""


def golden_parts(folder: Path) -> list[tuple[ImageFile, str | None, str]]:
    """Return known parts: image, class or ``None`` for routing, expected verdict.

    Args:
        folder: holds ``good`` and ``bad``, or a folder with these for each class.

    Raises:
        VisionADError: There is no known part, or only good or only bad ones.
    """
    parts: list[tuple[ImageFile, str | None, str]] = []
    places: list[tuple[Path, str | None]] = [(folder, None)]
    if folder.is_dir():
        places += [
            (path, path.name) for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in EXPECTED
        ]
    for place, name in places:
        for kind, verdict in EXPECTED.items():
            if (place / kind).is_dir():
                parts += [(image, name, verdict) for image in find_images([place / kind])]
    if {verdict for _, _, verdict in parts} != set(EXPECTED.values()):
        raise VisionADError(
            f"--check {folder}: expected known parts in good/ and bad/, or CLASS/good/ and CLASS/bad/, of both kinds"
        )
    return parts


def check_golden(model: Path, folder: Path, manifest: BankManifest, files: Mapping[str, Path]) -> None:
    """Check that a bank gives each known part its verdict.

    Args:
        model: model folder.
        folder: known parts.
        manifest: version to check.
        files: path in the bank's folder → file of this machine.

    Raises:
        VisionADError: A part has another verdict. The message names the first ones.
    """
    parts = golden_parts(folder)
    with tempfile.TemporaryDirectory(prefix="visionad-check-") as place:
        candidate = Path(place) / "bank"
        for name, path in files.items():
            _link(path, candidate / name)
        atomic_write(candidate / MANIFEST, checked_json(manifest))
        wrong = []
        with Inspector.open(model, candidate) as inspector:
            for class_name in dict.fromkeys(name for _, name, _ in parts):
                mine = [(image, verdict) for image, name, verdict in parts if name == class_name]
                results = inspector.inspect_files([image.path for image, _ in mine], class_name=class_name)
                for (image, verdict), one in zip(mine, results, strict=True):
                    got = str(one.error) if one.result is None else one.result.verdict
                    if got != verdict:
                        wrong.append(f"{image.path}: expected {verdict}, got {got}")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise VisionADError(
            f"--check: {len(wrong)} of {len(parts)} known parts have another verdict: {'; '.join(wrong[:3])}{more}; the bank in "
            "force stays"
        )


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another file system
        shutil.copyfile(path, target)


def find_model(bank: Path, manifest: BankManifest) -> Path:
    """Return the model folder beside a bank that fits it.

    Raises:
        VisionADError: None or several fit.
    """
    fitting = []
    for path in sorted(bank.absolute().parent.iterdir()):
        if path.is_dir() and (path / MANIFEST).is_file():
            try:
                if read_manifest(path, ModelManifest).identity == manifest.identity:
                    fitting.append(path)
            except VisionADError:
                continue
    if len(fitting) != 1:
        raise VisionADError(
            f"--check: expected one model folder that fits beside {bank}, got {len(fitting)}; name it with --model"
        )
    return fitting[0]
