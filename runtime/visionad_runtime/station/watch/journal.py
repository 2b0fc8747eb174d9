"""The journal: a line of JSON for each inspected image, on disk before the next one begins."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ...errors import VisionADError
from ...formats.files import atomic_write, fsync_folder, lock_beside
from .detected import DetectedFile, FileStamp, content_digest

log = logging.getLogger("visionad")

MAX_WAITING = 100_000
"""Lines that wait in memory while the journal cannot be written; the oldest ones go first."""
RECENT = 50
"""Last lines whose images a coarse clock may not tell from later ones: the content is compared when the journal is read."""
_BEGIN = b'{"name": '


class _Key(NamedTuple):
    name: str
    bytes: int
    modified_ns: int


class _Entry(NamedTuple):
    """What a line says of the content: when it was changed, and its sha256. Lines of earlier releases say neither."""

    changed_ns: int | None
    sha256: str | None
    recent: bool


class Journal:
    """A file to which a JSON line is added for each image. An existing one is continued.

    A line is on disk before the next image begins. If it cannot be written, for a full disk or a share that is away, that is said
    once, and the lines wait in memory.

    With ``days``, lines of an earlier day (UTC) lie in ``NAME-YYYY-MM-DD.SUFFIX`` beside the file. Such files are deleted after so
    many days, except for the lines of images that still lie in the watched folder.

    Args:
        path: of the file.
        folder: watched folder that the names in it are below.
        days: how many days of lines to keep; ``None`` keeps all in one file.
        today: for tests.

    Raises:
        VisionADError: it cannot be written, or another process uses it.
    """

    def __init__(
        self,
        path: Path,
        folder: Path | None = None,
        days: int | None = None,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self.path, self.folder, self._days, self._today = path, folder, days, today
        self._waiting: list[bytes] = []
        self._failing = self._shifted = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as exc:
            raise self._unusable(exc) from None
        if not path.is_file():  # a pipe or a device: there is nothing to read back or to put aside
            self._days = None
        self._day = self._day_of_last_line()
        self._lock = self._locked()

    def processed(self, ones: Collection[DetectedFile]) -> list[DetectedFile]:
        """Return those images that it has a line of, with their sha256.

        An image whose change time is another one than in the line is compared by content.

        Raises:
            VisionADError: it cannot be read, or holds other things.
        """
        asked = {_Key(one.image.name.as_posix(), *one.stamp.written): one for one in ones}
        entries: dict[_Key, _Entry] = {}
        try:
            for path in (self.path, *reversed(self._older())):
                fresh = self._entries(path, asked)
                entries = {**fresh, **entries}
                if len(entries) == len(asked):
                    break
        except OSError as exc:
            raise self._unusable(exc) from None
        return [
            asked[key]._replace(sha256=entry.sha256) for key, entry in entries.items() if _is_same(asked[key], entry)
        ]

    def append(self, one: DetectedFile, facts: Mapping[str, Any]) -> None:
        """Note what was found of an image.

        Args:
            one: the image.
            facts: fields of the line, beside the file's.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        digest = {} if one.sha256 is None else {"sha256": one.sha256}
        line = {"name": one.image.name.as_posix(), **one.stamp._asdict(), **digest, "time": now, **facts}
        self._waiting.append(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        trouble = self._write()
        if trouble is None and self._failing:
            log.warning("journal %s is written again; no line is missing", self.path)
        elif trouble is not None and not self._failing:
            log.warning(
                "journal %s could not be written: %s; inspection goes on, and its lines wait in memory",
                self.path,
                trouble.strerror or trouble,
            )
        self._failing = trouble is not None
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[0]

    def close(self) -> None:
        """Write what waits, and close the file.

        Raises:
            VisionADError: lines could not be written.
        """
        trouble = self._write() if self._waiting else None
        with suppress(OSError):
            self._file.close()
        if self._lock is not None:
            self._lock.close()
        if trouble is not None:
            raise VisionADError(
                f"journal {self.path} could not be written: {trouble.strerror or trouble}; {len(self._waiting)} images are not "
                "noted and will be inspected again; free space there"
            )

    # -- inside -------------------------------------------------------------------------------------------------------

    def _locked(self) -> BinaryIO | None:
        """The lock file, held until it is closed; ``None`` where the file system has no locks."""
        try:
            lock = lock_beside(self.path)
        except OSError as exc:
            log.warning("journal %s cannot be locked: %s; let only one process use it", self.path, exc.strerror)
            return None
        if lock is not None:
            return lock
        self._file.close()
        raise VisionADError(
            f"journal {self.path} is in use by another `visionad watch` or station; stop that one, or choose another journal"
        )

    def _write(self) -> OSError | None:
        """Append what waits, all of it or nothing."""
        try:
            self._shift()
            end = os.fstat(self._file.fileno()).st_size
            try:
                data = memoryview(b"".join(self._waiting))
                while data:
                    data = data[self._file.write(data) :]
                os.fsync(self._file.fileno())
            except OSError:
                with suppress(OSError):
                    self._file.truncate(end)
                raise
        except OSError as exc:
            return exc
        self._waiting.clear()
        return None

    def _shift(self) -> None:
        """Put the lines of another day aside, and forget those of long ago."""
        today = self._today()
        if self._days is None or (self._day == today and self._shifted):
            return
        if self._day not in (None, today):
            name, number = f"{self.path.stem}-{self._day}", 1
            aside = self.path.with_name(name + self.path.suffix)
            while aside.exists():  # the clock was set back
                number += 1
                aside = self.path.with_name(f"{name}-{number}{self.path.suffix}")
            self.path.rename(aside)
            fsync_folder(self.path.parent)
            self._file.close()
            self._file = self.path.open("a+b", buffering=0)
        self._day, self._shifted = today, True
        try:
            self._forget(today - timedelta(days=self._days))
        except (OSError, VisionADError) as exc:
            log.warning("journal %s: older lines could not be deleted: %s", self.path, exc)

    def _forget(self, last: date) -> None:
        for path in self._older():
            if self._match(path.name)[:10] > last.isoformat():
                continue
            with open(path, "rb") as file:
                lines = [line for line in file if self._lies_there(line)]
            if not lines:
                path.unlink()
            elif len(data := b"".join(lines)) < path.stat().st_size:
                atomic_write(path, data)

    def _lies_there(self, line: bytes) -> bool:
        parsed = _parsed(line)
        if parsed is None or self.folder is None:
            return False
        try:
            stamp = FileStamp.of((self.folder / parsed[0].name).stat())
        except (OSError, ValueError):
            return False
        return stamp.written == parsed[0][1:]

    def _older(self) -> list[Path]:
        """Files of earlier days, the oldest first."""
        return sorted((p for p in self.path.parent.iterdir() if self._match(p.name)), key=lambda p: self._match(p.name))

    def _match(self, name: str) -> str:
        """Day and number of a file of an earlier day, to sort by; empty for other files."""
        pattern = rf"{re.escape(self.path.stem)}-(\d{{4}}-\d\d-\d\d)(?:-(\d+))?{re.escape(self.path.suffix)}"
        found = re.fullmatch(pattern, name)
        return f"{found[1]}-{int(found[2] or 1):06d}" if found else ""

    def _entries(self, path: Path, asked: Mapping[_Key, DetectedFile]) -> dict[_Key, _Entry]:
        """The last line of each image that is asked for."""
        found: dict[_Key, tuple[int, _Entry]] = {}
        if not path.is_file():
            return {}
        number = damaged = 0
        for number, line in enumerate(self._lines(path), 1):
            parsed = _parsed(line)
            if parsed is None:
                if number == 1:
                    raise VisionADError(
                        f"{path}, line 1: expected a line of `visionad watch --journal`; choose another file"
                    )
                damaged += 1
            elif parsed[0] in asked:
                found[parsed[0]] = number, parsed[1]
        if damaged:
            log.warning("journal %s: passed over %d damaged lines", path, damaged)
        recent = number - RECENT if path == self.path else number
        return {key: entry._replace(recent=line > recent) for key, (line, entry) in found.items()}

    def _lines(self, path: Path) -> Iterator[bytes]:
        """Whole lines of a file. A torn last line is taken out of the one that is written to."""
        end = 0
        with open(path, "rb") as file:
            for line in file:
                torn = line.rstrip(b"\0")  # which some file systems leave where data were to be
                if not line.endswith(b"\n") and (torn.startswith(_BEGIN) or _BEGIN.startswith(torn)):
                    if path == self.path:
                        self._file.truncate(end)  # the power went while it was written: that image is inspected again
                    return
                end += len(line)
                yield line

    def _day_of_last_line(self) -> date | None:
        """When the last line was written, UTC; ``None`` for an empty journal."""
        status = os.fstat(self._file.fileno())
        return datetime.fromtimestamp(status.st_mtime, UTC).date() if status.st_size else None

    def _unusable(self, exc: OSError) -> VisionADError:
        return VisionADError(f"journal {self.path} cannot be used: {exc.strerror or exc}; choose another place")


def _parsed(line: bytes) -> tuple[_Key, _Entry] | None:
    try:
        facts = json.loads(line)
        key = _Key(str(facts["name"]), int(facts["bytes"]), int(facts["modified_ns"]))
        changed, sha256 = facts.get("changed_ns"), facts.get("sha256")
        return key, _Entry(None if changed is None else int(changed), None if sha256 is None else str(sha256), False)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_same(one: DetectedFile, entry: _Entry) -> bool:
    """Whether the content is the one that was noted."""
    doubtful = one.stamp.is_coarse and entry.recent
    if entry.sha256 is None or (entry.changed_ns == one.stamp.changed_ns and not doubtful):
        return True
    return content_digest(one.image.path) == entry.sha256
