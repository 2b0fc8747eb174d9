"""Versions of a bank folder: undo, restore, remove a damaged class, verify. None of it needs the bank in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BankError, LostManifestError
from ..formats.files import atomic_write, sha256_file
from ..formats.manifest import MANIFEST, BankManifest, checked_json, read_manifest
from .folder import (
    IMAGES,
    SUPPORTS,
    files_of,
    history_file,
    newest_manifest,
    next_manifest,
    read_class,
    read_version,
    restorable_versions,
    utc_now,
    write_version,
)
from .layout import MASKS
from .lock import writer_lock
from .names import normalize_class_name, unknown_class_message


def undo(folder: Path, to: int | None = None) -> BankManifest:
    """Undo the last change, or restore a version.

    The restored state becomes a new version, so version numbers only grow. If the manifest is missing or damaged, undo restores
    the newest version in the history instead.

    Args:
        folder: folder of the bank.
        to: version to restore, one of :func:`~visionad_runtime.bank.folder.restorable_versions`. It may be one that was undone.
            Restoring it can be undone in turn. ``None`` undoes the last change.

    Returns:
        The new manifest.

    Raises:
        BankError: There is nothing to undo or no such version, or its files are damaged.
    """
    with contextlib.suppress(LostManifestError):
        read_manifest(folder, BankManifest)  # create no lock file in a folder that is not a bank
    with writer_lock(folder):
        try:
            current = read_manifest(folder, BankManifest)
        except LostManifestError:
            newest = newest_manifest(folder)
            assert newest is not None  # LostManifestError says that the history holds one
            atomic_write(folder / MANIFEST, checked_json(newest))
            if to in (None, newest.version):
                return newest
            current = newest
        versions = [version for version in restorable_versions(folder) if version != current.version]
        listed = describe_versions(versions)
        target = current.undo_to if to is None else to
        if target is None:
            hint = f"; --to brings another version back: {listed}" if listed else ""
            raise BankError(f"{folder}: nothing to undo (version {current.version}){hint}")
        if target not in versions:
            listed = listed or "none but the current one"
            raise BankError(f"{folder}: version {target} cannot be brought back; those that are kept: {listed}")
        restored = read_version(history_file(folder, target))
        for path in sorted(files_of(folder, restored) - files_of(folder, current)):  # the rest is in use already
            _check_named_file(folder, path, restored)
        # The phrase names the restored state: after an undo, `current.change` is not what a second undo reverts.
        change = f"undo, back to version {restored.version}: {restored.change}"
        if restored.change.startswith("undo, "):
            change = restored.change
        manifest = restored.model_copy(
            update={
                "schema_version": 2,
                "keep": current.keep,
                "version": current.version + 1,
                "undo_to": restored.undo_to if to is None else current.version,
                "change": change,
                "created": utc_now(),
            }
        )
        write_version(folder, manifest)
    return manifest


def remove_offline(folder: Path, name: str) -> int:
    """Remove a class without reading its tokens, so that a damaged class can be removed too.

    Args:
        folder: folder of the bank.
        name: the class.

    Returns:
        The bank's new version.

    Raises:
        BankError: There is no bank, or no such class.
    """
    name = normalize_class_name(name)
    read_manifest(folder, BankManifest)  # create no lock file in a folder that is not a bank
    with writer_lock(folder):
        current = read_manifest(folder, BankManifest)
        if name not in current.classes:
            raise BankError(unknown_class_message(folder, name, current.classes))
        rest = {other: entry for other, entry in current.classes.items() if other != name}
        manifest = next_manifest(current, f"remove {name}", rest)
        write_version(folder, manifest)
    return manifest.version


def describe_versions(versions: Iterable[int]) -> str:
    """Return version numbers in words: up to 20 of them, else the ranges."""
    ordered = sorted(versions)
    if len(ordered) <= 20:
        return ", ".join(map(str, ordered))
    starts = [v for i, v in enumerate(ordered) if i == 0 or ordered[i - 1] != v - 1]
    ends = [v for i, v in enumerate(ordered) if i + 1 == len(ordered) or ordered[i + 1] != v + 1]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))


def _check_named_file(folder: Path, path: Path, manifest: BankManifest) -> None:
    """Check a file of a version that is brought back.

    Raises:
        BankError: It is missing, or it is named by a digest that it does not have.
    """
    digests = {folder / e.file: e.sha256 for e in manifest.classes.values() if e.file is not None}
    digest = digests.get(path, path.stem if path.parent.name in (SUPPORTS, MASKS) else None)
    try:
        actual = sha256_file(path)
    except OSError as exc:
        raise BankError(
            f"{path} cannot be read: {exc.strerror}; so version {manifest.version} cannot be brought back; restore it from a backup"
        ) from None
    if digest is not None and actual != digest:
        raise BankError(
            f"{path} is damaged (its sha256 is not the manifest's), so version {manifest.version} cannot be brought back; restore "
            "it from a backup"
        )


def verify(folder: Path) -> BankManifest:
    """Read all files of a bank and check digests, shapes, and that every row is a finite unit vector.

    Args:
        folder: folder of the bank.

    Returns:
        The bank's manifest.

    Raises:
        BankError: A file is damaged. The message names it and what is wrong.
    """
    manifest = read_manifest(folder, BankManifest)
    for name, entry in manifest.classes.items():
        loaded = read_class(folder, manifest, name)
        _ = loaded.layout  # reads the mask
        for image, tokens in zip(entry.images, loaded.supports, strict=True):
            for what, array in (*(("features", rows) for rows in tokens.rois), ("class_tokens", tokens.class_tokens)):
                if not _are_unit(array):
                    path = folder / (entry.file or f"{SUPPORTS}/{image.tokens}.safetensors")
                    raise BankError(f"{path}: {what} holds rows that are not unit vectors; `visionad bank undo`")
            if image.kept is not None and not (folder / IMAGES / image.kept).exists():
                raise BankError(
                    f"{folder / IMAGES / image.kept}: the image of a support of class {name!r} is missing; restore it from a backup"
                )
        if loaded.defects is not None and not _are_unit(loaded.defects):
            raise BankError(
                f"bank {folder}: a remembered defect of class {name!r} holds rows that are not unit vectors; `visionad bank undo`"
            )
    return manifest


def _are_unit(rows: NDArray[np.float32]) -> bool:
    """Return whether all rows are finite unit vectors."""
    norms = np.sqrt(np.einsum("...d,...d->...", rows, rows, dtype=np.float64, casting="safe"))
    return bool((np.abs(norms - 1) < 1e-3).all())  # NaN compares false
