"""What keeps a station's files and folders from working: shared by two writers, no images, its own output as input, no records."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import VisionADError
from ..images.discover import SUFFIXES, find_images
from .records.schema import SCHEMA_VERSION
from .settings import Station

LOOK_SECONDS = 2.0
"""How long damage of the records is looked for; they may be large."""
_TABLES = {"parts", "events", "audit", "cursors", "facts"}


def file_problems(station: Station) -> list[str]:
    """Return one line for each file or folder that cannot work, with what mends it. Nothing is changed.

    Args:
        station: the station file.
    """
    return [
        *_written_twice(station),
        *_camera_problems(station),
        *_outputs_as_inputs(station),
        *_records_problems(station),
    ]


def _leaf(leaf: object) -> Any:
    """Return the settings of a camera or sink; those of other packages may keep none."""
    return getattr(leaf, "_settings", None)


def _of_kind(leaves: Any, kind: str) -> Iterator[tuple[str, Any]]:
    return ((name, own) for name, leaf in leaves.items() if getattr(own := _leaf(leaf), "kind", "") == kind)


def _written_twice(station: Station) -> list[str]:
    settings = station.settings
    written: list[tuple[str, Path]] = [("the station file", station.path), ("records", settings.records)]
    if settings.log is not None:
        written.append(("log", settings.log))
    written += [(f"the journal of camera {name}", own.journal) for name, own in _of_kind(station.cameras, "arrivals")]
    problems = []
    writers: dict[str, str] = {}
    for who, path in written:
        other = writers.setdefault(os.path.realpath(path), who)
        if other != who:
            problems.append(f"{who} and {other} are one file, {path}; give each its own")
        elif path.is_dir() and who != "records":
            problems.append(f"{who}: {path} is a folder; name a file")
    results: dict[tuple[str, str, str], str] = {}
    for name, own in _of_kind(station.sinks, "files"):
        if own.folder.exists() and not own.folder.is_dir():
            is_ours = writers.get(os.path.realpath(own.folder))
            what = f"is {is_ours}" if is_ours else "is a file"
            problems.append(f"sink {name}: {own.folder} {what}; name a folder")
        other = results.setdefault((os.path.realpath(own.folder), own.prefix, own.format), name)
        if other != name:
            problems.append(
                f"sinks {other} and {name} write the same files in {own.folder}; give one another folder or prefix"
            )
    return problems


def _camera_problems(station: Station) -> list[str]:
    problems = []
    for name, own in _of_kind(station.cameras, "folder"):
        if not own.path.exists():
            problems.append(f"camera {name}: folder {own.path} is missing; make it, or name another")
        elif not own.path.is_dir() and own.path.suffix.lower() not in SUFFIXES:
            problems.append(f"camera {name}: {own.path} is a file; name a folder of images")
        else:
            try:
                find_images([own.path], notes=[])
            except VisionADError as exc:
                problems.append(f"camera {name}: {exc}; put images there, or name another folder")
        is_own = station.settings.cameras[name].get("kind") == "folder"  # and does not stand for another, by --simulate
        if is_own and station.settings.trigger != "line" and own.interval_ms is None:
            problems.append(
                f"camera {name}: with `trigger: {station.settings.trigger}` it gives no image; set its interval_ms, such as 1000"
            )
    for name, own in _of_kind(station.cameras, "arrivals"):
        if own.path.exists() and not own.path.is_dir():  # a missing one may be a share that is away
            problems.append(f"camera {name}: {own.path} is a file; name the folder in which images arrive")
    return problems


def _outputs_as_inputs(station: Station) -> list[str]:
    settings = station.settings
    outputs = [(f"the folder of sink {name}", own.folder) for name, own in _of_kind(station.sinks, "files")]
    if settings.archive is not None:
        outputs.insert(0, ("the archive", settings.archive.folder))
    problems = []
    for who, folder in outputs:
        if _below(folder, settings.bank) is not None:
            problems.append(f"{who}, {folder}, lies in the bank; choose a folder elsewhere")
        for name, own in _of_kind(station.cameras, "arrivals"):
            below = _below(folder, own.path)
            if below is not None and not _passed_over(below, own.exclude):
                problems.append(
                    f"{who}, {folder}, lies in the folder of camera {name}, which would inspect what the station writes; choose a "
                    "folder elsewhere"
                )
    return problems


def _below(folder: Path, above: Path) -> Path | None:
    """Return the path from a folder down to another one; ``None`` if that lies elsewhere."""
    inner, outer = Path(os.path.realpath(folder)), Path(os.path.realpath(above))
    return inner.relative_to(outer) if inner.is_relative_to(outer) else None


def _passed_over(below: Path, exclude: tuple[str, ...]) -> bool:
    """Return whether a camera that looks at a folder passes over what lies below it in this one."""
    parts = [Path(*below.parts[: count + 1]) for count in range(len(below.parts))]
    return any(
        part.name.startswith(".") or any(fnmatch(part.name, one) or fnmatch(part.as_posix(), one) for one in exclude)
        for part in parts
    )


def _records_problems(station: Station) -> list[str]:
    path = station.settings.records
    if os.path.realpath(path) == os.path.realpath(station.path):
        return []  # said already
    if path.is_dir():
        return [f"records {path} is a folder; name a file"]
    if not path.is_file() or path.stat().st_size == 0:
        return []
    waiting = path.with_name(f"{path.name}-wal")
    # Without lines that wait beside it, SQLite need not make files to read it.
    how = "mode=ro" if waiting.is_file() and waiting.stat().st_size else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=1)) as db:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if version > SCHEMA_VERSION:
                return [
                    f"records {path}: expected schema {SCHEMA_VERSION} or older, got {version}; use the visionad release that "
                    "wrote it, or name another file"
                ]
            if not tables >= _TABLES if version else tables:
                return [f"records {path} is a database, but not of a station; name another file"]
            end = time.monotonic() + LOOK_SECONDS
            db.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as exc:  # another process writes, or the look took its time
        return [] if str(exc) in ("interrupted", "database is locked") else [_not_read(path, exc)]
    except sqlite3.DatabaseError as exc:
        return [_not_read(path, exc)]
    return [] if found == "ok" else [_not_read(path, "it is damaged")]


def _not_read(path: Path, why: object) -> str:
    return f"records {path} cannot be read: {why}; bring back a copy, or move it away: the station begins another"
