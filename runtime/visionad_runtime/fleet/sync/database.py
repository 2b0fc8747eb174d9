"""Records in a database, by SQLAlchemy: rows and cursor in one transaction, so each record stands there once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ...errors import VisionADError
from .records import OK, StationRecords, Taken, as_time, two_stations

MIGRATIONS = Path(__file__).with_name("migrations")
UNNAMED = ""
"""Record database of rows that an earlier release took."""


def sync_database(
    records: StationRecords,
    url: str,
    station: str,
    *,
    not_ok: bool,
    step: Callable[[int], None] = lambda _: None,
    note: Callable[[str], object] = lambda _: None,
) -> int:
    """Bring the parts that a database lacks into it. A repeat changes nothing.

    Args:
        records: of the station.
        url: of the database, such as ``postgresql://user@host/name``.
        station: name of the station, unique in the database.
        not_ok: whether rows of good parts are left out. All parts are counted by hour in ``visionad_hours``.
        step: called with the number of parts of each transaction.
        note: called with what a person must know, in a line.

    Returns:
        Number of parts that were taken.

    Raises:
        VisionADError: SQLAlchemy is not installed, or the database cannot be used.
    """
    try:
        import sqlalchemy as sa
        from sqlalchemy.dialects import postgresql, sqlite
    except ModuleNotFoundError as exc:
        raise VisionADError(f"{url} takes {exc.name}: pip install 'visionad[sql]'") from None
    engine = open_engine(url)
    shown = engine.url.render_as_string(hide_password=True)
    count = 0
    try:
        migrate(engine)
        tables = sa.MetaData()
        tables.reflect(engine, only=["visionad_parts", "visionad_hours", "visionad_cursors"])
        parts, hours, cursors = (tables.tables[f"visionad_{name}"] for name in ("parts", "hours", "cursors"))
        insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        with engine.begin() as connection:
            held = {
                row.database: Taken(int(row.position), as_time(row.newest))
                for row in connection.execute(sa.select(cursors).where(cursors.c.station == station))
            }
            database = records.identity(held)
            if database is None:
                return 0
            others = [taken.newest for name, taken in held.items() if name != database]
            if said := two_stations(station, shown, others, records.first_time()):
                note(said)
            taken = held.get(database)
            if taken is None:
                taken = _of_earlier_release(connection, parts, records, station, held.get(UNNAMED), not_ok=not_ok)
                row = {
                    "station": station,
                    "database": database,
                    "position": taken.position,
                    "newest": _text(taken.newest),
                }
                connection.execute(insert(cursors).values(row).on_conflict_do_nothing())
        mine = sa.and_(cursors.c.station == station, cursors.c.database == database)
        query = sa.select(cursors.c.position).where(mine)
        position, newest = taken
        for batch in records.batches(records.resume(taken)):
            with engine.begin() as connection:
                # The lock makes a second sync of the station wait; it then finds that the batch was taken.
                if int(connection.execute(query.with_for_update()).scalar_one()) != position:
                    raise VisionADError(f"station {station} is being synced by another process; run one at a time")
                rows = [_row(station, database, row) for row in batch.rows if not (not_ok and row["evaluation"] == OK)]
                if rows:
                    connection.execute(insert(parts).on_conflict_do_nothing(), rows)
                if batch.rows:
                    _count(connection, insert, hours, station, batch.rows)
                position = batch.end
                newest = max((time for time in (newest, batch.newest) if time is not None), default=None)
                change = sa.update(cursors).where(mine).values(position=position, newest=_text(newest))
                connection.execute(change)
            count += len(batch.rows)
            step(len(batch.rows))
    except sa.exc.SQLAlchemyError as exc:
        raise VisionADError(
            f"{shown}: {' '.join(str(exc.__cause__ or exc).split())[:300]}; what was committed stays: run again"
        ) from None
    finally:
        engine.dispose()
    return count


def _of_earlier_release(
    connection: Any, parts: Any, records: StationRecords, station: str, taken: Taken | None, *, not_ok: bool
) -> Taken:
    """Return how far an earlier release took these records: it did not name the database that it took.

    Args:
        connection: to the database.
        parts: its table.
        records: of the station.
        station: its name.
        taken: how far some records of this name were taken; ``None`` for none.
        not_ok: whether rows of good parts are left out.
    """
    import sqlalchemy as sa

    if taken is None or not taken.position:
        return Taken(0, None)
    sample, last = records.sample(taken.position, not_ok=not_ok), records.last()
    query = sa.select(parts.c.id, parts.c.time_utc).where(
        parts.c.station == station, parts.c.database == UNNAMED, parts.c.id.in_([number for number, _ in sample])
    )
    there = {(row.id, as_time(row.time_utc)) for row in connection.execute(query)}
    matched = [time for number, time in sample if (number, time) in there]
    if matched and taken.position > last:  # a restored copy
        return Taken(taken.position, max(matched))
    if matched or (not sample and taken.position <= last):
        return Taken(taken.position, max((time for _, time in sample), default=None))
    return Taken(0, None)


def open_engine(url: str) -> Any:
    """Return SQLAlchemy's engine for a URL. ``postgresql://`` takes the driver psycopg.

    Raises:
        VisionADError: The URL is malformed or its driver is not installed.
    """
    import sqlalchemy as sa

    scheme, separator, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        url = f"postgresql+psycopg{separator}{rest}"
    try:
        parsed = sa.make_url(url)
        memory = parsed.get_backend_name() == "sqlite" and (
            not parsed.database or ":memory:" in parsed.database or parsed.query.get("mode") == "memory"
        )
        engine = None if memory else sa.create_engine(parsed)
    except (sa.exc.ArgumentError, ModuleNotFoundError) as exc:
        raise VisionADError(
            f"{scheme}://…: expected the URL of a database: {' '.join(str(exc).split())[:200]}"
        ) from None
    if engine is None:
        raise VisionADError(f"{url}: expected a database that stays, got one in memory; such as sqlite:///parts.sqlite")
    return engine


def migrate(engine: Any, revision: str = "head") -> None:
    """Bring the database's tables to a revision, up or down (``base`` drops them).

    Args:
        engine: of :func:`open_engine`.
        revision: name of a migration, ``head`` or ``base``.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # one process migrates, the others wait
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7262026)")
        elif engine.dialect.name == "sqlite":  # the driver begins no transaction for tables
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        if revision == "base":
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)


def _row(station: str, database: str, row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "cursor"} | {"station": station, "database": database}


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _count(connection: Any, insert: Any, hours: Any, station: str, batch: Sequence[dict[str, Any]]) -> None:
    sums = Counter(
        (row["time_utc"].replace(minute=0, second=0, microsecond=0), row["recipe"], row["evaluation"]) for row in batch
    )
    values = [
        {"station": station, "hour": hour, "recipe": recipe, "evaluation": evaluation, "parts": n}
        for (hour, recipe, evaluation), n in sorted(sums.items())
    ]
    statement = insert(hours)
    keys = ["station", "hour", "recipe", "evaluation"]
    added = {"parts": hours.c.parts + statement.excluded.parts}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=added), values)
