"""The file sink: what stands in the files, days, and no record twice or halved whatever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.station.sink import SINKS, SinkError
from visionad_runtime.station.sinks import files
from visionad_runtime.station.sinks.files import COLUMNS, FilesSettings, FilesSink, cell

from tests.data import ROOT
from tests.fakes.line import FakeLine


def record(number: int, time_: str = "2026-11-30T08:00:00.000+00:00", **fields: Any) -> dict[str, Any]:
    known = {
        "station": "press-3",
        "part": f"SN-{number}",
        "score": 0.457,
        "evaluation": 2,
        "alarms": ["light", "focus"],
    }
    return {"id": number, "time": time_} | known | fields


def sink(folder: Path, **settings: Any) -> FilesSink:
    return FilesSink("log", FilesSettings(kind="files", folder=folder, **settings))


def store(one: FilesSink, *records: dict[str, Any]) -> None:
    async def scenario() -> None:
        task = asyncio.create_task(one.run(FakeLine()))
        await asyncio.sleep(0)
        try:
            for each in records:
                if not task.done():
                    await one.store(each)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(scenario())


def rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_the_registry_has_it() -> None:
    assert SINKS.load("files") is FilesSink
    assert sink(Path()).missing() is None


def test_csv_has_a_header_and_a_row_a_record(tmp_path: Path) -> None:
    store(sink(tmp_path / "new" / "out"), record(1), record(2, part="ä;\n,=x", score=None))
    path = tmp_path / "new" / "out" / "results-2026-11-30.csv"
    first, second = rows(path)
    assert path.read_text("utf-8").splitlines()[0] == ",".join(COLUMNS)
    assert (first["id"], first["score"], first["alarms"]) == ("1", "0.457", "light focus")
    assert (second["part"], second["score"]) == ("ä; ,=x", "")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    store(sink(tmp_path, delimiter=delimiter), record(1, score=1.5))
    assert rows(tmp_path / "results-2026-11-30.csv", delimiter)[0]["score"] == "1.5"


def test_json_lines_have_the_whole_record(tmp_path: Path) -> None:
    whole = record(1, regions=[{"bbox": [1, 2, 3, 4]}], part="ä\u2028")
    store(sink(tmp_path, format="jsonl"), whole)
    lines = (tmp_path / "results-2026-11-30.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [whole]


def test_a_file_a_day_in_utc(tmp_path: Path) -> None:
    store(
        sink(tmp_path),
        record(1, "2026-11-30T23:59:59.999+00:00"),
        record(2, "2026-12-01T01:30:00+02:00"),
        record(3, "2026-12-01T00:00:00Z"),
    )
    ids = {path.name: [row["id"] for row in rows(path)] for path in sorted(tmp_path.iterdir())}
    assert ids == {"results-2026-11-30.csv": ["1", "2"], "results-2026-12-01.csv": ["3"]}


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_half_written_line_is_replaced_and_no_record_is_written_twice(tmp_path: Path, format_: str, cut: int) -> None:
    store(sink(tmp_path, format=format_), *(record(n) for n in (1, 2, 3)))
    path = tmp_path / f"results-2026-11-30.{format_}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    store(sink(tmp_path, format=format_), *(record(n) for n in (1, 2, 3)))  # all are offered again
    assert path.read_bytes() == whole


def test_many_records_take_one_thread_and_a_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_IDS", 5)
    monkeypatch.setattr(files.os, "fsync", lambda _: None)
    one, names = sink(tmp_path), set[str]()
    write = one._write

    def noted(each: dict[str, Any]) -> None:
        names.add(threading.current_thread().name)
        write(each)

    monkeypatch.setattr(one, "_write", noted)
    store(one, *(record(number) for number in range(1, 21)), *(record(number) for number in (20, 18, 16)))
    assert [row["id"] for row in rows(tmp_path / "results-2026-11-30.csv")] == [str(number) for number in range(1, 21)]
    assert list(one._ids) == [16, 17, 18, 19, 20] and len(names) == 1


def test_a_cut_header_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "results-2026-11-30.csv").write_text("id,ti")
    store(sink(tmp_path), record(1))
    assert [row["id"] for row in rows(tmp_path / "results-2026-11-30.csv")] == ["1"]


def test_other_columns_are_an_error_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "results-2026-11-30.csv"
    path.write_text("id,name\r\n1,x\r\n")
    with pytest.raises(SinkError, match="move that file away"):
        store(sink(tmp_path), record(2))
    assert path.read_text() == "id,name\n1,x\n"


def test_a_file_that_was_taken_away_begins_anew(tmp_path: Path) -> None:
    one, path = sink(tmp_path), tmp_path / "results-2026-11-30.csv"

    async def scenario() -> None:
        await one.store(record(1))
        path.rename(tmp_path / "taken.csv")
        await one.store(record(2))

    asyncio.run(scenario())
    assert [row["id"] for row in rows(path)] == ["2"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size")
@pytest.mark.parametrize("format_", ["csv", "jsonl"])
def test_a_full_disk_is_one_line_and_halves_no_record(tmp_path: Path, format_: str) -> None:
    import resource

    one, path = sink(tmp_path, format=format_), tmp_path / f"results-2026-11-30.{format_}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SinkError, match=r"record \d+ cannot be written to .*too large"):
            store(one, *(record(n) for n in range(1, 100)))
        assert not one.health()["ok"]
        written = path.read_bytes()
        assert 700 < len(written) <= 1000 and written.endswith(b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store(one, *(record(n) for n in range(1, 21)))
    assert one.health()["ok"]
    assert len(path.read_bytes().splitlines()) == 20 + (format_ == "csv")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="expected a folder"):
        asyncio.run(sink(tmp_path / "file" / "out").run(FakeLine()))


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.unit.station.sinks.test_files import record, sink
async def work():
    one, done = sink(Path(sys.argv[1]), format="jsonl"), Path(sys.argv[2])
    start = int(done.read_text() or 0) if done.exists() else 0
    for number in range(start + 1, 100000):
        await one.store(record(number))
        done.write_text(str(number)) if number % 7 == 0 else None
asyncio.run(work())
"""


def test_killed_at_any_moment_each_record_stands_once_in_order(tmp_path: Path) -> None:
    """The cursor is noted every seventh record only, so up to six records are offered again after each kill."""
    path = tmp_path / "out" / "results-2026-11-30.jsonl"
    path.parent.mkdir()
    for _ in range(4):
        size = path.stat().st_size if path.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "out"), str(tmp_path / "done")], cwd=ROOT
        )
        end = time.monotonic() + 20
        while (path.stat().st_size if path.exists() else 0) < size + 5000:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.003)
        os.kill(process.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        process.wait()
        if (tmp_path / "done").exists() and not (tmp_path / "done").read_text():
            (tmp_path / "done").unlink()
    store(sink(tmp_path / "out", format="jsonl"), record(10**6))
    ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert len(ids) > 50
    assert ids == [*range(1, len(ids)), 10**6]


@given(st.one_of(st.floats(allow_nan=True), st.text(), st.integers(), st.booleans(), st.none(), st.lists(st.text())))
def test_a_cell_is_one_line(value: object) -> None:
    assert len(cell(value).splitlines()) <= 1


def test_numbers_have_a_point_in_any_locale() -> None:
    import locale

    for name in ("de_DE.UTF-8", "C.UTF-8"):
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_NUMERIC, name)
            assert cell(0.5) == "0.5"
    locale.setlocale(locale.LC_NUMERIC, "C")
