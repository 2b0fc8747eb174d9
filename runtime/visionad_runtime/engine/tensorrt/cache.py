"""Cache of built engines beside the model folder, each under the digest of its key.

``MODEL.engines/DIGEST/`` holds ``engine.plan``, ``engine.json`` (the key, what was built, sha256 of the plan and of these facts)
and ``build.log``. An entry appears by one atomic rename and never changes. It is used only if its JSON has exactly the requested
key and is unchanged, and the plan has its sha256. The cache may be deleted at any time; engines are built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import VisionADError
from ...formats.files import atomic_write, fsync_folder, sha256_file

PLAN, FACTS, LOG = "engine.plan", "engine.json", "build.log"
REJECTED_LOG = "refused.log"
FORMAT = 2
KEEP = 8
"""Entries per model: enough for every backend, precision and GPU of a box. The least recently used are removed first."""

_ABANDONED = 24 * 3600
"""Seconds after which an incomplete entry is removed. Builds take minutes."""

EngineKey = Mapping[str, Any]
"""Everything that determines an engine, as JSON types."""


class EngineNotFoundError(VisionADError):
    """There is no usable engine: none was built, its key differs, or it is damaged. The message says which."""


@dataclass(frozen=True)
class EngineEntry:
    """An engine on disk.

    Attributes:
        folder: Its folder.
        key: Its key.
        built: What the build reported.
    """

    folder: Path
    key: EngineKey
    built: Mapping[str, Any]

    @property
    def plan(self) -> Path:
        """Path of the serialised engine."""
        return self.folder / PLAN


def digest(key: EngineKey) -> str:
    """Return the sha256 (hex) of the canonical JSON of a key: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class EngineCache:
    """The engines of one model folder.

    Attributes:
        folder: The cache's folder.
    """

    def __init__(self, model: Path) -> None:
        model = model.absolute()
        self.folder = model.with_name(f"{model.name}.engines")

    def find(self, key: EngineKey) -> EngineEntry:
        """Return the engine for exactly this key.

        Raises:
            EngineNotFoundError: There is none, or it is damaged. If one exists for another key, the message names the differences.
        """
        folder = self.folder / digest(key)
        if not folder.is_dir():
            raise EngineNotFoundError(self._why_not(key))
        entry = _read(folder)
        if entry.key != json.loads(json.dumps(key)):
            raise EngineNotFoundError(f"{folder} holds an engine for something else ({_difference(entry.key, key)})")
        try:
            sha256 = sha256_file(entry.plan)
        except OSError as exc:
            raise EngineNotFoundError(f"{entry.plan} cannot be read: {exc.strerror}") from None
        if sha256 != entry.built["plan_sha256"]:
            raise EngineNotFoundError(
                f"{entry.plan} is damaged: expected sha256 {entry.built['plan_sha256'][:12]}, got {sha256[:12]}"
            )
        with contextlib.suppress(OSError):  # a read-only cache works too
            os.utime(folder / FACTS)
        return entry

    def store(self, key: EngineKey, plan: bytes | memoryview, built: Mapping[str, Any], log: str) -> EngineEntry:
        """Write an engine atomically. If another process was faster, return its engine.

        Args:
            key: The engine's key.
            plan: The serialised engine.
            built: What the build reported, as JSON types.
            log: The build log.

        Raises:
            VisionADError: The folder beside the model cannot be written.
        """
        name = digest(key)
        target = self.folder / name
        fresh = self.folder / f".{name[:16]}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        built = {**built, "plan_sha256": hashlib.sha256(plan).hexdigest(), "plan_bytes": memoryview(plan).nbytes}
        facts = {"format": FORMAT, "parts": dict(key), "built": built, "built_sha256": digest(built)}
        try:
            fresh.mkdir(parents=True)
            try:
                _write(fresh / PLAN, plan)
                _write(fresh / LOG, log.encode())
                _write(fresh / FACTS, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
                fsync_folder(fresh)
                self._put(fresh, target, key)
                fsync_folder(self.folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
            self._prune(keep=target)
            (self.folder / REJECTED_LOG).unlink(missing_ok=True)
        except OSError as exc:
            if self.folder.exists() and not self.folder.is_dir():
                raise VisionADError(
                    f"{self.folder}: expected a folder for engines, got a file; move it away; no engine was kept"
                ) from None
            raise VisionADError(
                f"cannot write {self.folder}: {exc.strerror or exc}; free space or fix its permissions; no engine was kept"
            ) from None
        return self.find(key)

    def drop(self, key: EngineKey) -> None:
        """Remove an engine that does not work here."""
        with contextlib.suppress(OSError):
            _remove(self.folder / digest(key))

    def save_rejected(self, text: str) -> Path | None:
        """Write a report on an engine that was built but rejected, over the last such report.

        Returns:
            Path of the report; ``None`` if it cannot be written.
        """
        path = self.folder / REJECTED_LOG
        with contextlib.suppress(OSError, VisionADError):
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, text.encode())
            return path
        return None

    def has_engine_for(self, backend: str) -> bool:
        """Return whether an engine of this backend was built for the model, for any box."""
        return any(entry.key.get("backend") == backend for entry in self._entries())

    def _put(self, fresh: Path, target: Path, key: EngineKey) -> None:
        try:
            fresh.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            try:
                self.find(key)  # another process was faster
            except EngineNotFoundError:  # the existing entry is damaged
                _remove(target)
                fresh.rename(target)

    def _entries(self) -> list[EngineEntry]:
        """Return every readable entry, the most recently used first."""
        by_time = []
        with contextlib.suppress(OSError):
            for folder in self.folder.iterdir():
                with contextlib.suppress(EngineNotFoundError, OSError):
                    if not folder.name.startswith("."):
                        by_time.append(((folder / FACTS).stat().st_mtime, _read(folder)))
        return [entry for _, entry in sorted(by_time, key=lambda pair: (-pair[0], pair[1].folder.name))]

    def _why_not(self, key: EngineKey) -> str:
        others = [e for e in self._entries() if e.key.get("backend") == key.get("backend")]
        if not others:
            return f"no engine has been built (none in {self.folder})"
        nearest = min(others, key=lambda e: len(_different(e.key, key)))
        return f"the engine in {self.folder} is for something else ({_difference(nearest.key, key)})"

    def _prune(self, keep: Path) -> None:
        for entry in self._entries()[KEEP:]:
            if entry.folder != keep:
                _remove(entry.folder)
        for incomplete in self.folder.glob(".*.tmp"):  # of a killed process
            with contextlib.suppress(OSError):
                if time.time() - incomplete.stat().st_mtime > _ABANDONED:
                    _remove(incomplete)


def _read(folder: Path) -> EngineEntry:
    path = folder / FACTS
    try:
        facts = json.loads(path.read_bytes())
        if facts["format"] != FORMAT:
            raise EngineNotFoundError(f"{path}: expected format {FORMAT}, got {facts['format']!r}")
        entry = EngineEntry(folder, facts["parts"], facts["built"])
        if facts["built_sha256"] != digest(entry.built):  # readers of an entry rely on every fact
            raise EngineNotFoundError(f"{path} is damaged: its facts do not have their sha256 (edited by hand?)")
        size = entry.plan.stat().st_size
        if size != entry.built["plan_bytes"]:
            raise EngineNotFoundError(
                f"{entry.plan} is damaged: expected {entry.built['plan_bytes']} bytes, got {size}"
            )
        if not isinstance(entry.key, dict) or not isinstance(entry.built["plan_sha256"], str):
            raise TypeError
    except OSError as exc:
        raise EngineNotFoundError(f"{exc.filename or path} cannot be read: {exc.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EngineNotFoundError(f"{path} is damaged") from None
    return entry


def _different(theirs: EngineKey, ours: EngineKey) -> list[str]:
    return sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))


def _difference(theirs: EngineKey, ours: EngineKey) -> str:
    """Return the differences for people: ``builder 10.3.0, here 10.8.0; gpu Orin, here NVIDIA L4``."""
    expected = json.loads(json.dumps(ours))
    return "; ".join(
        f"{k} {_short(theirs.get(k))}, here {_short(expected.get(k))}" for k in _different(theirs, expected)
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "…"


def _write(path: Path, data: bytes | memoryview) -> None:
    with open(path, "xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _remove(folder: Path) -> None:
    """Remove a folder, after a rename, so that nobody reads a part of it."""
    away = folder.with_name(f".{secrets.token_hex(8)}.tmp")
    folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)
