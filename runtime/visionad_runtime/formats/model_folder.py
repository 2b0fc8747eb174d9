"""Read a model folder and check its files."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError
from .files import sha256_file
from .manifest import ModelManifest, read_manifest


def read_model(folder: Path) -> ModelManifest:
    """Read a model folder's manifest and check every file against its digest.

    Args:
        folder: the model folder.

    Raises:
        ModelError: The folder or a file is missing or damaged. The message names it.
    """
    manifest = read_manifest(folder, ModelManifest)
    for name, digest in manifest.files.items():
        path = folder / name
        try:
            actual = sha256_file(path)
        except OSError as exc:
            raise ModelError(
                f"{path} cannot be read: {exc.strerror}; export the model again or copy the whole folder"
            ) from None
        if actual != digest:
            raise ModelError(
                f"{path} is damaged: expected sha256 {digest[:12]}, got {actual[:12]}; copy or export the model again"
            )
    return manifest
