"""Read a model folder and check every file."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError
from .files import sha256_file
from .manifest import ModelManifest, read_manifest


def read_model(folder: Path) -> ModelManifest:
    """Read a model folder's manifest and check every file against its digest.

    Raises:
        ModelError: missing or damaged, naming the file.
    """
    manifest = read_manifest(folder, ModelManifest)
    for name, digest in manifest.files.items():
        path = folder / name
        try:
            found = sha256_file(path)
        except OSError as exc:
            raise ModelError(
                f"{path} cannot be read: {exc.strerror}; export the model again or copy the whole folder"
            ) from None
        if found != digest:
            raise ModelError(
                f"{path} is damaged: expected sha256 {digest[:12]}, got {found[:12]}; copy or export the model again"
            )
    return manifest
