"""Images that a class of a data set holds twice, by content.

A support that is there twice is one support, and a test image that was a train image is no test. Files are compared by digest.
Only files of equal size can be equal, so most images are not read.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ...formats.files import sha256_file
from .datasets.base import ClassData, Copy, Dataset

log = logging.getLogger("visionad")

REPEATED = "train image that is there twice and counts once"


def without_copies(dataset: Dataset) -> Dataset:
    """Return a data set without repeated train images, and with a record of all copies. A warning names each kind of them.

    Other copies are counted as they are: images that are both train and validation or test images, validation and test images, good
    and bad.

    Args:
        dataset: a data set as opened.
    """
    by_class, copies = {}, {}
    for name, data in dataset.by_class.items():
        train, found = _copies(data)
        by_class[name] = replace(data, train=train) if len(train) < len(data.train) else data
        if found:
            copies[name] = tuple(found)
            for kind, count in Counter(copy.kind for copy in found).items():
                first = next(copy for copy in found if copy.kind == kind)
                log.warning("class %r: %d x %s (%s is %s)", name, count, kind, first.image, first.other)
    return replace(dataset, by_class=by_class, copies=copies) if copies else dataset


def _copies(data: ClassData) -> tuple[tuple[Path, ...], list[Copy]]:
    """Return the train images, each once, and all copies."""
    files = [*((path, "train") for path in data.train), *((path, "validation") for path in data.validation)]
    files += [(sample.path, "bad test" if sample.label else "good test") for sample in data.test]
    known: dict[str, dict[str, Path]] = {}
    train, found = [], []
    for (path, role), digest in zip(files, _digests([path for path, _ in files]), strict=True):
        earlier = known.setdefault(digest, {})
        if role == "train" and "train" in earlier:
            found.append(Copy(path, earlier["train"], REPEATED))
            continue
        if role == "train":
            train.append(path)
        found += [
            Copy(path, other, f"{role} image that is also a {before} image")
            for before, other in earlier.items()
            if before != role
        ]
        earlier.setdefault(role, path)
    return tuple(train), found


def _digests(paths: list[Path]) -> Iterator[str]:
    """Yield text for each file that is the same for the same content. It is the path of a file that no other one can equal."""
    sizes = {path: _size(path) for path in paths}
    files = Counter(sizes.values())
    digests: dict[Path, str] = {}
    for path in paths:
        if path not in digests:
            digests[path] = _digest(path) if files[sizes[path]] > 1 else str(path)
        yield digests[path]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:  # the evaluation names it
        return str(path)
