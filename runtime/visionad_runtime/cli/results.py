"""Results of inspected images as lines and files, for the commands that inspect."""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VisionADError
from ..formats.files import fit_name
from ..images.discover import SUFFIXES
from .console import complain, say

if TYPE_CHECKING:
    from ..images.discover import ImageFile
    from ..result import FileResult

MAX_NAMES = 10_000
"""Of results that are remembered, to tell which image wrote them."""
_LINE_ENDS = {c: f"\\u{c:04x}" for c in (0x7F, 0x85, 0x2028, 0x2029)}
_CONTROLS = frozenset(map(chr, (*range(32), 0x7F, 0x85, 0x2028, 0x2029)))


class ResultWriter:
    """What is said and written of images.

    Args:
        as_json: whether to print JSON.
        maps: folder for anomaly maps.
        overlays: folder for overlay images.
        inputs: folder in which images arrive; two of them whose names differ in the ending alone get overlays of different names.
        evidence_bank: bank whose kept supports are shown beside the overlays; ``None`` for overlays alone.

    Attributes:
        counts: images by verdict, and those without one.
        failures: maps and overlays that could not be written.
    """

    def __init__(
        self,
        as_json: bool,
        maps: Path | None,
        overlays: Path | None,
        inputs: Path | None = None,
        evidence_bank: Path | None = None,
    ) -> None:
        self.as_json, self.maps, self.overlays, self.inputs = as_json, maps, overlays, inputs
        self._evidence_bank = evidence_bank
        self.counts: Counter[str] = Counter()
        self.failures = 0
        self._owners: OrderedDict[Path, Path] = OrderedDict()
        self._collided = False

    def add(self, one: FileResult, name: Path) -> dict[str, Any]:
        """Say and write what was found of an image, which the files are named after.

        A map or overlay that cannot be written is said; it never costs the verdict.

        Returns:
            What ``--json`` says.
        """
        if one.result is None or one.rgb is None:
            self.counts["unreadable"] += 1
            return self.error(one.path, one.error)
        self.counts[one.result.verdict] += 1
        rgb, result = one.rgb, one.result
        if self.maps or self.overlays:
            name = self._target_name(name)
        if self.maps:
            for area in result.areas:
                suffix = ".npy" if len(result.areas) == 1 else f".{area.name}.npy"
                target = self.maps / name.with_name(fit_name(name.name, suffix))
                self._write("map", target, one.path, partial(save_map, target, area.anomaly_map))
        if self.overlays:
            from ..bank.supports import read_kept
            from ..visualization.overlay import save_overlay

            bank = self._evidence_bank
            read = None if bank is None else lambda shown: read_kept(bank, shown.kept, shown.bit_depth)
            drawn = self.overlays / name.with_name(fit_name(name.name, ".png"))
            self._write("overlay", drawn, one.path, lambda: save_overlay(drawn, rgb, result, read))
        facts = result.to_dict(str(one.path))
        self._say(json_line(facts) if self.as_json else verdict_line(one.path, result))
        return facts

    def error(self, path: Path, error: Exception | None) -> dict[str, Any]:
        """Say why there is no result. Returns what ``--json`` says."""
        facts = {"image": str(path), "error": str(error)}
        if self.as_json:
            self._say(json_line(facts))
        else:
            complain(str(error))
        return facts

    def summary(self) -> str:
        """How many images of each kind."""
        return "  ".join(f"{n} {what}" for what, n in sorted(self.counts.items())) or "no image"

    def _say(self, line: str) -> None:
        """Print a line. Where images arrive, a full disk must not stop the inspection: the journal has the verdict too."""
        try:
            say(line)
        except OSError as exc:
            if self.inputs is None or isinstance(exc, BrokenPipeError):
                raise
            self.failures += 1
            complain(f"the output could not be written: {exc.strerror or exc}; inspection goes on")

    def _write(self, what: str, target: Path, image: Path, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as exc:  # whatever it is: the verdict stands, and more images are waiting
            self.failures += 1
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc) or type(exc).__name__
            complain(f"{image}: inspected, but its {what} {target} could not be written: {reason}")

    def _target_name(self, name: Path) -> Path:
        """The name of an image's map and overlay without their ending.

        It is the image's without its ending. Where another image has that name too, the image's ending stays.
        """
        bare = name.with_suffix("")
        if self.inputs is None:
            return bare
        owner = self._owners.get(bare)
        if owner is None:
            others = (bare.with_name(bare.name + ending) for ending in SUFFIXES if ending != name.suffix.lower())
            owner = next((other for other in others if os.path.lexists(self.inputs / other)), name)
            if owner == name:
                self._owners[bare] = name
                if len(self._owners) > MAX_NAMES:
                    self._owners.popitem(last=False)
        if owner == name:
            return bare
        if not self._collided:
            complain(f"{name} and {owner} differ in the ending alone: names of their results keep it ({name}.png)")
        self._collided = True
        return name


def json_line(facts: Mapping[str, Any]) -> str:
    """One line of JSON, also for readers that end a line at Unicode's line separators, which a file name may hold."""
    return json.dumps(facts, ensure_ascii=False).translate(_LINE_ENDS)


def one_line(text: str) -> str:
    """Text without line ends, which a file name may hold: escaped as in JSON."""
    return "".join(json.dumps(c)[1:-1] if c in _CONTROLS else c for c in text)


def verdict_line(path: Path, result: Any) -> str:
    against = f"/ {result.threshold:.4f}" if result.threshold is not None else "/ no threshold"
    name = result.class_name or "unknown class"
    place = f"  at {','.join(map(str, result.regions[0].bbox))}" if result.verdict == "anomalous" else ""
    mixed_up = f"  nearer to class {result.class_mismatch}" if result.class_mismatch is not None else ""
    return f"{result.verdict:<9}  {result.score:.4f} {against}  {name}  {one_line(str(path))}{place}{mixed_up}"


def check_names(names: Sequence[Path]) -> None:
    twice = [str(n) for n, count in Counter(n.with_suffix("") for n in names).items() if count > 1]
    if twice:
        raise VisionADError(
            f"{len(twice)} names would be written twice (first: {twice[0]}); inspect these images in separate calls, "
            "or name their common folder"
        )


def check_targets(images: Sequence[ImageFile], outputs: Sequence[tuple[Path | None, str]]) -> None:
    """Results go into folders, and no result may be written over an image: one that is inspected, or one that lies beside it."""
    inputs = {os.path.realpath(f.path) for f in images}
    beside = {str(Path(path).parent) for path in inputs}
    for folder, suffix in outputs:
        if folder is not None:
            check_folder(folder)
        for target in [folder / f.name.with_suffix(suffix) for f in images] if folder else []:
            if os.path.realpath(target) in inputs:
                raise VisionADError(f"{target} is an image to inspect and would be written over; choose another folder")
            if os.path.realpath(target.parent) in beside and os.path.lexists(target):
                raise VisionADError(
                    f"{target} lies beside the images to inspect and would be written over; choose another folder"
                )


def check_folder(folder: Path) -> None:
    """A place for results.

    Raises:
        VisionADError: it is a file.
    """
    with suppress(OSError):  # said when the first result is written
        if folder.exists() and not folder.is_dir():
            raise VisionADError(f"{folder}: expected a folder for the results, got a file; choose another place")


def save_map(path: Path, anomaly_map: Any) -> None:
    import numpy as np

    from ..formats.files import atomic_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as f:
        np.save(f, anomaly_map, allow_pickle=False)


def require_bank(bank: Path) -> None:
    from ..formats.manifest import BankManifest, read_manifest

    read_manifest(bank, BankManifest)
