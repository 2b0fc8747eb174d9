"""Files of a bank folder: class files, manifest, history."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from ..errors import BankError
from ..formats.files import atomic_write, sha256_bytes
from ..formats.manifest import HISTORY, MANIFEST, VERSIONS, BankManifest, ClassEntry, FeatureIdentity, to_json
from ..preprocess import encoding_names
from .memory_bank import ClassBank

F32 = NDArray[np.float32]

UNDO_DEPTH = 10
"""Number of changes that can be undone, and of latest versions that can be restored. Older files are deleted."""


def next_manifest(old: BankManifest, change: str, classes: dict[str, ClassEntry]) -> BankManifest:
    """Return the manifest of the version after ``old``.

    Args:
        old: manifest to replace.
        change: one phrase that says what was changed.
        classes: entries of the new version.
    """
    return old.model_copy(
        update={
            "version": old.version + 1,
            "undo_to": old.version if old.version else None,
            "change": change,
            "created": utc_now(),
            "classes": classes,
        }
    )


def check_identity(folder: Path, bank: FeatureIdentity, model: FeatureIdentity) -> None:
    """Check that a bank was made with the weights, layers and preprocessing of a model.

    Args:
        folder: folder of the bank, for the message.
        bank: identity that the bank was made with.
        model: identity of the model.

    Raises:
        BankError: They differ. The message names both, and the fields that differ.
    """
    if bank == model:
        return
    differ = [f for f in FeatureIdentity.model_fields if getattr(bank, f) != getattr(model, f)]
    raise BankError(
        f"bank {folder} was made with {bank.describe()}, the model is {model.describe()}; they differ in "
        f"{', '.join(differ)}; use the model the bank was made with, or enroll the good images again into a new bank"
    )


def read_class(folder: Path, manifest: BankManifest, name: str) -> ClassBank:
    """Read a class and check its digest and shapes.

    Args:
        folder: folder of the bank.
        manifest: version to read.
        name: class in that version.

    Raises:
        BankError: The file is missing or damaged, or does not fit the manifest. The message names the ways out.
    """
    if manifest.blocks != encoding_names(manifest.views):
        raise BankError(
            f"{folder / MANIFEST} is damaged: expected the blocks of views {', '.join(manifest.views) or '(none)'}, "
            f"got {', '.join(manifest.blocks)}; restore it from a backup"
        )
    entry = manifest.classes[name]
    path = folder / entry.file
    remedy = (
        f"restore it from a backup, or `visionad bank undo {folder}`, or `visionad bank remove {folder} --class {name!r}` "
        "and enroll it again"
    )
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise BankError(f"class {name!r}: {path} cannot be read: {exc.strerror}; {remedy}") from None
    if sha256_bytes(data) != entry.sha256:
        raise BankError(f"class {name!r}: {path} is damaged (its sha256 is not the manifest's); {remedy}")
    try:
        tensors = load_tensors(data)
        features, class_tokens = tensors["features"], tensors["class_tokens"]
    except (SafetensorError, KeyError, ValueError) as exc:
        raise BankError(f"class {name!r}: {path} is not a class file of a bank ({exc}); {remedy}") from None
    check_shapes(str(path), manifest, len(entry.images), features, class_tokens)
    return ClassBank(name, entry, manifest.blocks, features, class_tokens)


def check_shapes(where: str, manifest: BankManifest, count: int, features: F32, class_tokens: F32) -> None:
    """Check that tensors fit a bank.

    Args:
        where: origin of the tensors, for the message.
        manifest: manifest of the bank.
        count: number of supports.
        features: must be float32 (B, ``count``, P, D).
        class_tokens: must be float32 (B, ``count``, Dc).

    Raises:
        BankError: A shape or dtype differs.
    """
    identity, blocks = manifest.identity, len(manifest.blocks)
    expected = ((blocks, count, identity.grid**2, identity.dim), (blocks, count, identity.class_token_dim))
    dtypes = {features.dtype, class_tokens.dtype}
    if (features.shape, class_tokens.shape) != expected or dtypes != {np.dtype(np.float32)}:
        raise BankError(
            f"{where}: expected float32 features {expected[0]} and class_tokens {expected[1]}, "
            f"got {features.dtype} {features.shape} and {class_tokens.dtype} {class_tokens.shape}"
        )


def file_slug(name: str) -> str:
    """Return the readable part of a class file's name: ASCII letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "class"


def history_file(folder: Path, version: int) -> Path:
    """Return the path of a version's manifest in the history."""
    return folder / HISTORY / f"{version:06d}.json"


def read_version(path: Path) -> BankManifest:
    """Read a manifest from the history.

    Raises:
        BankError: It is missing or damaged.
    """
    try:
        return BankManifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        raise BankError(f"{path} is missing or damaged, so version {path.stem} cannot be brought back") from None


def newest_manifest(folder: Path) -> BankManifest | None:
    """Return the newest manifest in the history, or ``None`` without a history.

    Raises:
        BankError: It is damaged.
    """
    path = max((folder / HISTORY).glob(VERSIONS), default=None)
    try:
        return None if path is None else read_version(path)
    except BankError as exc:
        remedy = f"restore it from a backup, or delete it and `visionad bank undo {folder}` brings the version before it back"
        raise BankError(f"{exc}; {remedy}") from None


def utc_now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_version(folder: Path, manifest: BankManifest) -> None:
    """Commit a version: write its history file, rename the manifest into place (the commit), delete unneeded files.

    Args:
        folder: folder of the bank. The caller holds its lock.
        manifest: version to commit. Its class files exist already.
    """
    data = to_json(manifest)
    atomic_write(history_file(folder, manifest.version), data)
    atomic_write(folder / MANIFEST, data)
    with contextlib.suppress(OSError, ValueError):  # the version is committed, whether or not files can be deleted
        _delete_unneeded(folder, manifest)


def _delete_unneeded(folder: Path, manifest: BankManifest) -> None:
    needed = {manifest.version: manifest}
    undo_to = manifest.undo_to
    while undo_to is not None and len(needed) <= UNDO_DEPTH:
        needed[undo_to] = BankManifest.model_validate_json(history_file(folder, undo_to).read_bytes())
        undo_to = needed[undo_to].undo_to
    # Undone versions are kept too: one undo too many must not lose anything.
    for version, path in restorable_versions(folder).items():
        if version >= manifest.version - UNDO_DEPTH and version not in needed:
            needed[version] = BankManifest.model_validate_json(path.read_bytes())
    files = {folder / e.file for m in needed.values() for e in m.classes.values()}
    files |= {history_file(folder, v) for v in needed}
    for path in (*(folder / "classes").iterdir(), *(folder / HISTORY).iterdir()):
        if path not in files:
            path.unlink()
    for path in folder.glob(".*.tmp"):  # left by a kill
        path.unlink()


def restorable_versions(folder: Path) -> dict[int, Path]:
    """Return the versions that can be restored: version → its manifest file.

    These are the current version, those that repeated undo leads to, and the last :data:`UNDO_DEPTH`, undone ones included.
    """
    return {int(path.stem): path for path in sorted((folder / HISTORY).glob(VERSIONS)) if path.stem.isdecimal()}
