"""Migrations of the central database, for Alembic."""
