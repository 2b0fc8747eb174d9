"""Parts of all stations, sums by hour, and how far each station was synced."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
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
    op.create_table(
        "visionad_hours",
        sa.Column("station", sa.Text, primary_key=True),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("recipe", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("evaluation", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("parts", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "visionad_cursors",
        sa.Column("station", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("visionad_cursors", "visionad_hours", "visionad_parts"):
        op.drop_table(table)
