"""Files that a command writes where the user says: none may cost the user another file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import VisionADError

HEAD_BYTES = 4096
"""Bytes of an existing file that tell whether it is text."""


def check_outputs(files: Sequence[tuple[str, Path | None]]) -> None:
    """See that files can be written, and what they replace. Call it before the work: it may take hours.

    Args:
        files: option and the text file that it names; ``None`` for an option that was not given.

    Raises:
        VisionADError: Two are one file; one is a folder, or lies in a model or bank folder; or an existing file is no text, so that
            no earlier run wrote it.
    """
    given = [(option, file) for option, file in files if file is not None]
    places: dict[str, str] = {}
    for option, file in given:
        other = places.setdefault(os.path.realpath(file), option)
        if other != option:
            raise VisionADError(f"{other} and {option} name the same file, {file}; give each its own name")
    for option, file in given:
        if file.is_dir():
            raise VisionADError(f"{option} {file}: expected a file to write, got a folder; choose another name")
        owner = _owner(file.parent)
        if owner:
            raise VisionADError(
                f"{option} {file}: would lie in a {owner} folder, whose files are checked; choose another place"
            )
        try:
            if file.exists() and b"\0" in _head(file):
                raise VisionADError(
                    f"{option} {file}: there is a file that this command did not write (no text); choose another name"
                )
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise VisionADError(f"{option} {file}: {exc.strerror or exc}; choose another place") from None


def check_output_folder(option: str, folder: Path) -> None:
    """See that a folder for results is none of a model or a bank.

    Raises:
        VisionADError: It is.
    """
    owner = _owner(folder)
    if owner:
        raise VisionADError(f"{option} {folder}: is a {owner} folder, whose files are checked; choose another place")


def _head(file: Path) -> bytes:
    if not file.is_file():  # a device, such as /dev/stdout
        return b""
    with open(file, "rb") as opened:
        return opened.read(HEAD_BYTES)


def _owner(folder: Path) -> str:
    """Return ``model`` or ``bank`` for such a folder; empty for all others."""
    try:
        found = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    name = str(found.get("format", "")) if isinstance(found, dict) else ""
    return next((kind for kind in ("model", "bank") if name.startswith("visionad") and kind in name), "")
