"""Files and folders -> image files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import ImageError, VisionADError
from .scan import describe_passed_over, is_folder, not_listed, scan
from .support import ENDINGS

log = logging.getLogger("visionad")

SUFFIXES = frozenset(ending for endings in ENDINGS.values() for ending in endings)


class ImageFile(NamedTuple):
    """An image to read. ``name`` is its path below the folder argument it was found under, or its bare file name."""

    path: Path
    name: Path


def find_images(
    paths: Iterable[Path],
    exclude: Iterable[str] = (),
    errors: list[VisionADError] | None = None,
    notes: list[str] | None = None,
) -> list[ImageFile]:
    """Expand files and folders to images: arguments in order, each folder's images recursively, sorted by path.

    Files named directly are always taken. In folders only :data:`SUFFIXES` count. Hidden entries, system folders and linked folders
    are passed over; a line counts them. A path that does not exist is kept, so that reading it later names it as an
    error.

    Args:
        paths: files and folders.
        exclude: patterns for entries of folders, as for :func:`~visionad_runtime.images.scan.scan`.
        errors: receives an error for each subfolder that cannot be listed; the other images are returned. Without it the first
            such error is raised.
        notes: receives a line for each folder with entries that are passed over. Without it such lines go to the log.

    Raises:
        VisionADError: a folder holds no image, or cannot be listed.
    """
    found: list[ImageFile] = []
    for path in paths:
        if not is_folder(path):
            found.append(ImageFile(path, Path(path.name)))
            continue
        listing = scan(path, SUFFIXES, exclude)
        trouble = [not_listed(path / below, exc) for below, exc in sorted(listing.errors.items())]
        if trouble and errors is None:
            raise trouble[0]
        if errors is not None:
            errors += trouble
        passed = describe_passed_over(listing.passed_over)
        if not listing.images and not trouble:
            looked = f"looked for {', '.join(sorted(SUFFIXES))}" + (f"; passed over: {passed}" if passed else "")
            raise VisionADError(f"folder {path} holds no image ({looked})")
        if passed and notes is not None:
            notes.append(f"folder {path}: passed over {passed}")
        elif passed:
            log.warning("folder %s: passed over %s", path, passed)
        names = sorted(map(Path, listing.images), key=lambda name: name.as_posix())
        found += [ImageFile(path / name, name) for name in names]
    return found


def as_paths(paths: Iterable[Path | str]) -> Iterable[Path]:
    """A list of paths, or an iterator of them.

    Raises:
        ImageError: it is one path, whose letters would be taken for paths.
    """
    if isinstance(paths, str | os.PathLike):
        raise ImageError(f"{paths}: expected a list of image files, got one; put it into a list")
    return [Path(path) for path in paths] if isinstance(paths, Sequence) else map(Path, paths)
