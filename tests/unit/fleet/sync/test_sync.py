"""Record databases that begin anew, are restored, share a name or are damaged: each part arrives once."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="sync takes the sql extra")
pytest.importorskip("alembic", reason="sync takes the sql extra")

import pyarrow.parquet as pq
from visionad_runtime.cli.main import run
from visionad_runtime.fleet.sync.database import migrate, open_engine
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.sink import Outcome


def write(path: Path, numbers: Iterable[int], hour: int = 6) -> Path:
    """Complete parts in a record database. Their times follow the hour and the number."""
    records = Records(path)
    for number in numbers:
        time = f"2026-11-30T{hour:02d}:00:{number:02d}.250+00:00"
        evaluation = 2 if number % 3 == 0 else 1
        facts = {"top": {"verdict": "ok", "bank": "ab", "model": "cd"}}
        records.complete(
            [Outcome(number, time, number, f"SN-{hour}-{number}", 1, evaluation, "none", 0.1, 0.5, 9.5, 3, facts)]
        )
    records.close()
    return path


class Target:
    """A database or a folder of Parquet."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.place = folder / ("central.sqlite" if kind == "database" else "all.parquet")
        self.url = f"sqlite:///{self.place}" if kind == "database" else str(self.place)

    def sync(self, records: Path, *more: str) -> int:
        return run(["sync", str(records), self.url, "--station", "line3", *more])

    def parts(self) -> list[str]:
        if self.kind == "parquet":
            return sorted(pq.read_table(self.place)["part"].to_pylist())
        return sorted(row[0] for row in self.query("SELECT part FROM visionad_parts"))

    def query(self, text: str) -> list[Any]:
        with closing(sqlite3.connect(self.place)) as database:
            return database.execute(text).fetchall()

    def check_sums(self) -> None:
        if self.kind == "database":
            assert self.query("SELECT sum(parts) FROM visionad_hours") == [(len(self.parts()),)]


@pytest.fixture(params=["database", "parquet"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    return Target(tmp_path, request.param)


def names(hour: int, numbers: Iterable[int]) -> list[str]:
    return [f"SN-{hour}-{number}" for number in numbers]


@pytest.mark.parametrize("count", [3, 5, 8])
def test_a_new_database_loses_nothing(count: int, target: Target, tmp_path: Path, capsys: Any) -> None:
    old, new = write(tmp_path / "old.sqlite", range(1, 6)), write(tmp_path / "new.sqlite", range(1, count + 1), hour=7)
    for records in (old, new, new):
        assert target.sync(records) == 0
    assert target.parts() == sorted(names(6, range(1, 6)) + names(7, range(1, count + 1)))
    target.check_sums()
    said = capsys.readouterr()
    assert f"{count} parts" in said.out and "0 parts" in said.out and "two stations" not in said.err


def test_two_stations_of_one_name_both_arrive_and_are_said(target: Target, tmp_path: Path, capsys: Any) -> None:
    first, second = write(tmp_path / "a.sqlite", range(1, 6)), write(tmp_path / "b.sqlite", range(1, 6), hour=5)
    assert target.sync(first) == 0 == target.sync(second)
    assert "two stations" in capsys.readouterr().err
    write(first, range(6, 8))
    write(second, range(6, 9), hour=5)
    assert target.sync(second) == 0 == target.sync(first)
    assert target.parts() == sorted(names(6, range(1, 8)) + names(5, range(1, 9)))
    target.check_sums()


def test_parts_of_the_same_moment_and_number_both_arrive(target: Target, tmp_path: Path) -> None:
    for name in ("a", "b"):
        target.sync(write(tmp_path / f"{name}.sqlite", range(1, 6)))
    assert target.parts() == sorted(names(6, range(1, 6)) * 2)


@pytest.mark.parametrize("more", [1, 3, 6])
def test_a_restored_copy_goes_on(more: int, target: Target, tmp_path: Path) -> None:
    records = write(tmp_path / "r.sqlite", range(1, 4))
    backup = shutil.copy(records, tmp_path / "backup.sqlite")
    write(records, range(4, 7))
    assert target.sync(records) == 0
    shutil.copy(backup, records)
    assert target.sync(records) == 0
    assert target.parts() == names(6, range(1, 7))
    write(records, range(4, 4 + more), hour=8)
    for _ in range(2):
        assert target.sync(records) == 0
        assert target.parts() == sorted(names(6, range(1, 7)) + names(8, range(4, 4 + more)))
    target.check_sums()


def test_sums_count_good_parts_of_a_restored_copy_once(tmp_path: Path) -> None:
    target, records = Target(tmp_path, "database"), write(tmp_path / "r.sqlite", range(1, 4))
    backup = shutil.copy(records, tmp_path / "backup.sqlite")
    write(records, range(4, 7))
    target.sync(records, "--not-ok")
    shutil.copy(backup, records)
    write(records, range(4, 10), hour=8)
    target.sync(records, "--not-ok")
    assert target.parts() == ["SN-6-3", "SN-6-6", "SN-8-6", "SN-8-9"]
    assert target.query("SELECT sum(parts) FROM visionad_hours") == [(12,)]


def test_what_was_forgotten_is_no_new_database(target: Target, tmp_path: Path) -> None:
    path = write(tmp_path / "r.sqlite", range(1, 6))
    target.sync(path)
    records = Records(path)
    records.forget("2026-11-30T06:00:05")
    records.close()
    write(path, range(6, 9))
    records = Records(path)
    records.forget("2026-11-30T06:00:07")
    records.close()
    target.sync(path)
    assert target.parts() == names(6, [1, 2, 3, 4, 5, 7, 8])


def earlier(path: Path) -> None:
    """Make a record database as an earlier release left it."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM facts WHERE name = 'database'")


@pytest.mark.parametrize("audited", [False, True])
def test_records_of_an_earlier_release_keep_their_place(audited: bool, target: Target, tmp_path: Path) -> None:
    path = write(tmp_path / "r.sqlite", range(1, 4))
    earlier(path)
    target.sync(path)
    if audited:
        with closing(sqlite3.connect(path)) as database, database:
            row = (1, "", "", "", "", "", "", "ef" * 32)
            database.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    target.sync(path)
    write(path, range(4, 6))  # this release opens it
    target.sync(path)
    assert target.parts() == names(6, range(1, 6))


def as_earlier(target: Target, path: Path) -> None:
    """Sync as an earlier release did."""
    target.sync(path)
    if target.kind == "parquet":
        for file in target.place.rglob("*.parquet"):
            file.rename(file.with_name("-".join(file.name.split("-")[-2:])))
        return
    newer = target.place.rename(target.place.with_name("newer.sqlite"))
    engine = open_engine(target.url)
    migrate(engine, "0001")
    engine.dispose()
    with closing(sqlite3.connect(target.place)) as database, database:
        database.execute("ATTACH ? AS newer", (str(newer),))
        for table in ("parts", "hours", "cursors"):
            columns = ", ".join(row[1] for row in database.execute(f"PRAGMA table_info(visionad_{table})"))
            database.execute(f"INSERT INTO visionad_{table} SELECT {columns} FROM newer.visionad_{table}")


@pytest.mark.parametrize("count", [3, 9])
def test_what_an_earlier_release_took_is_not_taken_again(count: int, target: Target, tmp_path: Path) -> None:
    path = write(tmp_path / "r.sqlite", range(1, 6))
    as_earlier(target, path)
    write(path, range(6, 8))
    other = write(tmp_path / "new.sqlite", range(1, 1 + count), hour=9)
    for records in (path, other, path, other):
        assert target.sync(records) == 0
    assert target.parts() == sorted(names(6, range(1, 8)) + names(9, range(1, 1 + count)))
    target.check_sums()


def test_a_first_sync_that_was_killed_is_repeated(tmp_path: Path) -> None:
    target, path = Target(tmp_path, "database"), write(tmp_path / "r.sqlite", range(1, 6))
    target.sync(path)
    with closing(sqlite3.connect(target.place)) as database, database:  # as a kill left it
        for table in ("visionad_cursors", "visionad_hours", "visionad_parts"):
            database.execute(f"DROP TABLE {table}")
        database.execute("DELETE FROM visionad_schema")
        database.execute(
            "CREATE TABLE visionad_parts (station TEXT, id BIGINT, time_utc DATETIME, sequence BIGINT, part TEXT, recipe BIGINT, "
            "evaluation SMALLINT, reason TEXT, latency_ms DOUBLE, bank_version BIGINT, score DOUBLE, threshold DOUBLE, bank TEXT, "
            "model TEXT, PRIMARY KEY (station, id, time_utc))"
        )
    assert target.sync(path) == 0
    assert target.parts() == names(6, range(1, 6))


def test_a_migration_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    engine = open_engine(f"sqlite:///{tmp_path}/c.sqlite")
    monkeypatch.setattr(op, "create_index", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        migrate(engine)
    monkeypatch.undo()
    with closing(sqlite3.connect(tmp_path / "c.sqlite")) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == []
    for revision in ("head", "base", "head"):
        migrate(engine, revision)
    engine.dispose()


@pytest.mark.parametrize(
    "column, value",
    [
        ("time_utc", "yesterday"),
        ("time_utc", "9999-13-01"),
        ("latency_ms", "fast"),
        ("recipe", "x"),
        ("evaluation", 99999),
    ],
)
def test_a_damaged_row_is_left_out_and_said(
    column: str, value: object, target: Target, tmp_path: Path, capsys: Any
) -> None:
    path = write(tmp_path / "r.sqlite", range(1, 6))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE parts SET {column} = ? WHERE id = 2", (value,))
    assert target.sync(path) == 0
    said = capsys.readouterr()
    assert "4 parts" in said.out and "1 rows are damaged" in said.err and "Traceback" not in said.err
    write(path, [6])
    assert target.sync(path) == 0
    assert target.parts() == names(6, [1, 3, 4, 5, 6])


def test_migrations_go_up_and_down_with_rows(tmp_path: Path) -> None:
    target = Target(tmp_path, "database")
    for name in ("a", "b"):  # the same numbers and times
        target.sync(write(tmp_path / f"{name}.sqlite", range(1, 6)))
    engine = open_engine(target.url)
    for revision in ("base", "head"):
        migrate(engine, revision)
    engine.dispose()
    assert target.sync(tmp_path / "a.sqlite") == 0
    assert target.parts() == names(6, range(1, 6))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_database_in_memory_is_refused(url: str, tmp_path: Path, capsys: Any) -> None:
    assert run(["sync", str(write(tmp_path / "r.sqlite", [1])), url]) == 2
    assert "in memory" in capsys.readouterr().err
