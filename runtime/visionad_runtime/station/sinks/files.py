"""File sink: one file a UTC day in a folder, CSV or JSON lines. A record is on the disk before it counts as delivered.

The file of a record follows from the record's own time, and the ids at the end of that file say whether it is there already. So a
record that is offered again after a kill is not written twice.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

from pydantic import Field

from ..leaf import LeafSettings
from ..sink import Line, SinkError, StationState

COLUMNS = (
    "id",
    "time",
    "station",
    "part",
    "sequence",
    "recipe",
    "evaluation",
    "verdict",
    "reason",
    "class",
    "score",
    "threshold",
    "p_value",
    "camera",
    "latency_ms",
    "bank_version",
    "alarms",
)
"""Columns of a CSV file. A record without such a field has an empty cell."""
TAIL_BYTES = 4 << 20
"""How much of a file's end is read for ids when the file is opened: far more than is offered again after a kill."""
MAX_IDS = 20_000
"""Ids that are kept of the open file, for the same reason."""


class FilesSettings(LeafSettings):
    """Settings of a file sink.

    Attributes:
        folder: where the files lie. It is made if it is missing.
        format: ``csv`` or ``jsonl``.
        prefix: beginning of the file names, which are ``PREFIX-YYYY-MM-DD.csv``.
        delimiter: of CSV: a comma, a semicolon or a tab.
    """

    folder: Path
    format: Literal["csv", "jsonl"] = "csv"
    prefix: str = Field(default="results", pattern=r"^[\w.-]+$")
    delimiter: Literal[",", ";", "\t"] = ","


class FilesSink:
    """See :class:`~visionad_runtime.station.sink.Sink`."""

    Settings: ClassVar[type[LeafSettings]] = FilesSettings
    live: ClassVar[bool] = False

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, FilesSettings)
        self._name, self._settings = name, settings
        self._order = asyncio.Lock()
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._ids: dict[int, None] = {}  # the newest ones in the open file, in order
        self._thread = ThreadPoolExecutor(1, f"visionad-{name}")  # the loop's own pool would grow by and by
        self._problem = ""
        self._last_success: float | None = None
        self.delivered = 0

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.sink.Sink`. Nothing is needed."""
        return None

    async def run(self, line: Line) -> None:  # noqa: ARG002
        """Make the folder, and keep the file open until cancelled.

        Raises:
            SinkError: The folder cannot be made or written.
        """
        folder = self._settings.folder
        try:
            await self._in_thread(_check_folder, folder)
        except OSError as exc:
            raise SinkError(
                f"sink {self._name}: expected a folder that can be written, {folder}: {exc.strerror}; mend its permissions or "
                "choose another"
            ) from None
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(self._in_thread(self._close))

    async def tell(self, state: StationState) -> None:
        """See :class:`~visionad_runtime.station.sink.Sink`. Files hold results only."""

    async def store(self, record: Mapping[str, Any]) -> None:
        """Append a record to the file of its day. Return when it is on the disk. A record that is there already is left as it is.

        Raises:
            SinkError: It cannot be written, such as for a full disk. Nothing of it stays in the file.
        """
        async with self._order:
            try:
                await self._in_thread(self._write, record)
            except OSError as exc:
                await self._in_thread(self._close)
                self._problem = f"{self._path or self._settings.folder}: {exc.strerror or exc}"
                raise SinkError(
                    f"sink {self._name}: record {record['id']} cannot be written to {self._problem}; free space or mend its "
                    "permissions"
                ) from None
            except SinkError as exc:
                self._problem = str(exc)
                raise
        self._problem, self._last_success = "", time.monotonic()
        self.delivered += 1

    def health(self) -> Mapping[str, Any]:
        """See :class:`~visionad_runtime.station.sink.Sink`."""
        age = None if self._last_success is None else round(time.monotonic() - self._last_success, 3)
        detail = self._problem or f"writes to {self._settings.folder}"
        return {"ok": not self._problem, "detail": detail, "last_success_s": age, "delivered": self.delivered}

    def _in_thread(self, work: Callable[..., object], *arguments: Any) -> asyncio.Future[object]:
        return asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *arguments))

    # -- in a thread --------------------------------------------------------------------------------------------------

    def _write(self, record: Mapping[str, Any]) -> None:
        path = self._settings.folder / f"{self._settings.prefix}-{utc_day(record)}.{self._settings.format}"
        if path != self._path or self._file is None or not path.exists():
            self._open(path)
        assert self._file is not None
        number = int(record["id"])
        if number in self._ids:
            return
        end = self._file.seek(0, os.SEEK_END)
        try:
            _write_all(self._file, self._row(record))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise
        self._ids[number] = None
        if len(self._ids) > MAX_IDS:
            del self._ids[next(iter(self._ids))]

    def _open(self, path: Path) -> None:
        """Open the file of a day, cut off a half-written last line, and learn which ids it has."""
        self._close()
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)  # records may come before `run`, and a folder may be moved away
        new = not path.exists()
        file = self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  # it stays open until the day ends
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - TAIL_BYTES)
        file.seek(start)
        tail = file.read()
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):  # of a power cut
            file.truncate(start + whole)
        lines = tail[:whole].decode("utf-8", "replace").splitlines()
        if self._settings.format == "csv":
            header = self._csv(COLUMNS)
            if size == 0 or not lines:
                _write_all(file, header)
            elif start == 0 and lines[0] != header.decode().rstrip("\r\n"):
                self._close()
                raise SinkError(
                    f"sink {self._name}: {path} has other columns than this release or its delimiter writes; move that file away"
                )
            pattern = re.compile(r"^(\d+)" + re.escape(self._settings.delimiter))
        else:
            pattern = re.compile(r'^\{"id": (\d+)[,}]')
        self._ids = {int(match[1]): None for line in lines if (match := pattern.match(line))}
        if new:
            os.fsync(file.fileno())
            _sync_folder(path.parent)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _row(self, record: Mapping[str, Any]) -> bytes:
        if self._settings.format == "jsonl":
            ordered = {"id": int(record["id"])} | {key: value for key, value in record.items() if key != "id"}
            return (json.dumps(ordered, ensure_ascii=True, default=str) + "\n").encode()
        return self._csv([cell(record.get(column)) for column in COLUMNS])

    def _csv(self, cells: Any) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self._settings.delimiter, lineterminator="\r\n").writerow(cells)
        return text.getvalue().encode()


def utc_day(record: Mapping[str, Any]) -> str:
    """Return the UTC day of a record's time, ``YYYY-MM-DD``."""
    return datetime.fromisoformat(str(record["time"])).astimezone(UTC).date().isoformat()


def cell(value: object) -> str:
    """Return a CSV cell: numbers with a decimal point whatever the locale, lists joined by spaces, one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return " ".join(cell(one) for one in value)
    if isinstance(value, (dict, Mapping)):
        return json.dumps(value, ensure_ascii=True, default=str)
    return " ".join(re.split(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", str(value)))


def _write_all(file: BinaryIO, row: bytes) -> None:
    rest = memoryview(row)
    while rest:  # the file has no buffer, and a disk that fills takes a part
        rest = rest[file.write(rest) :]


def _check_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".visionad-{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()


def _sync_folder(folder: Path) -> None:
    """Have a new name in a folder survive a power cut."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
