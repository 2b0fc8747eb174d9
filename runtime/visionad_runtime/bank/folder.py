"""Files of a bank folder: class files, versions, history."""

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
from ..formats.manifest import (
    HISTORY,
    MANIFEST,
    VERSIONS,
    BankManifest,
    ClassEntry,
    FeatureIdentity,
    to_json,
)
from ..preprocess import bank_blocks
from .memory_bank import ClassBank

F32 = NDArray[np.float32]

UNDO_DEPTH = 10
"""How many changes can be undone, and how many versions back an undone one can be had again; older files are deleted."""


def _successor(old: BankManifest, change: str, classes: dict[str, ClassEntry]) -> BankManifest:
    return old.model_copy(
        update={
            "version": old.version + 1,
            "undo_to": old.version if old.version else None,
            "change": change,
            "created": _now(),
            "classes": classes,
        }
    )


def check_identity(folder: Path, bank: FeatureIdentity, model: FeatureIdentity) -> None:
    """Refuse a bank made with other weights, layers or preprocessing.

    Raises:
        BankError: naming both and the fields that differ.
    """
    if bank == model:
        return
    differ = [f for f in FeatureIdentity.model_fields if getattr(bank, f) != getattr(model, f)]
    raise BankError(
        f"bank {folder} was made with {bank.describe()}, the model is {model.describe()}; they differ in "
        f"{', '.join(differ)}; use the model the bank was made with, or enroll the good images again into a new bank"
    )


def _read_class(folder: Path, manifest: BankManifest, name: str) -> ClassBank:
    if manifest.blocks != bank_blocks(manifest.views):
        raise BankError(
            f"{folder / MANIFEST} is damaged: expected the blocks of views {', '.join(manifest.views) or '(none)'}, "
            f"got {', '.join(manifest.blocks)}; restore it from a backup"
        )
    entry = manifest.classes[name]
    path = folder / entry.file
    way_out = (
        f"restore it from a backup, or `visionad bank undo {folder}`, or `visionad bank remove {folder} --class {name!r}` "
        "and enroll it again"
    )
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise BankError(f"class {name!r}: {path} cannot be read: {exc.strerror}; {way_out}") from None
    if sha256_bytes(data) != entry.sha256:
        raise BankError(f"class {name!r}: {path} is damaged (its sha256 is not the manifest's); {way_out}")
    try:
        tensors = load_tensors(data)
        features, class_tokens = tensors["features"], tensors["class_tokens"]
    except (SafetensorError, KeyError, ValueError) as exc:
        raise BankError(f"class {name!r}: {path} is no class file of a bank ({exc}); {way_out}") from None
    _check_shapes(str(path), manifest, len(entry.images), features, class_tokens)
    return ClassBank(name, entry, manifest.blocks, features, class_tokens)


def _check_shapes(where: str, manifest: BankManifest, count: int, features: F32, class_tokens: F32) -> None:
    identity, blocks = manifest.identity, len(manifest.blocks)
    wanted = ((blocks, count, identity.grid**2, identity.dim), (blocks, count, identity.class_token_dim))
    if (features.shape, class_tokens.shape) != wanted or {features.dtype, class_tokens.dtype} != {np.dtype(np.float32)}:
        raise BankError(
            f"{where}: expected float32 features {wanted[0]} and class_tokens {wanted[1]}, "
            f"got {features.dtype} {features.shape} and {class_tokens.dtype} {class_tokens.shape}"
        )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "class"


def _history(folder: Path, version: int) -> Path:
    return folder / HISTORY / f"{version:06d}.json"


def _read_version(path: Path) -> BankManifest:
    try:
        return BankManifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        raise BankError(f"{path} is missing or damaged, so version {path.stem} cannot be brought back") from None


def _newest(folder: Path) -> BankManifest | None:
    """The newest version in the history, if there is any.

    Raises:
        BankError: it is damaged.
    """
    path = max((folder / HISTORY).glob(VERSIONS), default=None)
    try:
        return None if path is None else _read_version(path)
    except BankError as exc:
        way_out = f"restore it from a backup, or delete it and `visionad bank undo {folder}` brings the version before it back"
        raise BankError(f"{exc}; {way_out}") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_version(folder: Path, manifest: BankManifest) -> None:
    """History first, then the manifest: its rename is the commit. Then forget what cannot be brought back any more."""
    data = to_json(manifest)
    atomic_write(_history(folder, manifest.version), data)
    atomic_write(folder / MANIFEST, data)
    with contextlib.suppress(OSError, ValueError):  # tidying is a courtesy; the change itself is done
        _tidy(folder, manifest)


def _tidy(folder: Path, manifest: BankManifest) -> None:
    needed = {manifest.version: manifest}
    link = manifest.undo_to
    while link is not None and len(needed) <= UNDO_DEPTH:
        needed[link] = BankManifest.model_validate_json(_history(folder, link).read_bytes())
        link = needed[link].undo_to
    # what was undone may be wanted again: one undo too many loses nothing
    for version, path in restorable_versions(folder).items():
        if version >= manifest.version - UNDO_DEPTH and version not in needed:
            needed[version] = BankManifest.model_validate_json(path.read_bytes())
    files = {folder / e.file for m in needed.values() for e in m.classes.values()}
    files |= {_history(folder, v) for v in needed}
    for path in (*(folder / "classes").iterdir(), *(folder / HISTORY).iterdir()):
        if path not in files:
            path.unlink()
    for path in folder.glob(".*.tmp"):  # left by a kill
        path.unlink()


def restorable_versions(folder: Path) -> dict[int, Path]:
    """Return the versions that can be brought back, with their manifests.

    They are the version in force, those that undo after undo leads to, and the last :data:`UNDO_DEPTH`, undone ones too.
    """
    return {int(path.stem): path for path in sorted((folder / HISTORY).glob(VERSIONS)) if path.stem.isdecimal()}
