"""The class-aware memory bank on disk (method, section 3).

A bank is a folder with a manifest and one safetensors file per class. A change writes new files beside the old ones, then replaces
the manifest by one rename. So a crash at any point leaves either the old or the new version, never a mixture.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from ..errors import BankError, LostManifestError
from ..formats.files import atomic_write, sha256_bytes, sha256_file
from ..formats.manifest import (
    HISTORY,
    MANIFEST,
    BankManifest,
    Calibration,
    ClassEntry,
    FeatureIdentity,
    SupportImage,
    ViewName,
    read_manifest,
    to_json,
)
from ..preprocess import encoding_names
from .folder import (
    check_identity,
    check_shapes,
    file_slug,
    history_file,
    newest_manifest,
    next_manifest,
    read_class,
    read_version,
    restorable_versions,
    utc_now,
    write_version,
)
from .lock import writer_lock
from .memory_bank import ClassBank, Snapshot
from .names import check_class_name, normalize_class_name, unknown_class_message
from .supports import check_new

F32 = NDArray[np.float32]
MIN_SHA256_PREFIX = 4
"""Minimum number of digits of a sha256 that name the image to remove."""


class Bank:
    """A bank folder, fully loaded into memory. A change is written to disk first, then replaces the snapshot in one assignment.

    Attributes:
        folder: the folder.
        snapshot: current version. Callers that need several reads of one version keep a reference to it.
    """

    def __init__(self, folder: Path, manifest: BankManifest, classes: dict[str, ClassBank]) -> None:
        """Take a loaded version.

        Args:
            folder: folder of the bank.
            manifest: the loaded version.
            classes: its classes, by name.
        """
        self.folder = folder
        self.snapshot = Snapshot(manifest, classes)
        self._replacing = threading.Lock()

    @property
    def manifest(self) -> BankManifest:
        """Manifest of the current version."""
        return self.snapshot.manifest

    @property
    def classes(self) -> Mapping[str, ClassBank]:
        """Class name → class, in the current version."""
        return self.snapshot.classes

    @classmethod
    def open(cls, folder: Path, identity: FeatureIdentity | None = None) -> Bank:
        """Read a bank and check every file against its digest.

        Args:
            folder: folder of the bank.
            identity: identity of the model that the bank must fit, or ``None`` to read any bank.

        Raises:
            BankError: The bank is missing or damaged, or was made with another model (the message names both and what differs).
        """
        manifest = read_manifest(folder, BankManifest)
        if identity is not None:
            check_identity(folder, manifest.identity, identity)
        return cls(folder, manifest, {n: read_class(folder, manifest, n) for n in manifest.classes})

    @classmethod
    def open_or_new(cls, folder: Path, identity: FeatureIdentity, views: Sequence[ViewName]) -> Bank:
        """Open a bank, or start an empty one if the folder is missing or empty. Nothing is written yet.

        A bank that lost its manifest continues from the newest version in its history.

        Args:
            folder: folder of the bank.
            identity: identity of the model.
            views: views of a new bank.

        Raises:
            BankError: As for :meth:`open`, or the folder holds other files.
        """
        if (folder / MANIFEST).exists():
            return cls.open(folder, identity)
        if folder.exists() and not folder.is_dir():
            raise BankError(f"{folder}: expected a bank folder, got a file")
        # Leftovers of an enrollment that was killed before its first commit are no reason to refuse.
        if folder.is_dir() and any(
            p.name not in ("classes", HISTORY, ".lock") and p.suffix != ".tmp" for p in folder.iterdir()
        ):
            raise BankError(f"folder {folder} is not empty and no bank (no {MANIFEST}); choose a new folder")
        manifest = newest_manifest(folder)
        if manifest is not None:  # the manifest was lost, or a kill came between history and manifest
            check_identity(folder, manifest.identity, identity)
            return cls(folder, manifest, {n: read_class(folder, manifest, n) for n in manifest.classes})
        if len(unnamed := sorted(p.name for p in (folder / "classes").glob("*.safetensors"))) > 1:
            # An interrupted first enrollment leaves one. The next change would delete files that no manifest names.
            raise BankError(
                f"{folder} holds classes ({', '.join(unnamed)}), and neither {MANIFEST} nor {HISTORY}/ that says what they are; "
                "restore these from a backup, or choose a new folder"
            )
        manifest = BankManifest(
            version=0, undo_to=None, change="new", created=utc_now(), identity=identity, views=tuple(views),
            blocks=encoding_names(views), classes={},
        )  # fmt: skip
        return cls(folder, manifest, {})

    # -- changes ------------------------------------------------------------------------------------------------------

    def add(self, name: str, images: Sequence[SupportImage], features: F32, class_tokens: F32) -> int:
        """Enroll support images in a new or existing class.

        The class loses its threshold, which was calibrated for other supports.

        Args:
            name: the class.
            images: records of K supports.
            features: float32 (B, K, P, D), unit rows, encodings in the order of the manifest's ``blocks``.
            class_tokens: float32 (B, K, Dc), unit rows.

        Returns:
            The bank's new version.

        Raises:
            BankError: The class name is invalid, an image is enrolled already, the tensors do not fit, or writing fails.
        """
        name = check_class_name(name)
        with self._changing():
            self._check_tensors(len(images), features, class_tokens)
            old = self.classes.get(name)
            check_new(self.classes, name, images)
            images = (*(old.entry.images if old else ()), *images)
            if old is not None:
                features = np.concatenate([old.features, features], axis=1)
                class_tokens = np.concatenate([old.class_tokens, class_tokens], axis=1)
            entry = self._write_class(name, images, features, class_tokens)
            loaded = ClassBank(name, entry, self.manifest.blocks, features, class_tokens)
            self._commit(f"add {name}: now {len(images)} images", {**self.classes, name: loaded})
        return self.manifest.version

    def remove(self, name: str, image: str | None = None) -> int:
        """Remove a class, or one of its supports.

        Args:
            name: the class.
            image: sha256 of the support, or at least its first :data:`MIN_SHA256_PREFIX` digits. ``None`` removes the class.

        Returns:
            The bank's new version.

        Raises:
            BankError: There is no such class, not exactly one image matches, or it is the last image of the class.
        """
        name = normalize_class_name(name)
        with self._changing():
            old = self._class(name)
            if image is None:
                self._commit(f"remove {name}", {n: c for n, c in self.classes.items() if n != name})
                return self.manifest.version
            matches = [k for k, i in enumerate(old.entry.images) if i.sha256.startswith(image.lower())]
            if len(image) < MIN_SHA256_PREFIX or len(matches) != 1:
                enrolled = ", ".join(f"{i.sha256[:12]} ({Path(i.source).name})" for i in old.entry.images)
                raise BankError(
                    f"class {name!r}: expected {MIN_SHA256_PREFIX} or more digits of one image's sha256, got {image!r}, which "
                    f"{len(matches)} have; it has {enrolled}"
                )
            if len(old.entry.images) == 1:
                raise BankError(f"class {name!r} has this one image only; remove the class instead (leave out --image)")
            rest = old.leave_out(matches[0])
            entry = self._write_class(name, rest.entry.images, rest.features, rest.class_tokens)
            loaded = ClassBank(name, entry, self.manifest.blocks, rest.features, rest.class_tokens)
            self._commit(f"remove {name}: {old.entry.images[matches[0]].source}", {**self.classes, name: loaded})
        return self.manifest.version

    def calibrate(
        self,
        name: str,
        threshold: float,
        map_scale: tuple[float, float],
        record: Calibration,
        scored: ClassEntry | None = None,
    ) -> int:
        """Store a class's threshold and its provenance (``teaching/calibrate.py``).

        Args:
            name: the class.
            threshold: scores above it are anomalous.
            map_scale: lowest and highest value of a heatmap.
            record: provenance of the threshold.
            scored: entry of the class when the images were scored. If the supports have changed since, nothing is stored.

        Returns:
            The bank's new version.

        Raises:
            BankError: There is no such class, or its supports are not those that were scored.
        """
        name = normalize_class_name(name)
        with self._changing():
            old = self._class(name)
            if scored is not None and scored.sha256 != old.entry.sha256:
                raise BankError(
                    f"class {name!r} of bank {self.folder} was changed while it was being calibrated; nothing was stored, "
                    "calibrate again"
                )
            update = {"threshold": threshold, "map_scale": map_scale, "calibration": record}
            entry = old.entry.model_copy(update=update)
            loaded = ClassBank(name, entry, old.blocks, old.features, old.class_tokens)
            self._commit(f"calibrate {name}: threshold {threshold:.6g}", {**self.classes, name: loaded})
        return self.manifest.version

    @staticmethod
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
                atomic_write(folder / MANIFEST, to_json(newest))
                if to in (None, newest.version):
                    return newest
                current = newest
            versions = [version for version in restorable_versions(folder) if version != current.version]
            listed = ", ".join(map(str, versions))
            target = current.undo_to if to is None else to
            if target is None:
                hint = f"; --to brings another version back: {listed}" if listed else ""
                raise BankError(f"{folder}: nothing to undo (version {current.version}){hint}")
            if target not in versions:
                listed = listed or "none but the current one"
                raise BankError(f"{folder}: version {target} cannot be brought back; those that are kept: {listed}")
            restored = read_version(history_file(folder, target))
            for name in restored.classes:
                read_class(folder, restored, name)
            # The phrase names the restored state: after an undo, `current.change` is not what a second undo reverts.
            change = f"undo, back to version {restored.version}: {restored.change}"
            if restored.change.startswith("undo, "):
                change = restored.change
            manifest = restored.model_copy(
                update={
                    "version": current.version + 1,
                    "undo_to": restored.undo_to if to is None else current.version,
                    "change": change,
                    "created": utc_now(),
                }
            )
            write_version(folder, manifest)
        return manifest

    @staticmethod
    def remove_offline(folder: Path, name: str) -> int:
        """Remove a class without reading class files, so that a damaged class can be removed too.

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

    # -- inside -------------------------------------------------------------------------------------------------------

    def _class(self, name: str) -> ClassBank:
        try:
            return self.classes[name]
        except KeyError:
            raise BankError(unknown_class_message(self.folder, name, self.classes)) from None

    def _check_tensors(self, count: int, features: F32, class_tokens: F32) -> None:
        identity = self.manifest.identity
        check_shapes("enrollment", self.manifest, count, features, class_tokens)
        if count == 0:
            raise BankError("enrollment: no image given")
        for what, array in (("patch tokens", features), ("class tokens", class_tokens)):
            if not np.isfinite(array).all():
                raise BankError(
                    f"enrollment: NaN or Inf among the {what} of {identity.backbone}; run `visionad doctor`"
                )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the writer's lock and load the newest version: another process may have committed one."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "classes").mkdir(exist_ok=True)
            (self.folder / HISTORY).mkdir(exist_ok=True)
        except OSError as exc:
            raise BankError(
                f"cannot write to {self.folder}: {exc.strerror}; choose another folder or fix its permissions"
            ) from None
        with writer_lock(self.folder):
            self.refresh()
            yield

    def revision(self) -> tuple[int, ...] | None:
        """Return a value that changes with every commit, by any process, or ``None`` if there is no manifest."""
        try:
            status = (self.folder / MANIFEST).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def refresh(self) -> bool:
        """Load the version that another process has committed.

        Returns:
            Whether the version changed.

        Raises:
            BankError: The new version cannot be read or was made with another model. The loaded version stays.
        """
        with (
            self._replacing
        ):  # without the lock, a commit of this process could be replaced by the older version that was read
            if not (self.folder / MANIFEST).exists():
                return False
            manifest = read_manifest(self.folder, BankManifest)
            if manifest == self.manifest:
                return False
            check_identity(self.folder, manifest.identity, self.manifest.identity)
            loaded = self.classes
            classes = {
                name: loaded[name]
                if name in loaded and loaded[name].entry == entry
                else read_class(self.folder, manifest, name)
                for name, entry in manifest.classes.items()
            }
            self.snapshot = Snapshot(manifest, classes)
        return True

    def _write_class(self, name: str, images: Sequence[SupportImage], features: F32, class_tokens: F32) -> ClassEntry:
        tensors = {"features": np.ascontiguousarray(features), "class_tokens": np.ascontiguousarray(class_tokens)}
        data = save_tensors(tensors, metadata={"class": name, "blocks": ",".join(self.manifest.blocks)})
        digest = sha256_bytes(data)
        file = f"classes/{file_slug(name)}-{digest[:16]}.safetensors"
        if not (self.folder / file).exists() or sha256_file(self.folder / file) != digest:
            atomic_write(self.folder / file, data)
        return ClassEntry(file=file, sha256=digest, images=tuple(images))

    def _commit(self, change: str, classes: dict[str, ClassBank]) -> None:
        manifest = next_manifest(self.manifest, change, {name: classes[name].entry for name in sorted(classes)})
        with self._replacing:
            write_version(self.folder, manifest)
            self.snapshot = Snapshot(manifest, classes)


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
    for name in manifest.classes:
        loaded = read_class(folder, manifest, name)
        for what, array in (("features", loaded.features), ("class_tokens", loaded.class_tokens)):
            norms = np.sqrt(np.einsum("...d,...d->...", array, array, dtype=np.float64, casting="safe"))
            if not (np.abs(norms - 1) < 1e-3).all():  # NaN compares false
                raise BankError(
                    f"{folder / loaded.entry.file}: {what} holds rows that are not unit vectors; `visionad bank undo`"
                )
    return manifest
