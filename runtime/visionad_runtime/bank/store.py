"""The class-aware memory bank on disk (method, section 3).

A bank is a folder with a manifest and one token file per support. A change writes the new files beside the old ones, then replaces
the manifest by one rename. So a crash at any point leaves either the old or the new version, never a mixture.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BankError
from ..formats.files import sha256_bytes
from ..formats.manifest import (
    HISTORY,
    MANIFEST,
    BankManifest,
    ClassEntry,
    FeatureIdentity,
    SupportImage,
    ViewName,
    read_manifest,
)
from ..formats.roi import RoiSpec, tile_counts
from ..preprocess import encoding_names
from .folder import (
    FOLDERS,
    IMAGES,
    check_defect,
    check_identity,
    check_support_shapes,
    check_there,
    make_folders,
    newest_manifest,
    next_manifest,
    read_class,
    read_version,
    restorable_versions,
    utc_now,
    write_defect,
    write_once,
    write_support,
    write_version,
)
from .history import describe_versions
from .layout import MASKS, Layout, read_layout
from .lock import writer_lock
from .memory_bank import ClassBank, Snapshot
from .names import check_class_name, normalize_class_name, unknown_class_message
from .supports import NewSupport, check_new, support_index

F32 = NDArray[np.float32]

Calibrate = Callable[[ClassBank, ClassEntry | None], ClassEntry]
"""Changed class and its entry before the change → its entry with thresholds. Called before the change is committed."""


class Bank:
    """A bank folder in memory. A change is written to disk first, then replaces the snapshot in one assignment.

    Attributes:
        folder: the folder.
        snapshot: current version. Callers that need several reads of one version keep a reference to it.
    """

    def __init__(
        self,
        folder: Path,
        manifest: BankManifest,
        classes: dict[str, ClassBank],
        *,
        lazy: bool = False,
        pinned: bool = False,
    ) -> None:
        """Take a version.

        Args:
            folder: folder of the bank.
            manifest: the version.
            classes: its classes, by name.
            lazy: whether tokens are read when they are first needed, here and after a refresh.
            pinned: whether the version stays, whatever is committed. It cannot be changed then.
        """
        self.folder = folder
        self.snapshot = Snapshot(manifest, classes)
        self._lazy, self._pinned = lazy, pinned
        self._replacing = threading.Lock()
        if not lazy:
            _load(classes)

    @property
    def manifest(self) -> BankManifest:
        """Manifest of the current version."""
        return self.snapshot.manifest

    @property
    def classes(self) -> Mapping[str, ClassBank]:
        """Class name → class, in the current version."""
        return self.snapshot.classes

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: FeatureIdentity | None = None,
        *,
        version: int | None = None,
        lazy: bool = False,
    ) -> Bank:
        """Read a bank and check every file against its digest.

        Args:
            folder: folder of the bank.
            identity: identity of the model that the bank must fit, or ``None`` to read any bank.
            version: version to read, which then stays and cannot be changed; ``None`` for the newest.
            lazy: whether tokens are read, and checked, when they are first needed.

        Raises:
            BankError: The bank is missing or damaged, was made with another model (the message names both and what differs), or
                does not hold the version.
        """
        manifest = read_manifest(folder, BankManifest)
        if version is not None and version != manifest.version:
            kept = restorable_versions(folder)
            if version not in kept:
                raise BankError(f"bank {folder} has no version {version}; it has {describe_versions(kept)}")
            manifest = read_version(kept[version])
        if identity is not None:
            check_identity(folder, manifest.identity, identity)
        classes = {name: read_class(folder, manifest, name) for name in manifest.classes}
        return cls(folder, manifest, classes, lazy=lazy, pinned=version is not None)

    @classmethod
    def open_or_new(
        cls, folder: Path, identity: FeatureIdentity, views: Sequence[ViewName], *, lazy: bool = False
    ) -> Bank:
        """Open a bank, or start an empty one if the folder is missing or empty. Nothing is written yet.

        A bank that lost its manifest continues from the newest version in its history.

        Args:
            folder: folder of the bank.
            identity: identity of the model.
            views: views of a new bank.
            lazy: as for :meth:`open`.

        Raises:
            BankError: As for :meth:`open`, or the folder holds other files.
        """
        if (folder / MANIFEST).exists():
            return cls.open(folder, identity, lazy=lazy)
        if folder.exists() and not folder.is_dir():
            raise BankError(f"{folder}: expected a bank folder, got a file")
        # Leftovers of an enrollment that was killed before its first commit are no reason to refuse.
        if folder.is_dir() and any(
            p.name not in ("classes", *FOLDERS, ".lock") and p.suffix != ".tmp" for p in folder.iterdir()
        ):
            raise BankError(f"folder {folder} is not empty and no bank (no {MANIFEST}); choose a new folder")
        manifest = newest_manifest(folder)
        if manifest is not None:  # the manifest was lost, or a kill came between history and manifest
            check_identity(folder, manifest.identity, identity)
            return cls(folder, manifest, {n: read_class(folder, manifest, n) for n in manifest.classes}, lazy=lazy)
        if unnamed := sorted(p.name for p in (folder / "classes").glob("*.safetensors")):
            raise BankError(
                f"{folder} holds classes ({', '.join(unnamed)}), and neither {MANIFEST} nor {HISTORY}/ that says what they are; "
                "restore these from a backup, or choose a new folder"
            )
        manifest = BankManifest(
            version=0, undo_to=None, change="new", created=utc_now(), identity=identity, views=tuple(views),
            blocks=encoding_names(views), classes={},
        )  # fmt: skip
        return cls(folder, manifest, {}, lazy=lazy)

    # -- changes ------------------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        supports: Sequence[NewSupport],
        *,
        roi: RoiSpec | None = None,
        mask: bytes | None = None,
        calibrate: Calibrate | None = None,
        keep: int | None = None,
        judged: Callable[[ClassBank], ClassEntry] | None = None,
    ) -> int:
        """Enroll supports in a new or existing class.

        The class keeps its thresholds unless ``calibrate`` gives others. Scores only shrink as a bank grows, so what a threshold
        promises stays true.

        Args:
            name: the class.
            supports: records, tokens and images.
            roi: what is inspected, for a new class; an existing one keeps its own.
            mask: PNG file of ``roi.mask``.
            calibrate: computes the thresholds of the class as it will be.
            keep: number of latest versions to keep from now on; ``None`` leaves it as it is.
            judged: a change of an existing class as for :meth:`update`, made first, in the same version.

        Returns:
            The bank's new version.

        Raises:
            BankError: The class name is invalid, an image is enrolled already, the tokens do not fit, the class has other ROIs, or
                writing fails.
        """
        name = check_class_name(name)
        with self._changing():
            old = self.classes.get(name)
            if old is not None and judged is not None:
                old = old.with_entry(judged(old))
            if old is not None and roi is not None and roi != old.entry.roi:
                raise BankError(
                    f"class {name!r} has other ROIs; `visionad bank roi` changes them for all of its supports"
                )
            roi = old.entry.roi if old is not None else roi
            check_new(self.classes, name, [support.image for support in supports])
            added = self._write_supports(supports, roi, mask)
            if old is None:
                entry = ClassEntry(images=tuple(added), roi=roi)
                tokens = [support.tokens for support in supports]
                changed = ClassBank(name, entry, self.manifest.blocks, tokens, self._layout(name, roi))
            else:
                kept = self._converted(old)
                entry = kept.entry.model_copy(update={"images": (*kept.entry.images, *added)})
                changed = ClassBank(
                    name, entry, self.manifest.blocks, lambda: [*kept.supports, *(s.tokens for s in supports)],
                    lambda: kept.layout, lambda: kept.defects,
                )  # fmt: skip
            changed = self._calibrated(changed, old, calibrate)
            what = f"{'add' if judged is None else 'confirm and add'} {name}: now {len(changed.entry.images)} images"
            self._commit(what, {**self.classes, name: changed}, keep)
        return self.manifest.version

    def replace(
        self,
        name: str,
        supports: Sequence[NewSupport],
        roi: RoiSpec | None,
        *,
        change: str,
        mask: bytes | None = None,
        calibrate: Calibrate | None = None,
    ) -> int:
        """Replace all supports of a class and what is inspected, in one version. Its thresholds and scores are dropped.

        Args:
            name: the class.
            supports: all supports, encoded for ``roi``.
            roi: what is inspected.
            change: one phrase for the history.
            mask: PNG file of ``roi.mask``.
            calibrate: computes the thresholds.

        Returns:
            The bank's new version.

        Raises:
            BankError: As for :meth:`add`.
        """
        name = check_class_name(name)
        with self._changing():
            old = self.classes.get(name)
            others = {other: bank for other, bank in self.classes.items() if other != name}
            check_new(others, name, [support.image for support in supports])
            entry = ClassEntry(images=tuple(self._write_supports(supports, roi, mask)), roi=roi)
            tokens = [support.tokens for support in supports]
            changed = ClassBank(name, entry, self.manifest.blocks, tokens, self._layout(name, roi))
            self._commit(change, {**self.classes, name: self._calibrated(changed, old, calibrate)})
        return self.manifest.version

    def remove(self, name: str, image: str | None = None, *, calibrate: Calibrate | None = None) -> int:
        """Remove a class, or one of its supports.

        A class that lost a support loses its thresholds unless ``calibrate`` gives others: without the support, scores may grow.

        Args:
            name: the class.
            image: sha256 of the support, or at least its first four digits. ``None`` removes the class.
            calibrate: computes the thresholds of the class as it will be.

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
            place = support_index(name, old.entry, image)
            rest = self._converted(old).leave_out(place)
            rest = rest.with_entry(rest.entry.uncounted().model_copy(update=NO_LIMITS))
            changed = self._calibrated(rest, old, calibrate)
            self._commit(f"remove {name}: {old.entry.images[place].source}", {**self.classes, name: changed})
        return self.manifest.version

    def remember(
        self,
        name: str,
        features: F32,
        defect: Callable[[ClassBank, str], ClassEntry],
        *,
        change: str,
        calibrate: Calibrate | None = None,
    ) -> int:
        """Remember a defect.

        Scores may grow, so the class loses its thresholds unless ``calibrate`` gives others.

        Args:
            name: the class.
            features: its patch tokens, float32 (B, R, D), unit rows.
            defect: class as it is, and the sha256 of the token file → its entry with the defect. It may raise :class:`BankError`;
                nothing is stored then.
            change: one phrase for the history.
            calibrate: computes the thresholds of the class as it will be.

        Returns:
            The bank's new version.

        Raises:
            BankError: There is no such class, the class has ROIs, the tokens do not fit, or ``defect`` raised it.
        """
        name = normalize_class_name(name)
        with self._changing():
            old = self._class(name)
            if old.entry.roi is not None:
                raise BankError(f"class {name!r} has ROIs: expected a class of whole images to remember a defect")
            check_defect("defect", self.manifest, features.shape[1], features)
            entry = defect(old, write_defect(self.folder, features))
            changed = old.with_defect(entry.model_copy(update=NO_LIMITS), features)
            self._commit(change, {**self.classes, name: self._calibrated(changed, old, calibrate)})
        return self.manifest.version

    def update(self, name: str, change: str, entry: Callable[[ClassBank], ClassEntry]) -> int:
        """Change what a class's entry says beside its supports: thresholds, scores, confirmations.

        Args:
            name: the class.
            change: one phrase for the history.
            entry: class as it is → its new entry, with the same supports. It may raise :class:`BankError`; nothing is stored then.

        Returns:
            The bank's new version.

        Raises:
            BankError: There is no such class, or ``entry`` raised it.
        """
        name = normalize_class_name(name)
        with self._changing():
            old = self._class(name)
            changed = old.with_entry(entry(old))
            self._commit(change, {**self.classes, name: changed})
        return self.manifest.version

    # -- inside -------------------------------------------------------------------------------------------------------

    def _class(self, name: str) -> ClassBank:
        try:
            return self.classes[name]
        except KeyError:
            raise BankError(unknown_class_message(self.folder, name, self.classes)) from None

    def _layout(self, name: str, roi: RoiSpec | None) -> Layout | None:
        """Return what is inspected of a new class, whose mask was written."""
        return None if roi is None else read_layout(self.folder, name, roi, self.manifest.identity)

    def _calibrated(self, changed: ClassBank, old: ClassBank | None, calibrate: Calibrate | None) -> ClassBank:
        if calibrate is None:
            return changed
        return changed.with_entry(calibrate(changed, None if old is None else old.entry))

    def _write_supports(
        self, supports: Sequence[NewSupport], roi: RoiSpec | None, mask: bytes | None
    ) -> list[SupportImage]:
        """Check and write new supports. Return their records."""
        if not supports:
            raise BankError("enrollment: no image given")
        identity, counts = self.manifest.identity, tile_counts(roi)
        for support in supports:
            features = np.concatenate(support.tokens.rois, axis=1)
            tokens = support.tokens.class_tokens
            check_support_shapes("enrollment", identity, len(self.manifest.blocks), counts, features, tokens)
            for what, array in (("patch tokens", features), ("class tokens", tokens)):
                if not np.isfinite(array).all():
                    raise BankError(
                        f"enrollment: NaN or Inf among the {what} of {identity.backbone}; run `visionad doctor`"
                    )
        if mask is not None and roi is not None and roi.mask is not None:
            write_once(self.folder / MASKS / f"{roi.mask}.png", mask, roi.mask)
        records = []
        for support in supports:
            update: dict[str, str] = {"tokens": write_support(self.folder, support.tokens)}
            if support.file is not None:
                update["kept"] = name = f"{support.image.sha256}{support.suffix}"
                write_once(self.folder / IMAGES / name, support.file, sha256_bytes(support.file))
            records.append(support.image.model_copy(update=update))
        return records

    def _converted(self, old: ClassBank) -> ClassBank:
        """Return a class of format 1 in format 2: one token file per support. Others are returned as they are."""
        if old.entry.file is None:
            return old
        images = [
            image.model_copy(update={"tokens": write_support(self.folder, tokens)})
            for image, tokens in zip(old.entry.images, old.supports, strict=True)
        ]
        return old.with_entry(old.entry.model_copy(update={"images": tuple(images), "file": None, "sha256": None}))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the writer's lock and load the newest version: another process may have committed one."""
        if self._pinned:
            raise BankError(
                f"bank {self.folder} was opened at version {self.manifest.version}; open it without one to change it"
            )
        make_folders(self.folder, self.manifest)
        with writer_lock(self.folder):
            self.refresh()
            check_there(self.folder, self.manifest)  # it may have gone while another writer held the lock
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
            if self._pinned or not (self.folder / MANIFEST).exists():
                return False
            manifest = read_manifest(self.folder, BankManifest)
            if manifest == self.manifest:
                return False
            check_identity(self.folder, manifest.identity, self.manifest.identity)
            held = {name: old for name, old in self.classes.items() if old.is_loaded}
            known = {
                image.tokens: tokens
                for old in held.values()
                for image, tokens in zip(old.entry.images, old.supports, strict=True)
                if image.tokens is not None
            }
            classes = {
                name: held[name].with_entry(entry)
                if name in held and same_supports(held[name].entry, entry)
                else read_class(self.folder, manifest, name, known)
                for name, entry in manifest.classes.items()
            }
            if not self._lazy:
                _load(classes)
            self.snapshot = Snapshot(manifest, classes)
        return True

    def _commit(self, change: str, classes: dict[str, ClassBank], keep: int | None = None) -> None:
        converted = {name: self._converted(classes[name]) for name in sorted(classes)}
        manifest = next_manifest(self.manifest, change, {name: bank.entry for name, bank in converted.items()})
        if keep is not None:
            manifest = manifest.model_copy(update={"keep": keep})
        with self._replacing:
            check_there(self.folder, self.manifest)  # calibrating takes its time
            write_version(self.folder, manifest)
            self.snapshot = Snapshot(manifest, converted)


NO_LIMITS = {"threshold": None, "review_threshold": None, "map_scale": None, "calibration": None}
"""Update of an entry whose thresholds do not hold any more."""


def same_supports(one: ClassEntry, other: ClassEntry) -> bool:
    """Return whether two entries of a class have the same tokens, those of remembered defects included."""
    tokens = [[image.tokens or image.sha256 for image in entry.images] for entry in (one, other)]
    return tokens[0] == tokens[1] and (one.file, one.roi, one.defects) == (other.file, other.roi, other.defects)


def _load(classes: Mapping[str, ClassBank]) -> None:
    for bank in classes.values():
        _ = bank.rois, bank.layout
