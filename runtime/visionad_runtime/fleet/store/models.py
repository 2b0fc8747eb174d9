"""Pull a model folder: whole, checked, and put in place by a rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from ...errors import ModelError, VisionADError
from ...formats.manifest import ModelManifest, read_manifest
from ...formats.model_folder import read_model
from ..storage import FileMissingError, open_storage
from .choose import choose
from .minisign import PublicKey, verify
from .origin import Seen, find_seen, read_seen, write_seen
from .revisions import NamedRevisions, Target, parse_target
from .transfer import download, pulling

INDEX = "VISIONAD_INDEX"
"""Variable with the URL of an index: a signed JSON file that names released models."""


class PulledModel(NamedTuple):
    """Outcome of a pull.

    Attributes:
        revision: number of the revision.
        digest: content digest of the model in force.
        is_new: whether the folder was written.
    """

    revision: int
    digest: str
    is_new: bool


def pull_model(
    target: Target, folder: Path, keys: Sequence[PublicKey], *, replace: bool = False, step: Callable[[], None]
) -> PulledModel:
    """Bring a model folder to a revision.

    Args:
        target: store, name and revision; the newest one if it names none.
        folder: model folder; it is made if it is missing.
        keys: pinned keys.
        replace: whether another model in the folder is replaced. Banks that were made with it fit it no more.
        step: called after each file.

    Raises:
        VisionADError: A signature or digest is wrong, or the folder holds something else. It stays as it is.
    """
    folder = folder.absolute()
    incoming = folder.with_name(f".{folder.name}.visionad-pull")  # beside the folder: a rename needs one file system
    previous = incoming / "previous"
    names, known = NamedRevisions(target), read_seen(folder if folder.exists() else previous)
    before = find_seen(known, target)
    signed = choose(names, before, keys, "model")
    revision, number = signed.revision, signed.revision.revision
    seen = Seen(revision=number, envelope=signed.sha256, highest=max(number, 0 if before is None else before.highest))
    manifest = ModelManifest.model_validate(revision.manifest)
    plain = all(PureWindowsPath(name).parts == (name,) and name != ".." for name in revision.files)  # on any system
    if manifest.content_digest() != revision.digest or not plain:
        raise VisionADError(f"{target.url}: the revision's digest is not that of its model; nothing was changed")
    with pulling(incoming):
        if not folder.exists() and previous.exists():  # a kill came between the two renames
            previous.rename(folder)
        if folder.exists():
            if _is(folder, manifest):
                if before != seen:
                    write_seen(folder, known, target, seen)
                shutil.rmtree(incoming, ignore_errors=True)
                return PulledModel(number, revision.digest, False)
            _check_replaceable(folder, replace)
        ready = incoming / "model"
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        for name, blob in revision.files.items():
            os.link(download(names.storage, blob, incoming), ready / name)
            step()
        if not _is(ready, manifest):
            raise VisionADError(f"{target.url}: the files are not those of its model; nothing was changed")
        write_seen(ready, known, target, seen)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(previous, ignore_errors=True)
            if folder.exists():
                folder.rename(previous)
            ready.rename(folder)
        except OSError as exc:
            raise ModelError(
                f"cannot write {folder}: {exc.strerror}; mend the permissions of {folder.parent}"
            ) from None
    shutil.rmtree(incoming, ignore_errors=True)
    return PulledModel(number, revision.digest, True)


def _is(folder: Path, manifest: ModelManifest) -> bool:
    """Return whether a folder holds a model: what decides a token, and the scoring that it is opened with."""
    try:
        held = read_model(folder)
        return _content(held) == _content(manifest)
    except ModelError:
        return False


def _content(manifest: ModelManifest) -> tuple[object, ...]:
    return manifest.content_digest(), manifest.views, manifest.top_share, manifest.rarity


def _check_replaceable(folder: Path, replace: bool) -> None:
    if not any(folder.iterdir()):
        return
    if not replace:
        raise ModelError(
            f"{folder} holds something else; name a new folder, or replace it with --replace (banks made with another model fit it "
            "no more)"
        )
    read_manifest(folder, ModelManifest)  # only a model is replaced


def from_index(name: str, url: str, keys: Sequence[PublicKey]) -> Target:
    """Return where a released model is, by an index: ``{"models": {NAME: URL/NAME@REV}}`` with its signature beside it.

    Args:
        name: name in the index.
        url: URL of the index file.
        keys: pinned keys.

    Raises:
        VisionADError: The index is missing, not signed by a pinned key, or lacks the name.
    """
    root, _, file = url.rpartition("/")
    storage = open_storage(root or ".")
    try:
        data = storage.read(file)
        verify(data, storage.read(f"{file}.minisig"), keys, url)
    except FileMissingError as exc:
        raise VisionADError(f"{exc} is missing; expected an index of models and its signature") from None
    try:
        models = json.loads(data)["models"]
        place = str(models[name])
    except KeyError:
        listed = ", ".join(sorted(models)) if isinstance(models, dict) else "none"
        raise VisionADError(f"{url}: no model {name!r}; it has {listed}") from None
    except (ValueError, TypeError):
        raise VisionADError(f"{url} is damaged: no index of models") from None
    return parse_target(place if "://" in place else f"{root or '.'}/{place}")
