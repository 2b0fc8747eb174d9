"""Results of inspected images as lines and files, for the commands that inspect."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VisionADError

if TYPE_CHECKING:
    from ..images.discover import ImageFile
    from ..result import FileResult

from .console import complain, say


class ResultWriter:
    """What is said and written of images.

    Attributes:
        counts: images by verdict, and those without one.
    """

    def __init__(self, as_json: bool, maps: Path | None, overlays: Path | None) -> None:
        self.as_json, self.maps, self.overlays = as_json, maps, overlays
        self.counts: Counter[str] = Counter()

    def add(self, one: FileResult, name: Path) -> dict[str, Any]:
        """Say and write what was found of an image, which the files are named after. Returns what ``--json`` says."""
        if one.result is None or one.rgb is None:
            self.counts["unreadable"] += 1
            return self.error(one.path, one.error)
        self.counts[one.result.verdict] += 1
        if self.maps:
            save_map(self.maps / name.with_suffix(".npy"), one.result.anomaly_map)
        if self.overlays:
            from ..visualization.overlay import save_overlay

            save_overlay(self.overlays / name.with_suffix(".png"), one.rgb, one.result)
        facts = one.result.to_dict(str(one.path))
        say(json.dumps(facts, ensure_ascii=False) if self.as_json else verdict_line(one.path, one.result))
        return facts

    def error(self, path: Path, error: Exception | None) -> dict[str, Any]:
        """Say why there is no result. Returns what ``--json`` says."""
        facts = {"image": str(path), "error": str(error)}
        if self.as_json:
            say(json.dumps(facts, ensure_ascii=False))
        else:
            complain(str(error))
        return facts

    def summary(self) -> str:
        """How many images of each kind."""
        return "  ".join(f"{n} {what}" for what, n in sorted(self.counts.items())) or "no image"


def verdict_line(path: Path, result: Any) -> str:
    against = f"/ {result.threshold:.4f}" if result.threshold is not None else "/ no threshold"
    name = result.class_name or "unknown class"
    place = f"  at {','.join(map(str, result.regions[0].bbox))}" if result.verdict == "anomalous" else ""
    return f"{result.verdict:<9}  {result.score:.4f} {against}  {name}  {path}{place}"


def check_names(names: Sequence[Path]) -> None:
    twice = [str(n) for n, count in Counter(n.with_suffix("") for n in names).items() if count > 1]
    if twice:
        raise VisionADError(
            f"{len(twice)} names would be written twice (first: {twice[0]}); inspect these images in separate calls, "
            "or name their common folder"
        )


def check_targets(images: Sequence[ImageFile], outputs: Sequence[tuple[Path | None, str]]) -> None:
    """Results go into folders, and no result may be written over an image that is inspected."""
    inputs = {os.path.realpath(f.path) for f in images}
    for folder, suffix in outputs:
        if folder and folder.exists() and not folder.is_dir():
            raise VisionADError(f"{folder}: expected a folder for the results, got a file; choose another place")
        for target in [folder / f.name.with_suffix(suffix) for f in images] if folder else []:
            if os.path.realpath(target) in inputs:
                raise VisionADError(f"{target} is an image to inspect and would be written over; choose another folder")


def save_map(path: Path, anomaly_map: Any) -> None:
    import numpy as np

    from ..formats.files import atomic_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as f:
        np.save(f, anomaly_map, allow_pickle=False)


def require_bank(bank: Path) -> None:
    from ..formats.manifest import BankManifest, read_manifest

    read_manifest(bank, BankManifest)
