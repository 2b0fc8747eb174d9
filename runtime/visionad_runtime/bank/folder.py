"""Files of a bank folder: supports, kept images, masks, manifest, history.

A support is one immutable file, named by its digest. Manifests refer to it. So a change writes the files of the new supports and
one manifest, whatever the size of the class, and any version can be read as long as its manifest is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..errors import BankError
from ..formats.files import atomic_write, sha256_bytes, sha256_file
from ..formats.manifest import (
    HISTORY,
    MANIFEST,
    VERSIONS,
    BankManifest,
    ClassEntry,
    FeatureIdentity,
    KnownDefect,
    SupportImage,
    checked_json,
)
from ..formats.roi import tile_counts
from ..preprocess import encoding_names
from .layout import MASKS, Layout, read_layout
from .memory_bank import ClassBank, SupportTokens

F32 = NDArray[np.float32]

SUPPORTS = "supports"
"""Folder in a bank with a token file per support: ``SHA256.safetensors``."""
IMAGES = "images"
"""Folder in a bank with the supports' images, as they were given: ``SHA256.SUFFIX``."""
FOLDERS = (SUPPORTS, IMAGES, MASKS, HISTORY)


def make_folders(folder: Path, manifest: BankManifest) -> None:
    """Make the folders that a change of a bank writes to. The bank's own is made for its first version only.

    Args:
        folder: folder of the bank.
        manifest: version in memory.

    Raises:
        BankError: The bank is gone, or the folder cannot be written.
    """
    check_there(folder, manifest)
    try:
        if not manifest.version:
            folder.mkdir(parents=True, exist_ok=True)
        for name in (SUPPORTS, HISTORY):
            (folder / name).mkdir(exist_ok=True)
    except OSError as exc:
        raise BankError(
            f"cannot write to {folder}: {exc.strerror}; choose another folder or fix its permissions"
        ) from None


def check_there(folder: Path, manifest: BankManifest) -> None:
    """Check that the folder of a bank still holds it: a share may be unmounted, a folder moved away.

    A change writes a manifest that names files which only the lost folder has, so it would be a damaged bank.

    Args:
        folder: folder of the bank.
        manifest: version in memory. A bank that was never written (version 0) needs no folder yet.

    Raises:
        BankError: There is no manifest, and the version in memory is not the newest in the history.
    """
    try:
        there = not manifest.version or (folder / MANIFEST).exists() or newest_manifest(folder) == manifest
    except OSError:  # such as a share whose server is away
        there = False
    if not there:
        raise BankError(
            f"bank {folder} is gone: expected version {manifest.version}, found no {MANIFEST} and no history that ends with this "
            "version; nothing was changed; mount the folder or restore it, then try again"
        )


def next_manifest(old: BankManifest, change: str, classes: dict[str, ClassEntry]) -> BankManifest:
    """Return the manifest of the version after ``old``.

    Args:
        old: manifest to replace.
        change: one phrase that says what was changed.
        classes: entries of the new version.
    """
    return old.model_copy(
        update={
            "schema_version": 2,
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


def read_class(
    folder: Path, manifest: BankManifest, name: str, known: Mapping[str, SupportTokens] | None = None
) -> ClassBank:
    """Return a class whose tokens are read, and checked, when they are first needed.

    Args:
        folder: folder of the bank.
        manifest: version to read.
        name: class in that version.
        known: tokens that are in memory already, by the digest of their file.

    Raises:
        BankError: The manifest does not fit together. The class raises it too, when its tokens are needed and a file is missing or
            damaged, or does not fit the manifest. The message names the ways out.
    """
    if manifest.blocks != encoding_names(manifest.views):
        raise BankError(
            f"{folder / MANIFEST} is damaged: expected the blocks of views {', '.join(manifest.views) or '(none)'}, "
            f"got {', '.join(manifest.blocks)}; restore it from a backup"
        )
    entry = manifest.classes[name]
    remedy = (
        f"restore it from a backup, or `visionad bank undo {folder}`, or `visionad bank remove {folder} --class {name!r}` "
        "and enroll it again"
    )

    def read() -> list[SupportTokens]:
        if entry.file is not None and entry.sha256 is not None:
            return _read_class_file(folder / entry.file, entry.sha256, name, manifest, entry, remedy)
        held = known or {}
        return [
            held.get(support.tokens or "") or _read_support(folder, name, support, manifest, entry, remedy)
            for support in entry.images
        ]

    def read_rois() -> Layout | None:
        return None if entry.roi is None else read_layout(folder, name, entry.roi, manifest.identity)

    def read_defects() -> F32 | None:
        parts = [_read_defect(folder, name, defect, manifest, remedy) for defect in entry.defects or ()]
        return np.concatenate(parts, axis=1) if parts else None

    return ClassBank(name, entry, manifest.blocks, read, read_rois, read_defects)


def _read_defect(folder: Path, name: str, defect: KnownDefect, manifest: BankManifest, remedy: str) -> F32:
    """Read the patch tokens of a remembered defect, float32 (B, R, D)."""
    path = support_file(folder, defect.tokens)
    features = _read_tensors(path, defect.tokens, name, remedy, ("features",))["features"]
    check_defect(str(path), manifest, defect.cells, features)
    return features


def check_defect(where: str, manifest: BankManifest, cells: int, features: F32) -> None:
    """Check that the tokens of a remembered defect fit a bank.

    Args:
        where: origin of the tensor, for the message.
        manifest: manifest of the bank.
        cells: number R of patches.
        features: must be float32 (B, R, D).

    Raises:
        BankError: The shape or dtype differs, or there are NaN or Inf.
    """
    expected = (len(manifest.blocks), cells, manifest.identity.dim)
    if features.shape != expected or features.dtype != np.dtype(np.float32):
        raise BankError(
            f"{where}: expected float32 features {expected} of a defect, got {features.dtype} {features.shape}"
        )
    if not np.isfinite(features).all():
        raise BankError(f"{where}: NaN or Inf among the patch tokens of a defect; run `visionad doctor`")


def write_defect(folder: Path, features: F32) -> str:
    """Write the token file of a remembered defect, and return the sha256 that names it.

    Args:
        folder: folder of the bank.
        features: float32 (B, R, D).
    """
    data = save_tensors({"features": np.ascontiguousarray(features)})
    digest = sha256_bytes(data)
    write_once(support_file(folder, digest), data, digest)
    return digest


def _read_support(
    folder: Path, name: str, support: SupportImage, manifest: BankManifest, entry: ClassEntry, remedy: str
) -> SupportTokens:
    if support.tokens is None:
        raise BankError(
            f"class {name!r}: {folder / MANIFEST} is damaged: support {support.sha256[:12]} names no tokens; {remedy}"
        )
    path = support_file(folder, support.tokens)
    tensors = _read_tensors(path, support.tokens, name, remedy)
    features, class_tokens = tensors["features"], tensors["class_tokens"]
    counts = tile_counts(entry.roi)
    check_support_shapes(str(path), manifest.identity, len(manifest.blocks), counts, features, class_tokens)
    return SupportTokens(split_tiles(features, counts), class_tokens)


def _read_class_file(
    path: Path, sha256: str, name: str, manifest: BankManifest, entry: ClassEntry, remedy: str
) -> list[SupportTokens]:
    """Read a class file of format 1: features (B, K, P, D) and class_tokens (B, K, Dc)."""
    tensors = _read_tensors(path, sha256, name, remedy)
    features, class_tokens = tensors["features"], tensors["class_tokens"]
    check_shapes(str(path), manifest, len(entry.images), features, class_tokens)
    return [SupportTokens((features[:, k : k + 1],), class_tokens[:, k]) for k in range(len(entry.images))]


def _read_tensors(
    path: Path, sha256: str, name: str, remedy: str, keys: Sequence[str] = ("features", "class_tokens")
) -> dict[str, F32]:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise BankError(f"class {name!r}: {path} cannot be read: {exc.strerror}; {remedy}") from None
    if sha256_bytes(data) != sha256:
        raise BankError(f"class {name!r}: {path} is damaged (its sha256 is not the manifest's); {remedy}")
    try:
        tensors = load_tensors(data)
        return {key: tensors[key] for key in keys}
    except (SafetensorError, KeyError, ValueError) as exc:
        raise BankError(f"class {name!r}: {path} is not a token file of a bank ({exc}); {remedy}") from None


def split_tiles(features: F32, counts: Sequence[int]) -> tuple[F32, ...]:
    """Split tokens (B, T, P, D) of all tiles into those of each ROI.

    Args:
        features: tokens of all tiles, ROI by ROI.
        counts: number of tiles of each ROI; their sum is T.
    """
    ends = list(accumulate(counts))
    return tuple(features[:, end - count : end] for end, count in zip(ends, counts, strict=True))


def write_support(folder: Path, tokens: SupportTokens) -> str:
    """Write the token file of a support, unless it is there.

    Returns:
        Its sha256, which names it.

    Raises:
        VisionADError: The folder cannot be written or the disk is full.
    """
    features = tokens.rois[0] if len(tokens.rois) == 1 else np.concatenate(tokens.rois, axis=1)
    tensors = {
        "features": np.ascontiguousarray(features),
        "class_tokens": np.ascontiguousarray(tokens.class_tokens),
    }
    data = save_tensors(tensors)
    digest = sha256_bytes(data)
    write_once(support_file(folder, digest), data, digest)
    return digest


def write_once(path: Path, data: bytes, digest: str) -> None:
    """Write a file that is named by its digest, unless it is there and whole."""
    if not path.exists() or path.stat().st_size != len(data) or sha256_file(path) != digest:
        try:
            path.parent.mkdir(exist_ok=True)  # without the bank's folder, which may be gone: half a bank would arise
        except OSError as exc:
            raise BankError(f"cannot write {path}: {exc.strerror}; nothing was changed") from None
        atomic_write(path, data)


def support_file(folder: Path, tokens: str) -> Path:
    """Return the path of a token file."""
    return folder / SUPPORTS / f"{tokens}.safetensors"


def check_shapes(where: str, manifest: BankManifest, count: int, features: F32, class_tokens: F32) -> None:
    """Check that tensors of several supports, without ROIs, fit a bank.

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
    _check_tensors(where, expected, features, class_tokens)


def check_support_shapes(
    where: str, identity: FeatureIdentity, blocks: int, counts: Sequence[int], features: F32, class_tokens: F32
) -> None:
    """Check that tensors of one support fit a bank.

    Args:
        where: origin of the tensors, for the message.
        identity: of the bank.
        blocks: number B of unique encodings.
        counts: number of tiles of each ROI; their sum is T.
        features: must be float32 (B, T, P, D).
        class_tokens: must be float32 (B, Dc).

    Raises:
        BankError: A shape or dtype differs.
    """
    expected = ((blocks, sum(counts), identity.grid**2, identity.dim), (blocks, identity.class_token_dim))
    _check_tensors(where, expected, features, class_tokens)


def _check_tensors(
    where: str, expected: tuple[tuple[int, ...], tuple[int, ...]], features: F32, class_tokens: F32
) -> None:
    dtypes = {features.dtype, class_tokens.dtype}
    if (features.shape, class_tokens.shape) != expected or dtypes != {np.dtype(np.float32)}:
        raise BankError(
            f"{where}: expected float32 features {expected[0]} and class_tokens {expected[1]}, "
            f"got {features.dtype} {features.shape} and {class_tokens.dtype} {class_tokens.shape}"
        )


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

    Raises:
        BankError: It holds what no reader would take. Nothing was changed.
    """
    data = checked_json(manifest)
    atomic_write(history_file(folder, manifest.version), data)
    atomic_write(folder / MANIFEST, data)
    with contextlib.suppress(OSError, ValueError):  # the version is committed, whether or not files can be deleted
        _delete_unneeded(folder, manifest)


def _delete_unneeded(folder: Path, manifest: BankManifest) -> None:
    """Delete what a kill has left, and, where a number of versions to keep is set, what no kept version needs."""
    for place in (folder, *(folder / name for name in FOLDERS)):
        for path in place.glob(".*.tmp"):
            path.unlink()
    if manifest.keep is None:
        return
    needed = {manifest.version: manifest}
    for version, path in restorable_versions(folder).items():
        # Undone versions are kept too: one undo too many must not lose anything.
        if version > manifest.version - manifest.keep and version not in needed:
            needed[version] = BankManifest.model_validate_json(path.read_bytes())
    if manifest.undo_to is not None and manifest.undo_to not in needed:  # the last change can always be undone
        needed[manifest.undo_to] = read_version(history_file(folder, manifest.undo_to))
    files = {path for version in needed.values() for path in files_of(folder, version)}
    files |= {history_file(folder, version) for version in needed}
    for name in (*FOLDERS, "classes"):
        for path in (folder / name).glob("*"):
            if path not in files:
                path.unlink()


def files_of(folder: Path, manifest: BankManifest) -> set[Path]:
    """Return the files that a version refers to."""
    files: set[Path] = set()
    for entry in manifest.classes.values():
        if entry.file is not None:
            files.add(folder / entry.file)
        if entry.roi is not None and entry.roi.mask is not None:
            files.add(folder / MASKS / f"{entry.roi.mask}.png")
        files |= {support_file(folder, defect.tokens) for defect in entry.defects or ()}
        for support in entry.images:
            if support.tokens is not None:
                files.add(support_file(folder, support.tokens))
            if support.kept is not None:
                files.add(folder / IMAGES / support.kept)
    return files


def restorable_versions(folder: Path) -> dict[int, Path]:
    """Return the versions that can be restored: version → its manifest file.

    These are all versions, undone ones included, unless the bank's ``keep`` limits them.
    """
    return {int(path.stem): path for path in sorted((folder / HISTORY).glob(VERSIONS)) if path.stem.isdecimal()}
