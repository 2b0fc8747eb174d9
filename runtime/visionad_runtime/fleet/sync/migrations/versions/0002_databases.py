"""Record databases of a station apart: a station that begins a new one counts its parts from 1 again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the database to the keys; rows of earlier releases have none. Add the newest time that was taken."""
    database = sa.Column("database", sa.Text, nullable=False, server_default="")
    _rekey("visionad_parts", ["station", "database", "id", "time_utc"], add=[database])
    newest = sa.Column("newest", sa.Text)
    _rekey("visionad_cursors", ["station", "database"], add=[database, newest])


def downgrade() -> None:
    """Forget the databases. A sync of an earlier release goes on behind the farthest."""
    op.execute(
        "DELETE FROM visionad_cursors WHERE EXISTS (SELECT 1 FROM visionad_cursors AS other WHERE other.station = "
        "visionad_cursors.station AND (other.position > visionad_cursors.position OR (other.position = "
        "visionad_cursors.position AND other.database > visionad_cursors.database)))"
    )
    op.execute(
        "DELETE FROM visionad_parts WHERE EXISTS (SELECT 1 FROM visionad_parts AS other WHERE other.station = "
        "visionad_parts.station AND other.id = visionad_parts.id AND other.time_utc = visionad_parts.time_utc AND "
        "other.database > visionad_parts.database)"
    )
    _rekey("visionad_cursors", ["station"], drop=["database", "newest"])
    _rekey("visionad_parts", ["station", "id", "time_utc"], drop=["database"])


def _rekey(table: str, keys: list[str], add: list[sa.Column] = (), drop: list[str] = ()) -> None:  # type: ignore[assignment,type-arg]
    """Give a table other columns and another primary key. All rows stay."""
    if op.get_bind().dialect.name == "sqlite":  # it cannot change a key
        _remake(table, keys, add, drop)
        return
    op.drop_constraint(f"{table}_pkey", table, type_="primary")
    for column in add:
        op.add_column(table, column)
    for name in drop:
        op.drop_column(table, name)
    op.create_primary_key(f"{table}_pkey", table, keys)


def _remake(table: str, keys: list[str], add: list[sa.Column], drop: list[str]) -> None:  # type: ignore[type-arg]
    held = sa.Table(table, sa.MetaData(), autoload_with=op.get_bind())
    kept = [column for column in held.columns if column.name not in drop]
    indexes = [(str(index.name), [column.name for column in index.columns]) for index in held.indexes]
    columns = [
        sa.Column(
            one.name,
            one.type,
            primary_key=one.name in keys,
            nullable=one.nullable,
            server_default=one.server_default,
            autoincrement=False,
        )
        for one in (*kept, *add)
    ]
    for name, _ in indexes:
        op.drop_index(name, table)
    op.rename_table(table, f"{table}_old")
    op.create_table(table, *columns)
    names = ", ".join(column.name for column in kept)
    op.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM {table}_old")
    op.drop_table(f"{table}_old")
    for name, on in indexes:
        op.create_index(name, table, on)
