"""Pull a bank: revision → signature → identity → missing files → known parts → commit under the bank's lock.

Any failure leaves the version in force. A pulled revision becomes a new local version, so version numbers only grow and
``visionad bank undo`` takes it back.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...bank.folder import check_identity, files_of, next_manifest, restorable_versions, write_version
from ...bank.lock import writer_lock
from ...errors import BankError, VisionADError
from ...formats.files import fsync_folder, sha256_file
from ...formats.manifest import MANIFEST, BankManifest, ModelManifest, read_manifest
from .choose import choose
from .golden import check_golden, find_model
from .merge import Take, merge
from .minisign import PublicKey
from .origin import Origin, read_origin, write_origin
from .revisions import Blob, NamedRevisions, Signed, Target
from .transfer import INCOMING, download, pulling

AHEAD = (
    "this bank has changes that the store lacks, such as a version that was undone; `visionad bank push` publishes them, "
    "`visionad bank pull --discard-local` drops them"
)


@dataclass(frozen=True)
class PullOptions:
    """How to pull.

    Attributes:
        keys: pinned keys.
        check: folder of known parts that must get their verdicts; ``None`` for no check.
        model: model folder that the bank must fit; ``None`` for the one beside the bank if ``check`` needs one.
        take: side that decides where both were changed and cannot be merged.
        discard_local: whether changes that were never pushed are dropped.
    """

    keys: Sequence[PublicKey]
    check: Path | None = None
    model: Path | None = None
    take: Take | None = None
    discard_local: bool = False


@dataclass(frozen=True)
class Pulled:
    """Outcome of a pull.

    Attributes:
        revision: number of the revision.
        digest: content digest of the bank in force.
        version: local version in force.
        is_new: whether a version was committed.
        bytes: size of the files that were missing.
        notes: what a person must know, one line each.
    """

    revision: int
    digest: str
    version: int
    is_new: bool
    bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """The version to commit: ``None`` if the bank is that already."""

    current: BankManifest | None
    manifest: BankManifest | None
    notes: tuple[str, ...]

    @property
    def wanted(self) -> BankManifest:
        """The version in force after the pull."""
        wanted = self.manifest or self.current
        assert wanted is not None  # a folder without a bank gets one
        return wanted


def pull_bank(target: Target, folder: Path, options: PullOptions, step: Callable[[], None] = lambda: None) -> Pulled:
    """Bring a bank to a revision, merged with what was changed here.

    Args:
        target: store, name and revision; the newest one if it names none.
        folder: bank folder; it is made if it is missing.
        options: how to pull.
        step: called after each file that was missing.

    Returns:
        What was done.

    Raises:
        VisionADError: A signature, digest, identity or known part is wrong, both sides changed what cannot be merged, or an older
            revision is offered than was seen before. The version in force stays.
    """
    if folder.exists() and not folder.is_dir():
        raise BankError(f"{folder}: expected a bank folder, got a file")
    names, new_folder = NamedRevisions(target), not folder.exists()
    try:
        with pulling(folder / INCOMING):
            return _pull(names, target, folder, options, step)
    finally:
        with contextlib.suppress(OSError):  # of a pull that did not begin
            if new_folder and not (folder / MANIFEST).exists() and not any((folder / INCOMING).glob("[0-9a-f]*")):
                shutil.rmtree(folder)


def _pull(
    names: NamedRevisions, target: Target, folder: Path, options: PullOptions, step: Callable[[], None]
) -> Pulled:
    origin = read_origin(folder, target)
    signed = choose(names, origin, options.keys, "bank")
    remote = BankManifest.model_validate(signed.revision.manifest)
    if remote.content_digest() != signed.revision.digest:
        raise VisionADError(f"{target.url}: the revision's digest is not that of its bank; nothing was changed")
    if options.model is not None:
        check_identity(folder, remote.identity, read_manifest(options.model, ModelManifest).identity)
    incoming, moved = folder / INCOMING, 0
    while True:
        plan = _plan(folder, target, origin, signed, remote, options)
        wanted = plan.wanted
        missing = _missing(folder, wanted, signed)
        for blob_path in missing:
            blob = signed.revision.files[blob_path]
            moved += 0 if (incoming / blob.sha256).exists() else blob.size
            download(names.storage, blob, incoming)
            step()
        if options.check is not None:
            local = {p: folder / p for p in _names(folder, wanted)}
            local |= {p: incoming / signed.revision.files[p].sha256 for p in missing}
            model = options.model or find_model(folder, wanted)
            check_golden(model, options.check, wanted, local)
        if plan.manifest is None and not missing and origin is not None and origin.envelope == signed.sha256:
            return _pulled(signed, plan, moved)
        with writer_lock(folder):
            if _current(folder) != plan.current:
                continue  # somebody enrolled meanwhile: merge with that
            for path in missing:
                _place(incoming / signed.revision.files[path].sha256, folder / path)
            if plan.manifest is not None:
                (folder / "history").mkdir(exist_ok=True)
                write_version(folder, plan.manifest)
            write_origin(folder, target, _new_origin(signed, remote, origin))
        for left in incoming.glob("[0-9a-f]*"):
            left.unlink(missing_ok=True)
        return _pulled(signed, plan, moved, mended=missing if plan.manifest is None else ())


def _plan(
    folder: Path, target: Target, origin: Origin | None, signed: Signed, remote: BankManifest, options: PullOptions
) -> _Plan:
    current = _current(folder)
    change = f"pull {target.name}@{signed.revision.revision} {signed.revision.digest[:12]}"
    if current is None:
        update = {
            "version": 1,
            "undo_to": None,
            "change": change,
            "keep": None,
            "schema_version": remote.schema_version,
        }
        return _Plan(None, remote.model_copy(update=update), ())
    check_identity(folder, current.identity, remote.identity)
    is_rollback = target.revision is not None and origin is not None and target.revision < origin.revision
    other_views = (current.views, current.blocks) != (remote.views, remote.blocks)
    if other_views and not options.discard_local:  # no version can hold tokens of both
        raise BankError(
            f"{folder} holds tokens of views {', '.join(current.views)}, revision {signed.revision.revision} of "
            f"{', '.join(remote.views)}; nothing was changed; pull into a new folder, or replace this bank with --discard-local"
        )
    if origin is not None and origin.envelope == signed.sha256 and not options.discard_local:
        return _Plan(current, None, () if current.classes == remote.classes else (AHEAD,))
    base = {} if origin is None else origin.base.classes
    if options.discard_local:
        classes, notes = dict(remote.classes), []
        if current.classes not in (base, remote.classes) or other_views:
            notes = ["changes that were never pushed are dropped; `visionad bank undo` brings them back"]
    elif is_rollback and current.classes == base:
        classes, notes = dict(remote.classes), []
    elif is_rollback:
        raise BankError(
            f"{folder} has changes that were never pushed, so revision {target.revision} cannot replace it; push them, or drop "
            "them with --discard-local"
        )
    else:
        classes, notes = merge(base, current.classes, remote.classes, options.take)
        if classes != remote.classes:
            notes.append(AHEAD)
    if classes == current.classes and not other_views:
        return _Plan(current, None, tuple(notes))
    manifest = next_manifest(current, change, classes).model_copy(
        update={"views": remote.views, "blocks": remote.blocks}
    )
    return _Plan(current, manifest, tuple(notes))


def _pulled(signed: Signed, plan: _Plan, moved: int, mended: Sequence[str] = ()) -> Pulled:
    notes, wanted = list(plan.notes), plan.wanted
    if mended:
        notes.append(f"{len(mended)} files of the version in force were missing or damaged; the store's are in place")
    number = signed.revision.revision
    return Pulled(number, wanted.content_digest(), wanted.version, plan.manifest is not None, moved, tuple(notes))


def _new_origin(signed: Signed, remote: BankManifest, before: Origin | None) -> Origin:
    number = signed.revision.revision
    highest = max(number, 0 if before is None else before.highest)
    return Origin(revision=number, envelope=signed.sha256, highest=highest, base=remote)


def _current(folder: Path) -> BankManifest | None:
    """Return the version in force, or ``None`` for a folder without a bank."""
    if not (folder / MANIFEST).exists() and not restorable_versions(folder):
        odd = [
            p.name
            for p in folder.iterdir()
            if p.name not in (INCOMING, ".lock", "supports", "images", "masks", "history")
        ]
        if odd:
            raise BankError(f"folder {folder} is not empty and no bank ({odd[0]}); choose a new folder")
        return None
    return read_manifest(folder, BankManifest)


def _names(folder: Path, manifest: BankManifest) -> list[str]:
    paths = files_of(folder, manifest)
    for path in paths:
        if ".." in path.parts[len(folder.parts) :] or not path.is_relative_to(folder):
            raise BankError(f"the bank names the file {path}, which is not in its folder; nothing was changed")
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _missing(folder: Path, manifest: BankManifest, signed: Signed) -> list[str]:
    """Return the files of a version that the bank lacks, all of which the revision has.

    Raises:
        VisionADError: One is neither here nor there.
    """
    missing = []
    own = {entry.file: entry.sha256 for entry in manifest.classes.values() if entry.file is not None}
    for name in _names(folder, manifest):
        blob, path = signed.revision.files.get(name), folder / name
        if blob is not None and own.get(name, blob.sha256) != blob.sha256:  # another file of this name
            blob = None
        if path.exists() and (blob is None or _is_whole(path, blob)):
            continue
        if blob is None:
            raise VisionADError(f"{path} is missing, and the revision does not hold it; restore it from a backup")
        missing.append(name)
    return missing


def _is_whole(path: Path, blob: Blob) -> bool:
    try:
        return path.stat().st_size == blob.size and sha256_file(path) == blob.sha256
    except OSError:
        return False


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    fsync_folder(target.parent)
