"""Push a bank or a model: files that the store lacks, then the signature, then the revision. Half a push is invisible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...bank.folder import files_of
from ...bank.history import verify
from ...bank.lock import writer_lock
from ...errors import VisionADError
from ...formats.manifest import MANIFEST, BankManifest, as_dict, read_manifest
from ...formats.model_folder import read_model
from .minisign import SecretKey
from .origin import Origin, read_origin, write_origin
from .revisions import Blob, NamedRevisions, Signed, Target, blob_name, new_revision
from .transfer import describe, upload


class Pushed(NamedTuple):
    """Outcome of a push.

    Attributes:
        revision: number of the revision in force at the store.
        is_new: whether it was made now.
        bytes: size of the files that were written.
    """

    revision: int
    is_new: bool
    bytes: int


def push_bank(folder: Path, target: Target, key: SecretKey, step: Callable[[], None] = lambda: None) -> Pushed:
    """Publish the version in force of a bank.

    Args:
        folder: bank folder.
        target: store and name.
        key: signs the revision.
        step: called after each file.

    Raises:
        VisionADError: The bank is damaged, the store cannot be written, or it has a revision that the bank is not based on.
    """
    read_manifest(folder, BankManifest)  # creates no lock file in a folder that is not a bank
    names = NamedRevisions(target)
    with writer_lock(folder):
        manifest = read_manifest(folder, BankManifest)
        origin = read_origin(folder, target)
        number = names.newest(0 if origin is None else origin.revision)
        previous = names.read(number, [key.public] if origin is None else None) if number else None
        if previous is not None:
            _check_kind(previous, "bank", target)
            theirs = BankManifest.model_validate(previous.revision.manifest)
            if _content(theirs) == _content(manifest):
                written = _mend(names, folder, previous, step)
                write_origin(folder, target, _origin(previous, theirs, origin))
                return Pushed(number, False, written)
            if origin is None or origin.envelope != previous.sha256:
                based = "not from there" if origin is None else f"based on revision {origin.revision}"
                raise _behind(f"{target.url} is at revision {number}, this bank is {based}", folder, target)
        files = {path.relative_to(folder).as_posix(): describe(path) for path in sorted(files_of(folder, manifest))}
        _check_names(folder, files)
        verify(folder)
        written = upload(names.storage, folder, files, _held(previous), step)
        revision = new_revision(
            "bank", target, previous, manifest.content_digest(), manifest.change, files, as_dict(manifest)
        )
        try:
            signed = names.publish(revision, key)
        except FileExistsError:
            raise _behind(f"another push to {target.url} was faster", folder, target) from None
        write_origin(folder, target, _origin(signed, manifest, origin))
    return Pushed(revision.revision, True, written)


def push_model(folder: Path, target: Target, key: SecretKey, step: Callable[[], None] = lambda: None) -> Pushed:
    """Publish a model folder. Arguments, return and errors are those of :func:`push_bank`."""
    manifest = read_model(folder)
    names = NamedRevisions(target)
    number = names.newest()
    previous = names.read(number, None) if number else None
    files = {name: describe(folder / name) for name in (*sorted(manifest.files), MANIFEST)}
    if previous is not None:
        _check_kind(previous, "model", target)
        if previous.revision.files == files:
            return Pushed(number, False, _mend(names, folder, previous, step))
    written = upload(names.storage, folder, files, _held(previous), step)
    change = manifest.identity.describe()
    revision = new_revision("model", target, previous, manifest.content_digest(), change, files, as_dict(manifest))
    try:
        names.publish(revision, key)
    except FileExistsError:
        raise VisionADError(f"another push to {target.url} was faster; push again") from None
    return Pushed(revision.revision, True, written)


def _content(manifest: BankManifest) -> tuple[object, ...]:
    """Return what a revision is made for."""
    return manifest.identity, manifest.views, manifest.blocks, manifest.classes


def _held(previous: Signed | None) -> set[str]:
    return set() if previous is None else {blob.sha256 for blob in previous.revision.files.values()}


def _mend(names: NamedRevisions, folder: Path, newest: Signed, step: Callable[[], None]) -> int:
    """Write files of the newest revision that the store has lost, as far as the folder holds them. Return their bytes."""
    files, own = newest.revision.files, {}
    for path, blob in files.items():
        is_lost = names.storage.size(blob_name(blob.sha256)) != blob.size
        if is_lost and (folder / path).is_file() and describe(folder / path) == blob:
            own[path] = blob
    return upload(names.storage, folder, own, set(), step)


def _origin(signed: Signed, manifest: BankManifest, before: Origin | None) -> Origin:
    highest = max(signed.revision.revision, 0 if before is None else before.highest)
    return Origin(revision=signed.revision.revision, envelope=signed.sha256, highest=highest, base=manifest)


def _behind(what: str, folder: Path, target: Target) -> VisionADError:
    return VisionADError(f"{what}: pull first (`visionad bank pull {target.url} {folder} --pub FILE`), then push again")


def _check_kind(previous: Signed, kind: str, target: Target) -> None:
    if previous.revision.kind != kind:
        raise VisionADError(
            f"{target.url} holds revisions of a {previous.revision.kind}, not of a {kind}; choose another name"
        )


def _check_names(folder: Path, files: dict[str, Blob]) -> None:
    """Check files that are named by their digest: a damaged one must not reach other stations."""
    for name, blob in files.items():
        place, _, file = name.partition("/")
        if place in ("supports", "masks") and file.partition(".")[0] != blob.sha256:
            raise VisionADError(
                f"{folder / name} is damaged (its sha256 is not its name); run `visionad bank verify {folder}`"
            )
