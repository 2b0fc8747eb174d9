"""Parts of all stations, sums by hour, and how far each station was synced."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables. A first sync into SQLite that an earlier release began, and was killed, has left some of them."""
    there = sa.inspect(op.get_bind()).get_table_names()
    if "visionad_parts" not in there:
        _make_parts()
    elif not sa.inspect(op.get_bind()).get_indexes("visionad_parts"):
        op.create_index("visionad_parts_time", "visionad_parts", ["time_utc"])
    if "visionad_hours" not in there:
        _make_hours()
    if "visionad_cursors" not in there:
        _make_cursors()


def _make_parts() -> None:
    op.create_table(
        "visionad_parts",
        sa.Column("station", sa.Text, primary_key=True),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        # A station that began a new database counts from 1 again.
        sa.Column("time_utc", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("part", sa.Text, nullable=False),
        sa.Column("recipe", sa.BigInteger, nullable=False),
        sa.Column("evaluation", sa.SmallInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("latency_ms", sa.Double),
        sa.Column("bank_version", sa.BigInteger),
        sa.Column("score", sa.Double),
        sa.Column("threshold", sa.Double),
        sa.Column("bank", sa.Text),
        sa.Column("model", sa.Text),
    )
    op.create_index("visionad_parts_time", "visionad_parts", ["time_utc"])


def _make_hours() -> None:
    op.create_table(
        "visionad_hours",
        sa.Column("station", sa.Text, primary_key=True),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("recipe", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("evaluation", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("parts", sa.BigInteger, nullable=False),
    )


def _make_cursors() -> None:
    op.create_table(
        "visionad_cursors",
        sa.Column("station", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("visionad_cursors", "visionad_hours", "visionad_parts"):
        op.drop_table(table)
