"""Files by digest: upload what is missing, download what is missing, go on inside a half file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ...errors import VisionADError
from ...formats.files import fsync_folder, sha256_file, try_lock
from ..storage import FileMissingError, LocalStorage, Storage
from .revisions import Blob, blob_name

INCOMING = "incoming"
"""Folder beside or in the target with files that are being pulled."""
FRESH_SECONDS = 12 * 3600
"""A file that no revision names may be deleted a day after it was written; younger ones are safe to rely on."""


def describe(path: Path) -> Blob:
    """Return digest and size of a file.

    Raises:
        VisionADError: It cannot be read.
    """
    try:
        return Blob(sha256=sha256_file(path), size=path.stat().st_size)
    except OSError as exc:
        raise VisionADError(f"{path} cannot be read: {exc.strerror}; restore it from a backup") from None


def upload(storage: Storage, folder: Path, files: Mapping[str, Blob], held: set[str], step: Callable[[], None]) -> int:
    """Write the files that the store lacks.

    Args:
        storage: the store.
        folder: folder of the files.
        files: path in the folder → digest and size.
        held: digests that the newest revision names: no prune deletes them.
        step: called after each file.

    Returns:
        Number of bytes written.
    """
    written = 0
    # Elsewhere a request for each would move more than the push. A push with nothing new looks there for what was lost.
    can_look = isinstance(storage, LocalStorage)
    for path, blob in files.items():
        name = blob_name(blob.sha256)
        is_held = blob.sha256 in held
        is_safe = (is_held and not can_look) or (
            storage.size(name) == blob.size and (is_held or (storage.age(name) or 0) < FRESH_SECONDS)
        )
        if not is_safe:
            storage.upload(name, folder / path)
            written += blob.size
        step()
    return written


@contextlib.contextmanager
def pulling(incoming: Path) -> Iterator[None]:
    """Hold the folder of incoming files: one pull at a time.

    Raises:
        VisionADError: Another process pulls, or the folder cannot be written.
    """
    try:
        incoming.mkdir(parents=True, exist_ok=True)
        handle = open(incoming / ".lock", "a+b")  # noqa: SIM115 - closed below
    except OSError as exc:
        raise VisionADError(
            f"cannot write to {incoming}: {exc.strerror}; mend its permissions; nothing was changed"
        ) from None
    with handle:
        if not try_lock(handle.fileno()):
            raise VisionADError(f"{incoming.parent} is being pulled by another process; try again when it has finished")
        yield


def download(storage: Storage, blob: Blob, incoming: Path) -> Path:
    """Return a file of the store in the folder ``incoming``, checked. What an earlier call left half is gone on with.

    Raises:
        VisionADError: It is missing at the store, or has another digest there.
    """
    target, half = incoming / blob.sha256, incoming / f"{blob.sha256}.part"
    if target.exists() and target.stat().st_size == blob.size and sha256_file(target) == blob.sha256:
        return target
    resumed = half.exists() and half.stat().st_size > 0
    _fetch(storage, blob, half)
    if sha256_file(half) != blob.sha256:
        half.unlink()
        if resumed:  # what was there before may be what is wrong
            return download(storage, blob, incoming)
        raise VisionADError(
            f"{storage.url}/{blob_name(blob.sha256)} is damaged: its sha256 is not its name; nothing was changed; delete it there, "
            "then push it again"
        )
    half.replace(target)
    fsync_folder(incoming)
    return target


def _fetch(storage: Storage, blob: Blob, half: Path) -> None:
    try:
        with open(half, "a+b") as file:
            start = file.seek(0, os.SEEK_END)
            if start > blob.size:
                start = 0
                file.truncate(0)
            if start == blob.size:
                return
            first = True
            for offset, data in storage.pieces(blob_name(blob.sha256), start):
                if first and offset != start:  # the server cannot skip
                    file.truncate(0)
                first = False
                if offset + len(data) > blob.size:
                    break  # the digest refuses it
                file.write(data)
                file.flush()
            os.fsync(file.fileno())
    except FileMissingError:
        raise VisionADError(
            f"{storage.url} lacks file {blob.sha256[:12]} that the revision names; nothing was changed; push it again"
        ) from None
    except OSError as exc:
        raise VisionADError(
            f"cannot write {half}: {exc.strerror}; free space and pull again: it goes on from there"
        ) from None
