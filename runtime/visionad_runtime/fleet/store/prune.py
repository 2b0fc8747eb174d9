"""Delete old revisions of a store, and files that no revision names."""

from __future__ import annotations

from typing import NamedTuple

from ...errors import VisionADError
from ..storage import open_storage
from .revisions import BLOBS, NAMES, NamedRevisions, Target, blob_name

MIN_SECONDS = 24 * 3600.0
"""Younger revisions and files stay: a push may be under way that relies on them."""


class Pruned(NamedTuple):
    """Outcome.

    Attributes:
        revisions: number of revisions that were deleted.
        files: number of files that were deleted.
    """

    revisions: int
    files: int


def prune(root: str, keep: int) -> Pruned:
    """Keep the newest revisions of each name, and what they need.

    Args:
        root: URL of the store.
        keep: number of revisions of each name to keep, at least.

    Raises:
        VisionADError: There is no store, or a revision is damaged; nothing was deleted then.
    """
    storage = open_storage(root)
    names = sorted({path.partition("/")[0] for path in storage.list(NAMES)})
    if not names:
        raise VisionADError(f"{root}: expected a store that something was pushed to, got none")
    old: list[tuple[NamedRevisions, int]] = []
    needed: set[str] = set()
    for name in names:
        revisions = NamedRevisions(Target(root, name, None))
        numbers = revisions.numbers()
        for number in numbers:
            age = revisions.age(number)
            if number in numbers[:-keep] and age is not None and age > MIN_SECONDS:
                old.append((revisions, number))
            else:
                files = revisions.read(number, None).revision.files
                needed |= {blob_name(blob.sha256) for blob in files.values()}
    for revisions, number in old:
        revisions.delete(number)
    count = 0
    for path in storage.list(BLOBS):
        name = f"{BLOBS}/{path}"
        age = storage.age(name)
        if name not in needed and age is not None and age > MIN_SECONDS:
            storage.delete(name)
            count += 1
    return Pruned(len(old), count)
