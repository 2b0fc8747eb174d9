"""The class-aware memory bank: what was enrolled, on disk and in memory (method, section 3).

On disk a bank is a folder with one safetensors file per class and a manifest. A change writes new files beside the old ones
and then replaces the manifest, so a crash at any point leaves the bank as it was before or as it is after, never between.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from .artefacts import (
    HISTORY,
    MANIFEST,
    VERSIONS,
    BankManifest,
    Calibration,
    ClassEntry,
    FeatureIdentity,
    SupportImage,
    ViewName,
    atomic_write,
    read_manifest,
    sha256_bytes,
    sha256_file,
    to_json,
)
from .errors import BankError, LostManifestError
from .preprocess import bank_blocks, upright_block, view_blocks

F32 = NDArray[np.float32]

UNDO_DEPTH = 10
"""How many changes can be undone, and how many versions back an undone one can be had again; older files are deleted."""
LEAST_DIGITS = 4
"""Of a sha256, to name a picture that is to be removed."""
LOCK_SECONDS = 30.0


@dataclass(frozen=True, eq=False)
class ClassBank:
    """One class in memory, immutable and compared by identity.

    ``features`` float32 (B, K, P, D), unit rows: B unique encodings (``blocks``) of K support pictures of P patches.
    ``class_tokens`` float32 (B, K, Dc), unit rows.
    """

    name: str
    entry: ClassEntry
    blocks: tuple[str, ...]
    features: F32
    class_tokens: F32

    def rows(self, view: ViewName) -> F32:
        """The view's bank, float32 (6·K·P, D): a slice of ``features``, not a copy."""
        part = self.features[view_blocks(self.blocks, view)]
        return part.reshape(-1, part.shape[-1])

    def tokens(self, view: ViewName) -> F32:
        """Class tokens (K, Dc) of the support pictures, unturned, in ``view``. The first one routes (method, section 5)."""
        tokens: F32 = self.class_tokens[upright_block(self.blocks, view)]
        return tokens

    def upright(self, picture: int, views: Sequence[ViewName]) -> dict[ViewName, F32]:
        """Patch tokens (P, D) of support picture number ``picture``, unturned, by view: what a query of it would look like."""
        return {view: self.features[upright_block(self.blocks, view), picture] for view in views}

    def without(self, picture: int) -> ClassBank:
        """The class as if support picture number ``picture`` had not been enrolled (leave-one-out)."""
        keep = [k for k in range(self.features.shape[1]) if k != picture]
        entry = self.entry.model_copy(update={"images": tuple(self.entry.images[k] for k in keep)})
        return ClassBank(self.name, entry, self.blocks, self.features[:, keep], self.class_tokens[:, keep])


class Snapshot(NamedTuple):
    """One version of a bank, never changed: who inspects with it sees no half of a later change."""

    manifest: BankManifest
    classes: Mapping[str, ClassBank]


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
            raise BankError(f"{folder}: wanted a bank folder, found a file")
        # Leftovers of an enrolment that was killed before its first commit are no reason to refuse.
        if folder.is_dir() and any(
            p.name not in ("classes", HISTORY, ".lock") and p.suffix != ".tmp" for p in folder.iterdir()
        ):
            raise BankError(f"folder {folder} is not empty and no bank (no {MANIFEST}); choose a new folder")
        manifest = _newest(folder)
        if manifest is not None:  # it was lost, or is the one step that a kill left out: go on from there
            check_identity(folder, manifest.identity, identity)
            return cls(folder, manifest, {n: _read_class(folder, manifest, n) for n in manifest.classes})
        if len(lost := sorted(p.name for p in (folder / "classes").glob("*.safetensors"))) > 1:
            raise BankError(  # a first enrolment leaves one; the next change would delete what no manifest names
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
        """Enrol support pictures in a new or existing class. Its threshold is dropped: it was true of other supports.

        Args:
            features: float32 (B, K, P, D), unit rows, blocks in the bank's order.
            class_tokens: float32 (B, K, Dc), unit rows.

        Returns:
            The bank's new version.

        Raises:
            BankError: bad class name, a picture that is enrolled already, tensors that do not fit, disk trouble.
        """
        name = check_class_name(name)
        with self._changing():
            self._check_tensors(len(images), features, class_tokens)
            old = self.classes.get(name)
            images = (*(old.entry.images if old else ()), *images)
            digests = [i.sha256 for i in images]
            for image in images:
                if digests.count(image.sha256) > 1:
                    raise BankError(f"class {name!r}: {image.source} is enrolled already (sha256 {image.sha256[:12]})")
            if old is not None:
                features = np.concatenate([old.features, features], axis=1)
                class_tokens = np.concatenate([old.class_tokens, class_tokens], axis=1)
            entry = self._write_class(name, images, features, class_tokens)
            loaded = ClassBank(name, entry, self.manifest.blocks, features, class_tokens)
            self._commit(f"add {name}: now {len(images)} pictures", {**self.classes, name: loaded})
        return self.manifest.version

    def remove(self, name: str, image: str | None = None) -> int:
        """Remove a class, or one support picture of it by its sha256, or :data:`LEAST_DIGITS` or more digits it begins with.

        Raises:
            BankError: unknown class; no or several pictures match; the last picture of a class.
        """
        name = stored_name(name)
        with self._changing():
            old = self._class(name)
            if image is None:
                self._commit(f"remove {name}", {n: c for n, c in self.classes.items() if n != name})
                return self.manifest.version
            hits = [k for k, i in enumerate(old.entry.images) if i.sha256.startswith(image.lower())]
            if len(image) < LEAST_DIGITS or len(hits) != 1:
                known = ", ".join(f"{i.sha256[:12]} ({Path(i.source).name})" for i in old.entry.images)
                raise BankError(
                    f"class {name!r}: wanted {LEAST_DIGITS} or more digits of one picture's sha256, found {image!r}, which "
                    f"{len(hits)} have; it has {known}"
                )
            if len(old.entry.images) == 1:
                raise BankError(
                    f"class {name!r} has this one picture only; remove the class instead (leave out --image)"
                )
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
        name = stored_name(name)
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
            to: the version whose state is wanted, any of :meth:`kept`: also one that was undone. That too can be undone.

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
            others = [v for v in Bank.kept(folder) if v != now.version]
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
    def kept(folder: Path) -> dict[int, Path]:
        """The versions that can be brought back, with their manifests: the one in force, those that undo after undo leads to, and
        the last :data:`UNDO_DEPTH`, undone ones too."""
        return {int(path.stem): path for path in sorted((folder / HISTORY).glob(VERSIONS)) if path.stem.isdecimal()}

    @staticmethod
    def drop(folder: Path, name: str) -> int:
        """:meth:`remove` a whole class without reading any, so that a damaged one can be taken out too.

        Raises:
            BankError: no bank, or unknown class.
        """
        name = stored_name(name)
        read_manifest(folder, BankManifest)  # what is no bank gets no lock file either
        with _locked(folder):
            now = read_manifest(folder, BankManifest)
            if name not in now.classes:
                raise BankError(unknown_class(folder, name, now.classes))
            fresh = _successor(now, f"remove {name}", {n: e for n, e in now.classes.items() if n != name})
            _write_version(folder, fresh)
        return fresh.version

    # -- inside -------------------------------------------------------------------------------------------------------

    def _class(self, name: str) -> ClassBank:
        try:
            return self.classes[name]
        except KeyError:
            raise BankError(unknown_class(self.folder, name, self.classes)) from None

    def _check_tensors(self, count: int, features: F32, class_tokens: F32) -> None:
        identity = self.manifest.identity
        _check_shapes("enrolment", self.manifest, count, features, class_tokens)
        if count == 0:
            raise BankError("enrolment: no picture given")
        for what, array in (("patch tokens", features), ("class tokens", class_tokens)):
            if not np.isfinite(array).all():
                raise BankError(f"enrolment: NaN or Inf among the {what} of {identity.backbone}; run `visionad doctor`")

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
        f"{', '.join(differ)}; use the model the bank was made with, or enrol the good pictures again into a new bank"
    )


def stored_name(name: str) -> str:
    """A class name in the form in which banks store it (NFC), however its letters are composed."""
    return unicodedata.normalize("NFC", name)


def check_class_name(name: str) -> str:
    """A class name as stored (NFC).

    Raises:
        BankError: empty, longer than 100 characters, with leading or trailing blanks or control characters.
    """
    name = stored_name(name)
    if not name or len(name) > 100 or name != name.strip() or not name.isprintable():
        raise BankError(f"class name {name!r}: wanted 1 to 100 printable characters without blanks at either end")
    return name


def unknown_class(folder: Path, name: str, known: Mapping[str, object]) -> str:
    """The message for a class the bank does not have."""
    return f"bank {folder} has no class {name!r}; it has {', '.join(map(repr, sorted(known))) or 'no class yet'}"


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


def _read_class(folder: Path, manifest: BankManifest, name: str) -> ClassBank:
    if manifest.blocks != bank_blocks(manifest.views):
        raise BankError(
            f"{folder / MANIFEST} is damaged: wanted the blocks of views {', '.join(manifest.views) or '(none)'}, "
            f"found {', '.join(manifest.blocks)}; restore it from a backup"
        )
    entry = manifest.classes[name]
    path = folder / entry.file
    way_out = (
        f"restore it from a backup, or `visionad bank undo {folder}`, or `visionad bank remove {folder} --class {name!r}` "
        "and enrol it again"
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
            f"{where}: wanted float32 features {wanted[0]} and class_tokens {wanted[1]}, "
            f"found {features.dtype} {features.shape} and {class_tokens.dtype} {class_tokens.shape}"
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
    for version, path in Bank.kept(folder).items():
        if version >= manifest.version - UNDO_DEPTH and version not in needed:
            needed[version] = BankManifest.model_validate_json(path.read_bytes())
    files = {folder / e.file for m in needed.values() for e in m.classes.values()}
    files |= {_history(folder, v) for v in needed}
    for path in (*(folder / "classes").iterdir(), *(folder / HISTORY).iterdir()):
        if path not in files:
            path.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time. The system drops the lock when its holder dies, so a kill never leaves it behind.

    Raises:
        BankError: another process holds it for 30 s, or the folder cannot be written.
    """
    try:
        handle = open(folder / ".lock", "a+b")  # noqa: SIM115 - closed below, after the lock is released
    except OSError as exc:
        raise BankError(f"cannot write to bank {folder}: {exc.strerror}; nothing was changed") from None
    with handle:
        until = time.monotonic() + LOCK_SECONDS
        while not _try_lock(handle.fileno()):
            if time.monotonic() > until:
                raise BankError(f"bank {folder} is being changed by another process; try again when it has finished")
            time.sleep(0.05)
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
