"""What lies below a folder: files by their ending, and what is passed over."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import VisionADError

SYSTEM_FOLDERS = frozenset(
    {
        "$recycle.bin", "recycler", "recycled", "system volume information", "found.000",  # Windows
        "@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin",  # Synology
        "@recycle", "@recently-snapshot", "network recycle bin",  # QNAP
        "~snapshot", "lost+found", "__macosx", "network trash folder", "temporary items",  # NetApp, Linux, macOS
    }
)  # fmt: skip
"""Folders, in lower case, in which storage and desktop systems keep thumbnails, deleted files and snapshots. Those with a leading
dot (``.Trashes``, ``.@__thumb``, ``.snapshot``) are hidden."""

HIDDEN, SYSTEM, LINKED, ENDING, EXCLUDED = "hidden", "system folder", "linked folder", "of another ending", "excluded"
MAX_DETAILS = 5
"""Named in a message for each kind of entry that is passed over."""


@dataclass
class Listing:
    """Entries below a folder.

    Attributes:
        images: paths below the folder, in any order.
        passed_over: number of entries by kind and detail: the ending, the pattern, or the entry's name.
        errors: entries that could not be listed, as paths below the folder, and why.
    """

    images: list[str] = field(default_factory=list)
    passed_over: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: dict[str, OSError] = field(default_factory=dict)


def scan(folder: Path, endings: Collection[str], exclude: Iterable[str] = ()) -> Listing:
    """List a folder and its subfolders.

    A subfolder that disappears meanwhile is no error. Linked folders are not entered, because a link may lead upwards.

    Args:
        folder: to list.
        endings: of images, in lower case, such as ``.png``.
        exclude: patterns of the shell (``*``, ``?``, ``[a-z]``) for names, or for paths below the folder, of files and folders.

    Raises:
        VisionADError: ``folder`` itself cannot be listed.
    """
    patterns = [(text, _pattern(text)) for text in exclude]
    listing, folders = Listing(), [""]
    while folders:
        below = folders.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    path = f"{below}{os.sep}{entry.name}" if below else entry.name
                    try:
                        _sort(entry, path, endings, patterns, listing, folders)
                    except OSError as exc:  # some file systems say only on a second question what an entry is
                        listing.errors[path] = exc
        except (FileNotFoundError, NotADirectoryError) as exc:
            if not below:
                raise not_listed(folder, exc) from None
        except OSError as exc:
            if not below:
                raise not_listed(folder, exc) from None
            listing.errors[below] = exc
    return listing


def _sort(
    entry: os.DirEntry[str],
    below: str,
    endings: Collection[str],
    patterns: Iterable[tuple[str, re.Pattern[str]]],
    listing: Listing,
    folders: list[str],
) -> None:
    name = entry.name
    if name.startswith("."):
        listing.passed_over[HIDDEN, ""] += 1
        return
    for text, pattern in patterns:
        if pattern.fullmatch(name) or pattern.fullmatch(below.replace(os.sep, "/")):
            listing.passed_over[EXCLUDED, text] += 1
            return
    if entry.is_dir(follow_symlinks=False):
        if name.lower() in SYSTEM_FOLDERS:
            listing.passed_over[SYSTEM, name] += 1
        else:
            folders.append(below)
        return
    if entry.is_symlink() and is_folder(Path(entry.path)):
        listing.passed_over[LINKED, below] += 1
        return
    stem, _, ending = name.rpartition(".")
    ending = f".{ending.lower()}" if stem else ""
    if ending not in endings:
        listing.passed_over[ENDING, ending] += 1
    else:
        listing.images.append(below)


def _pattern(text: str) -> re.Pattern[str]:
    clean = text.removeprefix("./").rstrip("/")
    if not clean:
        raise VisionADError(f"exclude {text!r}: expected a pattern such as done or *_raw.png")
    return re.compile(fnmatch.translate(clean))


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder; False for any name that a system refuses to look at."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def not_listed(folder: Path | str, exc: OSError) -> VisionADError:
    """The error for a folder that cannot be listed."""
    return VisionADError(f"folder {folder} cannot be listed: {exc.strerror or exc}")


def describe_passed_over(passed_over: Mapping[tuple[str, str], int]) -> str:
    """Return one phrase, such as ``3 of another ending (.heic, .txt), 1 system folder (@eaDir)``."""
    phrases = []
    for kind in (ENDING, SYSTEM, LINKED, EXCLUDED, HIDDEN):
        counts = {detail: count for (one, detail), count in passed_over.items() if one == kind}
        if not counts:
            continue
        details = sorted(detail or "none" for detail in counts) if kind != HIDDEN else []
        more = [f"{len(details) - MAX_DETAILS} more"] if len(details) > MAX_DETAILS else []
        named = f" ({', '.join(details[:MAX_DETAILS] + more)})" if details else ""
        phrases.append(f"{sum(counts.values())} {kind}{named}")
    return ", ".join(phrases)
