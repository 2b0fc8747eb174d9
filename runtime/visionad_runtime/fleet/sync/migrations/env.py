"""Alembic's entry: it runs the migrations on the connection that it is given."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], version_table="visionad_schema", transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
