"""Built engines beside the model folder, each under the digest of all that decides it.

``MODEL.engines/DIGEST/`` holds ``engine.plan``, ``engine.json`` (what decided it, what was built, sha256 of the plan and of these
facts) and ``build.log``. An entry appears by one rename or not at all, is never changed, and is taken only when its JSON says
exactly what is wanted, as it was written, and the plan has its sha256. All of it can be deleted at any time: it is built again.
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
"""Entries kept beside a model: enough for every backend, precision and GPU of a box; the longest unused go first."""

_ABANDONED = 24 * 3600
"""Seconds after which a half-made entry belongs to nobody: builds take minutes."""

EngineKey = Mapping[str, Any]
"""All that decides an engine, as JSON types."""


class EngineNotFoundError(VisionADError):
    """No engine that can be taken: none was built, it is for something else, or it is damaged. The message says which."""


@dataclass(frozen=True)
class EngineEntry:
    """An engine on disk. ``built`` is what the build reported."""

    folder: Path
    key: EngineKey
    built: Mapping[str, Any]

    @property
    def plan(self) -> Path:
        """The serialised engine."""
        return self.folder / PLAN


def digest(key: EngineKey) -> str:
    """sha256 (hex) of the canonical JSON of a key: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class EngineCache:
    """The engines of one model folder."""

    def __init__(self, model: Path) -> None:
        model = model.absolute()
        self.folder = model.with_name(f"{model.name}.engines")

    def find(self, key: EngineKey) -> EngineEntry:
        """The engine for exactly this key.

        Raises:
            EngineNotFoundError: there is none; if there is one for another key, the message names what differs.
        """
        folder = self.folder / digest(key)
        if not folder.is_dir():
            raise EngineNotFoundError(self._why_not(key))
        entry = _read(folder)
        if entry.key != json.loads(json.dumps(key)):
            raise EngineNotFoundError(f"{folder} holds an engine for something else ({_difference(entry.key, key)})")
        try:
            found = sha256_file(entry.plan)
        except OSError as exc:
            raise EngineNotFoundError(f"{entry.plan} cannot be read: {exc.strerror}") from None
        if found != entry.built["plan_sha256"]:
            raise EngineNotFoundError(
                f"{entry.plan} is damaged: expected sha256 {entry.built['plan_sha256'][:12]}, got {found[:12]}"
            )
        with contextlib.suppress(OSError):  # a read-only cache is a good cache
            os.utime(folder / FACTS)
        return entry

    def store(self, key: EngineKey, plan: bytes | memoryview, built: Mapping[str, Any], log: str) -> EngineEntry:
        """Write an engine, whole or not at all. If another process was faster, its engine is taken.

        Raises:
            VisionADError: the folder beside the model cannot be written.
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
                f"cannot write {self.folder}: {exc.strerror or exc}; free space or mend its permissions; no engine was kept"
            ) from None
        return self.find(key)

    def drop(self, key: EngineKey) -> None:
        """Forget an engine that does not work here."""
        with contextlib.suppress(OSError):
            _remove(self.folder / digest(key))

    def save_rejected(self, text: str) -> Path | None:
        """Keep what is known of an engine that was built and is not to be used, in place of the last such; its place, or ``None``
        where nothing can be written."""
        path = self.folder / REJECTED_LOG
        with contextlib.suppress(OSError, VisionADError):
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, text.encode())
            return path
        return None

    def has_engine_for(self, backend: str) -> bool:
        """Whether somebody has built an engine of this backend for the model, for whatever box."""
        return any(entry.key.get("backend") == backend for entry in self._entries())

    def _put(self, fresh: Path, target: Path, key: EngineKey) -> None:
        try:
            fresh.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            try:
                self.find(key)  # another process was faster
            except EngineNotFoundError:  # what lies there is damaged
                _remove(target)
                fresh.rename(target)

    def _entries(self) -> list[EngineEntry]:
        """Every readable entry, last used first."""
        found = []
        with contextlib.suppress(OSError):
            for folder in self.folder.iterdir():
                with contextlib.suppress(EngineNotFoundError, OSError):
                    if not folder.name.startswith("."):
                        found.append(((folder / FACTS).stat().st_mtime, _read(folder)))
        return [entry for _, entry in sorted(found, key=lambda pair: (-pair[0], pair[1].folder.name))]

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
        for half in self.folder.glob(".*.tmp"):  # left by a kill
            with contextlib.suppress(OSError):
                if time.time() - half.stat().st_mtime > _ABANDONED:
                    _remove(half)


def _read(folder: Path) -> EngineEntry:
    path = folder / FACTS
    try:
        facts = json.loads(path.read_bytes())
        if facts["format"] != FORMAT:
            raise EngineNotFoundError(f"{path}: expected format {FORMAT}, got {facts['format']!r}")
        entry = EngineEntry(folder, facts["parts"], facts["built"])
        if facts["built_sha256"] != digest(entry.built):  # whoever reads an entry may take every fact for granted
            raise EngineNotFoundError(f"{path} is damaged: what was built is not what was written (edited by hand?)")
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
    """What differs, for people: ``builder 10.3.0, here 10.8.0; gpu Orin, here NVIDIA L4``."""
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
    """Out of sight by one rename first, so that nobody reads half of it."""
    away = folder.with_name(f".{secrets.token_hex(8)}.tmp")
    folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)
