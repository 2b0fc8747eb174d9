"""Three-way merge of banks, class by class.

What one side changed is taken. If both added or removed supports or remembered defects, the class gets the union of what was added
without what was removed, and loses its thresholds: they were computed for others. Thresholds against thresholds are no merge: a
person decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeVar

from ...bank.store import NO_LIMITS
from ...errors import BankError
from ...formats.manifest import ClassEntry, Confirmation, KnownDefect, SupportImage

Take = Literal["local", "remote"]
Classes = Mapping[str, ClassEntry]
T = TypeVar("T")


class Merged(NamedTuple):
    """Outcome of a merge.

    Attributes:
        classes: the classes.
        notes: a line for each class that was merged, and what that cost.
    """

    classes: dict[str, ClassEntry]
    notes: list[str]


def merge(base: Classes, local: Classes, remote: Classes, take: Take | None = None) -> Merged:
    """Merge the classes of a bank with those of a revision.

    Args:
        base: classes of the revision that the bank is based on.
        local: classes of the bank.
        remote: classes of the new revision.
        take: side that decides where both cannot be kept.

    Raises:
        BankError: Both sides changed what cannot be merged, and ``take`` is ``None``; or an image is in two classes.
    """
    classes: dict[str, ClassEntry] = {}
    notes: list[str] = []
    for name in sorted({*base, *local, *remote}):
        entry = _merge_class(name, base.get(name), local.get(name), remote.get(name), take, notes)
        if entry is not None:
            classes[name] = entry
    _check_once(classes)
    return Merged(classes, notes)


def _merge_class(
    name: str,
    base: ClassEntry | None,
    local: ClassEntry | None,
    remote: ClassEntry | None,
    take: Take | None,
    notes: list[str],
) -> ClassEntry | None:
    if local == remote or remote == base:
        return local
    if local == base:
        return remote
    if local is None or remote is None:
        return _decide(name, "removed on one side and changed on the other", local, remote, take, notes)
    if local.roi != remote.roi:
        return _decide(name, "other ROIs on each side", local, remote, take, notes)
    if local.file is not None or remote.file is not None:
        return _decide(
            name, "changed on both sides, in the bank format of an older release", local, remote, take, notes
        )
    held, known = (_keys(local.images), _keys(remote.images)), (_defects(local), _defects(remote))
    if set(held[0]) == set(held[1]) and set(known[0]) == set(known[1]):
        confirmed = _confirmations(local, remote)
        if _limits(local) == _limits(remote):
            return local.model_copy(update={"confirmations": confirmed})
        return _decide(name, "other thresholds on each side", local, remote, take, notes)
    images = _union(() if base is None else base.images, local.images, remote.images)
    if not images:
        return _decide(name, "all supports removed, some on each side", local, remote, take, notes)
    before = {} if base is None else _defects(base)
    defects = tuple(_union_of(before, *known)) or None
    remembered = f" and {len(defects)} remembered defects" if defects else ""
    notes.append(
        f"class {name}: supports of both sides are merged, {len(images)}{remembered} in all; its thresholds are dropped, so every "
        f"part is `review` until `visionad calibrate --class {name}`"
    )
    confirmed = _confirmations(local, remote)
    return local.model_copy(update={**NO_LIMITS, "images": images, "confirmations": confirmed, "defects": defects})


def _decide(
    name: str,
    what: str,
    local: ClassEntry | None,
    remote: ClassEntry | None,
    take: Take | None,
    notes: list[str],
) -> ClassEntry | None:
    if take is None:
        raise BankError(f"class {name!r}: {what}; choose with --take local or --take remote; nothing was changed")
    notes.append(f"class {name}: {what}; the {take} one is taken")
    return local if take == "local" else remote


def _keys(images: tuple[SupportImage, ...]) -> dict[str, SupportImage]:
    return {image.tokens or image.sha256: image for image in images}


def _union(
    base: tuple[SupportImage, ...], local: tuple[SupportImage, ...], remote: tuple[SupportImage, ...]
) -> tuple[SupportImage, ...]:
    return tuple(_union_of(_keys(base), _keys(local), _keys(remote)))


def _union_of(before: Mapping[str, T], here: Mapping[str, T], there: Mapping[str, T]) -> list[T]:
    """Return what was added on either side and removed on none: first by the remote's order, so that all stations agree."""
    removed = {key for key in before if key not in here or key not in there}
    return [one for key, one in {**there, **here}.items() if key not in removed]


def _defects(entry: ClassEntry) -> dict[str, KnownDefect]:
    return {defect.tokens: defect for defect in entry.defects or ()}


def _limits(entry: ClassEntry) -> tuple[object, ...]:
    return entry.threshold, entry.review_threshold, entry.map_scale, entry.calibration


def _confirmations(local: ClassEntry, remote: ClassEntry) -> tuple[Confirmation, ...] | None:
    both = {one.sha256: one for one in (*(remote.confirmations or ()), *(local.confirmations or ()))}
    return tuple(both.values()) or None


def _check_once(classes: Classes) -> None:
    owners: dict[str, str] = {}
    for name, entry in classes.items():
        for image in entry.images:
            for key in {image.sha256, image.pixels or image.sha256}:
                owner = owners.setdefault(key, name)
                if owner != name:
                    raise BankError(
                        f"image {image.source} is enrolled as {owner} on one side and as {name} on the other; remove it from one "
                        f"of them (`visionad bank remove --image {image.sha256[:12]}`); nothing was changed"
                    )
