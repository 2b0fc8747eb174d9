"""Take a class over from another bank folder, or from an older version, as one version. None of it needs the bank in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import BankError
from ..formats.files import sha256_bytes
from ..formats.manifest import HISTORY, BankManifest, ClassEntry, read_manifest, to_json
from .folder import (
    SUPPORTS,
    check_identity,
    files_of,
    next_manifest,
    read_version,
    restorable_versions,
    write_once,
    write_version,
)
from .history import describe_versions
from .layout import MASKS
from .lock import writer_lock
from .names import check_class_name, unknown_class_message
from .supports import check_new


class ClassChangedError(BankError):
    """The class is not as it was when the work on it began. ``version`` is the bank's version now."""

    def __init__(self, message: str, version: int) -> None:
        super().__init__(message)
        self.version = version


def entry_digest(entry: ClassEntry | None) -> str:
    """Return the sha256 of everything that a bank holds of a class; empty if it holds no such class."""
    return "" if entry is None else hashlib.sha256(to_json(entry)).hexdigest()


def begin_bank(live: Path, folder: Path, name: str) -> BankManifest:
    """Make a bank of one class, as another bank holds it, or of none if the class is new.

    Args:
        live: bank folder that holds the other classes; its model, views and blocks are those of the new bank.
        folder: folder of the new bank; it must not exist.
        name: the class.

    Returns:
        The manifest of ``live`` that was read.

    Raises:
        BankError: ``live`` cannot be read, the name is invalid, or a file cannot be copied.
    """
    name = check_class_name(name)
    manifest = read_manifest(live, BankManifest)
    held = {name: manifest.classes[name]} if name in manifest.classes else {}
    if folder.exists():
        raise BankError(f"{folder}: expected no such folder")
    new = manifest.model_copy(
        update={
            "version": 1,
            "undo_to": None,
            "change": f"copy of version {manifest.version}",
            "classes": held,
            "keep": None,
        }
    )
    (folder / HISTORY).mkdir(parents=True)
    _copy_files(live, folder, new)
    write_version(folder, new)
    return manifest


def adopt_class(
    source: Path, target: Path, name: str, change: str, *, version: int | None = None, expected: str | None = None
) -> BankManifest:
    """Replace a class of a bank by that of another bank, or of an older version: supports, ROIs and thresholds, in one version.

    Args:
        source: bank folder to take the class from; it may be ``target``.
        target: bank folder to change.
        name: the class.
        change: one phrase for the history.
        version: of ``source``; ``None`` for its newest.
        expected: :func:`entry_digest` that the class of ``target`` must have; ``None`` for any.

    Returns:
        The new manifest of ``target``.

    Raises:
        ClassChangedError: The class of ``target`` is another by now. Nothing was changed.
        BankError: A bank cannot be read, there is no such class or version, the banks are of different models, an image is enrolled
            in another class, or a file is missing or damaged. Nothing was changed.
    """
    name = check_class_name(name)
    read_manifest(target, BankManifest)  # create no lock file in a folder that is not a bank
    with writer_lock(target):
        current = read_manifest(target, BankManifest)
        taken = read_manifest(source, BankManifest) if source != target else current
        if version is not None and version != taken.version:
            kept = restorable_versions(source)
            if version not in kept:
                raise BankError(f"bank {source} has no version {version}; it has {describe_versions(kept)}")
            taken = read_version(kept[version])
        if name not in taken.classes:
            raise BankError(unknown_class_message(source, name, taken.classes))
        check_identity(source, taken.identity, current.identity)
        if taken.blocks != current.blocks:
            raise BankError(
                f"bank {source} holds the views {', '.join(taken.views)}, {target} {', '.join(current.views)}; expected the same"
            )
        if expected is not None and entry_digest(current.classes.get(name)) != expected:
            raise ClassChangedError(
                f"class {name!r} of bank {target} was changed by version {current.version} or before; compare, and begin anew",
                current.version,
            )
        entry = taken.classes[name]
        check_new({other: _Held(held) for other, held in current.classes.items() if other != name}, name, entry.images)
        _copy_files(source, target, taken.model_copy(update={"classes": {name: entry}}))
        manifest = next_manifest(current, change, {**current.classes, name: entry})
        write_version(target, manifest)
    return manifest


class _Held:
    def __init__(self, entry: ClassEntry) -> None:
        self.entry = entry


def _copy_files(source: Path, target: Path, manifest: BankManifest) -> None:
    """Copy the files of a version. Those that are named by a digest are checked against it."""
    for path in sorted(files_of(source, manifest)):
        if source == target and path.is_file():
            continue
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise BankError(f"{path} cannot be read: {exc.strerror}; restore it from a backup") from None
        digest = sha256_bytes(data)
        named = path.stem if path.parent.name in (SUPPORTS, MASKS) else digest
        if named != digest:
            raise BankError(f"{path} is damaged (its sha256 is not its name); restore it from a backup")
        write_once(target / path.relative_to(source), data, digest)
