"""Files and folders -> image files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import ImageError, VisionADError
from .support import ENDINGS

SUFFIXES = frozenset(ending for endings in ENDINGS.values() for ending in endings)


class ImageFile(NamedTuple):
    """An image to read. ``name`` is its path below the folder argument it was found under, or its bare file name."""

    path: Path
    name: Path


def find_images(paths: Iterable[Path]) -> list[ImageFile]:
    """Expand files and folders to images: arguments in order, each folder's images recursively, sorted by path.

    Files named directly are always taken; inside folders only :data:`SUFFIXES` count and hidden files are passed over.
    A path that does not exist is kept, so that reading it later names it as an error.

    Raises:
        VisionADError: a folder holds no image, or cannot be listed.
    """
    found: list[ImageFile] = []
    for path in paths:
        if not path.is_dir():
            found.append(ImageFile(path, Path(path.name)))
            continue
        below = sorted(walk(path), key=lambda p: p.relative_to(path).as_posix())
        if not below:
            raise VisionADError(f"folder {path} holds no image (looked for {', '.join(sorted(SUFFIXES))})")
        found += [ImageFile(p, p.relative_to(path)) for p in below]
    return found


def walk(folder: Path) -> list[Path]:
    """Images below a folder, in any order: by :data:`SUFFIXES`, hidden ones passed over.

    Raises:
        VisionADError: it cannot be listed.
    """

    def refuse(exc: OSError) -> None:
        if isinstance(exc, FileNotFoundError) and exc.filename != str(folder):
            return  # deleted since it was seen
        raise VisionADError(f"folder {exc.filename} cannot be listed: {exc.strerror}")

    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(root, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    return found


def as_paths(paths: Iterable[Path | str]) -> Iterable[Path]:
    """A list of paths, or an iterator of them.

    Raises:
        ImageError: it is one path, whose letters would be taken for paths.
    """
    if isinstance(paths, str | os.PathLike):
        raise ImageError(f"{paths}: expected a list of image files, got one; put it into a list")
    return [Path(path) for path in paths] if isinstance(paths, Sequence) else map(Path, paths)
