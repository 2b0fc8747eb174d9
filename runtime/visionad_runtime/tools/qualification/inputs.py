"""Folders of a qualification: good images by group, defects by type, repeats of parts, masks. All are checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import VisionADError
from ...formats.files import sha256_file
from ...images.decode import load
from ...images.discover import ImageFile, find_images
from ...images.pixels import pixel_digest

ALL = "all"


@dataclass(frozen=True)
class Labeled:
    """An image file of a qualification.

    Attributes:
        path: the file.
        name: path below its folder, for reports.
        group: group of a good image, or type of a defect.
        sha256: digest of the file.
        pixels: digest of the decoded image.
    """

    path: Path
    name: str
    group: str
    sha256: str
    pixels: str


@dataclass(frozen=True)
class Inputs:
    """All images of a qualification.

    Attributes:
        good: good images.
        bad: images with a defect.
        repeats: station or day → part → its images; one station named ``all`` without that level of folders.
        masks: sha256 of a defect's image → its mask file.
    """

    good: tuple[Labeled, ...]
    bad: tuple[Labeled, ...] = ()
    repeats: Mapping[str, Mapping[str, tuple[Labeled, ...]]] | None = None
    masks: Mapping[str, Path] | None = None

    @property
    def count(self) -> int:
        """Number of images to inspect."""
        repeats = (files for parts in (self.repeats or {}).values() for files in parts.values())
        return len(self.good) + len(self.bad) + sum(map(len, repeats))


def read_inputs(
    good: Path,
    bad: Path | None = None,
    repeat: Path | None = None,
    masks: Path | None = None,
    *,
    group_by_folder: bool = False,
    bit_depth: int | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Inputs:
    """Find the images of a qualification.

    Args:
        good: folder of good images.
        bad: folder of images with defects. Its subfolders are the types of defects. If ``good`` lies in it, that part is left out.
        repeat: folder with a folder of images for each part, or a folder of such folders for each station or day.
        masks: folder with the masks of ``bad`` at the same paths, named as the image or with ``_mask`` before the ending.
        group_by_folder: whether subfolders of ``good`` are groups, such as days or shifts.
        bit_depth: bits that the camera fills in 16-bit files.
        note: receives a line for each folder with entries that are passed over, and for each image that is there twice.

    Raises:
        VisionADError: A folder is missing or holds no image, an image cannot be read or occurs as good and as bad, or no mask fits.
            Images are the same if their pixels are.
    """
    goods = _labeled("--good", good, note, _first_folder if group_by_folder else lambda _: ALL, bit_depth)
    if group_by_folder and {one.group for one in goods} == {ALL}:
        raise VisionADError(
            f"--group-by folder: {good} has no subfolder; make one for each day, shift, light or camera"
        )
    bads = () if bad is None else _labeled("--bad", bad, note, lambda name: _first_folder(name, "defect"), bit_depth)
    inside = good.resolve()
    bads = tuple(one for one in bads if not one.path.resolve().is_relative_to(inside))  # layouts with test/good
    if bad is not None and not bads:
        raise VisionADError(f"--bad {bad}: expected images of defects, got only those of --good {good}")
    by_pixels = {one.pixels: one for one in goods}
    for one in bads:
        if one.pixels in by_pixels:
            raise VisionADError(
                f"{one.path} and {by_pixels[one.pixels].path} are the same image, once bad and once good; take one away"
            )
    if masks is not None and bad is None:
        raise VisionADError("--masks: expected the masks of the images in --bad, which is missing; give --bad DIR too")
    found = None if masks is None or bad is None else _find_masks(masks, bads)
    return Inputs(goods, bads, None if repeat is None else _repeats(repeat, note, bit_depth), found)


def _labeled(
    option: str, folder: Path, note: Callable[[str], None], group: Callable[[Path], str], bit_depth: int | None
) -> tuple[Labeled, ...]:
    if not folder.is_dir():
        raise VisionADError(f"{option} {folder}: expected a folder of images")
    notes: list[str] = []
    files = find_images([folder], notes=notes)
    for line in notes:
        note(line)
    rows: dict[str, Labeled] = {}
    for file in files:
        one = _read(file, group(file.name), bit_depth)
        if one.pixels in rows:
            note(f"{file.path} is the same image as {rows[one.pixels].path}; it counts once")
            continue
        rows[one.pixels] = one
    return tuple(rows.values())


def _read(file: ImageFile, group: str, bit_depth: int | None) -> Labeled:
    try:
        digest = sha256_file(file.path)
    except OSError as exc:
        raise VisionADError(f"{file.path}: cannot be read: {exc.strerror or exc}") from None
    return Labeled(file.path, file.name.as_posix(), group, digest, pixel_digest(load(file.path, bit_depth)))


def _first_folder(name: Path, otherwise: str = ALL) -> str:
    return name.parts[0] if len(name.parts) > 1 else otherwise


def _repeats(
    folder: Path, note: Callable[[str], None], bit_depth: int | None
) -> Mapping[str, Mapping[str, tuple[Labeled, ...]]]:
    if not folder.is_dir():
        raise VisionADError(f"--repeat {folder}: expected a folder with one folder of images for each part")
    table: dict[str, dict[str, list[Labeled]]] = {}
    operators: set[str] = set()
    first: dict[
        str, Path
    ] = {}  # by pixels: the same image twice is no second measurement, whatever its station and part
    notes: list[str] = []
    for file in find_images([folder], notes=notes):
        parts = file.name.parts
        if len(parts) not in (2, 3):
            raise VisionADError(
                f"--repeat {folder}: expected PART/IMAGE or STATION/PART/IMAGE, got {file.name}; put each part's images into a "
                "folder of its own"
            )
        operator, part = (ALL, parts[0]) if len(parts) == 2 else (parts[0], parts[1])
        operators.add(operator)
        one = _read(file, part, bit_depth)
        if one.pixels in first:
            note(f"{file.path} is the same image as {first[one.pixels]}; a copy is no repeat and is left out")
            continue
        first[one.pixels] = file.path
        table.setdefault(operator, {}).setdefault(part, []).append(one)
    for line in notes:
        note(line)
    if ALL in operators and len(operators) > 1:
        raise VisionADError(f"--repeat {folder}: expected PART/IMAGE or STATION/PART/IMAGE throughout, got both")
    return {operator: {part: tuple(files) for part, files in parts.items()} for operator, parts in table.items()}


def _find_masks(folder: Path, bads: Sequence[Labeled]) -> dict[str, Path]:
    if not folder.is_dir():
        raise VisionADError(f"--masks {folder}: expected a folder of masks")
    found = {}
    for one in bads:
        below = folder / Path(one.name)
        for stem in (below.stem, f"{below.stem}_mask"):
            candidates = [below.with_name(stem + ending) for ending in (".png", below.suffix, ".bmp", ".tif")]
            mask = next((path for path in candidates if path.is_file()), None)
            if mask is not None:
                found[one.sha256] = mask
                break
    if not found:
        example = Path(bads[0].name)
        raise VisionADError(
            f"--masks {folder}: no mask fits an image of --bad; expected {example.with_suffix('.png')} or "
            f"{example.with_name(example.stem + '_mask.png')} below it"
        )
    return found
