"""The class-aware memory bank: what was enrolled, on disk and in memory (method, section 3).

On disk a bank is a folder with one safetensors file per class and a manifest. A change writes new files beside the old ones
and then replaces the manifest, so a crash at any point leaves the bank as it was before or as it is after, never between.
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
from ..preprocess import bank_blocks
from .folder import (
    _check_shapes,
    _history,
    _newest,
    _now,
    _read_class,
    _read_version,
    _slug,
    _successor,
    _write_version,
    check_identity,
    restorable_versions,
)
from .lock import _locked
from .memory_bank import ClassBank, Snapshot
from .names import check_class_name, normalize_class_name, unknown_class_message
from .supports import check_new

F32 = NDArray[np.float32]
MIN_SHA256_PREFIX = 4
"""Of a sha256, to name an image that is to be removed."""


class Bank:
    """A bank folder, read whole into memory; changes go to disk first, then replace the snapshot in one assignment."""

    def __init__(self, folder: Path, manifest: BankManifest, classes: dict[str, ClassBank]) -> None:
        self.folder = folder
        self.snapshot = Snapshot(manifest, classes)
        self._renewing = threading.Lock()

    @property
    def manifest(self) -> BankManifest:
        """The version in force."""
        return self.snapshot.manifest

    @property
    def classes(self) -> Mapping[str, ClassBank]:
        """Class name → what is enrolled."""
        return self.snapshot.classes

    @classmethod
    def open(cls, folder: Path, identity: FeatureIdentity | None = None) -> Bank:
        """Read a bank and check every file against its digest.

        Args:
            identity: of the model it will be used with; ``None`` only inspects the bank.

        Raises:
            BankError: missing, damaged, or made with another model (the message names both and what differs).
        """
        manifest = read_manifest(folder, BankManifest)
        if identity is not None:
            check_identity(folder, manifest.identity, identity)
        return cls(folder, manifest, {n: _read_class(folder, manifest, n) for n in manifest.classes})

    @classmethod
    def open_or_new(cls, folder: Path, identity: FeatureIdentity, views: Sequence[ViewName]) -> Bank:
        """:meth:`open`, or an empty bank (nothing on disk yet) where the folder is missing or empty. One that lost its manifest
        goes on from the newest version in its history.

        Raises:
            BankError: as :meth:`open`; or the folder holds other things.
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
        manifest = _newest(folder)
        if manifest is not None:  # it was lost, or is the one step that a kill left out: go on from there
            check_identity(folder, manifest.identity, identity)
            return cls(folder, manifest, {n: _read_class(folder, manifest, n) for n in manifest.classes})
        if len(lost := sorted(p.name for p in (folder / "classes").glob("*.safetensors"))) > 1:
            raise BankError(  # a first enrollment leaves one; the next change would delete what no manifest names
                f"{folder} holds classes ({', '.join(lost)}), and neither {MANIFEST} nor {HISTORY}/ that says what they are; "
                "restore these from a backup, or choose a new folder"
            )
        manifest = BankManifest(
            version=0, undo_to=None, change="new", created=_now(), identity=identity, views=tuple(views),
            blocks=bank_blocks(views), classes={},
        )  # fmt: skip
        return cls(folder, manifest, {})

    # -- changes ------------------------------------------------------------------------------------------------------

    def add(self, name: str, images: Sequence[SupportImage], features: F32, class_tokens: F32) -> int:
        """Enroll support images in a new or existing class. Its threshold is dropped: it was true of other supports.

        Args:
            features: float32 (B, K, P, D), unit rows, blocks in the bank's order.
            class_tokens: float32 (B, K, Dc), unit rows.

        Returns:
            The bank's new version.

        Raises:
            BankError: bad class name, an image that is enrolled already, tensors that do not fit, disk trouble.
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
        """Remove a class, or one support image of it by its sha256, or :data:`MIN_SHA256_PREFIX` or more digits it begins with.

        Raises:
            BankError: unknown class; no or several images match; the last image of a class.
        """
        name = normalize_class_name(name)
        with self._changing():
            old = self._class(name)
            if image is None:
                self._commit(f"remove {name}", {n: c for n, c in self.classes.items() if n != name})
                return self.manifest.version
            hits = [k for k, i in enumerate(old.entry.images) if i.sha256.startswith(image.lower())]
            if len(image) < MIN_SHA256_PREFIX or len(hits) != 1:
                known = ", ".join(f"{i.sha256[:12]} ({Path(i.source).name})" for i in old.entry.images)
                raise BankError(
                    f"class {name!r}: expected {MIN_SHA256_PREFIX} or more digits of one image's sha256, got {image!r}, which "
                    f"{len(hits)} have; it has {known}"
                )
            if len(old.entry.images) == 1:
                raise BankError(f"class {name!r} has this one image only; remove the class instead (leave out --image)")
            less = old.without(hits[0])
            entry = self._write_class(name, less.entry.images, less.features, less.class_tokens)
            loaded = ClassBank(name, entry, self.manifest.blocks, less.features, less.class_tokens)
            self._commit(f"remove {name}: {old.entry.images[hits[0]].source}", {**self.classes, name: loaded})
        return self.manifest.version

    def calibrate(
        self,
        name: str,
        threshold: float,
        map_scale: tuple[float, float],
        record: Calibration,
        scored: ClassEntry | None = None,
    ) -> int:
        """Store a class's threshold with its provenance (``teaching/calibrate.py``).

        Args:
            scored: the class as it was when the scores were made; other supports by now are refused.

        Raises:
            BankError: unknown class, or not the one that was scored.
        """
        name = normalize_class_name(name)
        with self._changing():
            old = self._class(name)
            if scored is not None and scored.sha256 != old.entry.sha256:
                raise BankError(
                    f"class {name!r} of bank {self.folder} was changed while it was being calibrated; nothing was stored, "
                    "calibrate again"
                )
            fresh = {"threshold": threshold, "map_scale": map_scale, "calibration": record}
            entry = old.entry.model_copy(update=fresh)
            loaded = ClassBank(name, entry, old.blocks, old.features, old.class_tokens)
            self._commit(f"calibrate {name}: threshold {threshold:.6g}", {**self.classes, name: loaded})
        return self.manifest.version

    @staticmethod
    def undo(folder: Path, to: int | None = None) -> BankManifest:
        """Take back the last change. The state of the version before becomes a new version, so versions only grow.

        Where the manifest itself is gone or damaged, that is what is taken back: the newest version in the history is in force
        again.

        Args:
            to: the version to bring back, one of :func:`~visionad_runtime.bank.folder.restorable_versions`. It may be one that
                was undone, and can be undone in turn.

        Returns:
            The manifest now in force.

        Raises:
            BankError: nothing to undo, no such version, or its files are damaged.
        """
        with contextlib.suppress(LostManifestError):
            read_manifest(folder, BankManifest)  # what is no bank gets no lock file either
        with _locked(folder):
            try:
                now = read_manifest(folder, BankManifest)
            except LostManifestError:
                newest = _newest(folder)
                assert newest is not None  # or it would not be called lost
                atomic_write(folder / MANIFEST, to_json(newest))
                if to in (None, newest.version):
                    return newest
                now = newest
            others = [v for v in restorable_versions(folder) if v != now.version]
            known = ", ".join(map(str, others))
            wanted = now.undo_to if to is None else to
            if wanted is None:
                hint = f"; --to brings another version back: {known}" if known else ""
                raise BankError(f"{folder}: nothing to undo (version {now.version}){hint}")
            if wanted not in others:
                known = known or "none but the one in force"
                raise BankError(f"{folder}: version {wanted} cannot be brought back; those that are kept: {known}")
            before = _read_version(_history(folder, wanted))
            for name in before.classes:
                _read_class(folder, before, name)
            # named by what is in force again: after an undo, `now.change` is not what a second one takes back
            change = f"undo, back to version {before.version}: {before.change}"
            if before.change.startswith("undo, "):
                change = before.change
            fresh = before.model_copy(
                update={
                    "version": now.version + 1,
                    "undo_to": before.undo_to if to is None else now.version,
                    "change": change,
                    "created": _now(),
                }
            )
            _write_version(folder, fresh)
        return fresh

    @staticmethod
    def drop(folder: Path, name: str) -> int:
        """:meth:`remove` a whole class without reading any, so that a damaged one can be taken out too.

        Raises:
            BankError: no bank, or unknown class.
        """
        name = normalize_class_name(name)
        read_manifest(folder, BankManifest)  # what is no bank gets no lock file either
        with _locked(folder):
            now = read_manifest(folder, BankManifest)
            if name not in now.classes:
                raise BankError(unknown_class_message(folder, name, now.classes))
            fresh = _successor(now, f"remove {name}", {n: e for n, e in now.classes.items() if n != name})
            _write_version(folder, fresh)
        return fresh.version

    # -- inside -------------------------------------------------------------------------------------------------------

    def _class(self, name: str) -> ClassBank:
        try:
            return self.classes[name]
        except KeyError:
            raise BankError(unknown_class_message(self.folder, name, self.classes)) from None

    def _check_tensors(self, count: int, features: F32, class_tokens: F32) -> None:
        identity = self.manifest.identity
        _check_shapes("enrollment", self.manifest, count, features, class_tokens)
        if count == 0:
            raise BankError("enrollment: no image given")
        for what, array in (("patch tokens", features), ("class tokens", class_tokens)):
            if not np.isfinite(array).all():
                raise BankError(
                    f"enrollment: NaN or Inf among the {what} of {identity.backbone}; run `visionad doctor`"
                )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the writer's lock, on the newest state of the folder: another process may have changed it since."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "classes").mkdir(exist_ok=True)
            (self.folder / HISTORY).mkdir(exist_ok=True)
        except OSError as exc:
            raise BankError(
                f"cannot write to {self.folder}: {exc.strerror}; choose another folder or mend its permissions"
            ) from None
        with _locked(self.folder):
            self.refresh()
            yield

    def stamp(self) -> tuple[int, ...] | None:
        """Another one whenever a change was committed, by whichever process; None where there is no manifest."""
        try:
            found = (self.folder / MANIFEST).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def refresh(self) -> bool:
        """Take over what another process has committed since. Returns whether anything changed.

        Raises:
            BankError: it cannot be read, or is another model's. What was in force stays so.
        """
        with self._renewing:  # a change of this process may come between reading and taking over, and is newer then
            if not (self.folder / MANIFEST).exists():
                return False
            manifest = read_manifest(self.folder, BankManifest)
            if manifest == self.manifest:
                return False
            check_identity(self.folder, manifest.identity, self.manifest.identity)
            known = self.classes
            fresh = {
                n: known[n] if n in known and known[n].entry == e else _read_class(self.folder, manifest, n)
                for n, e in manifest.classes.items()
            }
            self.snapshot = Snapshot(manifest, fresh)
        return True

    def _write_class(self, name: str, images: Sequence[SupportImage], features: F32, class_tokens: F32) -> ClassEntry:
        tensors = {"features": np.ascontiguousarray(features), "class_tokens": np.ascontiguousarray(class_tokens)}
        data = save_tensors(tensors, metadata={"class": name, "blocks": ",".join(self.manifest.blocks)})
        digest = sha256_bytes(data)
        file = f"classes/{_slug(name)}-{digest[:16]}.safetensors"
        if not (self.folder / file).exists() or sha256_file(self.folder / file) != digest:
            atomic_write(self.folder / file, data)
        return ClassEntry(file=file, sha256=digest, images=tuple(images))

    def _commit(self, change: str, classes: dict[str, ClassBank]) -> None:
        fresh = _successor(self.manifest, change, {name: classes[name].entry for name in sorted(classes)})
        with self._renewing:
            _write_version(self.folder, fresh)
            self.snapshot = Snapshot(fresh, classes)


def verify(folder: Path) -> BankManifest:
    """Read everything a bank holds and check digests, shapes, and that every row is a finite unit vector.

    Raises:
        BankError: naming the file and what is wrong with it.
    """
    manifest = read_manifest(folder, BankManifest)
    for name in manifest.classes:
        loaded = _read_class(folder, manifest, name)
        for what, array in (("features", loaded.features), ("class_tokens", loaded.class_tokens)):
            norms = np.sqrt(np.einsum("...d,...d->...", array, array, dtype=np.float64, casting="safe"))
            if not (np.abs(norms - 1) < 1e-3).all():  # NaN compares false
                raise BankError(
                    f"{folder / loaded.entry.file}: {what} holds rows that are no unit vectors; `visionad bank undo`"
                )
    return manifest
