"""Records in a database, by SQLAlchemy: rows and cursor in one transaction, so each record stands there once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import VisionADError
from .records import OK, StationRecords

MIGRATIONS = Path(__file__).with_name("migrations")


def sync_database(
    records: StationRecords, url: str, station: str, *, not_ok: bool, step: Callable[[int], None] = lambda _: None
) -> int:
    """Bring the parts that a database lacks into it. A repeat changes nothing.

    Args:
        records: of the station.
        url: of the database, such as ``postgresql://user@host/name``.
        station: name of the station, unique in the database.
        not_ok: whether rows of good parts are left out. All parts are counted by hour in ``visionad_hours``.
        step: called with the number of parts of each transaction.

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
    count = 0
    try:
        migrate(engine)
        tables = sa.MetaData()
        tables.reflect(engine, only=["visionad_parts", "visionad_hours", "visionad_cursors"])
        parts, hours, cursors = (tables.tables[f"visionad_{name}"] for name in ("parts", "hours", "cursors"))
        insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        with engine.begin() as connection:
            connection.execute(insert(cursors).values(station=station, position=0).on_conflict_do_nothing())
        query = sa.select(cursors.c.position).where(cursors.c.station == station)
        with engine.connect() as connection:
            after = int(connection.execute(query).scalar_one())
        if after > records.last():  # the station began a new database
            after = 0
        for batch in records.batches(after):
            with engine.begin() as connection:
                # The lock makes a second sync of the station wait; it then finds that the batch was taken.
                held = int(connection.execute(query.with_for_update()).scalar_one())
                if held != after:
                    raise VisionADError(f"station {station} is being synced by another process; run one at a time")
                rows = [_row(station, row) for row in batch if not (not_ok and row["evaluation"] == OK)]
                if rows:
                    connection.execute(insert(parts).on_conflict_do_nothing(), rows)
                _count(connection, insert, hours, station, batch)
                after = int(batch[-1]["cursor"])
                change = sa.update(cursors).where(cursors.c.station == station).values(position=after)
                connection.execute(change)
            count += len(batch)
            step(len(batch))
    except sa.exc.SQLAlchemyError as exc:
        raise VisionADError(
            f"{engine.url.render_as_string(hide_password=True)}: {' '.join(str(exc.__cause__ or exc).split())[:300]}; what was "
            "committed stays: run again"
        ) from None
    finally:
        engine.dispose()
    return count


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
        return sa.create_engine(url)
    except (sa.exc.ArgumentError, ModuleNotFoundError) as exc:
        raise VisionADError(
            f"{scheme}://…: expected the URL of a database: {' '.join(str(exc).split())[:200]}"
        ) from None


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
        config.attributes["connection"] = connection
        if revision == "base":
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)


def _row(station: str, row: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in row.items() if name != "cursor"}
    return {**values, "station": station, "time_utc": as_time(row["time_utc"])}


def as_time(text: str) -> datetime:
    """Return a record's time, in UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _count(connection: Any, insert: Any, hours: Any, station: str, batch: Sequence[dict[str, Any]]) -> None:
    sums = Counter(
        (as_time(row["time_utc"]).replace(minute=0, second=0, microsecond=0), row["recipe"], row["evaluation"])
        for row in batch
    )
    values = [
        {"station": station, "hour": hour, "recipe": recipe, "evaluation": evaluation, "parts": n}
        for (hour, recipe, evaluation), n in sorted(sums.items())
    ]
    statement = insert(hours)
    keys = ["station", "hour", "recipe", "evaluation"]
    added = {"parts": hours.c.parts + statement.excluded.parts}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=added), values)
